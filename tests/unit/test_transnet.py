"""TransNetV2: names and shapes of the published PyTorch weights, what each part computes, and the windows."""

import hashlib
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from svdflow.common.errors import BadInputError
from svdflow.common.identity import file_sha256
from svdflow.common.video import encode_mp4
from svdflow.curation.split.cuts import merge_detections
from svdflow.curation.split.scan import scan_video
from svdflow.curation.split.transnet import MARGIN, STEP, TransNetFinder, TransNetV2, load_network
from svdflow.curation.split.transnet_weights import convert_weights, main
from tests.split_footage import FPS, shots


def published_shapes() -> dict[str, tuple[int, ...]]:
    """The parameters of soCzech/TransNetV2's inference-pytorch, counted off its modules by hand."""
    shapes: dict[str, tuple[int, ...]] = {}
    for stack, (before, filters) in enumerate([(3, 16), (64, 32), (128, 64)]):
        for block in range(2):
            path = f"SDDCNN.{stack}.DDCNN.{block}"
            for dilation in (1, 2, 4, 8):
                width = before if block == 0 else 4 * filters
                shapes[f"{path}.Conv3D_{dilation}.layers.0.weight"] = (2 * filters, width, 1, 3, 3)
                shapes[f"{path}.Conv3D_{dilation}.layers.1.weight"] = (filters, 2 * filters, 3, 1, 1)
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{path}.bn.{name}"] = (4 * filters,)
            shapes[f"{path}.bn.num_batches_tracked"] = ()
    for name, rows, columns in [
        ("frame_sim_layer.projection", 128, 448),
        ("frame_sim_layer.fc", 128, 101),
        ("color_hist_layer.fc", 128, 101),
        ("fc1", 1024, 4864),
        ("cls_layer1", 1, 1024),
        ("cls_layer2", 1, 1024),
    ]:
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return shapes


@pytest.fixture(scope="module")
def network() -> TransNetV2:
    torch.manual_seed(0)
    built = TransNetV2().eval().requires_grad_(False)
    for name, buffer in built.named_buffers():  # as if trained: statistics that are not zero and one
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return built


def test_its_parameters_have_the_names_and_shapes_of_the_published_weights(network):
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == published_shapes()


def test_it_gives_two_logits_a_frame(network):
    frames = torch.randint(0, 256, (2, 100, 27, 48, 3), dtype=torch.uint8)
    one, many = network(frames)
    assert one.shape == many.shape == (2, 100) and one.isfinite().all()


def test_a_stack_is_the_papers_cell_written_out(network):
    """Stack 0 against plain convolutions, tap by tap over time."""
    x = torch.rand(1, 3, 20, 12, 16)
    state = {name: value for name, value in network.state_dict().items() if name.startswith("SDDCNN.0.")}

    def cell(x: torch.Tensor, block: int) -> torch.Tensor:
        parts = []
        for dilation in (1, 2, 4, 8):
            path = f"SDDCNN.0.DDCNN.{block}"
            space = state[f"{path}.Conv3D_{dilation}.layers.0.weight"][:, :, 0]
            taps = state[f"{path}.Conv3D_{dilation}.layers.1.weight"][..., 0, 0]
            flat = torch.stack([torch.nn.functional.conv2d(x[:, :, t], space, padding=1) for t in range(20)], 2)
            total = torch.zeros(1, taps.shape[0], *flat.shape[2:])
            for tap, shift in enumerate((-dilation, 0, dilation)):
                for t in range(20):
                    if 0 <= t + shift < 20:
                        total[:, :, t] += torch.einsum("oc,bchw->bohw", taps[:, :, tap], flat[:, :, t + shift])
            parts.append(total)
        mean, spread = state[f"{path}.bn.running_mean"], state[f"{path}.bn.running_var"]
        weight, bias = state[f"{path}.bn.weight"], state[f"{path}.bn.bias"]
        shape = (1, -1, 1, 1, 1)
        joined = torch.cat(parts, 1)
        return (joined - mean.view(shape)) / (spread.view(shape) + 1e-3).sqrt() * weight.view(shape) + bias.view(shape)

    first = cell(x, 0).relu()
    summed = cell(first, 1).relu() + first
    expected = summed.unfold(3, 2, 2).unfold(4, 2, 2).mean((-1, -2))
    assert torch.allclose(network.SDDCNN[0](x), expected, atol=1e-4)


def test_colour_histograms_compare_frames_by_their_512_colours(network):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (1, 30, 27, 48, 3), dtype=np.uint8)
    counts = np.zeros((30, 512))
    for t in range(30):
        red, green, blue = (frames[0, t, ..., c].astype(int) // 32 for c in range(3))
        np.add.at(counts[t], (64 * red + 8 * green + blue).ravel(), 1)
    unit = counts / np.linalg.norm(counts, axis=1, keepdims=True)
    band = np.zeros((30, 101), np.float32)
    for t in range(30):
        for other in range(30):
            band[t, other - t + 50] = unit[t] @ unit[other]
    expected = network.color_hist_layer.fc(torch.from_numpy(band)).relu()
    assert torch.allclose(network.color_hist_layer(torch.from_numpy(frames))[0], expected, atol=1e-5)


class Oracle(torch.nn.Module):
    """Says what the frames themselves say: their first pixel is the wanted probability in percent."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[np.ndarray] = []

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.windows.append(frames[0, :, 0, 0, 1].numpy().copy())
        probability = frames[:, :, 0, 0, 0].float().clamp(1, 99) / 100
        logits = torch.log(probability / (1 - probability))
        return logits, logits


class Picture:
    def __init__(self, percent: int, number: int) -> None:
        self.array = np.full((27, 48, 3), (percent, number % 256, 0), np.uint8)

    def reformat(self, *_args, **_kwargs) -> "Picture":
        return self

    def to_ndarray(self) -> np.ndarray:
        return self.array


def find(percents: list[int]) -> tuple[list[tuple[int, int, float]], Oracle]:
    oracle = Oracle()
    finder = TransNetFinder(oracle, 0.5)
    finds = [f for n, p in enumerate(percents) for f in finder.look(n, n / 24, Picture(p, n))]
    finds += finder.finish()
    return [(f.first, f.last, f.score) for f in finds], oracle


@pytest.mark.parametrize("frames", [1, 10, 49, 50, 51, 100, 125, 130, 260])
def test_windows_of_100_frames_step_by_50_and_every_frame_is_judged_in_the_middle_of_one(frames):
    _, oracle = find([1] * frames)
    assert len(oracle.windows) == -(-frames // STEP)
    for number, window in enumerate(oracle.windows):
        wanted = np.clip(np.arange(100) + number * STEP - MARGIN, 0, frames - 1) % 256
        assert np.array_equal(window, wanted), "beyond either end the end's own frame is repeated"


def test_a_single_frame_is_the_last_before_a_hard_cut_and_a_run_is_a_gradual_transition():
    percents = [1] * 140
    percents[40] = 97  # the last frame of the first shot
    percents[95:106] = [60, 70, 80, 90, 95, 99, 95, 90, 80, 70, 60]  # across the border of two windows
    finds, _ = find(percents)
    assert finds == [(41, 41, 0.97), (95, 106, 0.99)]


def test_a_transition_at_the_very_end_opens_no_shot():
    assert find([1] * 60 + [90] * 4)[0] == []


def test_it_runs_on_a_video_and_its_finds_make_transitions(tmp_path, network):
    frames, _ = shots([30, 40])
    (tmp_path / "v.mp4").write_bytes(encode_mp4(frames, FPS))
    finder = TransNetFinder(network, 1e-9)  # untrained weights: with this threshold all frames are a transition's
    scan = scan_video(tmp_path / "v.mp4", finder, FPS)
    assert len(scan.pts) == 70 and finder.gap_s == 0
    finder = TransNetFinder(network, float(np.nextafter(1, 0)))
    assert merge_detections(scan_video(tmp_path / "v.mp4", finder, FPS).detections, scan.times_s, 0.0) == []


def test_published_weights_are_converted_once_and_only_the_pinned_ones(tmp_path, network, capsys):
    torch.save(network.state_dict(), tmp_path / "published.pth")
    digest = file_sha256(tmp_path / "published.pth")
    written = convert_weights(tmp_path / "published.pth", digest, tmp_path / "t.safetensors")
    assert written == hashlib.sha256((tmp_path / "t.safetensors").read_bytes()).hexdigest()
    state = load_file(tmp_path / "t.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    frames = torch.randint(0, 256, (1, 100, 27, 48, 3), dtype=torch.uint8)
    assert torch.equal(load_network(tmp_path / "t.safetensors")(frames)[0], network(frames)[0])
    with pytest.raises(BadInputError, match="not the one named"):
        convert_weights(tmp_path / "published.pth", "0" * 64, tmp_path / "u.safetensors")
    assert main([str(tmp_path / "published.pth"), digest, str(tmp_path / "v.safetensors")]) == 0
    assert re.search(r"transnet_sha256 to [0-9a-f]{64}", capsys.readouterr().out)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path, capsys):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"fc1.weight": Harm()}, tmp_path / "bad.pth")
    digest = file_sha256(tmp_path / "bad.pth")
    assert main([str(tmp_path / "bad.pth"), digest, str(tmp_path / "out.safetensors")]) == 1
    assert not (tmp_path / "harm").exists() and not (tmp_path / "out.safetensors").exists()
    assert "no TransNetV2 weights" in capsys.readouterr().err


def test_weights_of_another_network_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"fc1.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInputError, match="no TransNetV2 weights"):
        load_network(tmp_path / "other.safetensors")
    with pytest.raises(BadInputError, match="there are no TransNetV2 weights"):
        load_network(tmp_path / "none.safetensors")
