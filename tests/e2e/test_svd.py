"""What a finished run of the pipeline `svd` leaves, and what a further one does again."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdflow.common.config import load_profile
from svdflow.common.manifests import read_rows
from svdflow.common.video import decode, probe, read_frames
from tests.e2e.conftest import processes_of, run_svd, svdflow

STABLE_KEYS = {
    "videos",
    "clips",
    "selection",
    "validation",
    "dataset",
    "training",
    "multiview",
    "evaluation",
    "serving",
    "work",
    "seconds",
    "run",
}


def manifest(run, kind):
    return read_rows(kind, run.workdir / "manifests" / f"{kind}.parquet")


def data_files(workdir: Path) -> dict[str, int]:
    """Everything written to the store and the data root, with the time of writing."""
    places = [workdir / "data" / "files", workdir / "data" / "results"]
    return {str(p): p.stat().st_mtime_ns for place in places for p in place.rglob("*") if p.is_file()}


def test_the_summary_has_its_stable_keys(finished):
    assert set(finished.summary) >= STABLE_KEYS
    assert finished.summary["run"]["failed"] == []


def test_every_file_of_the_source_is_accounted_for(finished, source):
    videos = manifest(finished, "videos")
    real = {v["name"]: v for v in videos if v["source"] != "generated"}
    assert set(real) == {p.name for p in source.iterdir()}
    bad = {name for name, v in real.items() if v["status"] == "set_aside"}
    assert bad >= {"notes.mp4", "empty.mp4", "sound only.mp4", "one frame.mp4"}
    assert all(v["error"] for v in real.values() if v["status"] == "set_aside")
    assert real["vélos dans la rue.mp4"]["status"] == "ok"
    counted = finished.summary["videos"]
    assert counted["ok"] + counted["set_aside"] + counted["duplicates"] == counted["files"]
    assert counted["ok"] + counted["set_aside"] == len(videos)


def test_the_manifests_hang_together(finished):
    videos = {v["video_id"]: v for v in manifest(finished, "videos") if v["status"] == "ok"}
    clips = {c["clip_id"]: c for c in manifest(finished, "clips")}
    selection = manifest(finished, "selection")
    assert {c["video_id"] for c in clips.values()} <= set(videos)
    assert {a["clip_id"] for a in manifest(finished, "annotations")} == set(clips) == {s["clip_id"] for s in selection}
    sides = {
        side: {s["video_id"] for s in selection if s["keep"] and s["split"] == side} for side in ("train", "held_out")
    }
    assert sides["train"] and sides["held_out"] and not sides["train"] & sides["held_out"]


def test_generated_and_served_videos_play(finished):
    videos = sorted((finished.workdir / "generated").rglob("*.mp4"))
    assert len(videos) >= 2
    for path in videos:
        assert probe(path).frames >= 2
        assert all(frame.rgb.std() > 0 for frame in decode(path))
    served = finished.summary["serving"]
    assert served["equal_to_in_process"] is True
    assert Path(served["video"]).name in {p.name for p in videos}


def test_each_stage_trained_in_two_processes_and_started_from_the_last(finished):
    stages = finished.summary["training"]
    assert {"image", "video", "image_to_video"} <= set(stages)
    for name, stage in stages.items():
        assert stage["world_size"] == 2 and stage["zero_stage"] == 2, name
        assert 0 < stage["held_out_loss_before"] < 10 and 0 < stage["held_out_loss_after"] < 10, name
    assert stages["video"]["resumed_from"]  # it was interrupted


def test_the_report_asks_the_network_for_nothing(finished):
    html = (finished.workdir / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "@import" not in html and "url(" not in html
    assert html.count("<video") >= 2 and html.count("<img") >= 10 and html.count("<svg") >= 4


def test_dataset_commands_list_show_and_pull_what_was_registered(finished, tmp_path):
    tag = finished.summary["dataset"]["tag"]
    listed = svdflow("data", "list", "-w", finished.workdir)
    assert tag in listed.stdout
    assert tag in svdflow("data", "show", tag, "-w", finished.workdir).stdout
    pulled = svdflow("data", "pull", tag, tmp_path / "pulled here", "-w", finished.workdir)
    assert pulled.returncode == 0, pulled.stderr
    shards = list((tmp_path / "pulled here").rglob("*.tar"))
    assert len(shards) == finished.summary["dataset"]["shards"]
    assert list((tmp_path / "pulled here").rglob("selection.parquet"))


def test_a_product_service_gets_a_video_for_a_picture_through_the_served_model(finished, tmp_path):
    clip = manifest(finished, "clips")[0]
    shard = finished.workdir / "data" / clip["shard_uri"]
    with open(shard, "rb") as stream:
        stream.seek(clip["offset"])
        frame = read_frames(stream.read(clip["bytes"]), [0])[0]
    Image.fromarray(frame).save(tmp_path / "a picture.png")
    command = [
        sys.executable,
        "-m",
        "svdflow.pipelines.cli",
        "serve",
        str(finished.workdir / "repository"),
        "--grpc-port",
        "0",
        "--http-port",
        "0",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = next(line.split()[-1] for line in server.stdout if line.startswith("gRPC"))
        videos = []
        for seed in (1, 1, 2):
            done = svdflow(
                "generate", tmp_path / "a picture.png", "-o", tmp_path / "out.mp4", "--url", url, "--seed", str(seed)
            )
            assert done.returncode == 0, done.stderr
            videos.append(np.stack([f.rgb for f in decode(tmp_path / "out.mp4")]))
        assert np.array_equal(videos[0], videos[1]) and not np.array_equal(videos[0], videos[2])
        refused = svdflow("generate", tmp_path / "absent.png", "--url", url)
        assert (
            refused.returncode == 1 and "there is no such image" in refused.stderr and "Traceback" not in refused.stderr
        )
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(120)
    assert processes_of(finished.workdir) == []


def test_a_run_with_nothing_changed_finds_all_work_done(finished, source):
    before = data_files(finished.workdir)
    started = time.monotonic()
    again = run_svd(finished.workdir, source)
    assert again.status == 0, again.err[-2000:]
    assert {step: w["done"] for step, w in again.summary["work"].items() if w["done"]} == {}
    assert data_files(finished.workdir) == before
    print(f"unchanged run: {time.monotonic() - started:.0f} s")


@pytest.fixture(scope="module")
def changed(finished, source, media, tmp_path_factory):
    """The run again: one video more, another threshold, and stages that train for no step at all."""
    folder = tmp_path_factory.mktemp("changed")
    more, workdir = folder / "more footage", folder / "run"
    shutil.copytree(source, more)
    shutil.copy(media / "carphone_distorted.mp4", more / "one more.mp4")
    for part in ("data", "registry", "store"):
        shutil.copytree(finished.workdir / part, workdir / part)
    changes = [f"train_{stage}.steps=0" for stage in ("image", "video", "image_to_video", "multi_view")]
    changes += [f"gate.{name}={value}" for name, value in load_profile("local")["gate"].items()]
    changes += ["filter.motion_percent=30"]
    return run_svd(workdir, more, *(part for change in changes for part in ("--set", change)))


def test_a_video_more_and_another_threshold_cost_only_what_they_must(finished, changed):
    before, work, clips = finished.summary["work"], changed.summary["work"], manifest(changed, "clips")
    videos = {v["name"]: v["video_id"] for v in manifest(changed, "videos")}
    new = [c for c in clips if c["video_id"] == videos["one more.mp4"]]
    assert work["ingest"]["done"] == 1
    assert work["split"]["done"] == 1
    annotators = (before["annotate"]["done"] + before["annotate"]["reused"]) / (len(clips) - len(new))
    assert new and work["annotate"]["done"] == annotators * len(new)
    kept_before = {s["clip_id"] for s in manifest(finished, "selection") if s["keep"]}
    kept = {s["clip_id"] for s in manifest(changed, "selection") if s["keep"]}
    assert work["encode"]["done"] == len(kept - kept_before)
    assert changed.summary["dataset"]["tag"] != finished.summary["dataset"]["tag"]


def test_untrained_weights_are_refused_by_the_gate_the_run_says_why_and_exports_nothing(changed):
    assert changed.status == 1
    assert "gate: " in changed.err and "over untrained weights" in changed.err and "Traceback" not in changed.err
    stage = changed.summary["training"]["image_to_video"]
    assert stage["steps"] == 0 and stage["held_out_loss_before"] == stage["held_out_loss_after"]
    assert not (changed.workdir / "repository").exists()
    assert any("gate" in line for line in changed.summary["run"]["failed"])
    assert "over untrained weights" in (changed.workdir / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "filter.motoin_percent=3"], "filter.motoin_percent"),
        (["--set", "train_imge.steps=3"], "train_imge"),
        (["--profile", "nope"], "nope"),
    ],
)
def test_a_wrong_setting_is_refused_at_once_with_one_line(tmp_path, source, arguments, said):
    run = svdflow("run", "svd", "--source", source, "-w", tmp_path / "w", *arguments)
    assert run.returncode == 1
    assert said in run.stderr and run.stderr.count("\n") == 1


def test_an_empty_source_is_refused_with_one_line(tmp_path):
    (tmp_path / "nothing").mkdir()
    run = run_svd(tmp_path / "w", tmp_path / "nothing", "--set", "ingest.generated_clips=0")
    assert run.status == 1
    assert "ingest:" in run.err and "Traceback" not in run.err
