"""What a run of the pipeline `curation` over good and bad footage leaves, and what a further one does again."""

import re
from pathlib import Path

import pytest

from svdflow.common.manifests import read_rows
from tests import curation_runs
from tests.e2e.conftest import svdflow
from tests.footage_sets import write_bad_files, write_good_videos


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mixed footage")


@pytest.fixture(scope="module")
def good(source):
    return write_good_videos(source, count=3)


@pytest.fixture(scope="module")
def bad(source) -> dict[str, bool]:
    return write_bad_files(source)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, source, good, bad) -> Path:
    workdir = tmp_path_factory.mktemp("curation work") / "run"
    curation_runs.finish(workdir, source)
    return workdir


@pytest.fixture(scope="module")
def summary(workdir) -> dict:
    return curation_runs.summary(workdir)


def rows(workdir: Path, kind: str) -> list[dict]:
    return read_rows(kind, workdir / "manifests" / f"{kind}.parquet")


def test_every_file_is_accounted_for_and_the_bad_ones_are_set_aside_with_a_reason(workdir, summary, good, bad):
    videos = {video["name"]: video for video in rows(workdir, "videos")}
    assert set(videos) == {*bad, *(video.name for video in good)}
    assert {video.name for video in good} <= {n for n, v in videos.items() if v["status"] == "ok"}
    for name, usable in bad.items():
        if not usable:
            assert videos[name]["status"] == "set_aside" and videos[name]["error"], name
    assert summary["videos"]["ok"] + summary["videos"]["set_aside"] == len(videos)


def test_no_clip_of_a_good_video_is_lost_among_bad_ones(workdir, good):
    names = {video["video_id"]: video["name"] for video in rows(workdir, "videos")}
    spans: dict[str, list[tuple[int, int]]] = {}
    for clip in rows(workdir, "clips"):
        spans.setdefault(names[clip["video_id"]], []).append((clip["first_frame"], clip["last_frame"]))
    assert {video.name: sorted(spans[video.name]) for video in good} == {video.name: video.shots for video in good}


def test_what_comes_out_of_bad_videos_is_whole(workdir, bad):
    names = {video["video_id"]: video["name"] for video in rows(workdir, "videos")}
    annotated = {row["clip_id"]: row for row in rows(workdir, "annotations")}
    clips = rows(workdir, "clips")
    assert {clip["clip_id"] for clip in clips} == set(annotated)
    for clip in clips:
        assert bad.get(names[clip["video_id"]], True), "a clip of a file that nobody can use"
        assert annotated[clip["clip_id"]]["motion_score"] is not None


def test_odd_times_are_true_and_stop_nothing(workdir):
    """Recordings one after the other, whose times jump back, and a variable rate: their clips pass validation."""
    videos = {video["name"]: video for video in rows(workdir, "videos")}
    clips: dict[str, list[dict]] = {}
    for clip in rows(workdir, "clips"):
        clips.setdefault(clip["video_id"], []).append(clip)
    joined, uneven = videos["s three recordings.ts"], videos["t uneven.mkv"]
    assert joined["duration_s"] == pytest.approx(60 / 12) and joined["fps"] == 12 and joined["frames"] == 60
    starts = [round(clip["start_s"], 2) for clip in clips[joined["video_id"]]]
    assert len(starts) == 3 and max(clip["end_s"] for clip in clips[joined["video_id"]]) > 4
    assert uneven["variable_fps"]
    rates = sorted(clip["fps"] for clip in clips[uneven["video_id"]])
    assert rates[0] < 3 < 25 < rates[-1]


def test_a_dataset_is_registered(workdir, summary):
    tag = summary["dataset"]["tag"]
    assert summary["dataset"]["clips"] == sum(row["keep"] for row in rows(workdir, "selection")) > 0
    assert tag in svdflow("data", "list", "-w", workdir).stdout


def test_registering_it_by_hand_finds_what_the_run_validated(workdir, summary):
    verdicts = sorted((workdir / "data" / "results" / "validate").rglob("*.json"))
    done = svdflow("data", "register", "-w", workdir)
    assert f"{summary['dataset']['tag']} has this content already" in done.stdout, done.stderr
    assert sorted((workdir / "data" / "results" / "validate").rglob("*.json")) == verdicts, "nothing was checked again"
    assert (workdir / "validation_register.html").read_bytes() == (workdir / "validation_selection.html").read_bytes()


def test_the_report_shows_the_funnel_the_set_aside_and_the_slowest_and_asks_the_network_for_nothing(workdir, bad):
    html = (workdir / "report.html").read_text()
    assert "<title>svdflow · curation · test</title>" in html
    glance = html[html.index('id="overview"') : html.index('id="counts"')]
    for title in ("From footage to dataset", "Slowest", "Largest", "Set aside, and why"):
        assert title in glance
    for name, usable in bad.items():
        assert usable or name in glance
    assert not re.search(r'(src|href)="(?!data:|#)', html) and "@import" not in html and "url(" not in html
    assert html.count("<img") >= 10 and html.count('class="cut"') >= 1


def test_a_second_run_computes_nothing_and_leaves_the_same_bytes(workdir, source):
    before = curation_runs.manifests(workdir)
    again = curation_runs.finish(workdir, source)
    assert {step: work["done"] for step, work in again["work"].items() if work["done"]} == {}
    assert curation_runs.manifests(workdir) == before


def test_another_threshold_costs_a_selection_and_a_version_alone(workdir, source, summary):
    changed = curation_runs.finish(workdir, source, "--set", "filter.motion_percent=40")
    assert {step for step, work in changed["work"].items() if work["done"]} <= {
        "filter", "validate_selection", "version"
    }  # fmt: skip
    assert changed["dataset"]["tag"] != summary["dataset"]["tag"]
    assert changed["selection"]["kept"] < summary["selection"]["kept"]
