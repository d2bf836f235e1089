"""Settings of the validate step; all ours, the paper is silent."""

from __future__ import annotations

from pydantic import Field

from ...common.config import Settings


class ValidateSettings(Settings):
    """How manifests are held against their expectations."""

    rows_shown: int = Field(8, ge=1, le=100)  # broken rows shown per expectation
    batch_rows: int = Field(1_000_000, ge=1)  # rows that Great Expectations holds at a time
    only_warn: tuple[str, ...] = ()  # names of expectations that shall not stop a run
