"""The annotate step on real clips in a data root: what is measured, what is reused, what is set aside."""

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from clip_sets import ClipSet, clip_set

from svdflow.common.config import load_settings
from svdflow.common.errors import BadInputError, SvdflowError
from svdflow.common.fanout import Outcome
from svdflow.common.manifests import read_rows, write_manifest
from svdflow.common.report import StepReport
from svdflow.common.storage import DataRoot
from svdflow.curation.annotate import annotate as step
from svdflow.curation.annotate import measure
from svdflow.curation.annotate.annotator import load
from svdflow.curation.annotate.results import ClipResult, Results
from svdflow.curation.annotate.settings import AnnotateSettings
from svdflow.ingest.footage import make_scene, make_title_card

LOCAL = load_settings(AnnotateSettings, "annotate", "local")
QUICK = LOCAL.model_copy(update={"workers": 1})


def here(function: Callable, units: Sequence, *_: Any, **__: Any) -> Iterator[Outcome]:
    """Work in this process, so that a test can change the code."""
    for unit in units:
        try:
            yield Outcome(unit, function(unit), None, 0.0)
        except SvdflowError as error:
            yield Outcome(unit, None, str(error), 0.0)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(step, "map_units", here)
    measure._of_this_process.cache_clear()
    yield
    measure._of_this_process.cache_clear()


@pytest.fixture
def scenes(tmp_path: Path, root: DataRoot) -> ClipSet:
    shots = [
        make_scene(1, 18, 96, 160, camera="pan_left"),
        make_scene(2, 18, 96, 160, still=True),
        make_title_card(3, 18, 192, 320),
    ]
    return clip_set(root, tmp_path, [shot.frames for shot in shots], descriptions=[shots[0].caption, None, None])


def run(
    clips: ClipSet, out: Path, root: DataRoot, settings: AnnotateSettings = QUICK
) -> tuple[StepReport, dict[str, dict[str, Any]]]:
    report = step.annotate_clips(clips.videos, clips.clips, out, root, settings)
    return report, {row["clip_id"]: row for row in read_rows("annotations", out)}


def test_worker_processes_fill_every_column_and_a_second_run_changes_no_byte(
    tmp_path: Path, root: DataRoot, scenes: ClipSet
) -> None:
    report, rows = run(scenes, tmp_path / "a.parquet", root, LOCAL.model_copy(update={"workers": 2}))
    assert (report.done, report.reused) == (24, 0) and report.counts["annotations failed"] == 0
    moving, still, title = (rows[clip] for clip in scenes.ids)
    assert moving["motion_score"] > 1 > 0.1 > still["motion_score"] and moving["motion_unit"] == "px/0.5s@short128"
    assert min(title["text_area"]) > 0.2 and max(still["text_area"]) < 0.1
    assert moving["caption_image_model"] == "sidecar-description@1" and still["caption_image_model"] == "visual-words@1"
    assert {name for row in rows.values() for name, value in row.items() if value is None} == {"watermark", "nsfw"}
    for row in rows.values():
        assert all(-1 <= v <= 1 for c in ("image", "video", "summary") for v in row[f"similarity_{c}"])
        assert root.exists(row["embedding_uri"]) and root.exists(row["flow_uri"])
    writes = root.writes
    again, _ = run(scenes, tmp_path / "b.parquet", root)
    assert (again.done, again.reused) == (0, 24) and root.writes == writes
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.usefixtures("in_process")
def test_the_manifest_is_that_of_its_rows_whatever_the_order_in_which_clips_are_done(
    tmp_path: Path, root: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backwards, looked up and made into rows two at a time."""
    shots: list[Any] = [make_scene(n, 6, 64, 96).frames for n in range(7)]
    clips = clip_set(root, tmp_path, shots)
    monkeypatch.setattr(step, "map_units", lambda function, units, *_, **__: here(function, list(units)[::-1]))
    monkeypatch.setattr(step, "_BATCH", 2)
    without_networks = QUICK.model_copy(update={"text": None, "embedding": None, "similarity": None})
    _, rows = run(clips, tmp_path / "a.parquet", root, without_networks)
    written = write_manifest("annotations", list(rows.values())[::-1], tmp_path / "whole.parquet")
    assert written.num_rows == 7 and [row["clip_id"] for row in written.to_pylist()] == sorted(clips.ids)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_of_a_clip_that_is_known_the_step_holds_a_few_numbers(
    tmp_path: Path, root: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own memory, that is; the rows of one row group lie in Arrow's."""
    columns = {"motion_score": 1.5, "aesthetic": [1.0, 2.0, 3.0], "caption_summary": "a man walks along a street " * 4}
    monkeypatch.setattr(Results, "whole", lambda *_: ClipResult(dict(columns), reused=["motion"]))
    monkeypatch.setattr(step, "_BATCH", 200)
    one = clip_set(root, tmp_path, [make_scene(1, 6, 64, 96).frames])
    (clip,), peaks = read_rows("clips", one.clips), []
    for count in (1000, 5000):
        write_manifest("clips", [{**clip, "clip_id": f"{n:032x}"} for n in range(count)], one.clips)
        tracemalloc.start()
        report = step.annotate_clips(one.videos, one.clips, tmp_path / "a.parquet", root, QUICK)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert report.counts["clips annotated"] == count
    assert (peaks[1] - peaks[0]) / 4000 < 150


@pytest.mark.usefixtures("in_process")
def test_a_new_version_or_setting_runs_that_annotator_alone_and_a_new_clip_runs_alone(
    tmp_path: Path, root: DataRoot, scenes: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(scenes, tmp_path / "a.parquet", root)

    def done_by_axis(settings: AnnotateSettings = QUICK, clips: ClipSet = scenes) -> dict[str, int]:
        report, _ = run(clips, tmp_path / "b.parquet", root, settings)
        return {axis: done for axis, _, _, done, *_ in report.sections[0]["rows"] if done}

    assert done_by_axis() == {}
    aesthetic = next(type(a) for a in load(LOCAL) if a.axis == "aesthetic")
    with monkeypatch.context() as changed:
        changed.setattr(aesthetic, "version", "2")
        measure._of_this_process.cache_clear()
        assert done_by_axis() == {"aesthetic": 3}
    measure._of_this_process.cache_clear()
    assert done_by_axis(QUICK.model_copy(update={"text_long_side_px": 256})) == {"text": 3}
    assert done_by_axis(QUICK.model_copy(update={"prefer_description": False})) == {
        "caption_image": 3,
        "caption_summary": 1,
        "similarity": 1,
    }
    shots = [make_scene(1, 18, 96, 160, camera="pan_left").frames, make_scene(9, 18, 96, 160).frames]
    more = clip_set(
        root, tmp_path / "more", shots, descriptions=[make_scene(1, 18, 96, 160, camera="pan_left").caption, None]
    )
    assert set(done_by_axis(clips=more).values()) == {1}  # the first clip is known


@pytest.mark.usefixtures("in_process")
def test_each_clip_is_decoded_once_for_all_annotators(
    tmp_path: Path, root: DataRoot, scenes: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    real = measure.look
    monkeypatch.setattr(measure, "look", lambda mp4, *args, **kw: (decoded.append(len(mp4)), real(mp4, *args, **kw))[1])
    run(scenes, tmp_path / "a.parquet", root)
    assert len(decoded) == 3
    run(scenes, tmp_path / "b.parquet", root)
    assert len(decoded) == 3


@pytest.mark.usefixtures("in_process")
def test_a_clip_that_does_not_decode_is_set_aside_and_counted(tmp_path: Path, root: DataRoot) -> None:
    good = make_scene(1, 18, 96, 160).frames
    clips = clip_set(root, tmp_path, [good, good[:12]])
    row = next(r for r in read_rows("clips", clips.clips) if r["clip_id"] == clips.ids[1])
    broken = [
        {**r, "offset": 0, "bytes": 100} if r is row or r["clip_id"] == clips.ids[1] else r
        for r in read_rows("clips", clips.clips)
    ]
    write_manifest("clips", broken, clips.clips)
    report, rows = run(clips, tmp_path / "a.parquet", root)
    assert (report.counts["clips annotated"], report.counts["clips set aside"]) == (1, 1)
    assert rows[clips.ids[1]]["motion_score"] is None and rows[clips.ids[0]]["motion_score"] is not None
    assert any(
        "no readable video" in reason
        for section in report.sections
        if section["title"] == "Set aside"
        for _, _, reason in section["rows"]
    )
    again, _ = run(clips, tmp_path / "b.parquet", root)
    assert (again.done, again.reused) == (0, 8)


@pytest.mark.usefixtures("in_process")
def test_one_failing_annotator_leaves_the_others_and_a_dead_endpoint_stops_the_step(
    tmp_path: Path, root: DataRoot, scenes: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = next(type(a) for a in load(LOCAL) if a.axis == "caption_image")
    real = words.annotate

    def fails_on_one(self, clip):  # type: ignore[no-untyped-def]
        if clip.clip_id == scenes.ids[1]:
            raise BadInputError("out of words")
        return real(self, clip)

    with monkeypatch.context() as changed:
        changed.setattr(words, "annotate", fails_on_one)
        report, rows = run(scenes, tmp_path / "a.parquet", root)
    assert report.counts["annotations failed"] == 1
    assert rows[scenes.ids[1]]["caption_image"] is None and rows[scenes.ids[1]]["motion_score"] is not None
    report, rows = run(scenes, tmp_path / "b.parquet", root)  # healed: what depended on the failure is made anew
    assert (
        report.counts["annotations failed"] == 0
        and rows[scenes.ids[1]]["caption_image"] in rows[scenes.ids[1]]["caption_summary"]
    )
    dead = QUICK.model_copy(
        update={
            "caption_video": "endpoint",
            "endpoint_url": "http://127.0.0.1:9/v1",
            "endpoint_model": "x",
            "endpoint_tries": 1,
        }
    )
    with pytest.raises(BadInputError, match=r"endpoint \(caption_video\) failed on all 3 clips"):
        run(scenes, tmp_path / "c.parquet", root, dead)


@pytest.mark.usefixtures("in_process")
def test_results_follow_a_clips_bytes_wherever_they_lie(tmp_path: Path, root: DataRoot, scenes: ClipSet) -> None:
    _, rows = run(scenes, tmp_path / "a.parquet", root)
    shots = [make_scene(2, 18, 96, 160, still=True).frames, make_scene(9, 18, 96, 160).frames]
    again = clip_set(root, tmp_path / "again", shots)  # another shard, other ids; the first is a clip of before
    report, others = run(again, tmp_path / "b.parquet", root)
    assert (report.done, report.reused) == (8, 8)
    same = {name: value for name, value in others[again.ids[0]].items() if name != "clip_id"}
    assert same == {name: value for name, value in rows[scenes.ids[1]].items() if name != "clip_id"}


@pytest.mark.usefixtures("in_process")
def test_a_result_whose_object_was_cleaned_away_is_made_again(tmp_path: Path, root: DataRoot, scenes: ClipSet) -> None:
    _, rows = run(scenes, tmp_path / "a.parquet", root)
    root.fetch(rows[scenes.ids[0]]["flow_uri"]).unlink()
    report, _ = run(scenes, tmp_path / "b.parquet", root)
    assert report.done == 1 and root.exists(rows[scenes.ids[0]]["flow_uri"])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_all_results_of_a_clip_can_be_found_by_its_content(tmp_path: Path, root: DataRoot, scenes: ClipSet) -> None:
    run(scenes, tmp_path / "a.parquet", root)
    row = read_rows("clips", scenes.clips)[0]
    content = sha256(root.read_range(row["shard_uri"], row["offset"], row["bytes"])).hexdigest()
    records = [uri for uri in root.list("results/annotate/") if uri.rsplit("/", 1)[1].startswith(content[:32])]
    assert len(records) == 8
