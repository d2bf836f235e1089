"""Where the sample footage lies that `make setup` takes out of registry packages."""

from __future__ import annotations

import os
from pathlib import Path

from svdflow.common.errors import BadInputError


def samples_directory() -> Path:
    """The directory of the sample clips.

    Raises:
        BadInputError: they were not fetched.
    """
    place = Path(os.environ.get("SVDFLOW_SAMPLES") or Path.cwd() / ".cache" / "media")
    if not place.is_dir():
        raise BadInputError(
            f"{place}: the sample footage is not there; run `make setup`, or name a folder of videos with --source"
        )
    return place
