"""Hold manifests against their expectations and write the page that shows how it went."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from ...common.errors import ConfigError, ValidationFailed
from ...common.identity import file_sha256, identity
from ...common.manifests import SCHEMAS
from ...common.report import StepReport, table
from ...common.storage import DataRoot, write_atomic
from .links import LINKS
from .page import render
from .settings import ValidateSettings
from .suites import KEYS, SUITES, frame_of

VERSION = "1"
READABLE = "the manifest can be read"
COLUMNS = "columns are the declared ones"
TYPES = "types are the declared ones"


@dataclass
class Finding:
    """How one expectation fared.

    Attributes:
        manifest: whose expectation it is.
        name: what should hold.
        severity: "critical" or "warning".
        broken: rows (or facts) that break it.
        shown: some of them, as columns to values.
        why: a sentence, where there are no rows to show.
    """

    manifest: str
    name: str
    severity: str
    broken: int = 0
    shown: list[dict[str, Any]] = field(default_factory=list)
    why: str = ""

    @property
    def held(self) -> bool:
        """Whether the expectation held."""
        return self.broken == 0

    @property
    def columns(self) -> list[str]:
        """Columns of the rows shown, in the order in which they come."""
        return list(dict.fromkeys(name for row in self.shown for name in row))


def validate_manifests(manifests: Mapping[str, Path], page: Path, settings: ValidateSettings) -> StepReport:
    """Validate and refuse: ``check_manifests`` and then ``require_valid``.

    Raises:
        ValidationFailed: a critical expectation is broken; the page is written before.
    """
    report = check_manifests(manifests, page, settings)
    require_valid(report)
    return report


def check_once(manifests: Mapping[str, Path], page: Path, root: DataRoot, settings: ValidateSettings) -> StepReport:
    """``check_manifests``, with the result kept in the data root: equal manifests are checked once."""
    content = {kind: file_sha256(path) for kind, path in manifests.items()}
    key = identity(version=VERSION, manifests=content, settings=settings)
    found = root.find("validate", key)
    if found is None:
        report = check_manifests(manifests, page, settings)
        found = {"report": root.put_bytes(report.to_json()), "page": root.put_file(page)}
        root.record("validate", key, found)
        return report
    report = StepReport.from_json(root.read(found["report"]))
    report.done, report.reused = 0, report.done
    write_atomic(page, root.read(found["page"]))
    return report


def require_valid(report: StepReport) -> None:
    """Raise when a report of ``check_manifests`` has a broken critical expectation.

    Raises:
        ValidationFailed: names the broken expectations and how many rows break each.
    """
    broken = report.summary["validation"]["broken"]
    if broken:
        named = "; ".join(
            f"{b['manifest']}: {b['expectation']} ({b['rows']} {'row' if b['rows'] == 1 else 'rows'})" for b in broken
        )
        raise ValidationFailed(f"{len(broken)} expectations are broken: {named}; the validation page shows the rows")


def check_manifests(manifests: Mapping[str, Path], page: Path, settings: ValidateSettings) -> StepReport:
    """Hold each manifest against its suite, and all against one another; write one self-contained page.

    Args:
        manifests: kind to Parquet file; links between manifests are checked where both are given.
        page: the HTML file to write.
        settings: how.

    Raises:
        ConfigError: ``only_warn`` or ``manifests`` names what there is not.
    """
    if unknown := set(manifests) - set(SCHEMAS):
        raise ConfigError(f"no such kind of manifest: {sorted(unknown)}; there are {sorted(SCHEMAS)}")
    known = (
        {e.name for suite in SUITES.values() for e in suite}
        | {link.name for link in LINKS}
        | {READABLE, COLUMNS, TYPES}
    )
    if unknown := set(settings.only_warn) - known:
        raise ConfigError(f"validate.only_warn: no expectation is called {sorted(unknown)[0]!r}")
    great = _Checker(settings)
    sound: dict[str, Path] = {}
    rows: dict[str, int] = {}
    for kind, path in manifests.items():
        structure = _structure(kind, Path(path))
        if not any(structure.values()):
            sound[kind] = Path(path)
            rows[kind] = pq.ParquetFile(path).metadata.num_rows
        for name, faults in structure.items():
            great.fact(kind, name, len(faults), [{"fault": fault} for fault in faults])
    for kind, path in sound.items():
        for batch in _batches(kind, path, settings.batch_rows):
            great.rows(kind, frame_of(kind, batch))
    _check_links(great, sound, settings.rows_shown)
    findings = great.findings()
    report = _report(manifests, rows, findings)
    write_atomic(page, render(manifests, rows, findings, report.versions).encode())
    return report


def _structure(kind: str, path: Path) -> dict[str, list[str]]:
    """Faults of a file before any row is read, by expectation."""
    schema = SCHEMAS[kind]
    found: dict[str, list[str]] = {READABLE: [], COLUMNS: [], TYPES: []}
    try:
        actual = pq.read_schema(path)
    except FileNotFoundError:
        found[READABLE].append("there is no such file; run the step that writes it")
        return found
    except (pa.ArrowInvalid, OSError) as error:
        found[READABLE].append(f"it is no Parquet file: {error}")
        return found
    if actual.names != schema.names:
        found[COLUMNS] += [f"{name} is missing" for name in schema.names if name not in actual.names]
        found[COLUMNS] += [f"{name} is not declared" for name in actual.names if name not in schema.names]
        found[COLUMNS] += [] if found[COLUMNS] else ["the order differs"]
        return found
    found[TYPES] = [
        f"{f.name} is {actual.field(f.name).type}, declared is {f.type}"
        for f in schema
        if not _same(actual.field(f.name).type, f.type)
    ]
    return found


def _same(actual: pa.DataType, declared: pa.DataType) -> bool:
    if pa.types.is_list(actual) and pa.types.is_list(declared):
        return _same(actual.value_type, declared.value_type)  # the name of the inner field does not matter
    if pa.types.is_fixed_size_list(actual) and pa.types.is_fixed_size_list(declared):
        return actual.list_size == declared.list_size and _same(actual.value_type, declared.value_type)
    return actual == declared or (pa.types.is_large_string(actual) and pa.types.is_string(declared))


def _batches(kind: str, path: Path, size: int) -> Iterator[pa.Table]:
    """The rows in bounded pieces; one empty piece when there is none."""
    file, schema = pq.ParquetFile(path), SCHEMAS[kind]
    empty = True
    for batch in file.iter_batches(batch_size=size):
        empty = False
        yield pa.Table.from_batches([batch]).cast(pa.schema([f.with_nullable(True) for f in schema]))
    if empty:
        yield schema.empty_table()


def _check_links(great: _Checker, sound: Mapping[str, Path], shown: int) -> None:
    import duckdb

    with duckdb.connect() as connection:
        for kind, path in sound.items():
            connection.register(kind, pyarrow.dataset.dataset(path, format="parquet"))
        for link in LINKS:
            if not all(kind in sound for kind in link.needs):
                continue
            broken = connection.execute(f"SELECT count(*) FROM ({link.broken})").fetchone()
            count = int(broken[0]) if broken else 0
            rows: list[dict[str, Any]] = []
            if count:
                cursor = connection.execute(f"SELECT * FROM ({link.broken}) ORDER BY ALL LIMIT {shown}")
                names = [column[0] for column in cursor.description or []]
                rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            great.fact(link.manifest, link.name, count, rows, link.severity)


class _Checker:
    """Great Expectations in memory: suites over rows, and facts (counts of broken rows) as one-row tables."""

    def __init__(self, settings: ValidateSettings) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        import great_expectations as gx
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )

        self.gx, self.settings = gx, settings
        in_memory = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)  # else each run leaves a directory behind
        config = DataContextConfig(store_backend_defaults=in_memory, progress_bars=ProgressBarsConfig(globally=False))
        context = gx.get_context(mode="ephemeral", project_config=config)
        self.source = context.data_sources.add_pandas("manifests")
        self.batches: dict[str, Any] = {}
        self.found: dict[tuple[str, str], Finding] = {}
        self.facts: dict[str, list[tuple[str, int, list[dict[str, Any]], str]]] = {}

    def rows(self, kind: str, frame: Any) -> None:
        """Hold rows against the suite of their kind."""
        expectations = []
        for e in SUITES[kind]:
            make = getattr(self.gx.expectations, "Expect" + e.kind)
            expectations.append(make(**e.arguments, severity=self._severity(e.name, e.severity), meta={"name": e.name}))
        for result in self._validate(kind, frame, expectations, KEYS[kind]):
            self._note(kind, result)

    def fact(self, kind: str, name: str, broken: int, rows: list[dict[str, Any]], severity: str = "critical") -> None:
        """Remember a fact; ``findings`` holds it against its expectation that nothing is broken."""
        self.facts.setdefault(kind, []).append((name, broken, rows, severity))

    def findings(self) -> list[Finding]:
        """Everything that was checked, by manifest."""
        import pandas as pd

        for kind, facts in self.facts.items():
            frame = pd.DataFrame([[f[1] for f in facts]], columns=[f[0] for f in facts])
            expect = self.gx.expectations.ExpectColumnMaxToBeBetween
            expectations = [
                expect(column=n, max_value=0, severity=self._severity(n, s), meta={"name": n}) for n, _, _, s in facts
            ]
            shown = {name: rows for name, _, rows, _ in facts}
            for result in self._validate(f"{kind}, facts", frame, expectations, None):
                self._note(kind, result)
                name = result.expectation_config.meta["name"]
                if not result.success:
                    self.found[kind, name].shown += shown[name][: self.settings.rows_shown]
        order = list(SCHEMAS)
        return sorted(self.found.values(), key=lambda f: order.index(f.manifest))

    def _severity(self, name: str, severity: str) -> Any:
        return "warning" if name in self.settings.only_warn else severity

    def _validate(self, asset: str, frame: Any, expectations: list[Any], key: str | None) -> list[Any]:
        if asset not in self.batches:
            self.batches[asset] = self.source.add_dataframe_asset(asset).add_batch_definition_whole_dataframe("all")
        batch = self.batches[asset].get_batch({"dataframe": frame})
        wanted: dict[str, Any] = {"result_format": "SUMMARY", "partial_unexpected_count": self.settings.rows_shown}
        if key:
            wanted["unexpected_index_column_names"] = [key]
        suite = self.gx.ExpectationSuite(name=asset, expectations=expectations)
        return batch.validate(suite, result_format=wanted).results

    def _note(self, kind: str, result: Any) -> None:
        config = result.expectation_config
        name = config.meta["name"]
        finding = self.found.setdefault((kind, name), Finding(kind, name, str(config.severity.value)))
        if result.success:
            return
        raised = [m for m in _exceptions(result.exception_info) if m]
        broken = int(result.result.get("unexpected_count") or result.result.get("observed_value") or 1)
        finding.broken += broken
        finding.why = raised[0] if raised else finding.why
        room = self.settings.rows_shown - len(finding.shown)
        finding.shown += [
            {k: _plain(v) for k, v in row.items()} for row in result.result.get("partial_unexpected_index_list") or []
        ][: max(room, 0)]


def _exceptions(info: Mapping[str, Any] | None) -> list[str]:
    if not info:
        return []
    if "exception_message" in info:
        return [info["exception_message"]] if info.get("raised_exception") else []
    return [m for part in info.values() if isinstance(part, dict) for m in _exceptions(part)]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _report(manifests: Mapping[str, Path], rows: Mapping[str, int], findings: list[Finding]) -> StepReport:
    broken = [f for f in findings if not f.held and f.severity != "warning"]
    warned = [f for f in findings if not f.held and f.severity == "warning"]
    report = StepReport(step="validate", title="Validate manifests", done=len(findings))
    report.counts = {
        "manifests": len(manifests),
        "rows": sum(rows.values()),
        "expectations": len(findings),
        "broken": len(broken),
        "warnings": len(warned),
    }
    report.versions = {"great_expectations": version("great_expectations")}
    per_manifest = [
        [
            kind,
            rows.get(kind),
            sum(f.manifest == kind for f in findings),
            sum(f.manifest == kind for f in broken),
            sum(f.manifest == kind for f in warned),
        ]
        for kind in manifests
    ]
    report.sections.append(table("Manifests", ["manifest", "rows", "expectations", "broken", "warnings"], per_manifest))
    if broken or warned:
        lines = [
            [f.manifest, f.name, f.severity, f.broken, "; ".join(_brief(row) for row in f.shown[:2]) or f.why]
            for f in broken + warned
        ]
        report.sections.append(
            table("What did not hold", ["manifest", "expectation", "severity", "rows", "for example"], lines)
        )
    report.summary = {
        "validation": {
            "expectations": len(findings),
            "failed": len(broken),
            "warnings": len(warned),
            "manifests": {k: rows.get(k) for k in manifests},
            "broken": [{"manifest": f.manifest, "expectation": f.name, "rows": f.broken} for f in broken],
        }
    }
    return report


def _brief(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={str(v)[:24]}" for k, v in list(row.items())[:4])
