"""Drift: an axis that moved is named, one that did not is left in peace, however few clips there are."""

import math
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_rows import SOUND
from scipy.stats import chisquare

from svdflow.common.errors import ConfigError, ValidationFailed
from svdflow.common.manifests import write_manifest
from svdflow.common.storage import DataRoot
from svdflow.curation.validate import drift
from svdflow.curation.validate.settings import ValidateSettings
from svdflow.curation.validate.validate import Written, check_once, describe_previous, require_valid

CONNECTION = duckdb.connect()
MOTION = "motion is distributed as in the previous version"


def describe(values, edges=None) -> dict:
    """One axis of annotations, described by the real SQL."""
    column = pa.array(list(values), pa.float64())
    none = pa.nulls(len(column), pa.string())
    table = pa.table({"motion_score": column, "motion_unit": none, "annotators": none})
    CONNECTION.register("annotations", table)
    return drift.describe(CONNECTION, "annotations", edges)


def shift(before, after, psi: float = 0.2) -> drift.Shift:
    previous = describe(before)
    (moved,) = drift.compare(previous, describe(after, drift.edges_of(previous)), psi)
    return moved


def test_bins_hold_what_numpy_counts_and_the_index_is_its_formula() -> None:
    draw = np.random.default_rng(0)
    before, after = draw.gamma(2, 1, 4000), draw.gamma(2.6, 1, 3000)
    moved = shift(before, after)
    edges = np.array(moved.before.edges)
    for side, values in ((moved.before, before), (moved.after, after)):
        counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
        assert list(side.counts) == counts.tolist() and sum(counts) == len(values)
    assert set(moved.before.counts[1:-1]) <= {399, 400, 401}  # deciles
    p, q = ((np.array([*s.counts, s.missing]) + 0.5) for s in (moved.after, moved.before))
    p, q = p / p.sum(), q / q.sum()
    assert moved.psi == pytest.approx(float(((p - q) * np.log(p / q)).sum()), rel=1e-12)
    assert moved.shifted and moved.before.median == pytest.approx(np.median(before), rel=1e-2)


VALUES = st.lists(st.floats(-1e6, 1e6) | st.none() | st.just(math.nan), min_size=1, max_size=40)


@settings(max_examples=15, deadline=None)
@given(before=VALUES, after=VALUES, seed=st.randoms())
def test_order_does_not_matter_every_clip_is_counted_and_alike_is_no_shift(before, after, seed) -> None:
    moved = shift(before, after)
    for side, values in ((moved.before, before), (moved.after, after)):
        there = [v for v in values if v is not None and math.isfinite(v)]
        assert (sum(side.counts), side.missing) == (len(there), len(values) - len(there))
    assert moved.before.counts[0] == moved.before.counts[-1] == 0 or not moved.before.edges
    assert moved.psi >= 0
    shuffled = [*after]
    seed.shuffle(shuffled)
    assert shift(before, shuffled).psi == moved.psi
    assert shift(before, before).psi == 0


def test_few_clips_of_one_distribution_raise_no_alarm_and_many_of_another_do() -> None:
    draw = np.random.default_rng(1)
    for size in (6, 14, 400):
        alarms = sum(shift(draw.normal(size=size), draw.normal(size=size)).shifted for _ in range(15))
        assert alarms <= 1, size
    assert shift(draw.normal(size=1000), draw.normal(1, 1, 1000)).shifted
    assert shift([0.0] * 500, [0.0] * 400 + [0.3] * 100).shifted  # away from a value that all shared
    assert shift([0.0] * 500, [-0.3] * 100 + [0.0] * 400).shifted
    assert shift([1.0] * 500, [1.0] * 250 + [None] * 250).shifted  # half is missing now


def test_the_limit_for_few_clips_is_that_of_the_test_of_pearson() -> None:
    draw = np.random.default_rng(2)
    indices, tests = [], []
    for _ in range(400):  # near zero the index is Pearson's statistic over the harmonic size
        p, q = (draw.multinomial(5000, [0.1] * 10) for _ in range(2))
        indices.append(drift.stability_index(p.tolist(), q.tolist()) / (2 / 5000))
        pooled = (p + q) / 2
        tests.append(chisquare(p, pooled).statistic + chisquare(q, pooled).statistic)
    assert np.corrcoef(indices, tests)[0, 1] > 0.999
    assert np.mean(np.array(indices) * 2 / 5000 > drift.by_chance(5000, 5000, 10)) < 0.02


# through the step


def version(directory: Path, seed: int, faster: float = 1.0, clips: int = 400, **fault) -> dict[str, Path]:
    """Manifests of clips whose scores are drawn anew."""
    draw = np.random.default_rng(seed)
    videos, cut = SOUND["videos"](clips // 4), SOUND["clips"](4, clips // 4)
    annotations, selection = SOUND["annotations"](cut), SOUND["selection"](cut)
    for told, chosen in zip(annotations, selection, strict=True):
        motion = float(draw.gamma(3) * faster)
        told |= {"motion_score": motion, "camera_motion": None}
        told |= {axis: draw.random(3).tolist() for axis in ("text_area", "aesthetic", "watermark", "nsfw")}
        told |= {f"similarity_{c}": draw.uniform(0, 0.4, 3).tolist() for c in ("image", "video", "summary")}
        told |= {"annotators": '{"motion": "farneback@1"}', **fault}
        chosen |= {"keep": True, "reasons": [], "motion_value": motion, "motion_cut": None, "motion_failed": False}
        chosen |= {"split": "train", "group": None, "text_value": float(draw.random())}
    rows = {"videos": videos, "clips": cut, "annotations": annotations, "selection": selection}
    for kind, each in rows.items():
        write_manifest(kind, each, directory / f"{kind}.parquet")
    return {kind: directory / f"{kind}.parquet" for kind in rows}


def checked(root: DataRoot, paths: dict[str, Path], out: Path, dataset: str = "demo", **asked):
    return check_once(paths, Written(out / "page.html", out / "rows.jsonl"), root, ValidateSettings(**asked), dataset)


def warned(report) -> set[str]:
    told = report.summary["validation"]
    return {w["expectation"] for w in told["warned"] + told["broken"]} - {"there are held-out clips"}


def before_filter(paths: dict[str, Path]) -> dict[str, Path]:
    return {kind: path for kind, path in paths.items() if kind != "selection"}


def test_a_version_is_compared_with_what_was_found_valid_before_it(tmp_path: Path) -> None:
    root = DataRoot.open(tmp_path / "root")
    first, alike, faster = (
        version(tmp_path / name, seed, speed) for name, seed, speed in (("1", 1, 1), ("2", 2, 1), ("3", 3, 3))
    )
    assert "shift" not in checked(root, first, tmp_path).summary["validation"]  # nothing to compare with
    calm = checked(root, alike, tmp_path)
    assert warned(calm) == set() and "motion" in calm.summary["validation"]["shift"]
    early = checked(root, before_filter(faster), tmp_path)  # the annotations, before anything is filtered
    assert warned(early) == {MOTION} and early.summary["validation"]["failed"] == 0
    late = checked(root, faster, tmp_path)
    page = (tmp_path / "page.html").read_text()
    assert warned(late) == {MOTION} and "Shift since the previous version" in page and "<svg" in page
    again = checked(root, faster, tmp_path)
    assert again.done == 0 and warned(again) == {MOTION}  # compared with what it was compared with then
    assert warned(checked(root, before_filter(faster), tmp_path)) == {MOTION}
    assert "shift" not in checked(root, faster, tmp_path, dataset="other").summary["validation"]


def test_drift_stops_when_asked_and_what_was_refused_does_not_become_the_previous(tmp_path: Path) -> None:
    root = DataRoot.open(tmp_path / "root")
    checked(root, version(tmp_path / "1", 1), tmp_path)
    faster = version(tmp_path / "2", 2, 3)
    refused = checked(root, faster, tmp_path, drift_stops=True)
    with pytest.raises(ValidationFailed, match=f"selection: {MOTION}"):
        require_valid(refused)
    assert warned(checked(root, faster, tmp_path)) == {MOTION}  # still held against the first
    assert warned(checked(root, version(tmp_path / "3", 3, 3), tmp_path)) == set()  # now against the second
    assert warned(checked(root, version(tmp_path / "4", 4), tmp_path, only_warn=(MOTION,), drift_stops=True)) == {
        MOTION
    }


def test_a_pulled_version_can_be_named_also_one_of_an_older_schema(tmp_path: Path) -> None:
    root = DataRoot.open(tmp_path / "root")
    old, new = version(tmp_path / "old" / "manifests", 1), version(tmp_path / "new", 2, 3)
    by_name = checked(root, new, tmp_path, previous=str(tmp_path / "old")).summary["validation"]
    assert {w["expectation"] for w in by_name["warned"]} >= {MOTION}
    for kind, columns in (("selection", ["watermark_value", "group"]), ("annotations", ["watermark", "nsfw"])):
        pq.write_table(pq.read_table(old[kind]).drop_columns(columns), old[kind])
    older = checked(root, new, tmp_path, previous=str(tmp_path / "old")).summary["validation"]
    assert set(by_name["shift"]) - set(older["shift"]) == {"watermark"}
    assert older["shift"]["motion"] == by_name["shift"]["motion"]
    assert "watermark" not in describe_previous(tmp_path / "old", "annotations")["axes"]
    with pytest.raises(ConfigError, match="holds no selection manifest"):
        checked(root, new, tmp_path, previous=str(tmp_path / "nowhere"))


def test_scores_of_another_annotator_are_told_apart_from_other_footage(tmp_path: Path) -> None:
    root = DataRoot.open(tmp_path / "root")
    checked(root, version(tmp_path / "1", 1), tmp_path)
    other = version(tmp_path / "2", 2, annotators='{"motion": "raft@1"}', motion_unit="px/0.5s@short256")
    report = checked(root, before_filter(other), tmp_path)
    assert warned(report) == {"axes are measured as in the previous version"}
    rows = (tmp_path / "rows.jsonl").read_text()
    assert "farneback@1" in rows and "raft@1" in rows and "short256" in rows
