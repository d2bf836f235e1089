"""Settings of the validate steps; all ours, the paper is silent."""

from __future__ import annotations

from pydantic import Field

from ...common.config import Settings


class ValidateSettings(Settings):
    """How manifests are held against their expectations."""

    only_warn: tuple[str, ...] = ()  # names of hard expectations that shall not stop a run
    also_stop: tuple[str, ...] = ()  # names of soft expectations that shall stop one

    previous: str = ""  # directory of a pulled version to compare with; "": what was found valid last
    drift_psi: float = Field(0.2, gt=0)  # population stability index beyond which an axis has shifted
    drift_stops: bool = False  # whether a shifted axis stops a run

    rows_shown: int = Field(8, ge=1, le=100)  # broken rows per expectation on the page
    rows_kept: int = Field(200, ge=1, le=10_000)  # broken rows per expectation in the file of failing rows
    batch_rows: int = Field(50_000, ge=1)  # rows that Great Expectations holds at a time
    memory_limit: str = "256MB"  # of DuckDB, which spills to disk beyond it; neither changes results

    def asked(self) -> dict[str, object]:
        """What changes the result."""
        return self.model_dump(mode="json", exclude={"batch_rows", "memory_limit", "previous"})
