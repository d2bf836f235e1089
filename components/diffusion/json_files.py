"""JSON files of a model directory. Loads nothing heavy: cards are read where torch is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..common.errors import BadInputError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model directory.

    Raises:
        BadInputError: it is missing, unreadable or no object.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadInputError(f"{path}: missing; this is no complete model directory") from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: unreadable ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise BadInputError(f"{path}: holds no JSON object")
    return values
