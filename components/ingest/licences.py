"""Which licences let a video be used."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase


def refusal(licence: str | None, allowed: Sequence[str], refused: Sequence[str]) -> str | None:
    """Why a licence does not let a video be used; None when it does.

    Names are compared without regard to case and outer spaces; ``*`` stands for anything (``CC-BY-*``). What is refused
    stays refused when it is allowed too.

    Args:
        licence: its name, as an SPDX identifier for example; None when nobody says.
        allowed: if there are any, no other licence is.
        refused: not to be used.
    """
    if licence is not None and _is_among(licence, refused):
        return f"{licence} is refused"
    if not allowed:
        return None
    if licence is None:
        return "none is named, and only some are allowed"
    return None if _is_among(licence, allowed) else f"{licence} is not among those allowed"


def _is_among(licence: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(licence.strip().casefold(), pattern.strip().casefold()) for pattern in patterns)
