"""The filter step on manifests: reasons, splits, byte-identical output, reuse."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from manifest_rows import annotations, clips, videos
from safetensors.numpy import save

from svdflow.common import manifests
from svdflow.common.errors import BadInputError
from svdflow.common.manifests import read_manifest, read_rows, write_manifest
from svdflow.common.storage import DataRoot
from svdflow.curation.filter import filter as module
from svdflow.curation.filter import vectors
from svdflow.curation.filter.filter import filter_clips
from svdflow.curation.filter.settings import FilterSettings
from svdflow.curation.validate.settings import ValidateSettings
from svdflow.curation.validate.validate import Written, check_manifests
from svdflow.curation.version.subject import Subject
from svdflow.curation.version.traces import find_traces

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
    assert rows[notes[10]["clip_id"]]["reasons"] == ["nan_motion"]
    assert rows[notes[11]["clip_id"]]["reasons"] == ["missing_text"]
    assert rows[notes[12]["clip_id"]]["keep"]
    assert rows[gone["clip_id"]]["reasons"] == ["missing_motion", "missing_text"]


def test_an_axis_that_nobody_annotated_is_named_before_it_drops_every_clip(tmp_path: Path, root: DataRoot) -> None:
    notes = [{**note, "text_area": None} for note in annotations()]
    with pytest.raises(
        BadInputError, match=r"text.*annotate\.text.*filter\.text_percent=0 and filter\.text_max_area=null"
    ):
        run(tmp_path, root, notes, text_percent=10)
    _, rows = run(tmp_path, root, notes, text_max_area=None)
    assert any(row["keep"] for row in rows.values())


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
    out = Written(tmp_path / "page.html", tmp_path / "failing.jsonl")
    checked = check_manifests({k: tmp_path / f"{k}.parquet" for k in names}, out, ValidateSettings())
    assert checked.summary["validation"]["failed"] == 0
    told = json.loads(next(iter(rows.values()))["thresholds"])
    assert told["asked"]["motion_percent"] == 25 and told["cuts"]["motion"]["realised_percent"] == 25
    by_side: dict[str, set[str]] = {"train": set(), "held_out": set()}
    for row in rows.values():
        if row["keep"]:
            by_side[row["split"]].add(row["video_id"])
    assert by_side["train"] and by_side["held_out"] and not by_side["train"] & by_side["held_out"]
    assert report.summary["selection"]["videos"] == {side: len(ids) for side, ids in by_side.items()}


def sharded(directory: Path, kind: str, table, count: int, seed: int) -> list[Path]:
    """The rows dealt out to shards at random, each in its own order."""
    rng = np.random.default_rng(seed)
    (directory / kind).mkdir(parents=True, exist_ok=True)
    shard = rng.integers(count, size=len(table))
    paths = []
    for n in range(count):
        rows = rng.permutation(np.flatnonzero(shard == n))
        paths.append(directory / kind / f"{rng.integers(10**9)}-{n}.parquet")
        pq.write_table(table.take(rows), paths[-1])
    return [paths[n] for n in rng.permutation(count)]


def random_notes(seed: int, count: int):
    """Clips with ties, missing values and NaN on every axis."""
    rng = np.random.default_rng(seed)
    shots = clips(per_video=5, count=count // 5)
    notes = annotations(shots)
    for note in notes:
        note["motion_score"] = [None, float("nan"), *rng.integers(0, 9, 8).tolist(), rng.normal()][rng.integers(11)]
        for column in ("text_area", "aesthetic", "watermark", "nsfw", "similarity_image", "similarity_video"):
            values = rng.choice([0.1, 0.2, 0.5, np.nan, rng.random()], size=3)
            note[column] = None if rng.random() < 0.1 else [float(v) for v in values]
        note["similarity_summary"] = None
    return shots, [note for note in notes if rng.random() > 0.05]


def value(note, column, reduce):
    """(value, reason when there is none) of a clip, with NumPy."""
    figures = None if note is None else note[column]
    if figures is None:
        return None, "missing"
    figures = [v for v in np.atleast_1d(figures) if np.isfinite(v)]
    return (float(reduce(figures)), None) if figures else (None, "nan")


@pytest.mark.parametrize("seed", range(4))
def test_any_number_of_shards_in_any_order_decides_as_numpy_does_on_the_whole(
    seed, tmp_path: Path, root: DataRoot, monkeypatch
) -> None:
    monkeypatch.setattr(manifests, "ROW_GROUP", 64)  # several row groups
    monkeypatch.setattr(module, "ROW_GROUP", 64)
    shots, notes = random_notes(seed, 400)
    whole = {
        "videos": write_manifest("videos", videos(80), tmp_path / "videos.parquet"),
        "clips": write_manifest("clips", shots, tmp_path / "clips.parquet"),
        "annotations": write_manifest("annotations", notes, tmp_path / "annotations.parquet"),
    }
    axes = {
        "motion": ("motion_score", np.mean, 25.0, False),
        "text": ("text_area", np.mean, 12.5, True),
        "aesthetic": ("aesthetic", np.mean, 25.0, False),
        "watermark": ("watermark", np.max, 20.0, True),
        "nsfw": ("nsfw", np.max, 10.0, True),
        "similarity": ("similarity_image", np.mean, 50.0, False),
    }
    asked = {f"{axis}_percent": percent for axis, (_, _, percent, _) in axes.items()}
    settings = FilterSettings(**asked, text_max_area=0.45, similarity_captions=("image",), shown=0)
    outputs = set()
    for count in (1, 3, 7):
        paths = {kind: sharded(tmp_path / str(count), kind, whole[kind], count, seed) for kind in whole}
        report = filter_clips(*paths.values(), tmp_path / f"{count}.parquet", root, settings)
        assert report.done == 400
        outputs.add((tmp_path / f"{count}.parquet").read_bytes())
        folders = [tmp_path / str(count) / kind for kind in whole]
        again = filter_clips(*folders, tmp_path / "again.parquet", root, settings)
        assert (again.reused, again.summary) == (400, report.summary)
    table = read_manifest("selection", tmp_path / "1.parquet")
    write_manifest("selection", table.take(np.random.default_rng(seed).permutation(400)), tmp_path / "plain.parquet")
    assert outputs == {(tmp_path / "plain.parquet").read_bytes()}  # one canonical form

    rows = {row["clip_id"]: row for row in table.to_pylist()}
    by_clip = {note["clip_id"]: note for note in notes}
    expected: dict[str, list[str]] = {clip: [] for clip in rows}
    told = report.summary["selection"]
    for axis, (column, reduce, percent, above) in axes.items():
        found = {clip: value(by_clip.get(clip), column, reduce) for clip in rows}
        there = np.sort([v for v, _ in found.values() if v is not None])[:: -1 if above else 1]
        boundary = there[int(len(there) * percent / 100)]
        # the boundary's equals go when that is closer to what was asked
        beyond, equal = int(np.argmax(there == boundary)), int((there == boundary).sum())
        wanted = int(len(there) * percent / 100)
        cut = there[beyond + equal] if wanted - beyond > beyond + equal - wanted else boundary
        if axis == "text":
            cut = min(cut, 0.45)
        for clip, (v, reason) in found.items():
            if reason:
                expected[clip].append(f"{reason}_{axis}")
            elif v > cut if above else v < cut:
                expected[clip].append(axis)
            assert rows[clip][f"{axis}_value"] == v and rows[clip][f"{axis}_cut"] == cut
        dropped = sum(axis in reasons for reasons in expected.values())
        assert told["realised_percent"][axis] == pytest.approx(100 * dropped / len(there), abs=1e-4)
        assert told["missing"][axis] == sum(f"missing_{axis}" in reasons for reasons in expected.values())
        assert told["nan"][axis] == sum(f"nan_{axis}" in reasons for reasons in expected.values())
        drawn = next(s for s in report.sections if s["kind"] == "histogram" and s["title"] == axis)
        counts = np.histogram(there, bins=drawn["edges"])[0]
        # a value on an edge may fall to either side
        assert sum(drawn["counts"]) == len(there) and np.abs(np.cumsum(drawn["counts"]) - np.cumsum(counts)).max() < 25
    for clip, reasons in expected.items():
        assert sorted(rows[clip]["reasons"]) == sorted(reasons)
    for one in axes:
        for two in axes:
            both = sum(one in reasons and two in reasons for reasons in expected.values())
            assert told["overlap"][one][two] == both
        assert told["dropped_by_it_alone"][one] == sum(reasons == [one] for reasons in expected.values())
    kept = [shot for shot in shots if not expected[shot["clip_id"]]]
    table1 = told["table1"]["after"]
    assert table1["clips"] == len(kept) == told["kept"]
    assert table1["total_h"] == told["hours_kept"] == pytest.approx(len(kept) * 4 / 3600)
    assert table1["clips_per_video"] == pytest.approx(len(kept) / len({shot["video_id"] for shot in kept}))


def embedded(root: DataRoot, notes, alike: dict[int, int], seed: int = 0):
    """Embeddings unlike one another, but for the clips that repeat another."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(len(notes), 64)).astype(np.float16)
    for n, other in alike.items():
        images[n] = images[other] + 0.01 * rng.normal(size=64)
    pictures = rng.normal(size=(len(notes), 256)).astype(np.float16)
    for n, note in enumerate(notes):
        arrays = {"image": np.stack([images[n]] * 3), "thumbnail": np.stack([pictures[n]] * 3)}
        note["embedding_uri"] = root.put_bytes(save(arrays))
    return notes


def test_of_near_duplicates_the_best_that_passes_the_other_axes_is_kept(tmp_path: Path, root: DataRoot) -> None:
    notes = embedded(root, annotations(), {7: 3, 9: 7, 20: 19})
    notes[3]["aesthetic"] = notes[9]["aesthetic"] = [6.0, 6.0, 6.0]
    notes[7]["aesthetic"] = [7.0, 7.0, 7.0]  # the best, but its text is too much
    notes[7]["text_area"] = [0.5, 0.5, 0.5]
    notes[23]["embedding_uri"] = None
    ids = [note["clip_id"] for note in notes]
    asked = {"motion_percent": 0, "held_out_fraction": 0}
    _, rows = run(tmp_path, root, notes, **asked)
    assert [rows[ids[n]]["keep"] for n in (3, 7, 9, 19, 20, 23)] == [True, False, True, True, True, True]
    report, rows = run(tmp_path, root, notes, **asked, drop_duplicates=True)
    first, second = sorted((ids[3], ids[9]))
    better = max((19, 20), key=lambda n: notes[n]["aesthetic"][0])
    places = {ids[7]: 2, first: 0, second: 1, ids[better]: 0, ids[39 - better]: 1, ids[0]: 0, ids[23]: None}
    assert {clip: rows[clip]["duplicate_value"] for clip in places} == places
    assert rows[first]["group"] == rows[second]["group"] == rows[ids[7]]["group"] == min(ids[3], ids[7], ids[9])
    assert rows[ids[0]]["group"] is None
    assert rows[ids[7]]["reasons"] == ["text", "duplicate"] and rows[first]["keep"]
    assert rows[second]["reasons"] == rows[ids[39 - better]]["reasons"] == ["duplicate"]
    assert rows[ids[23]]["reasons"] == ["missing_duplicate"]
    found = report.summary["selection"]["duplicates"]
    assert (found["groups"], found["clips"], found["largest"], found["embedded"]) == (2, 5, 3, 23)
    assert report.summary["selection"]["dropped_by_axis"]["duplicate"] == 3


@pytest.mark.parametrize("pack", [4096, 3])
def test_an_embedding_is_read_by_itself_once_and_with_many_others_from_then_on(
    tmp_path: Path, root: DataRoot, monkeypatch: pytest.MonkeyPatch, pack: int
) -> None:
    monkeypatch.setattr(vectors, "_PACK", pack)
    read: list[str] = []
    real = type(root).read
    monkeypatch.setattr(type(root), "read", lambda self, uri: (read.append(uri), real(self, uri))[1])
    asked = {"motion_percent": 0, "held_out_fraction": 0}
    notes = embedded(root, annotations(), {7: 3, 9: 7, 20: 19})
    own = {note["embedding_uri"] for note in notes}

    def groups(notes: list, **more: Any) -> tuple[dict[str, Any], list[str]]:
        read.clear()
        _, rows = run(tmp_path, root, notes, **asked, **more)
        return {clip: row["group"] for clip, row in rows.items()}, [uri for uri in read if uri in own]

    few, by_itself = groups(notes[:20])
    assert len(by_itself) == 20
    whole, by_itself = groups(notes)
    assert sorted(by_itself) == sorted(note["embedding_uri"] for note in notes[20:])
    again, by_itself = groups(notes, near_duplicate_cosine=0.949)  # another question about the same clips
    assert by_itself == [] and again == whole
    ids = [note["clip_id"] for note in notes]
    assert whole[ids[3]] == whole[ids[7]] == whole[ids[9]] == few[ids[9]] and whole[ids[19]] == whole[ids[20]]
    assert {n for n, clip in enumerate(ids) if whole[clip]} == {3, 7, 9, 19, 20} and few[ids[19]] is None
    records = {uri: json.loads(real(root, uri)) for uri in root.list("results/filter_vectors")}
    named = {clip for record in records.values() for clip in record["clips"]}
    assert named >= {note["clip_id"] for note in notes}, "a takedown finds a pack by the clips that are in it"
    for record in records.values():
        root.remove(record["pack"])
    assert groups(notes, near_duplicate_cosine=0.951)[0] == whole  # made anew


def test_a_takedown_drops_the_pack_that_a_clip_of_the_video_is_in_and_no_other(
    tmp_path: Path, root: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "_PACK", 3)
    notes = embedded(root, annotations(), {})
    run(tmp_path, root, notes, held_out_fraction=0)
    records = {uri: json.loads(root.read(uri)) for uri in root.list("results/filter_vectors")}
    clip = notes[5]["clip_id"]
    (within,) = [uri for uri, record in records.items() if clip in record["clips"]]
    traces = find_traces(Subject("the video", {clip}), root, {notes[5]["embedding_uri"]}, set(), {})
    assert len(records) > 1 and traces.results & records.keys() == {within}
    assert records[within]["pack"] in traces.objects - traces.elsewhere
    assert not traces.objects & {note["embedding_uri"] for note in notes}, "the others' own objects stay"


def test_near_duplicates_never_straddle_though_one_comes_that_links_the_two_sides(
    tmp_path: Path, root: DataRoot
) -> None:
    asked = {"motion_percent": 0, "held_out_fraction": 0.3}
    few = embedded(root, annotations()[:20], {})  # the clips of five videos; the sixth has none yet
    _, first = run(tmp_path, root, few, **asked)
    ids = [note["clip_id"] for note in annotations()]
    held = next(n for n in range(20) if first[ids[n]]["split"] == "held_out")
    train = next(n for n in range(20) if first[ids[n]]["split"] == "train")
    report, rows = run(tmp_path, root, embedded(root, annotations(), {20: held, 21: train}), **asked)
    assert all(rows[clip]["split"] == row["split"] for clip, row in first.items() if row["keep"])
    sides: dict[str, set[str]] = {}
    for row in rows.values():
        if row["keep"] and row["group"]:
            sides.setdefault(row["group"], set()).add(row["split"])
    assert sides and all(len(found) == 1 for found in sides.values())
    assert rows[ids[held]]["split"] == "held_out"


def test_two_runs_at_once_end_well_and_leave_nothing_behind(tmp_path: Path, root: DataRoot) -> None:
    paths = written(tmp_path)
    scratch = root.scratch("filter")

    def decide(n: int) -> int:
        return filter_clips(*paths.values(), tmp_path / f"{n}.parquet", root, FilterSettings(**GENTLE)).done

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(decide, range(3))) == [0, 0, 24]  # one computes, the others find it
    assert len({(tmp_path / f"{n}.parquet").read_bytes() for n in range(3)}) == 1
    assert not [path for path in scratch.iterdir() if path.is_dir()]


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
    twice = clips()
    write_manifest("clips", [*twice, twice[3]], tmp_path / "twice.parquet")
    write_manifest("annotations", annotations(), tmp_path / "annotations.parquet")
    with pytest.raises(BadInputError, match=f"{twice[3]['clip_id']} stands in more than one row"):
        filter_clips(
            paths["videos"],
            tmp_path / "twice.parquet",
            paths["annotations"],
            tmp_path / "out.parquet",
            root,
            FilterSettings(),
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match="no Parquet file"):
        filter_clips(
            paths["videos"], paths["clips"], tmp_path / "empty", tmp_path / "out.parquet", root, FilterSettings()
        )
    with pytest.raises(BadInputError, match="run the step"):
        filter_clips(
            paths["videos"], paths["clips"], tmp_path / "none.parquet", tmp_path / "out.parquet", root, FilterSettings()
        )


def test_no_clips_at_all_give_an_empty_selection(tmp_path: Path, root: DataRoot) -> None:
    for kind in ("videos", "clips", "annotations"):
        write_manifest(kind, [], tmp_path / f"{kind}.parquet")
    paths = [tmp_path / f"{kind}.parquet" for kind in ("videos", "clips", "annotations")]
    report = filter_clips(*paths, tmp_path / "selection.parquet", root, FilterSettings())
    assert read_rows("selection", tmp_path / "selection.parquet") == [] and report.summary["selection"]["clips_in"] == 0


def test_clips_of_videos_that_their_manifest_lacks_are_decided_on_too(tmp_path: Path, root: DataRoot) -> None:
    paths = written(tmp_path)
    write_manifest("videos", videos()[2:], paths["videos"])
    filter_clips(*paths.values(), tmp_path / "selection.parquet", root, FilterSettings(**GENTLE))
    assert {r["video_id"] for r in read_rows("selection", tmp_path / "selection.parquet")} == {
        clip["video_id"] for clip in clips()
    }
