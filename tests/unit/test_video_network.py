"""Feature networks in archives that are programs: which are loaded, how they are called, what is made of them."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.identity import file_sha256
from svdflow.evaluation import video_network
from svdflow.evaluation.gaussians import Moments, distance_between
from svdflow.evaluation.metric import Clip, Videos
from svdflow.evaluation.metrics import choose_metrics
from svdflow.evaluation.settings import EvaluateSettings
from svdflow.evaluation.video_network import I3D_SHA256, NetworkFile
from tests.video_networks import save_tiny_network, tiny_features


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_network(tmp_path_factory.mktemp("network") / "Tiny net.pt")


def some_videos(count: int, seed: int = 0, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 5, side, side, 3), dtype=np.uint8)


def test_features_are_what_the_network_says_of_rescaled_and_resized_videos(archive: Path) -> None:
    network = NetworkFile.of(archive, file_sha256(archive).upper(), "--sha").load("cpu")
    found = network.features(some_videos(3))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, tiny_features(some_videos(3)), rtol=1e-5, atol=1e-5)
    large = np.repeat(np.repeat(some_videos(3), 4, 2), 4, 3)
    np.testing.assert_allclose(network.features(large)[:, :3], found[:, :3], atol=0.2)
    with pytest.raises(BadInputError, match=r"does not take 3 frames of 8x8 px with rescale=True, resize=True, return"):
        network.features(some_videos(2)[:, :3])


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.usefixtures("nothing_runs")
def test_an_archive_of_another_digest_is_not_loaded(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"not bec6519f66ea.* \(the I3D pinned here\).*a program: not loaded"):
        NetworkFile.of(archive, None, "--sha").load("cpu")
    changed = tmp_path / "changed.pt"
    changed.write_bytes(archive.read_bytes()[:-1] + b"x")
    with pytest.raises(BadInputError, match=r"the digest given\)"):
        NetworkFile.of(changed, file_sha256(archive), "--sha").load("cpu")
    with pytest.raises(ConfigError, match="--sha: 'abc' is no sha256"):
        NetworkFile.of(archive, "abc", "--sha")
    with pytest.raises(BadInputError, match="no such feature network"):
        NetworkFile.of(tmp_path / "absent.pt", None, "--sha")


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no zip at all", "is no TorchScript archive"),
        (zip_of({"net/data.pkl": b"weights"}), "holds no code"),
        (zip_of({"net/code/x.py": b"0" * 300_000}), "unpacks to more than 200000 bytes"),
        (zip_of({f"net/code/{n}": b"" for n in range(12)}), "or 10 files"),
        (b"PK" * 150_000, "bytes are more than a feature network has"),
    ],
)
def test_what_is_no_sound_archive_is_not_loaded_whoever_vouches_for_it(
    content: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_network, "_MAX_BYTES", 200_000)
    monkeypatch.setattr(video_network, "_MAX_MEMBERS", 10)
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=says):
        NetworkFile.of(path, file_sha256(path), "--sha").load("cpu")


def test_only_i3d_makes_it_fvd(archive: Path) -> None:
    own = NetworkFile.of(archive, file_sha256(archive), "--sha")
    assert (own.figure, own.name, own.is_i3d) == ("frechet_tiny_net", "Tiny net", False)
    i3d = NetworkFile.of(archive, I3D_SHA256, "--sha")
    assert i3d.figure == "fvd" and i3d.is_i3d and "I3D" in i3d.name


def test_the_evaluations_metric_is_the_distance_of_the_networks_features(archive: Path) -> None:
    settings = EvaluateSettings(metrics=("fvd",), features=str(archive), features_sha256=file_sha256(archive))
    (metric,) = choose_metrics(settings)
    true, made = some_videos(6, 1), some_videos(6, 2) // 2
    clips = [Clip("s", video, 6.0, None, ()) for video in true]
    truth = Videos(list(true))
    found = metric.measure(clips, truth, Videos(list(made)))
    expected = distance_between(Moments.of(tiny_features(true)), Moments.of(tiny_features(made)))
    assert found == {"frechet_tiny_net": pytest.approx(expected, rel=1e-4)}
    assert metric.measure(clips, truth, truth)["frechet_tiny_net"] == pytest.approx(0, abs=1e-6)
    assert set(metric.units) == set(metric.better) == {"frechet_tiny_net"}
    assert metric.features == {"Tiny net": file_sha256(archive)}


def test_a_full_gpu_is_told_in_one_line(archive: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    network = video_network.VideoNetwork(NetworkFile.of(archive, None, "--sha"), full, "cpu")
    with pytest.raises(BadInputError, match="memory does not hold the features of 2 videos of 5 frames of 8x8 px"):
        network.features(some_videos(2))
