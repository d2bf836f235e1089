"""Great Expectations in memory: suites over batches of rows, and counts of broken rows as one-row tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from .findings import Finding
from .settings import ValidateSettings
from .suites import NAMED_BY, SUITES, RowExpectation, frame_of

_PASS_OR_FAIL = {"result_format": "BOOLEAN_ONLY"}


class Expectations:
    """Collects findings; importing Great Expectations takes seconds, so one is made only when there is work."""

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
        self._source = context.data_sources.add_pandas("manifests")
        self._batches: dict[str, Any] = {}
        self._found: dict[tuple[str, str], Finding] = {}
        self._facts: dict[str, list[Finding]] = {}

    def rows(self, kind: str, table: pa.Table) -> None:
        """Hold a batch of rows against the suite of their kind.

        Each expectation first only says whether it holds; the rows are looked for where it does not. Sound data, which
        is nearly all there is, is so checked in half the time, and the union of the rows of several expectations that
        share a name is exact.
        """
        frame = frame_of(kind, table)
        broken: dict[str, list[tuple[RowExpectation, list[int]]]] = {}
        made = [self._make(place, e.kind, e.name, e.severity, e.arguments) for place, e in enumerate(SUITES[kind])]
        for e, expectation, result in zip(
            SUITES[kind], made, self._validate(kind, frame, made, _PASS_OR_FAIL), strict=True
        ):
            finding = self._finding(kind, e.name, e.severity)
            if result.success:
                continue
            if raised := _exceptions(result.exception_info):
                finding.broken, finding.why = max(finding.broken, 1), " ".join(raised[0].split())
                continue
            broken.setdefault(e.name, []).append((e, self._positions(kind, frame, expectation)))
        for name, parts in broken.items():
            finding = self._found[kind, name]
            union = sorted({position for _, positions in parts for position in positions})
            finding.broken += len(union)
            keep = union[: max(self.settings.rows_kept - len(finding.rows), 0)]
            show = union[: max(self.settings.rows_shown - len(finding.shown), 0)]
            finding.rows += table.take(keep).to_pylist() if keep else []
            columns = list(dict.fromkeys(c for e, _ in parts for c in e.columns))
            columns = [*NAMED_BY[kind], *[c for c in columns if c not in NAMED_BY[kind]]]
            # pandas has one NaN for what is missing and for a figure that is none: the manifest tells them apart
            told = (
                table.select([c for c in columns if c in table.column_names])
                .take(pa.array(show, pa.int64()))
                .to_pylist()
            )
            seen = frame[columns].iloc[show].to_dict("records")
            finding.shown += [computed | row for computed, row in zip(seen, told, strict=True)]

    def fact(
        self, kind: str, name: str, broken: int, rows: list[dict[str, Any]], severity: str = "critical", why: str = ""
    ) -> None:
        """Remember a fact, which ``findings`` holds against its expectation: that nothing is broken.

        Args:
            kind: the manifest.
            name: what should hold.
            broken: how many rows break it.
            rows: some of them.
            severity: "critical" or "warning".
            why: a sentence, where rows say too little.
        """
        shown = rows[: self.settings.rows_shown]
        self._facts.setdefault(kind, []).append(Finding(kind, name, severity, broken, rows, shown, why))

    def findings(self, kinds: Iterable[str]) -> list[Finding]:
        """Everything that was checked, by manifest in the order given."""
        import pandas as pd

        for kind, facts in self._facts.items():
            frame = pd.DataFrame([[f.broken for f in facts]], columns=[f.name for f in facts])
            made = [
                self._make(place, "ColumnMaxToBeBetween", f.name, f.severity, {"column": f.name, "max_value": 0})
                for place, f in enumerate(facts)
            ]
            results = self._validate(f"{kind}, facts", frame, made, _PASS_OR_FAIL)
            for fact, result in zip(facts, results, strict=True):
                finding = self._finding(kind, fact.name, fact.severity)
                if not result.success:
                    finding.broken += fact.broken
                    finding.rows, finding.shown, finding.why = fact.rows, fact.shown, fact.why
        self._facts.clear()
        order = list(kinds)
        return sorted(self._found.values(), key=lambda f: order.index(f.manifest))

    def _finding(self, kind: str, name: str, severity: str) -> Finding:
        return self._found.setdefault((kind, name), Finding(kind, name, self._severity(name, severity)))

    def _severity(self, name: str, severity: str) -> str:
        if name in self.settings.only_warn:
            return "warning"
        return "critical" if name in self.settings.also_stop else severity

    def _make(self, place: int, kind: str, name: str, severity: str, arguments: Mapping[str, Any]) -> Any:
        make = getattr(self.gx.expectations, "Expect" + kind)
        return make(**arguments, severity=self._severity(name, severity), meta={"name": name, "place": place})

    def _positions(self, kind: str, frame: Any, expectation: Any) -> list[int]:
        """Positions of the rows that break an expectation."""
        wanted = {
            "result_format": "SUMMARY",
            "partial_unexpected_count": len(frame),
            "exclude_unexpected_values": True,
            "return_unexpected_index_query": False,
        }
        (result,) = self._validate(kind, frame, [expectation], wanted)
        return [int(position) for position in result.result["partial_unexpected_index_list"]]

    def _validate(self, asset: str, frame: Any, expectations: list[Any], result_format: dict[str, Any]) -> list[Any]:
        """One result for each expectation, in their order."""
        if not expectations:
            return []
        if asset not in self._batches:
            self._batches[asset] = self._source.add_dataframe_asset(asset).add_batch_definition_whole_dataframe("all")
        batch = self._batches[asset].get_batch({"dataframe": frame})
        suite = self.gx.ExpectationSuite(name=asset, expectations=expectations)
        results = batch.validate(suite, result_format=result_format).results
        return sorted(results, key=lambda r: r.expectation_config.meta["place"])  # they come grouped by column


def _exceptions(info: Mapping[str, Any] | None) -> list[str]:
    if not info:
        return []
    if "exception_message" in info:
        return [info["exception_message"]] if info.get("raised_exception") and info["exception_message"] else []
    return [m for part in info.values() if isinstance(part, dict) for m in _exceptions(part)]
