"""LPIPS and CLIP-S of views: LPIPS computed again by NumPy from its definition, CLIP-S by transformers itself."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.lpips import load_lpips
from svdflow.multiview.measure import _scores
from svdflow.multiview.settings import MeasureSettings
from svdflow.multiview.view_metrics import view_metrics
from tests.tiny_clip import save_tiny_clip

Tensors = dict[str, np.ndarray]
# torchvision's layouts, written out: output channels, kernel, stride and padding of each convolution; "pool"; "tap"
ALEXNET = [(64, 11, 4, 2), "tap", "pool", (192, 5, 1, 2), "tap", "pool", (384, 3, 1, 1), "tap", (256, 3, 1, 1), "tap",
           (256, 3, 1, 1), "tap"]  # fmt: skip
VGG16 = [(64, 3, 1, 1), (64, 3, 1, 1), "tap", "pool", (128, 3, 1, 1), (128, 3, 1, 1), "tap", "pool",
         (256, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), "tap", "pool", (512, 3, 1, 1), (512, 3, 1, 1),
         (512, 3, 1, 1), "tap", "pool", (512, 3, 1, 1), (512, 3, 1, 1), (512, 3, 1, 1), "tap"]  # fmt: skip
LAYOUTS = {"alex": (ALEXNET, 3), "vgg": (VGG16, 2)}  # with the side of their pooling, whose stride is 2


def random_weights(layout: list) -> tuple[Tensors, Tensors]:
    """A backbone under torchvision's names, where activations and pooling count, and heads under those of lpips."""
    rng = np.random.default_rng(0)
    backbone: Tensors = {"classifier.1.weight": np.zeros((4, 4), np.float32)}
    heads: Tensors = {}
    place, before = 0, 3
    for layer in layout:
        if layer == "pool":
            place += 1
        elif layer == "tap":
            name = f"lin{len(heads)}.model.1.weight"
            heads[name] = rng.uniform(0, 1, (1, before, 1, 1)).astype(np.float32)
        else:
            out, kernel = layer[:2]
            spread = np.sqrt(2 / (before * kernel**2))
            backbone[f"features.{place}.weight"] = rng.normal(0, spread, (out, before, kernel, kernel)).astype(
                np.float32
            )
            backbone[f"features.{place}.bias"] = rng.normal(0, 0.1, out).astype(np.float32)
            place, before = place + 2, out  # the activation has a place as well
    return backbone, heads


@pytest.fixture(scope="module", params=LAYOUTS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    backbone, heads = random_weights(LAYOUTS[request.param][0])
    save_file(backbone, folder / "backbone.safetensors")
    save_file(heads, folder / "heads.safetensors")
    return request.param, folder / "backbone.safetensors", folder / "heads.safetensors"


def windows(x_CHW: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x_CHW, (kernel, kernel), (1, 2))[:, ::stride, ::stride]


def layers(picture: np.ndarray, layout: list, pool: int, weights: Tensors) -> list[np.ndarray]:
    x = picture.astype(np.float64).transpose(2, 0, 1) / 127.5 - 1
    x = (x - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array([0.458, 0.448, 0.450])[:, None, None]
    taken, place = [], 0
    for layer in layout:
        if layer == "tap":
            taken.append(x)
        elif layer == "pool":
            x, place = windows(x, pool, 2).max((3, 4)), place + 1
        else:
            _, kernel, stride, padding = layer
            padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
            weight, bias = (weights[f"features.{place}.{part}"].astype(np.float64) for part in ("weight", "bias"))
            x = np.tensordot(weight, windows(padded, kernel, stride), ((1, 2, 3), (0, 3, 4))) + bias[:, None, None]
            x, place = np.maximum(x, 0), place + 2
    return taken


def by_numpy(a: np.ndarray, b: np.ndarray, name: str, backbone: Path, heads: Path) -> float:
    layout, pool = LAYOUTS[name]
    weights, linear = load_file(backbone), load_file(heads)
    total = 0.0
    for number, pair in enumerate(zip(*(layers(x, layout, pool, weights) for x in (a, b)), strict=True)):
        unit = [x / (np.sqrt((x**2).sum(0)) + 1e-10) for x in pair]
        head = linear[f"lin{number}.model.1.weight"].ravel()
        total += ((unit[0] - unit[1]) ** 2 * head[:, None, None]).sum(0).mean()
    return total


def pictures(count: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_lpips_is_what_its_definition_gives(network: tuple[str, Path, Path]) -> None:
    name, backbone, heads = network
    loaded = load_lpips(str(backbone), str(heads), "cpu")
    assert loaded.name == name
    a = pictures(3, 48 if name == "vgg" else 64)
    b = np.concatenate([255 - a[:1], np.roll(a[1:], 5, 2)])
    found = loaded.distances(a, b, batch=2)
    expected = [by_numpy(x, y, name, backbone, heads) for x, y in zip(a[:2], b[:2], strict=True)]
    assert found.dtype == np.float64 and found[:2] == pytest.approx(expected, rel=1e-4)
    assert loaded.distances(a, a) == pytest.approx(np.zeros(3), abs=1e-12)
    assert loaded.distances(b, a) == pytest.approx(found, rel=1e-5)
    with pytest.raises(BadInputError, match="too small for LPIPS"):
        loaded.distances(a[:, :8, :8], b[:, :8, :8])
    with pytest.raises(ValueError, match="different shapes"):
        loaded.distances(a, b[:2])


def test_files_of_other_weights_are_refused_by_name(network: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, backbone, heads = network
    broken = tmp_path / "broken.safetensors"
    tensors = load_file(heads)
    save_file(tensors | {"lin2.model.1.weight": np.zeros((1, 7, 1, 1), np.float32)}, broken)
    with pytest.raises(BadInputError, match=r"has no lin2.model.1.weight of shape \[1, (384|256), 1, 1\]"):
        load_lpips(str(backbone), str(broken), "cpu")
    with pytest.raises(BadInputError, match="has no features.0.weight of shape"):
        load_lpips(str(heads), str(heads), "cpu")
    broken.write_bytes(b"\x80\x02pickled")
    with pytest.raises(BadInputError, match="is no safetensors file.*convert_weights alexnet"):
        load_lpips(str(backbone), str(broken), "cpu")
    with pytest.raises(BadInputError, match="multiview.lpips_heads: 'absent' is no file"):
        load_lpips(str(backbone), "absent", "cpu")


def test_figures_are_there_for_what_weights_are_given_for_and_named_for_it(
    network: tuple[str, Path, Path], tmp_path: Path
) -> None:
    name, backbone, heads = network
    assert [metric.name for metric in view_metrics(MeasureSettings())] == ["psnr"]
    clip = save_tiny_clip(tmp_path / "clip")
    settings = MeasureSettings(lpips_backbone=str(backbone), lpips_heads=str(heads), clip_model=str(clip))
    metrics = {metric.name: metric for metric in view_metrics(settings)}
    assert list(metrics) == ["psnr", f"lpips_{name}", "clip_s"]
    assert all(metric.weights for metric in list(metrics.values())[1:])
    truth = pictures(3, 48 if name == "vgg" else 64)
    made = {"same": truth, "other": np.roll(truth, 7, 1)}
    found = {metric.name: metric.measure(truth, made) for metric in metrics.values()}
    lpips = load_lpips(str(backbone), str(heads), "cpu").distances(truth, made["other"]).mean()
    assert found[f"lpips_{name}"] == {"same": pytest.approx(0, abs=1e-12), "other": pytest.approx(lpips)}
    assert found["clip_s"]["same"] == pytest.approx(1, abs=1e-6)
    assert found["clip_s"]["other"] == pytest.approx(by_transformers(clip, truth, made["other"]), abs=1e-5)
    assert found["clip_s"]["other"] < 0.9999
    with pytest.raises(ConfigError, match="LPIPS needs both"):
        view_metrics(MeasureSettings(lpips_backbone=str(backbone)))
    with pytest.raises(BadInputError, match="cannot be loaded"):
        view_metrics(MeasureSettings(clip_model=str(tmp_path)))[1].measure(truth, made)


def by_transformers(clip: Path, a: np.ndarray, b: np.ndarray) -> float:
    import torch
    from transformers import AutoImageProcessor, CLIPModel

    model, text = CLIPModel.from_pretrained(clip).eval(), torch.tensor([[2, 3]])
    processor = AutoImageProcessor.from_pretrained(clip, use_fast=False)
    with torch.inference_mode():
        first, second = (
            model(input_ids=text, **processor(images=list(x), return_tensors="pt")).image_embeds for x in (a, b)
        )
    return float(torch.nn.functional.cosine_similarity(first, second).mean())


def test_of_a_file_only_what_lpips_takes_is_read(
    network: tuple[str, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors

    name, backbone, heads = network
    wide = tmp_path / "wide.safetensors"
    more = {"lin9.weight": np.zeros((8, 8), np.float32), "lin1.weight": np.zeros(5, np.float32)}
    save_file(load_file(heads) | more, wide)
    read: list[str] = []

    class Recorded:
        def __init__(self, *given: object, **how: object) -> None:
            self.file = safe_open(*given, **how)

        def __enter__(self) -> "Recorded":
            self.file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.file.__exit__(*error)

        def __getattr__(self, called: str) -> object:
            return getattr(self.file, called)

        def get_tensor(self, tensor: str) -> object:
            read.append(tensor)
            return self.file.get_tensor(tensor)

    safe_open = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", Recorded)
    load_lpips(str(backbone), str(wide), "cpu")
    convolutions = [tensor for tensor in load_file(backbone) if tensor.startswith("features.")]
    assert sorted(read) == sorted([*convolutions, *load_file(heads)])
    read.clear()
    with pytest.raises(BadInputError, match="has no features.0.weight of shape"):
        load_lpips(str(wide), str(heads), "cpu")
    assert not read, "what has another shape is not read to find that out"


def test_a_full_gpu_is_not_taken_for_a_small_picture(
    network: tuple[str, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    _, backbone, heads = network
    metrics = view_metrics(MeasureSettings(lpips_backbone=str(backbone), lpips_heads=str(heads)))[1:]
    monkeypatch.setattr(torch.nn.functional, "conv2d", full)
    truth = pictures(3, 32)
    with pytest.raises(torch.OutOfMemoryError):
        metrics[0].measure(truth, {"after": truth})
    with pytest.raises(BadInputError, match="the GPU's memory does not hold LPIPS.* of 2 views of 32x32 px"):
        _scores(metrics, [truth], {"after": [truth]})
