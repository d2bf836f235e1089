"""Evaluation and multi-view measurement end to end with tiny models: figures, videos, reuse, the gate's refusal."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from svdflow.common.errors import BadInputError, GateRefused
from svdflow.common.identity import file_sha256
from svdflow.common.lossless_frames import pack_frames
from svdflow.common.manifests import AXES, write_manifest
from svdflow.common.psnr import psnr_db
from svdflow.common.shards import write_shard
from svdflow.common.storage import DataRoot
from svdflow.common.video import decode, encode_mp4, probe, read_frames
from svdflow.evaluation.columns import motion_bucket
from svdflow.evaluation.evaluate import evaluate_model
from svdflow.evaluation.gate import check_gate
from svdflow.evaluation.gaussians import Moments, distance_between
from svdflow.evaluation.settings import EvaluateSettings, GateSettings
from svdflow.multiview.measure import choose_orbits, measure_orbits, wrong_elevations
from svdflow.multiview.settings import MeasureSettings
from svdflow.pipelines.cli import app
from tests.tiny_clip import save_tiny_clip
from tests.video_networks import save_tiny_network, tiny_features

FRAMES, SIZE, FPS = 4, 32, 6.0
QUICK = EvaluateSettings(samples=3, steps=2, videos_shown=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import torch

    from svdflow.diffusion.autoencoder import load_autoencoder
    from svdflow.diffusion.conditioning import build_feature_extractor, build_image_encoder
    from svdflow.diffusion.model_directory import VideoModel, save_model
    from svdflow.diffusion.settings import UNetSettings
    from svdflow.diffusion.unet import build_video_unet, to_multi_view

    folder = tmp_path_factory.mktemp("models")
    vae = load_autoencoder()
    sizes = UNetSettings(
        latent_channels=vae.config.latent_channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_heads=(2, 4),
        cross_attention_dim=32,
        addition_time_embed_dim=32,
        num_frames=FRAMES,
        sample_size=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        unet = build_video_unet(sizes, "image_to_video")
    encoder, extractor = build_image_encoder(32), build_feature_extractor()
    card = {
        "stage": "image_to_video",
        "motion_calibration": {"scores": [1.0, 3.0], "buckets": [0.0, 200.0], "unit": "px"},
    }
    save_model(VideoModel("image_to_video", unet, vae, encoder, extractor, None, card), folder / "image_to_video")
    save_model(VideoModel("multi_view", to_multi_view(unet), vae, encoder, extractor, None, {}), folder / "multi_view")
    return {kind: folder / kind for kind in ("image_to_video", "multi_view")}


@pytest.fixture
def manifests(tmp_path: Path, root: DataRoot) -> dict[str, Path]:
    """Three held-out clips and one of training, in real H.264, with their samples as encoding leaves them."""
    rng = np.random.default_rng(2)
    wide = np.kron(rng.integers(0, 255, (8, 40, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
    clips, samples, selection, notes = [], [], [], []
    for number in range(4):
        frames = np.stack(
            [wide[:, 10 * number + t * (number + 1) : 10 * number + t * (number + 1) + SIZE] for t in range(FRAMES + 2)]
        )
        mp4 = encode_mp4(frames, FPS, crf=10)
        clip, split = f"clip{number}", "train" if number == 3 else "held_out"
        write_shard(tmp_path / f"{clip}.safetensors", {clip: {"frame": read_frames(mp4, [1])[0]}})
        clips.append(
            {
                "clip_id": clip,
                "video_id": "v",
                "start_s": 0.0,
                "end_s": 1.0,
                "first_frame": 0,
                "last_frame": FRAMES + 1,
                "cut_evidence": "{}",
                "shard_uri": root.put_bytes(b"xx" + mp4),
                "member": "m",
                "offset": 2,
                "bytes": len(mp4),
                "frames": FRAMES + 2,
                "fps": FPS,
                "width": SIZE,
                "height": SIZE,
            }
        )
        samples.append(
            {
                "sample_id": clip,
                "clip_id": clip,
                "split": split,
                "shard_uri": root.put_file(tmp_path / f"{clip}.safetensors"),
                "tensor_prefix": clip,
                "frames": FRAMES,
                "height": SIZE,
                "width": SIZE,
                "fps": FPS,
                "motion_score": 1.0 + number,
                "captions": ["a colourful picture", "", ""],
            }
        )
        selection.append(
            {
                "clip_id": clip,
                "video_id": "v",
                "keep": True,
                "split": split,
                "reasons": [],
                "thresholds": "{}",
                **{f"{axis}_failed": False for axis in AXES},
            }
        )
        notes.append(
            {"clip_id": clip, "motion_score": 1.0 + number, "motion_unit": "px/0.5s@short128", "annotators": "{}"}
        )
    rows = {"clips": clips, "samples": samples, "selection": selection, "annotations": notes}
    for kind, content in rows.items():
        write_manifest(kind, content, tmp_path / f"{kind}.parquet")
    return {kind: tmp_path / f"{kind}.parquet" for kind in rows}


def test_evaluation_of_untrained_weights_is_measured_kept_and_refused(
    models: dict[str, Path], manifests: dict[str, Path], root: DataRoot, tmp_path: Path
) -> None:
    def evaluate(name: str, settings: EvaluateSettings = QUICK):
        return evaluate_model(
            models["image_to_video"],
            manifests["samples"],
            manifests["clips"],
            manifests["annotations"],
            manifests["selection"],
            tmp_path / f"{name}.json",
            tmp_path / name,
            root,
            settings,
        )

    report = evaluate("first")
    metrics = json.loads((tmp_path / "first.json").read_text())
    figures = metrics["figures"]
    assert (report.done, report.reused) == (6, 0) and metrics["protocol"]["sample_ids"] == ["clip0", "clip1", "clip2"]
    assert metrics["protocol"]["motion_unit"] == "px/0.5s@short128"

    # the still picture's figures follow from the clips alone
    expected, truths = [], []
    for number in range(3):
        row = decode(root.read(json_row(manifests["clips"], number)["shard_uri"])[2:])
        true = np.stack([frame.rgb for frame in row])[1 : FRAMES + 1]
        truths.append(true)
        expected.append(psnr_db(true[1:], np.repeat(true[:1], FRAMES - 1, axis=0)).mean())
    assert figures["psnr_db"]["first_frame_repeated"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert figures["first_frame_psnr_db"]["first_frame_repeated"] == 100
    assert figures["motion_px"]["first_frame_repeated"] < 0.05 < figures["true_motion_px"]["model"]
    # the model is itself untrained: it must not look better than other random weights
    assert abs(figures["psnr_db"]["model"] - figures["psnr_db"]["untrained"]) < 3
    assert (
        figures["frechet_efficientnet_lite0"]["model"] > figures["frechet_efficientnet_lite0"]["first_frame_repeated"]
    )

    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == [*(f"clip{n}-{kind}.mp4" for n in range(3) for kind in ("generated", "truth")), "sources.csv"]
    assert (tmp_path / "first" / "sources.csv").read_text() == "video,source\nclip0,v\nclip1,v\nclip2,v\n"
    info = probe(tmp_path / "first" / "clip1-generated.mp4")
    assert (info.frames, info.width, info.height, round(info.fps)) == (FRAMES, SIZE, SIZE, 6)

    again = evaluate("again")
    assert (again.done, again.reused) == (0, 6)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "first.json").read_bytes()
    fewer = evaluate("fewer", QUICK.model_copy(update={"samples": 2, "metrics": ("psnr",)}))
    assert fewer.done == 0, "fewer samples and metrics need no new video"

    network = save_tiny_network(tmp_path / "net.pt")
    of_network = {"metrics": ("fvd",), "features": str(network), "features_sha256": file_sha256(network)}
    assert evaluate("on a network", QUICK.model_copy(update=of_network)).done == 0
    distances = json.loads((tmp_path / "on a network.json").read_text())["figures"]["frechet_net"]
    truth = np.stack(truths).astype(float)
    # the network brings 32 px to 8: in between two pixels of every four, in both directions
    small = sum(truth[:, :, y::4, x::4] for y in (1, 2) for x in (1, 2)) / 4
    still = np.repeat(small[:, :1], FRAMES, axis=1)
    by_hand = distance_between(*(Moments.of(tiny_features(videos)) for videos in (small, still)))
    assert distances["first_frame_repeated"] == pytest.approx(by_hand, rel=1e-3)

    with pytest.raises(GateRefused, match="PSNR gain over untrained weights"):
        check_gate(tmp_path / "first.json", GateSettings(min_samples=2))


def json_row(path: Path, number: int) -> dict[str, object]:
    from svdflow.common.manifests import read_rows

    return read_rows("clips", path)[number]


def test_a_model_of_another_kind_is_refused_by_name(
    models: dict[str, Path], manifests: dict[str, Path], root: DataRoot, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match="kind multi_view"):
        evaluate_model(
            models["multi_view"],
            manifests["samples"],
            manifests["clips"],
            manifests["annotations"],
            manifests["selection"],
            tmp_path / "m.json",
            tmp_path / "g",
            root,
            QUICK,
        )
    with pytest.raises(BadInputError, match="kind image_to_video; orbits need multi_view"):
        measure_orbits(models["image_to_video"], models["image_to_video"], tmp_path / "none", root, MeasureSettings())


def test_motion_is_asked_for_by_the_models_own_calibration() -> None:
    card = {"motion_calibration": {"scores": [1.0, 3.0], "buckets": [0.0, 200.0]}}
    assert motion_bucket(card, 2.0) == 100
    assert motion_bucket(card, None) == motion_bucket({}, 2.0) == 127


def test_every_orbit_is_told_an_elevation_far_from_its_own() -> None:
    true = [3.0, 29.0, -4.0, 12.0, 20.0]
    wrong = wrong_elevations(true)
    assert sorted(wrong) == sorted(true)
    assert all(abs(a - b) > 6 for a, b in zip(true, wrong, strict=True))


def test_orbits_are_measured_without_the_input_view_and_generated_once(
    models: dict[str, Path], root: DataRoot, tmp_path: Path
) -> None:
    rows, truths = [], []
    for number in range(3):
        views = np.random.default_rng(number).integers(0, 255, (FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
        truths.append(views)
        rows.append(
            {
                "orbit_id": f"o{number}",
                "object_id": f"thing{number % 2}",
                "source": "generated",
                "elevation_deg": 5.0 + 10 * number,
                "split": "train" if number == 2 else "held_out",
                "frames": FRAMES,
                "height": SIZE,
                "width": SIZE,
                "shard_uri": root.put_bytes(pack_frames(f"o{number}", views)),
            }
        )
    write_manifest("orbits", rows, tmp_path / "orbits.parquet")
    settings = MeasureSettings(steps=2, sheets=1)

    def measure():
        return measure_orbits(
            models["multi_view"], models["image_to_video"], tmp_path / "orbits.parquet", root, settings
        )

    first, again = measure(), measure()
    figures = first.summary["multiview"]
    expected = np.mean([psnr_db(v[1:], np.repeat(v[:1], FRAMES - 1, axis=0)).mean() for v in truths[:2]])
    assert figures["psnr_copy_input"] == pytest.approx(expected, abs=1e-3)
    assert figures["measured_orbits"] == 2 and all(
        np.isfinite(figures[f"psnr_{n}"]) for n in ("after", "before", "shuffled_elevation")
    )
    assert (first.done, again.done, again.reused) == (6, 0, 6) and again.summary == first.summary
    settings = MeasureSettings(steps=2, sheets=1, clip_model=str(save_tiny_clip(tmp_path / "clip")))
    more = measure_orbits(models["multi_view"], None, tmp_path / "orbits.parquet", root, settings)
    told = more.summary["multiview"]
    assert (more.done, more.reused) == (0, 4), "another figure needs no other orbit"
    assert {name for name in told if name.startswith("clip_s")} == {
        "clip_s_after", "clip_s_shuffled_elevation", "clip_s_copy_input",
    }  # fmt: skip
    assert "psnr_before" not in told and told["psnr_after"] == figures["psnr_after"]
    assert all(-1 <= told[name] <= 1 for name in told if name.startswith("clip_s"))
    write_manifest("orbits", rows[2:], tmp_path / "orbits.parquet")
    with pytest.raises(BadInputError, match="no held-out orbit"):
        measure()
    many = [rows[0] | {"orbit_id": f"m{n:02}", "object_id": f"thing{n:02}"} for n in range(60)]
    write_manifest("orbits", many, tmp_path / "many.parquet")
    chosen = {count: choose_orbits(tmp_path / "many.parquet", count) for count in (50, None)}
    assert [len(found) for found in chosen.values()] == [50, 60]


def test_a_full_gpu_is_told_in_one_line_with_what_to_do(
    models: dict[str, Path], manifests: dict[str, Path], root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from svdflow.diffusion import sampling

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    views = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
    row = {
        "orbit_id": "o", "object_id": "cup", "source": "generated", "split": "held_out", "elevation_deg": 5.0,
        "frames": FRAMES, "height": SIZE, "width": SIZE, "shard_uri": root.put_bytes(pack_frames("o", views)),
    }  # fmt: skip
    write_manifest("orbits", [row], tmp_path / "orbits.parquet")
    monkeypatch.setattr(sampling, "generate", full)
    with pytest.raises(BadInputError, match=f"does not hold {FRAMES} views of {SIZE}x{SIZE} px: take fewer"):
        measure_orbits(models["multi_view"], None, tmp_path / "orbits.parquet", root, MeasureSettings())
    given = [manifests[kind] for kind in ("samples", "clips", "annotations", "selection")]
    with pytest.raises(BadInputError, match=f"does not hold {FRAMES} frames of {SIZE}x{SIZE} px: take fewer"):
        evaluate_model(models["image_to_video"], *given, tmp_path / "m.json", tmp_path / "g", root, QUICK)


def write_box(path: Path, sides: tuple[float, float, float]) -> None:
    corners = [[s if n >> axis & 1 else -s for axis, s in enumerate(sides)] for n in range(8)]
    faces = ["1 3 4 2", "5 6 8 7", "1 2 6 5", "3 7 8 4", "1 5 7 3", "2 4 8 6"]
    lines = ["v " + " ".join(map(str, corner)) for corner in corners] + [f"f {face}" for face in faces]
    path.with_suffix(".mtl").write_text("newmtl red\nKd 0.8 0.1 0.1\n")
    path.write_text("\n".join([f"mtllib {path.stem}.mtl", "usemtl red", *lines]) + "\n")


def test_the_command_renders_every_object_and_tells_its_figures_beside_the_papers(
    models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "objects").mkdir()
    write_box(tmp_path / "objects/cube.obj", (1, 1, 1))
    write_box(tmp_path / "objects/slab.obj", (1, 0.3, 0.6))
    clip = save_tiny_clip(tmp_path / "clip")
    command = ["evaluate", "multiview", str(models["multi_view"]), "--objects", str(tmp_path / "objects"), "-w"]
    command += [str(tmp_path / "run"), "--clip", str(clip)]
    for changed in ("render.views=4", f"render.size_px={SIZE}", "render.supersampling=1", "multiview.steps=1"):
        command += ["--set", changed]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads((tmp_path / "run/multiview.json").read_text())
    assert found["protocol"]["measured_objects"] == 2, "none is kept for training"
    assert found["protocol"]["settings"]["orbits"] is None, "however many objects there are, all are measured"
    assert set(found["figures"]) == {
        f"{figure}_{whose}" for figure in ("psnr", "clip_s") for whose in ("after", "shuffled_elevation", "copy_input")
    }
    assert found["published"]["figures"]["SVD-MV"] == {"lpips": 0.14, "psnr": 16.83, "clip_s": 0.89}
    page = (tmp_path / "run/multiview.html").read_text()
    assert "SyncDreamer" in page and "<img" in page and f"{found['figures']['psnr_after']:.4g}" in page
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and json.loads((tmp_path / "run/multiview.json").read_text()) == found
