"""Hold manifests against their expectations, and write the page and the failing rows that show how it went."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...common.errors import ConfigError, ValidationFailed
from ...common.files import write_atomic
from ...common.identity import file_sha256, identity
from ...common.manifests import SCHEMAS
from ...common.report import StepReport, table
from ...common.storage import DataRoot
from . import drift
from .expectations import Expectations
from .findings import failing_rows, make_report
from .links import LINKS
from .page import render
from .settings import ValidateSettings
from .structure import COLUMNS, READABLE, TYPES, batches, faults_of_file
from .suites import SUITES, expected_sound

VERSION = "3"
SAME_MAKERS = "axes are measured as in the previous version"
_NAMED_IN_REFUSAL = 6


@dataclass(frozen=True)
class Written:
    """Where a validation is written to.

    Attributes:
        page: the HTML page.
        failing: the broken rows, as JSON lines; empty when all is well.
    """

    page: Path
    failing: Path


def shift_name(axis: str) -> str:
    """The expectation that an axis has not drifted."""
    return f"{axis} is distributed as in the previous version"


def validate_manifests(manifests: Mapping[str, Path], out: Written, settings: ValidateSettings) -> StepReport:
    """Validate and refuse: ``check_manifests`` and then ``require_valid``.

    Raises:
        ValidationFailed: a hard expectation is broken; page and failing rows are written before.
    """
    report = check_manifests(manifests, out, settings)
    require_valid(report)
    return report


def check_once(
    manifests: Mapping[str, Path], out: Written, root: DataRoot, settings: ValidateSettings, dataset: str = ""
) -> StepReport:
    """``check_manifests``, with the result kept in the data root: equal manifests are checked once.

    Args:
        manifests: kind to Parquet file.
        out: what to write.
        root: keeps the results, and the aggregates of what was found valid last under each dataset's name.
        settings: how.
        dataset: the name of the dataset that these manifests are to become a version of; "" compares with nothing,
            unless ``settings.previous`` names manifests.
    """
    content = {kind: file_sha256(path) if path.is_file() else "" for kind, path in manifests.items()}
    compared = next((kind for kind in drift.KINDS if content.get(kind)), None)
    previous: Mapping[str, Any] | None = None
    if compared and settings.previous:
        previous = describe_previous(Path(settings.previous), compared)
    elif compared and dataset:
        previous = drift.find_previous(root, dataset, compared, content[compared])
    against = previous and identity(axes=previous["axes"], made_by=previous["made_by"])
    key = identity(version=VERSION, manifests=content, settings=settings.asked(), previous=against)
    if found := root.find("validate", key):
        report = StepReport.from_json(root.read(found["report"]))
        report.done, report.reused = 0, report.done
        write_atomic(out.page, root.read(found["page"]))
        write_atomic(out.failing, root.read(found["failing"]))
    else:
        report = check_manifests(manifests, out, settings, previous)
        found = {
            "report": root.put_bytes(report.to_json()),
            "page": root.put_file(out.page),
            "failing": root.put_file(out.failing),
        }
        root.record("validate", key, found)
    if dataset and "selection" in content and not report.summary["validation"]["broken"]:
        _become_previous(manifests, content, root, dataset)
    return report


def require_valid(report: StepReport) -> None:
    """Raise when a report of ``check_manifests`` has a broken hard expectation.

    Raises:
        ValidationFailed: names the broken expectations and how many rows break each, in one line.
    """
    broken = report.summary["validation"]["broken"]
    if not broken:
        return
    named = "; ".join(f"{b['manifest']}: {b['expectation']} ({_rows(b['rows'])})" for b in broken[:_NAMED_IN_REFUSAL])
    if more := len(broken) - _NAMED_IN_REFUSAL:
        named += f"; and {more} more" if more > 0 else ""
    count = "1 hard expectation is" if len(broken) == 1 else f"{len(broken)} hard expectations are"
    raise ValidationFailed(f"{count} broken: {named}; the validation page and the failing rows beside it show them")


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def check_manifests(
    manifests: Mapping[str, Path], out: Written, settings: ValidateSettings, previous: Mapping[str, Any] | None = None
) -> StepReport:
    """Hold each manifest against its suite, and all against one another; write the page and the failing rows.

    Args:
        manifests: kind to Parquet file; links between manifests are checked where both are given.
        out: what to write.
        settings: how.
        previous: what ``drift.describe`` said of the previous version's selection (when one is given here) or
            annotations.

    Raises:
        ConfigError: a name in ``only_warn`` or ``also_stop``, or a kind of manifest, does not exist.
    """
    _require_known(manifests, settings)
    expectations = Expectations(settings)
    sound: dict[str, Path] = {}
    rows: dict[str, int] = {}
    for kind, path in manifests.items():
        structure = faults_of_file(kind, path)
        if not any(structure.values()):
            sound[kind] = path
            rows[kind] = pq.ParquetFile(path).metadata.num_rows
        for name, faults in structure.items():
            expectations.fact(kind, name, len(faults), [{"fault": fault} for fault in faults])
    for kind, path in sound.items():
        for batch in batches(kind, path, settings.batch_rows):
            expectations.rows(kind, expected_sound(kind, batch))
    with _opened(sound, settings.memory_limit) as connection:
        _check_links(expectations, connection, sound, settings.rows_kept)
        shifts = _check_drift(expectations, connection, sound, previous, settings)
    findings = expectations.findings(manifests)
    report = make_report(manifests, rows, findings)
    _show_shifts(report, shifts)
    write_atomic(out.page, render(manifests, rows, findings, shifts, report.versions).encode())
    write_atomic(out.failing, failing_rows(findings))
    return report


def _require_known(manifests: Mapping[str, Path], settings: ValidateSettings) -> None:
    if unknown := set(manifests) - set(SCHEMAS):
        raise ConfigError(f"no such kind of manifest: {sorted(unknown)}; there are {sorted(SCHEMAS)}")
    known = {e.name for suite in SUITES.values() for e in suite} | {link.name for link in LINKS}
    known |= {READABLE, COLUMNS, TYPES, SAME_MAKERS, *map(shift_name, drift.ALL_AXES)}
    for setting in ("only_warn", "also_stop"):
        if wrong := set(getattr(settings, setting)) - known:
            raise ConfigError(f"validate.{setting}: no expectation is called {sorted(wrong)[0]!r}; the page lists them")


@contextmanager
def _opened(files: Mapping[str, Path], memory_limit: str) -> Iterator[Any]:
    """A DuckDB connection with the manifests as views, which spills to disk beyond its limit."""
    import duckdb

    with tempfile.TemporaryDirectory(prefix="svdflow-validate-") as scratch, duckdb.connect() as connection:
        connection.execute("SET memory_limit = ?", [memory_limit])
        connection.execute("SET temp_directory = ?", [scratch])
        connection.execute("SET threads = 2")
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET enable_progress_bar = false")  # it would write into the output of a step
        for kind, path in files.items():
            link = Path(scratch) / f"{kind}.parquet"  # DuckDB would take a * in the real name for a pattern
            link.symlink_to(path.resolve())
            connection.read_parquet(str(link)).create_view(kind)
        yield connection


def _check_links(expectations: Expectations, connection: Any, sound: Mapping[str, Path], kept: int) -> None:
    for link in LINKS:
        if not all(kind in sound for kind in link.needs):
            continue
        count = int(connection.execute(f"SELECT count(*) FROM ({link.broken})").fetchone()[0])
        rows: list[dict[str, Any]] = []
        if count:
            cursor = connection.execute(f"SELECT * FROM ({link.broken}) ORDER BY ALL LIMIT {kept}")
            names = [column[0] for column in cursor.description or []]
            rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        expectations.fact(link.manifest, link.name, count, rows, link.severity)


def _check_drift(
    expectations: Expectations,
    connection: Any,
    sound: Mapping[str, Path],
    previous: Mapping[str, Any] | None,
    settings: ValidateSettings,
) -> list[drift.Shift]:
    kind = next((kind for kind in drift.KINDS if kind in sound), None)
    if previous is None or kind is None:
        return []
    severity = "critical" if settings.drift_stops else "warning"
    now = drift.describe(connection, kind, drift.edges_of(previous))
    shifts = drift.compare(previous, now, settings.drift_psi)
    for shift in shifts:
        name, before, after = shift_name(shift.axis), shift.before, shift.after
        row = {
            "axis": shift.axis, "psi": shift.psi, "limit": shift.limit, "median before": before.median,
            "median now": after.median, "clips before": before.rows, "clips now": after.rows,
            "missing before": before.missing, "missing now": after.missing,
        }  # fmt: skip
        expectations.fact(kind, name, int(shift.shifted), [row] if shift.shifted else [], severity)
    if kind == "annotations":
        others = drift.made_otherwise(previous["made_by"], now["made_by"])
        expectations.fact(kind, SAME_MAKERS, len(others), list(others), severity)
    return shifts


def _show_shifts(report: StepReport, shifts: list[drift.Shift]) -> None:
    if not shifts:
        return
    rows = [
        [s.axis, s.before.rows, s.after.rows, s.before.median, s.after.median, s.psi, s.limit,
         "shifted" if s.shifted else ""]
        for s in shifts
    ]  # fmt: skip
    columns = ["axis", "clips before", "clips now", "median before", "median now", "PSI", "limit", ""]
    note = "PSI: population stability index over the deciles of the previous version; the limit allows for chance."
    report.sections.append(table("Shift since the previous version", columns, rows, note))
    report.summary["validation"]["shift"] = {s.axis: {"psi": s.psi, "limit": s.limit} for s in shifts}


def describe_previous(place: Path, kind: str) -> dict[str, Any]:
    """The aggregate of a version that lies somewhere, of this schema or an older one.

    Args:
        place: a pulled dataset's directory, or a directory of manifests.
        kind: "annotations" or "selection".

    Raises:
        ConfigError: there is no such manifest, or it cannot be read.
    """
    places = (place / "manifests" / f"{kind}.parquet", place / f"{kind}.parquet")
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise ConfigError(
            f"validate.previous: {place} holds no {kind} manifest; name the directory of a pulled dataset version "
            "(svdflow data pull), or a directory of manifests"
        )
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"validate.previous: {path} is no Parquet file: {error}") from error
    needed = {"clip_id", "keep"} if kind == "selection" else {"clip_id", "motion_unit", "annotators"}
    if lacking := needed - set(names):
        raise ConfigError(f"validate.previous: {path} is no {kind} manifest: it has no column {sorted(lacking)[0]}")
    with _opened({kind: path}, ValidateSettings().memory_limit) as connection:
        return drift.describe(connection, kind)


def _become_previous(manifests: Mapping[str, Path], content: Mapping[str, str], root: DataRoot, dataset: str) -> None:
    for kind in drift.KINDS:
        if kind in content and drift.is_new(root, dataset, kind, content[kind]):
            with _opened({kind: manifests[kind]}, ValidateSettings().memory_limit) as connection:
                described = drift.describe(connection, kind)
            drift.keep_as_previous(root, dataset, kind, content[kind], described)
