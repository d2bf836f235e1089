"""The UCF-101 protocol end to end, by the command, with a tiny model and a tiny network: figure, resuming, parts."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from typer.testing import CliRunner

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.identity import file_sha256
from svdflow.common.lossless_frames import unpack_frames
from svdflow.common.storage import DataRoot
from svdflow.common.video import encode_mp4, read_frames
from svdflow.diffusion import sampling
from svdflow.diffusion.autoencoder import load_autoencoder
from svdflow.diffusion.conditioning import LOCAL_TEXT_ENCODER
from svdflow.diffusion.model_directory import VideoModel, save_model
from svdflow.diffusion.settings import TINY_UNET
from svdflow.diffusion.unet import build_video_unet
from svdflow.pipelines.cli import app
from tests.video_networks import save_tiny_network, tiny_features

SMALL = {
    "height": 16, "width": 32, "frames": 4, "steps": 1, "resized_height": 8, "resized_width": 16,
    "cropped_height": 8, "cropped_width": 8, "batch": 3, "shown": 2,
}  # fmt: skip
CLASSES = {"Archery": 3, "YoYo": 2, "TaiChi": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text-to-video model, a feature network and a tiny UCF-101."""
    folder = tmp_path_factory.mktemp("ucf101")
    torch.manual_seed(0)
    unet = build_video_unet(TINY_UNET, "text_to_video").eval()
    model = VideoModel("text_to_video", unet, load_autoencoder(), text_encoder=LOCAL_TEXT_ENCODER, card={"stage": "v"})
    save_model(model, folder / "model")
    save_tiny_network(folder / "net.pt")
    rng = np.random.default_rng(1)
    for name, count in CLASSES.items():
        (folder / "UCF-101" / name).mkdir(parents=True)
        for number in range(count):
            frames = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
            (folder / "UCF-101" / name / f"v_{name}_{number}.mp4").write_bytes(encode_mp4(frames, 25, crf=5))
    (folder / "classes.csv").write_text("class,count\n" + "".join(f"{n},{c}\n" for n, c in sorted(CLASSES.items())))
    return folder


def run(place: Path, workdir: Path, *more: str, reference: str = "UCF-101", features: bool = True) -> str:
    command = ["evaluate", "ucf101", str(place / "model"), "--reference", str(place / reference), "-w", str(workdir)]
    if features:
        command += ["--features", str(place / "net.pt"), "--features-sha256", file_sha256(place / "net.pt")]
    for name, value in SMALL.items():
        command += ["--set", f"ucf101.{name}={value}"]
    done = CliRunner().invoke(app, [*command, *more])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def results(workdir: Path) -> dict:
    return json.loads((workdir / "ucf101.json").read_text())


def independent_distance(generated: np.ndarray, real: np.ndarray) -> float:
    a, b = tiny_features(generated), tiny_features(real)
    first, second = np.cov(a.T, ddof=0), np.cov(b.T, ddof=0)
    root = np.real(scipy.linalg.sqrtm(first @ second))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))


def test_the_figure_is_that_of_the_kept_videos_and_the_real_ones_computed_apart(place: Path, tmp_path: Path) -> None:
    said = run(place, tmp_path)
    assert "6 videos made, 0 found; 6 of 6" in said and "not comparable with the paper" in said
    root = DataRoot.open(tmp_path / "data")
    kept = [json.loads(root.read(uri))["uri"] for uri in root.list("results/ucf101_video/")]
    videos = [unpack_frames(root, uri) for uri in kept]
    assert len(videos) == 6 and all(video.shape == (4, 16, 32, 3) for video in videos)
    assert len({video.tobytes() for video in videos}) == 6, "each has its own noise"
    # half the size with the antialiased triangle: weights 1 3 3 1 around each pair, cut at the border
    seen = np.stack([halved(halved(video, 1), 2).round()[:, :, 4:12] for video in videos])
    real = np.stack([read_frames(path, [1, 2, 3, 4]) for path in sorted((place / "UCF-101").rglob("*.mp4"))])
    found = results(tmp_path)
    assert found["figures"]["frechet_net"] == pytest.approx(independent_distance(seen, real), rel=1e-3)
    assert not found["comparable_with_table_2"] and found["published"]["fvd"]["SVD (base, text to video)"] == 242.02
    protocol = found["protocol"]
    assert protocol["videos"]["by_class"] == dict(sorted(CLASSES.items())) and protocol["real"]["videos"] == 6
    assert protocol["features"]["sha256"] == file_sha256(place / "net.pt") and protocol["sampler"]["steps"] == 1
    page = (tmp_path / "ucf101.html").read_text()
    assert "Make-A-Video" in page and page.count("<video") == 4 and "<img" in page and "YoYo" in page
    assert "http://" not in page and "https://" not in page


def halved(x: np.ndarray, axis: int) -> np.ndarray:
    x = np.moveaxis(x.astype(np.float64), axis, 0)
    count = len(x) // 2
    out = []
    for n in range(count):
        taps = {2 * n - 1: 1.0, 2 * n: 3.0, 2 * n + 1: 3.0, 2 * n + 2: 1.0}
        taps = {at: weight for at, weight in taps.items() if 0 <= at < len(x)}
        out.append(sum(weight * x[at] for at, weight in taps.items()) / sum(taps.values()))
    return np.moveaxis(np.stack(out), 0, axis)


def test_a_run_that_was_broken_off_makes_what_is_missing_and_ends_with_the_same_result(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(place, tmp_path / "whole")
    asked: list[str] = []
    generate = sampling.generate_from_text

    def breaks_off(model: VideoModel, prompt: str, **told: object) -> np.ndarray:
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(prompt)
        return generate(model, prompt, **told)  # type: ignore[arg-type]

    monkeypatch.setattr(sampling, "generate_from_text", breaks_off)
    with pytest.raises((KeyboardInterrupt, AssertionError)):
        run(place, tmp_path / "broken")
    assert asked == ["Archery", "Archery", "Archery", "TaiChi"]
    monkeypatch.undo()
    assert "2 videos made, 4 found" in run(place, tmp_path / "broken")
    assert (tmp_path / "broken/ucf101.json").read_bytes() == (tmp_path / "whole/ucf101.json").read_bytes()
    assert "0 videos made, 6 found" in run(place, tmp_path / "broken")


def test_parts_make_what_the_whole_then_finds(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "whole")
    assert "3 videos made, 0 found; 3 of 6" in run(place, tmp_path, "--part", "1/2")
    said = run(place, tmp_path, "--part", "2/2")
    assert "3 videos made" in said and "when all are done, run without --part" in said
    assert not (tmp_path / "ucf101.json").exists()
    assert "0 videos made, 6 found" in run(place, tmp_path)
    apart, whole = results(tmp_path), results(tmp_path / "whole")
    assert apart["figures"]["frechet_net"] == pytest.approx(whole["figures"]["frechet_net"], rel=1e-5)
    assert apart["protocol"] == whole["protocol"]


def test_fewer_videos_are_named_as_such_and_are_some_of_the_same(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path, features=False)
    assert "0 videos made, 3 found" in run(place, tmp_path, "--videos", "3")
    found = results(tmp_path)
    assert list(found["figures"]) == ["frechet_net_3_videos"]
    assert found["protocol"]["videos"]["by_class"] == {"Archery": 2, "TaiChi": 0, "YoYo": 1}
    assert "largest remainders" in found["protocol"]["videos"]["draw"]
    said = run(place, tmp_path, "--videos", "3", "--split-words", features=False)
    assert "1 videos made, 2 found" in said, "another prompt for YoYo; Archery is one word"


def test_a_csv_asks_for_the_same_videos_and_real_ones_are_named_beside_it(place: Path, tmp_path: Path) -> None:
    said = run(place, tmp_path, reference="classes.csv", features=False)
    assert "6 videos made" in said and "Nothing measured yet" in said
    with pytest.raises(ConfigError, match="names no real videos to compare with"):
        run(place, tmp_path, reference="classes.csv")
    assert "0 videos made, 6 found" in run(place, tmp_path, "--real", str(place / "UCF-101"), reference="classes.csv")
    assert results(tmp_path)["protocol"]["real"]["videos"] == 6


def test_a_real_video_that_cannot_be_used_is_set_aside_and_told(place: Path, tmp_path: Path) -> None:
    from shutil import copytree

    copytree(place / "UCF-101", tmp_path / "real")
    for name in ("Archery", "YoYo"):
        (tmp_path / "real" / name / "broken.avi").write_bytes(b"no video")
    run(place, tmp_path, "--real", str(tmp_path / "real"))
    assert results(tmp_path)["protocol"]["real"] | {"clip": ""} == {"videos": 6, "set_aside": 2, "clip": ""}
    page = (tmp_path / "ucf101.html").read_text()
    assert all(f"{name}/broken.avi" in page for name in ("Archery", "YoYo")) and "no readable video container" in page


def test_what_does_not_fit_is_told_before_anything_is_made(place: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="a program: not loaded"):
        run(place, tmp_path, "--features-sha256", "0" * 64)
    with pytest.raises(BadInputError, match="the second of eight parts"):
        run(place, tmp_path, "--part", "3/2")
    with pytest.raises(ConfigError, match="settings in ucf101 alone"):
        run(place, tmp_path, "--set", "train.steps=3")
    assert not list(DataRoot.open(tmp_path / "data").list("results/"))
    (tmp_path / "model").mkdir()
    card = json.loads((place / "model/svdflow.json").read_text())
    (tmp_path / "model/svdflow.json").write_text(json.dumps(card | {"kind": "image_to_video"}))
    with pytest.raises(BadInputError, match="kind image_to_video; this protocol needs text_to_video"):
        run(tmp_path, tmp_path, reference=str(place / "UCF-101"), features=False)
