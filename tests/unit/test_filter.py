"""The filter step on manifests: reasons, splits, byte-identical output, reuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from manifest_rows import annotations, clips, videos
from safetensors.numpy import save

from svdflow.common.errors import BadInputError
from svdflow.common.manifests import read_rows, write_manifest
from svdflow.common.storage import DataRoot
from svdflow.curation.filter.filter import filter_clips
from svdflow.curation.filter.settings import FilterSettings
from svdflow.curation.filter.splits import assign_splits, group_near_duplicates
from svdflow.curation.validate.settings import ValidateSettings
from svdflow.curation.validate.validate import check_manifests

GENTLE = {
    "motion_percent": 25,
    "aesthetic_percent": 0,
    "similarity_percent": 0,
    "text_percent": 0,
    "text_max_area": 0.04,
    "shown": 0,
}


def written(directory: Path, notes=None) -> dict[str, Path]:
    rows = {"videos": videos(), "clips": clips(), "annotations": annotations() if notes is None else notes}
    for kind, content in rows.items():
        write_manifest(kind, content, directory / f"{kind}.parquet")
    return {kind: directory / f"{kind}.parquet" for kind in rows}


def run(directory: Path, root: DataRoot, notes=None, **asked):
    paths = written(directory, notes)
    report = filter_clips(*paths.values(), directory / "selection.parquet", root, FilterSettings(**{**GENTLE, **asked}))
    return report, {row["clip_id"]: row for row in read_rows("selection", directory / "selection.parquet")}


def test_each_clip_is_dropped_for_the_axes_it_fails_and_no_others(tmp_path: Path, root: DataRoot) -> None:
    notes = annotations()
    notes[20]["text_area"] = [0.2, 0.2, 0.2]
    notes[0]["text_area"] = [0.2, 0.2, 0.2]
    report, rows = run(tmp_path, root, notes)
    reasons = [rows[note["clip_id"]]["reasons"] for note in notes]
    assert reasons == [["motion", "text"]] + [["motion"]] * 5 + [[]] * 14 + [["text"]] + [[]] * 3
    assert all(row["keep"] == (not row["reasons"]) == (row["split"] is not None) for row in rows.values())
    assert report.summary["selection"]["by_reason"] == {"motion": 6, "text": 2}
    assert report.summary["selection"]["realised_percent"]["motion"] == 25
    assert (report.summary["selection"]["kept"], report.summary["selection"]["dropped"]) == (17, 7)


def test_what_is_missing_has_its_own_reason_on_the_axes_that_are_filtered(tmp_path: Path, root: DataRoot) -> None:
    notes = annotations()
    notes[10]["motion_score"] = float("nan")
    notes[11]["text_area"] = None
    notes[12]["aesthetic"] = None  # not filtered: nothing is missed
    gone = notes.pop(13)
    _, rows = run(tmp_path, root, notes)
    assert rows[notes[10]["clip_id"]]["reasons"] == ["missing_motion"]
    assert rows[notes[11]["clip_id"]]["reasons"] == ["missing_text"]
    assert rows[notes[12]["clip_id"]]["keep"]
    assert rows[gone["clip_id"]]["reasons"] == ["missing_motion", "missing_text"]


def test_rows_in_another_order_give_identical_bytes(tmp_path: Path, root: DataRoot) -> None:
    run(tmp_path, root)
    first = (tmp_path / "selection.parquet").read_bytes()
    for seed in range(3):
        for kind in ("videos", "clips", "annotations"):
            table = pq.read_table(tmp_path / f"{kind}.parquet")
            pq.write_table(
                table.take(np.random.default_rng(seed).permutation(len(table))),
                tmp_path / f"{kind}.parquet",
                row_group_size=7,
            )
        inputs = [tmp_path / f"{kind}.parquet" for kind in ("videos", "clips", "annotations")]
        report = filter_clips(*inputs, tmp_path / "again.parquet", root, FilterSettings(**GENTLE))
        assert report.done == 24 and (tmp_path / "again.parquet").read_bytes() == first


def test_a_second_run_computes_nothing_and_a_changed_threshold_does(tmp_path: Path, root: DataRoot) -> None:
    first, _ = run(tmp_path, root)
    content = (tmp_path / "selection.parquet").read_bytes()
    writes = root.writes
    again, _ = run(tmp_path, root)
    assert (again.done, again.reused, again.summary) == (0, 24, first.summary) and root.writes == writes
    assert (tmp_path / "selection.parquet").read_bytes() == content
    changed, _ = run(tmp_path, root, motion_percent=50)
    assert changed.done == 24 and changed.summary["selection"]["kept"] < first.summary["selection"]["kept"]


def test_the_selection_is_sound_and_tells_its_thresholds(tmp_path: Path, root: DataRoot) -> None:
    report, rows = run(tmp_path, root, held_out_fraction=0.3)
    names = ("videos", "clips", "annotations", "selection")
    checked = check_manifests({k: tmp_path / f"{k}.parquet" for k in names}, tmp_path / "page.html", ValidateSettings())
    assert checked.summary["validation"]["failed"] == 0
    told = json.loads(next(iter(rows.values()))["thresholds"])
    assert told["asked"]["motion_percent"] == 25 and told["cuts"]["motion"]["realised_percent"] == 25
    by_side: dict[str, set[str]] = {"train": set(), "held_out": set()}
    for row in rows.values():
        if row["keep"]:
            by_side[row["split"]].add(row["video_id"])
    assert by_side["train"] and by_side["held_out"] and not by_side["train"] & by_side["held_out"]
    assert report.summary["selection"]["videos"] == {side: len(ids) for side, ids in by_side.items()}


def test_each_kind_of_source_is_represented_on_both_sides() -> None:
    sources = {f"f{n}": "footage" for n in range(5)} | {f"g{n}": "generated" for n in range(24)}
    sides = assign_splits(sources, {}, 0.1, "seed")
    for kind in ("footage", "generated"):
        assert {sides[v] for v, source in sources.items() if source == kind} == {"train", "held_out"}
    assert set(assign_splits({"one": "footage"}, {}, 0.5, "seed").values()) == {"train"}
    assert set(assign_splits(sources, {}, 0.0, "seed").values()) == {"train"}


def test_a_video_keeps_its_side_when_others_come() -> None:
    sources = {f"v{n}": "footage" for n in range(400)}
    before = assign_splits(sources, {}, 0.2, "seed")
    after = assign_splits(sources | {f"w{n}": "footage" for n in range(400)}, {}, 0.2, "seed")
    assert np.mean([before[v] == after[v] for v in sources]) > 0.97
    assert np.mean([side == "held_out" for side in after.values()]) == pytest.approx(0.2, abs=0.05)


def test_near_duplicates_are_not_parted(root: DataRoot) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(12, 64)).astype(np.float16)
    base[7] = base[3] + 0.01 * rng.normal(size=64)  # v7 repeats v3, and v9 repeats v7
    base[9] = base[7] + 0.01 * rng.normal(size=64)
    tiny = rng.normal(size=(12, 256)).astype(np.float16)
    tiny[5] = tiny[3] + 0.01 * rng.normal(size=256)  # v5 shows what v3 shows, though it embeds otherwise
    tiny[[10, 11]] = 0  # flat pictures are like nothing
    stored = [
        (f"v{n:02d}", root.put_bytes(save({"image": np.stack([vector] * 3), "thumbnail": np.stack([tiny[n]] * 3)})))
        for n, vector in enumerate(base)
    ]
    groups = group_near_duplicates([*stored, ("v99", None)], root, 0.95)
    assert groups["v03"] == groups["v07"] == groups["v09"] == groups["v05"] == "v03" and len(set(groups.values())) == 9
    for seed in range(20):
        sides = assign_splits({name: "footage" for name, _ in stored}, groups, 0.3, str(seed))
        assert sides["v03"] == sides["v05"] == sides["v07"] == sides["v09"]


def test_a_manifest_of_another_kind_or_with_doubled_clips_is_refused_in_one_line(
    tmp_path: Path, root: DataRoot
) -> None:
    paths = written(tmp_path)
    with pytest.raises(BadInputError, match="not a annotations manifest|columns differ"):
        filter_clips(
            paths["videos"], paths["clips"], paths["clips"], tmp_path / "out.parquet", root, FilterSettings(**GENTLE)
        )
    doubled = annotations()
    with pytest.raises(BadInputError, match="more than one row"):
        run(tmp_path, root, [*doubled, doubled[0]])
    shutil.rmtree(tmp_path / "nowhere", ignore_errors=True)
    with pytest.raises(BadInputError, match="run the step"):
        filter_clips(
            paths["videos"], paths["clips"], tmp_path / "none.parquet", tmp_path / "out.parquet", root, FilterSettings()
        )
