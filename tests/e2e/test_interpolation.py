"""`svdflow run interpolation`: from a dataset version and a text-to-video model to frames between those of a video."""

import json
from pathlib import Path

import pytest

from svdflow.common.video import probe
from svdflow.export.model_config import exported_models
from tests.e2e.conftest import Run, svdflow


@pytest.fixture(scope="module")
def interpolated(finished, tmp_path_factory) -> Run:
    workdir = tmp_path_factory.mktemp("interpolation") / "own run"
    sets = {"version.registry": finished.workdir / "registry", "version.store": finished.workdir / "store"}
    sets |= {"encode.cache": "false", "train_interpolation.processes": "1"}  # quicker, for so few steps
    done = svdflow(
        "run", "interpolation", "--profile", "test", "-w", workdir, "--init", finished.workdir / "models/video",
        *(part for name, value in sets.items() for part in ("--set", f"{name}={value}")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return Run(done.returncode, done.stdout, done.stderr, workdir)


def test_the_model_is_trained_measured_judged_and_exported(interpolated):
    workdir, summary = interpolated.workdir, interpolated.summary
    card = json.loads((workdir / "models/interpolation/svdflow.json").read_text())
    assert (card["kind"], card["configuration"]["frames"]) == ("interpolation", 5)
    assert [parent["stage"] for parent in card["parents"]][-1] == "video"
    figures = json.loads((workdir / "interpolation.json").read_text())["figures"]
    for values in figures.values():
        assert set(values) == {"model", "untrained", "blend", "nearest", "flow_warp"}
    assert figures["psnr_db"]["flow_warp"] > figures["psnr_db"]["untrained"]
    assert summary["interpolation"]["psnr_db"] == figures["psnr_db"] and summary["gate"]["passed"]
    assert summary["run"]["pipeline"] == "interpolation" and summary["run"]["failed"] == []
    assert exported_models(workdir / "repository") == ("interpolation",)
    page = (workdir / "report.html").read_text()
    assert "Frames between two given ones" in page and "Held-out windows" in page
    assert len(list((workdir / "generated/interpolation").glob("*-generated.mp4"))) == 2


def test_the_model_makes_a_videos_frame_rate_four_times_what_it_is(finished, interpolated, tmp_path):
    video: Path = next((finished.workdir / "generated/held_out").glob("*-generated.mp4"))
    before = probe(video)
    done = svdflow(
        "interpolate", video, "-o", tmp_path / "o.mp4", "--model", interpolated.workdir / "models/interpolation",
        "--steps", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    after = probe(tmp_path / "o.mp4")
    assert (after.frames, after.fps) == (4 * (before.frames - 1) + 1, pytest.approx(4 * before.fps))
    refused = svdflow("interpolate", video, "--model", finished.workdir / "models/video")
    assert refused.returncode == 1 and "kind text_to_video" in refused.stderr and refused.stderr.count("\n") == 1
