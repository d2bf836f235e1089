"""Names of jobs, derived from what they compute: equal inputs find one another's job."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from ..errors import ConfigError

_LABEL = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
Labels = dict[
    Annotated[str, Field(pattern=rf"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?{_LABEL}$")],
    Annotated[str, Field(pattern=rf"^({_LABEL})?$")],
]  # as Kubernetes takes them
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]  # of an object

KEY_LABEL = "svdflow/key"  # of the inputs: the label by which all attempts are found
ATTEMPT_LABEL = "svdflow/attempt"
_KEY_DIGITS = 16
_LONGEST = 42  # what children add to a job's name has to fit into a label of 63: -launcher-0-0-<5>, -node-0-<index>-<5>


def short_key(key: str) -> str:
    """As much of an identity as a name and a label carry: 64 bits."""
    return key[:_KEY_DIGITS]


def job_name(what: str, key: str, attempt: int = 1) -> str:
    """The name of an attempt: ``what``, the inputs' identity and, after the first attempt, its number.

    Args:
        what: kind of work, as "train-video"; lower-case words with dashes.
        key: identity of the inputs (``common.identity``).
        attempt: from 1.

    Raises:
        ConfigError: the name is none that Kubernetes takes.
    """
    name = f"{what.replace('_', '-')}-{short_key(key)}" + (f"-{attempt}" if attempt > 1 else "")
    if len(name) > _LONGEST or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise ConfigError(f"{name!r} is no name for a job: lower-case letters, digits and dashes, at most {_LONGEST}")
    return name
