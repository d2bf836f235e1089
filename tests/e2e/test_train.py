"""`svdflow train STAGE` on a version that another work directory registered: a researcher's own directory."""

import json
from pathlib import Path

import pytest
from PIL import Image

from svdflow.common.manifests import read_rows
from svdflow.common.video import probe
from tests.e2e.conftest import Run, svdflow


def train(finished: Run, workdir: Path, *more: str) -> Run:
    """The first image-to-video stage, from the text-to-video model that the other run left."""
    sets = {"version.registry": finished.workdir / "registry", "version.store": finished.workdir / "store"}
    done = svdflow(
        "train", "image_to_video_base", "--profile", "test", "-w", workdir, "--init", finished.workdir / "models/video",
        *(part for name, value in sets.items() for part in ("--set", f"{name}={value}")), *more,
    )  # fmt: skip
    return Run(done.returncode, done.stdout, done.stderr, workdir)


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory) -> Run:
    run = train(finished, tmp_path_factory.mktemp("researcher") / "own run")
    assert run.status == 0, run.err[-3000:]
    return run


def test_the_stage_is_trained_on_the_newest_version_from_the_model_that_was_given(finished, trained):
    model = trained.workdir / "models" / "image_to_video_base"
    assert f"model: {model}" in trained.out and f"report: {trained.workdir / 'report.html'}" in trained.out
    card = json.loads((model / "svdflow.json").read_text())
    assert card["kind"] == "image_to_video" and card["steps"] == 4
    assert card["dataset"]["tag"] == finished.summary["dataset"]["tag"] == trained.summary["dataset"]["tag"]
    assert card["configuration"]["p_mean"] == 0.7  # the stage's own
    assert [parent["stage"] for parent in card["parents"]][-1] == "video"
    summary = trained.summary
    assert summary["training"]["image_to_video"]["world_size"] == 2 and summary["run"]["pipeline"] == "train"
    assert summary["validation"]["failed"] == 0 and summary["run"]["failed"] == []


def test_its_manifests_and_bytes_came_out_of_the_registry(finished, trained):
    kept = {row["clip_id"] for row in read_rows("selection", finished.workdir / "manifests/selection.parquet")
            if row["keep"]}  # fmt: skip
    taken = next((trained.workdir / "artifacts").rglob("checkout/selection"))
    assert {row["clip_id"] for row in read_rows("selection", taken) if row["keep"]} == kept
    clips = [row for row in read_rows("clips", taken.with_name("clips")) if row["clip_id"] in kept]
    assert clips and all((trained.workdir / "data" / row["shard_uri"]).is_file() for row in clips)
    assert trained.summary["work"]["checkout"] == {"done": 1, "reused": 0}
    assert trained.summary["work"]["encode"]["done"] > 0


def test_a_second_run_finds_everything_without_asking_the_store(finished, trained, monkeypatch):
    monkeypatch.setenv("SVDFLOW_S3_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    again = train(finished, trained.workdir)
    assert again.status == 0, again.err[-2000:]
    assert {step: work["done"] for step, work in again.summary["work"].items() if work["done"]} == {}


def test_the_decoder_is_finetuned_on_the_version_s_frames_and_the_rest_of_the_model_stays(finished, tmp_path):
    sets = {"version.registry": finished.workdir / "registry", "version.store": finished.workdir / "store"}
    start, workdir = finished.workdir / "models/image_to_video", tmp_path / "w"
    command = ["train", "decoder", "--profile", "test", "-w", workdir]
    done = svdflow(*command, "--init", start, *(part for n, v in sets.items() for part in ("--set", f"{n}={v}")))
    assert done.returncode == 0, done.stderr[-3000:]
    model, summary = workdir / "models/decoder", json.loads((workdir / "summary.json").read_text())
    kept = {path.relative_to(start) for path in start.rglob("*") if path.is_file()} - {Path("svdflow.json")}
    assert {path.relative_to(model) for path in model.rglob("*") if path.is_file()} - {Path("svdflow.json")} == kept
    other = {str(path) for path in kept if (start / path).read_bytes() != (model / path).read_bytes()}
    assert other == {"vae/diffusion_pytorch_model.safetensors"}
    found = summary["training"]["decoder"]
    assert found["steps"] == 4 and found["held_out"]["after"]["psnr_db"] != found["held_out"]["before"]["psnr_db"]
    assert "Held-out clips" in (workdir / "report.html").read_text()
    Image.new("RGB", (96, 96), "navy").save(tmp_path / "picture.png")
    made = svdflow("generate", tmp_path / "picture.png", "-o", tmp_path / "o.mp4", "--model", model, "--steps", "1")
    assert made.returncode == 0 and probe(tmp_path / "o.mp4").frames > 1, made.stderr
    refused = svdflow(*command, "--init", finished.workdir / "models/image")
    assert refused.returncode == 1 and "a model of kind image cannot start the stage decoder" in refused.stderr
    unknown = svdflow(*command, "--init", start, "--dry-run")
    assert unknown.returncode == 1 and "for the decoder there is no forecast" in unknown.stderr


def test_what_does_not_fit_is_refused_before_anything_starts(finished, tmp_path):
    for more, says in (
        (["--set", "train_image_to_video.stpes=3"], "train_image_to_video.stpes"),
        (["--set", "train_image_to_video.batch=3"], "a batch of 3 does not split over 2 processes"),
        (["--set", "encode.frames=200"], "max_frames 8 is fewer than the 200 frames of a window"),
        (
            ["--set", "encode.frames=200", "--set", "encode.max_frames=200"],
            "encode.frames: no clip of demo@v1.0.0 holds 200 frames",
        ),
        (["--dataset", "demo@v9"], "there is no dataset version 'demo@v9'; there are: demo@v1.0.0"),
        (["--init", str(finished.workdir / "models/image")], "a model of kind image cannot start the stage"),
    ):
        refused = train(finished, tmp_path / "w", *more)
        assert refused.status == 1 and says in refused.err and refused.err.count("\n") == 1, refused.err
    assert not (tmp_path / "w" / "logs").exists()
