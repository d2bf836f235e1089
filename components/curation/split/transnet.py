"""TransNetV2 (arXiv 2008.04838), the second backend of cut detection: a network that learned transitions.

The network is written from the paper; its parameters bear the names of its authors' PyTorch port, so that weights
published for that load. Frames go in as 48 by 27 px, in windows of 100 of which the middle 50 are kept.

Shapes: B batch, T frames of a window, C channels, H, W; L is the width of a band of similarities.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...common.errors import BadInputError
from .cuts import Detection

WIDTH_PX, HEIGHT_PX = 48, 27
WINDOW, STEP = 100, 50
MARGIN = (WINDOW - STEP) // 2
_BAND = 101  # similarities to this many frames around, half before and half behind
_WIDTHS = (64, 128, 256)  # channels behind each stack
_DILATIONS = (1, 2, 4, 8)  # over time


class TransNetV2(nn.Module):
    """Three stacks of dilated convolutions, frame similarities, colour histograms; two transition logits a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.SDDCNN = nn.ModuleList(
            _Stack(before, after) for before, after in zip((3, *_WIDTHS), _WIDTHS, strict=False)
        )
        self.frame_sim_layer = _FrameSimilarity(sum(_WIDTHS))
        self.color_hist_layer = _ColorHistograms()
        rows, columns = HEIGHT_PX >> len(_WIDTHS), WIDTH_PX >> len(_WIDTHS)
        self.fc1 = nn.Linear(_WIDTHS[-1] * rows * columns + 2 * 128, 1024)
        self.cls_layer1 = nn.Linear(1024, 1)
        self.cls_layer2 = nn.Linear(1024, 1)

    def forward(self, frames_BTHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T] of "a transition's middle" and of "any frame of a transition", from uint8 RGB."""
        x_BCTHW = frames_BTHWC.permute(0, 4, 1, 2, 3).float() / 255
        pooled = []
        for stack in self.SDDCNN:
            x_BCTHW = stack(x_BCTHW)
            pooled.append(x_BCTHW.mean(dim=(3, 4)))
        x_BTC = torch.cat(
            [
                self.color_hist_layer(frames_BTHWC),
                self.frame_sim_layer(torch.cat(pooled, dim=1).transpose(1, 2)),
                x_BCTHW.permute(0, 2, 3, 4, 1).flatten(2),
            ],
            dim=2,
        )
        x_BTC = F.relu(self.fc1(x_BTC))
        return self.cls_layer1(x_BTC)[..., 0], self.cls_layer2(x_BTC)[..., 0]


class _Stack(nn.Module):
    """Two dilated blocks, the first one's output added to the second one's, then half the height and width."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([_DilatedBlock(before, after), _DilatedBlock(after, after)])

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        first = F.relu(self.DDCNN[0](x_BCTHW))
        return F.avg_pool3d(F.relu(self.DDCNN[1](first)) + first, (1, 2, 2))


class _DilatedBlock(nn.Module):
    """Four convolutions side by side that look ever farther in time; normalised, without activation."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        for dilation in _DILATIONS:
            setattr(self, f"Conv3D_{dilation}", _SeparableConv(before, after // len(_DILATIONS), dilation))
        self.bn = nn.BatchNorm3d(after, eps=1e-3)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.bn(torch.cat([getattr(self, f"Conv3D_{d}")(x_BCTHW) for d in _DILATIONS], dim=1))


class _SeparableConv(nn.Module):
    """A 3 by 3 convolution over space, then one of 3 over time."""

    def __init__(self, before: int, after: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(before, 2 * after, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(2 * after, after, (3, 1, 1), padding=(dilation, 0, 0), dilation=(dilation, 1, 1), bias=False)
        self.layers = nn.Sequential(space, time)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.layers(x_BCTHW)


class _FrameSimilarity(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.projection = nn.Linear(features, 128)
        self.fc = nn.Linear(_BAND, 128)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return F.relu(self.fc(_band_of_similarities(self.projection(x_BTC))))


class _ColorHistograms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(_BAND, 128)

    def forward(self, frames_BTHWC: Tensor) -> Tensor:
        red, green, blue = (frames_BTHWC >> 5).long().flatten(2, 3).unbind(-1)  # eight levels each
        bins_BTN = (red << 6) + (green << 3) + blue
        counts = torch.zeros(*bins_BTN.shape[:2], 512, device=bins_BTN.device)
        counts.scatter_add_(2, bins_BTN, torch.ones_like(bins_BTN, dtype=counts.dtype))
        return F.relu(self.fc(_band_of_similarities(counts)))


def _band_of_similarities(x_BTC: Tensor) -> Tensor:
    """Cosine similarities of each frame to those around it [B, T, L]; zero beyond the window's ends."""
    unit = F.normalize(x_BTC, dim=2)
    padded = F.pad(unit @ unit.transpose(1, 2), (_BAND // 2, _BAND // 2))
    return torch.stack([padded[:, t, t : t + _BAND] for t in range(x_BTC.shape[1])], dim=1)


@lru_cache(maxsize=1)
def load_network(weights: Path) -> TransNetV2:
    """The network with weights from a safetensors file.

    Raises:
        BadInputError: no such file, or not this network's parameters.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not weights.is_file():
        raise BadInputError(f"{weights}: there are no TransNetV2 weights; see components/curation/split/README.md")
    network = TransNetV2()
    try:
        network.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise BadInputError(f"{weights}: no TransNetV2 weights ({str(error).splitlines()[0]})") from error
    return network.eval().requires_grad_(False)


class TransNetFinder:
    """A CutFinder on TransNetV2; holds the frames of one window."""

    gap_s = 0.0

    def __init__(self, network: nn.Module, threshold: float) -> None:
        self._network, self._threshold = network, threshold
        self._window: list[np.ndarray] = []
        self._judged = 0  # frames whose probability is known
        self._seen = 0
        self._run: list[tuple[int, float]] = []  # frames of the transition that is going on, with probabilities

    def look(self, index: int, time_s: float, frame: Any) -> list[Detection]:
        """See ``CutFinder``."""
        picture = frame.reformat(WIDTH_PX, HEIGHT_PX, "rgb24", interpolation="BICUBIC", threads=1).to_ndarray()
        if not self._window:
            self._window = [picture] * MARGIN
        self._seen += 1
        return self._take(picture)

    def finish(self) -> list[Detection]:
        """See ``CutFinder``."""
        finds = []
        while self._judged < self._seen:
            finds += self._take(self._window[-1])
        return finds + self._end_run()

    def _take(self, picture: np.ndarray) -> list[Detection]:
        self._window.append(picture)
        if len(self._window) < WINDOW:
            return []
        with torch.inference_mode():
            logits, _ = self._network(torch.from_numpy(np.stack(self._window))[None])
        self._window = self._window[STEP:]
        finds = []
        for probability in torch.sigmoid(logits[0, MARGIN : MARGIN + STEP]).tolist():
            if self._judged == self._seen:
                break  # the rest is the last frame repeated
            if probability > self._threshold:
                self._run.append((self._judged, probability))
            else:
                finds += self._end_run()
            self._judged += 1
        return finds

    def _end_run(self) -> list[Detection]:
        """A hard cut is one frame, the last before it. Of a longer run all frames are the transition's."""
        run, self._run = self._run, []
        if not run or run[-1][0] + 1 >= self._seen:
            return []
        first, behind = run[0][0], run[-1][0] + 1
        score = round(max(probability for _, probability in run), 4)
        return [Detection("transnetv2", behind if len(run) == 1 else first, behind, score, self._threshold)]
