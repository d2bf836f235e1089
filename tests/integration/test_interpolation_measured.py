"""Measuring an interpolation model on held-out clips: true frames out of the clips, closed forms, reuse, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from svdflow.common.errors import BadInputError
from svdflow.common.manifests import AXES, write_manifest
from svdflow.common.psnr import psnr_db
from svdflow.common.shards import write_shard
from svdflow.common.storage import DataRoot
from svdflow.common.video import encode_mp4, probe, read_frames
from svdflow.diffusion import interpolating
from svdflow.diffusion.model_directory import load_model
from svdflow.evaluation.interpolation import measure_interpolation
from svdflow.evaluation.interpolation_figures import blended
from svdflow.evaluation.settings import InterpolationSettings
from tests.interpolation_models import write_interpolation_model

SIZE, FPS, LENGTH = 32, 16.0, 14
QUICK = InterpolationSettings(samples=3, steps=1, sheets=2, untrained_baseline=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_interpolation_model(tmp_path_factory.mktemp("model") / "model")  # at 8 frames a second


@pytest.fixture
def manifests(tmp_path: Path, root: DataRoot) -> dict[str, Path]:
    """Three held-out clips, the last too short, and one of training; samples as encoding leaves them."""
    rng = np.random.default_rng(2)
    wide = np.kron(rng.integers(0, 255, (8, 60, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
    clips, samples, selection = [], [], []
    for number, length in enumerate((LENGTH, LENGTH, 6, LENGTH)):
        frames = np.stack([wide[:, t * (number + 1) : t * (number + 1) + SIZE] for t in range(length)])
        mp4 = encode_mp4(frames, FPS, crf=10)
        clip, split = f"clip{number}", "train" if number == 3 else "held_out"
        (tmp_path / "shards").mkdir(exist_ok=True)
        shard = tmp_path / "shards" / f"{clip}.safetensors"
        import cv2

        png = cv2.imencode(".png", read_frames(mp4, [2])[0][..., ::-1])[1].reshape(-1)
        write_shard(shard, {clip: {"picture-000002": png}})
        clips.append(
            {
                "clip_id": clip,
                "video_id": "v",
                "start_s": 0.0,
                "end_s": 1.0,
                "first_frame": 0,
                "last_frame": length - 1,
                "cut_evidence": "{}",
                "shard_uri": root.put_bytes(mp4),
                "member": "m",
                "offset": 0,
                "bytes": len(mp4),
                "frames": length,
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
                "layout": "frames",
                "shard_uri": root.put_file(shard),
                "tensor_prefix": clip,
                "frames": 4,
                "height": SIZE,
                "width": SIZE,
                "fps": FPS,
                "first_frame": 2,
                "stride": 1,
                "sequence_frames": length,
                "sequence_fps": FPS,
                "start_s": 0.0,
                "starts": [2],
                "motion_score": 4.0,
                "captions": ["", "", ""],
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
    rows = {"clips": clips, "samples": samples, "selection": selection}
    for kind, content in rows.items():
        write_manifest(kind, content, tmp_path / f"{kind}.parquet")
    return {kind: tmp_path / f"{kind}.parquet" for kind in rows}


@pytest.fixture
def measure(model, manifests, root, tmp_path):
    def run(name: str, settings: InterpolationSettings = QUICK, directory: Path = model):
        out = tmp_path / f"{name}.json"
        report = measure_interpolation(
            directory, manifests["samples"], manifests["clips"], manifests["selection"], out, tmp_path / name, root,
            settings,
        )  # fmt: skip
        return report, json.loads(out.read_text())

    return run


def truth(manifests: dict[str, Path], root: DataRoot, number: int) -> np.ndarray:
    """Frames 2, 4, 6, 8 and 10 of a clip: from the conditioning frame on, at half the clip's rate."""
    from svdflow.common.manifests import read_rows

    return read_frames(root.read(read_rows("clips", manifests["clips"])[number]["shard_uri"]), [2, 4, 6, 8, 10])


def test_a_model_that_blends_scores_exactly_as_the_blend_does(measure, manifests, root, tmp_path, monkeypatch) -> None:
    asked = []

    def blend(_model, frames_FHWC, **told):
        asked.append(told)
        shares = np.arange(5)[:, None, None, None] / 4
        return (frames_FHWC[0] * (1 - shares) + frames_FHWC[1] * shares).round().astype(np.uint8)

    monkeypatch.setattr(interpolating, "interpolate", blend)
    report, metrics = measure("blended")
    for figure, values in metrics["figures"].items():
        assert values["model"] == values["blend"], figure
    true = [truth(manifests, root, number) for number in (0, 1)]
    expected = np.mean([psnr_db(t[1:4], blended(t)[1:4]).mean() for t in true])
    assert metrics["figures"]["psnr_db"]["blend"] == pytest.approx(expected, abs=1e-5)
    repeated = np.mean([psnr_db(t[1:4], t[[0, 0, 4]]).mean() for t in true])
    assert metrics["figures"]["psnr_db"]["nearest"] == pytest.approx(repeated, abs=1e-5)
    # at 8 frames a second, the rate of the training, from two given ones at a fourth of that; score 4 is bucket 80
    assert metrics["protocol"]["fps"] == [8.0, 8.0] and {told["fps"] for told in asked} == {2.0}
    assert {told["motion_bucket"] for told in asked} == {80}
    assert metrics["protocol"]["sample_ids"] == ["clip0", "clip1"]
    assert report.summary["interpolation"]["set_aside"] == 1
    set_aside = next(section for section in report.sections if section["title"] == "Samples set aside")
    assert set_aside["rows"] == [["clip2", "it holds no 5 frames from its conditioning frame on"]]
    pictures = next(section for section in report.sections if section["kind"] == "images")
    assert len(pictures["items"]) == 2 and "blended" in pictures["note"]


def test_the_models_own_frames_are_measured_kept_and_found(model, measure, manifests, root, tmp_path) -> None:
    report, metrics = measure("first")
    assert (report.done, report.reused) == (2, 0)
    assert metrics["model"]["kind"] == "interpolation" and "untrained" not in metrics["figures"]["psnr_db"]
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == [*(f"clip{n}-{kind}.mp4" for n in (0, 1) for kind in ("generated", "truth")), "sources.csv"]
    info = probe(tmp_path / "first" / "clip1-generated.mp4")
    assert (info.frames, info.width, info.height, info.fps) == (5, SIZE, SIZE, 8.0)

    again, same = measure("again")
    assert (again.done, again.reused) == (0, 2) and same == metrics
    more, both = measure("more", QUICK.model_copy(update={"sheets": 1, "untrained_baseline": True}))
    assert (more.done, more.reused) == (2, 2), "only the random weights make new frames"
    assert both["figures"]["psnr_db"]["model"] == metrics["figures"]["psnr_db"]["model"]
    other, _ = measure("faster", QUICK.model_copy(update={"fps": 16.0}))
    assert other.done == 2, "another rate is another window"
    # the figure is that of the sampler's own frames
    from svdflow.common.identity import identity

    made = [
        interpolating.interpolate(
            load_model(model), truth(manifests, root, number)[[0, -1]], fps=2.0, motion_bucket=80, steps=1,
            seed=int(identity(sample=f"clip{number}", seed=0)[:8], 16),
        )
        for number in (0, 1)
    ]  # fmt: skip
    expected = np.mean([psnr_db(truth(manifests, root, n)[1:4], made[n][1:4]).mean() for n in (0, 1)])
    assert metrics["figures"]["psnr_db"]["model"] == pytest.approx(expected, abs=0.01)


def test_a_model_of_another_kind_and_windows_that_nobody_has_are_refused(measure, manifests, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/svdflow.json").write_text('{"kind": "multi_view", "format": 1}')
    with pytest.raises(BadInputError, match="kind multi_view; frames between others need one of interpolation"):
        measure("other", directory=tmp_path / "other")
    from svdflow.common.manifests import read_rows

    rows = [row | {"sequence_frames": 6} for row in read_rows("samples", manifests["samples"])]
    write_manifest("samples", rows, manifests["samples"])
    with pytest.raises(BadInputError, match="0 held-out windows can be used: it holds no 5 frames"):
        measure("short")


def test_a_full_gpu_is_told_in_one_line(
    model: Path, manifests: dict[str, Path], root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(interpolating, "interpolate", full)
    with pytest.raises(BadInputError, match=f"GPU's memory does not hold 5 frames of {SIZE}x{SIZE} px"):
        measure_interpolation(
            model, *(manifests[kind] for kind in ("samples", "clips", "selection")), tmp_path / "m.json",
            tmp_path / "g", root, QUICK,
        )  # fmt: skip
