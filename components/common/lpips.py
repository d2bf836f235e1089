"""LPIPS (Zhang et al., 2018), version 0.1: how far two pictures are apart for a network that recognises things.

The networks are AlexNet and VGG-16 under torchvision's parameter names, the linear heads those of the package lpips,
both as safetensors. Legend: N pictures, H and W their sides, C channels, h and w the sides of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import BadInputError

if TYPE_CHECKING:
    from torch import Tensor

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures from -1 to 1, as the authors have it
_EPSILON = 1e-10
_TINY = 1e-30  # below what float32 can tell from 0 in a sum of squares that counts
_HEAD_NAMES = ("lin{}.model.1.weight", "lin{}.model.0.weight", "lin{}.weight")


class _Conv(NamedTuple):
    """A convolution with ReLU: its place in torchvision's ``features``, shape, and what comes before and after it."""

    place: int
    channels: tuple[int, int]  # in, out
    kernel: int
    stride: int = 1
    padding: int = 1
    pooled_before: bool = False
    tapped: bool = False  # whether its output is one of the five that are compared


@dataclass(frozen=True)
class _Architecture:
    name: str
    title: str
    pool: int  # kernel of the maximum pooling, whose stride is 2
    convs: tuple[_Conv, ...]


_ALEXNET = _Architecture(
    "alex",
    "AlexNet",
    3,
    (
        _Conv(0, (3, 64), 11, 4, 2, tapped=True),
        _Conv(3, (64, 192), 5, padding=2, pooled_before=True, tapped=True),
        _Conv(6, (192, 384), 3, pooled_before=True, tapped=True),
        _Conv(8, (384, 256), 3, tapped=True),
        _Conv(10, (256, 256), 3, tapped=True),
    ),
)
_VGG16 = _Architecture(
    "vgg",
    "VGG-16",
    2,
    (
        _Conv(0, (3, 64), 3),
        _Conv(2, (64, 64), 3, tapped=True),
        _Conv(5, (64, 128), 3, pooled_before=True),
        _Conv(7, (128, 128), 3, tapped=True),
        _Conv(10, (128, 256), 3, pooled_before=True),
        _Conv(12, (256, 256), 3),
        _Conv(14, (256, 256), 3, tapped=True),
        _Conv(17, (256, 512), 3, pooled_before=True),
        _Conv(19, (512, 512), 3),
        _Conv(21, (512, 512), 3, tapped=True),
        _Conv(24, (512, 512), 3, pooled_before=True),
        _Conv(26, (512, 512), 3),
        _Conv(28, (512, 512), 3, tapped=True),
    ),
)


@dataclass(frozen=True)
class Lpips:
    """A network and its heads.

    Attributes:
        architecture: AlexNet's or VGG-16's.
        weights: of the convolutions, with their biases; heads: one row [C] for each layer that is compared.
    """

    architecture: _Architecture
    weights: tuple[tuple[Tensor, Tensor], ...]
    heads: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        """As the package lpips calls the network."""
        return self.architecture.name

    @property
    def title(self) -> str:
        """As its authors call it."""
        return self.architecture.title

    def distances(self, a_NHWC: np.ndarray, b_NHWC: np.ndarray, batch: int = 4) -> np.ndarray:
        """The distance of each pair, float64 [N].

        Args:
            a_NHWC: uint8 [N, H, W, 3].
            b_NHWC: the same shape.
            batch: pairs at a time.

        Raises:
            BadInputError: the pictures are too small for the network.
            ValueError: the shapes differ.
        """
        import torch

        if a_NHWC.shape != b_NHWC.shape:
            raise ValueError(f"LPIPS of pictures of different shapes: {a_NHWC.shape} and {b_NHWC.shape}")
        found = [np.zeros(0)]
        for start in range(0, len(a_NHWC), batch):
            pair = [side[start : start + batch] for side in (a_NHWC, b_NHWC)]
            with torch.inference_mode():
                found.append(self._of(*pair).double().cpu().numpy())
        return np.concatenate(found)

    def _of(self, a_NHWC: np.ndarray, b_NHWC: np.ndarray) -> Tensor:
        import torch

        x = torch.from_numpy(np.concatenate([a_NHWC, b_NHWC])).permute(0, 3, 1, 2).to(self.heads[0].device)
        a_NCHW, b_NCHW = (x.float() / 127.5 - 1).split(len(a_NHWC))
        return self.differences(a_NCHW, b_NCHW)

    def differences(self, a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
        """The distance of each pair, float32 [N], with gradients where the pictures have them.

        Args:
            a_NCHW: pictures from -1 to 1, float32 [N, 3, H, W].
            b_NCHW: the same shape.

        Raises:
            BadInputError: the pictures are too small for the network.
        """
        import torch

        shift, scale = (a_NCHW.new_tensor(v)[None, :, None, None] for v in (_SHIFT, _SCALE))
        layers = self._layers((torch.cat([a_NCHW, b_NCHW]) - shift) / scale)
        total = torch.zeros(len(a_NCHW), device=a_NCHW.device)
        for layer_NChw, head_C in zip(layers, self.heads, strict=True):
            # The root's slope at 0, where a layer sees nothing, is infinite.
            length = (layer_NChw.square().sum(1, keepdim=True) + _TINY).sqrt()
            a, b = (layer_NChw / (length + _EPSILON)).split(len(a_NCHW))
            total = total + torch.einsum("nchw,c->nhw", (a - b).square(), head_C).mean((1, 2))
        return total

    def _layers(self, x_NCHW: Tensor) -> list[Tensor]:
        import torch
        import torch.nn.functional as F

        taken = []
        for conv, (weight, bias) in zip(self.architecture.convs, self.weights, strict=True):
            try:
                if conv.pooled_before:
                    x_NCHW = F.max_pool2d(x_NCHW, self.architecture.pool, 2)
                x_NCHW = F.relu(F.conv2d(x_NCHW, weight, bias, conv.stride, conv.padding))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise BadInputError(f"pictures are too small for LPIPS ({str(error).splitlines()[0]})") from error
            if conv.tapped:
                taken.append(x_NCHW)
        return taken


@lru_cache(maxsize=2)
def load_lpips(backbone: str, heads: str, device: Any, section: str = "multiview") -> Lpips:
    """A network out of two safetensors files; which of the two architectures it is, its first layer tells.

    Args:
        backbone: torchvision's AlexNet or VGG-16; what comes after the convolutions is not read.
        heads: of the package lpips, for the same network.
        device: where it is to compute.
        section: of the settings that name the files, for errors.

    Raises:
        BadInputError: a file is missing, is no safetensors file, or does not hold the weights of such a network.
    """
    for what, path in (("lpips_backbone", backbone), ("lpips_heads", heads)):
        if not Path(path).is_file():
            raise BadInputError(f"{section}.{what}: {path!r} is no file; {_REMEDY}")
    with _opened(backbone, device) as of_net:
        first = of_net.shapes.get("features.0.weight", ())
        architecture = _ALEXNET if first[-1:] == (_ALEXNET.convs[0].kernel,) else _VGG16
        weights = []
        for conv in architecture.convs:
            c_in, c_out = conv.channels
            name = f"features.{conv.place}"
            weight = of_net.tensor((f"{name}.weight",), (c_out, c_in, conv.kernel, conv.kernel))
            weights.append((weight, of_net.tensor((f"{name}.bias",), (c_out,))))
    widths = [conv.channels[1] for conv in architecture.convs if conv.tapped]
    with _opened(heads, device) as of_heads:
        found = [
            of_heads.tensor(tuple(name.format(place) for name in _HEAD_NAMES), (1, width, 1, 1)).flatten()
            for place, width in enumerate(widths)
        ]
    return Lpips(architecture, tuple(weights), tuple(found))


_REMEDY = (
    "published pickles are converted by python -m svdflow.curation.annotate.convert_weights alexnet (or lpips-alex, "
    "vgg16, lpips-vgg)"
)


class _Opened(NamedTuple):
    """A safetensors file of which nothing but names and shapes was read yet."""

    path: str
    file: Any
    shapes: dict[str, tuple[int, ...]]

    def tensor(self, names: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
        """The float32 tensor of this shape under the first of the names that has it; no other one is read."""
        for name in names:
            if self.shapes.get(name) == shape:
                return self.file.get_tensor(name).float()
        raise BadInputError(
            f"{self.path}: has no {names[0]} of shape {list(shape)}; LPIPS takes AlexNet or VGG-16, and its heads"
        )


@contextmanager
def _opened(path: str, device: Any) -> Iterator[_Opened]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            names = file.keys()
            yield _Opened(path, file, {name: tuple(file.get_slice(name).get_shape()) for name in names})
    except (SafetensorError, OSError) as error:
        raise BadInputError(f"{path}: is no safetensors file ({error}); {_REMEDY}") from error
