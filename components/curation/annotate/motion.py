"""Motion score, camera motion and flow maps from dense optical flow (paper, App. C)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...common.batching import in_batches_of
from ...common.errors import BadInputError, ConfigError, SvdflowError
from ...common.flow import (
    DIS_PRESET,
    FARNEBACK,
    colour_flow_frame,
    dense_flow,
    dis_flow,
    flow_figures,
    flow_frame,
    flow_map,
    frames_at_rate,
)
from ...common.identity import file_sha256
from ...common.video import VideoFrame
from .annotator import Annotator, ClipView, ModelAnnotator, Watcher, register
from .settings import AnnotateSettings

_COLUMNS = ("motion_score", "motion_unit", "flow_uri", "camera_motion")
_SINGLE_MOMENT = "has a single moment in time: motion needs two frames"


class FlowFigures:
    """Adds up what is read off the flow of one clip, each pair as if exactly one interval lay between its frames."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self.total = np.zeros(4)
        self.maps: list[np.ndarray] = []
        self.times_s: list[float] = []

    def add(self, flow_px: np.ndarray, earlier_s: float, later_s: float) -> None:
        """Flow [H, W, 2] between the frames at two times."""
        scale = self.interval_s / (later_s - earlier_s)
        self.total += flow_figures(flow_px) * scale
        self.maps.append(flow_map(flow_px * scale))
        self.times_s.append(earlier_s)

    def columns(self, unit: str) -> dict[str, Any]:
        """Columns of the manifest.

        Raises:
            BadInputError: there was no pair of frames.
        """
        if not self.maps:
            raise BadInputError(_SINGLE_MOMENT)
        score, *camera = (self.total / len(self.maps)).tolist()
        flow = {"flow_px": np.stack(self.maps), "time_s": np.array(self.times_s, np.float32)}
        return {"motion_score": score, "motion_unit": unit, "flow_uri": flow, "camera_motion": camera}


class FlowWatcher(Watcher):
    """Measures between frames taken at a fixed rate by their time stamps; holds one small frame."""

    def __init__(
        self,
        interval_s: float,
        short_side_px: int,
        flow: Callable[[np.ndarray, np.ndarray], np.ndarray] = dense_flow,
    ) -> None:
        self.short_side_px, self.flow = short_side_px, flow
        self.figures = FlowFigures(interval_s)
        self._last: tuple[float, np.ndarray] | None = None

    def wants(self, times_s: np.ndarray) -> Sequence[int]:
        """Frames at the flow's rate."""
        return frames_at_rate(times_s, self.figures.interval_s)

    def see(self, frame: VideoFrame) -> None:
        """Measure from the last frame to this one."""
        grey = flow_frame(frame.rgb, self.short_side_px)
        if self._last is not None and frame.time_s > self._last[0]:
            self.figures.add(self.flow(self._last[1], grey), self._last[0], frame.time_s)
        self._last = (frame.time_s, grey)


class _Flow(Annotator):
    """Base: what every method shares, and what of the settings is part of the score's identity and unit."""

    axis, columns = "motion", _COLUMNS

    @property
    def interval_s(self) -> float:
        """Time over which motion is told."""
        return 1 / self.settings.flow_fps

    @property
    def unit(self) -> str:
        """The unit of the score; scores of different units do not compare."""
        method = "" if self.name == FarnebackFlow.name else f" {self.name}"
        return f"px/{self.interval_s:g}s@short{self.settings.flow_short_side_px}{method}"

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {"fps": self.settings.flow_fps, "short_side_px": self.settings.flow_short_side_px, **self.method()}

    @abstractmethod
    def method(self) -> dict[str, Any]:
        """What sets this method of flow."""


class _ClassicFlow(_Flow):
    """A method without a network: measured while the clip is decoded."""

    @abstractmethod
    def flow(self, earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
        """Flow in px, float32 [H, W, 2], between grey frames."""

    def watcher(self) -> FlowWatcher:
        """A fresh one for each clip."""
        return FlowWatcher(self.interval_s, self.settings.flow_short_side_px, self.flow)

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        watcher: FlowWatcher = clip.watched[self.axis]
        return watcher.figures.columns(self.unit)


@register
class FarnebackFlow(_ClassicFlow):
    """Mean flow magnitude over time and space at 2 fps and a fixed resolution, which is part of the unit."""

    name, version = "farneback-flow", "2"

    def method(self) -> dict[str, Any]:
        """What sets this method of flow."""
        return {"farneback": FARNEBACK}

    def flow(self, earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
        """See the base class."""
        return dense_flow(earlier, later)


@register
class DISFlow(_ClassicFlow):
    """The same by dense inverse search: faster, but not the same order of clips (see the README)."""

    name, version = "dis-flow", "1"

    def method(self) -> dict[str, Any]:
        """What sets this method of flow."""
        return {"preset": DIS_PRESET}

    def flow(self, earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
        """See the base class."""
        return dis_flow(earlier, later)


class FrameCollector(Watcher):
    """Keeps frames at the flow's rate, scaled to the flow's resolution, for a network to see later."""

    def __init__(self, interval_s: float, short_side_px: int) -> None:
        self.interval_s, self.short_side_px = interval_s, short_side_px
        self.times_s: list[float] = []
        self.frames: list[np.ndarray] = []

    def wants(self, times_s: np.ndarray) -> Sequence[int]:
        """Frames at the flow's rate."""
        return frames_at_rate(times_s, self.interval_s)

    def see(self, frame: VideoFrame) -> None:
        """Keep the frame."""
        if not self.times_s or frame.time_s > self.times_s[-1]:
            self.times_s.append(frame.time_s)
            self.frames.append(colour_flow_frame(frame.rgb, self.short_side_px))


@register
class RAFTFlow(_Flow, ModelAnnotator):
    """The same by RAFT, with weights from a safetensors file (the paper: for the final stage's data, at 800 x 450)."""

    name, version = "raft-flow", "1"

    def __init__(self, settings: AnnotateSettings) -> None:
        super().__init__(settings)
        if not Path(settings.raft_weights).is_file():
            raise ConfigError(
                f"annotate.raft_weights: {settings.raft_weights!r} is no file; make it of torchvision's release with "
                "python -m svdflow.curation.annotate.convert_weights raft-large, or choose annotate.motion=dis-flow"
            )

    def method(self) -> dict[str, Any]:
        """What sets this method of flow."""
        return {"weights": _sha256(self.settings.raft_weights), "iterations": self.settings.raft_iterations}

    def watcher(self) -> FrameCollector:
        """A fresh one for each clip."""
        return FrameCollector(self.interval_s, self.settings.flow_short_side_px)

    def prepare(self, clip: ClipView) -> None:
        """Keep the frames at the flow's rate: 1 MB each at 800 x 450."""
        self._moments(clip)

    def measure(self, clips: Sequence[ClipView]) -> list[dict[str, Any] | SvdflowError]:
        """Their columns."""
        return [self._one(clip) for clip in clips]  # a clip has pairs enough to fill a batch, and a size of its own

    def _one(self, clip: ClipView) -> dict[str, Any] | SvdflowError:
        times_s, frames_FHWC = self._moments(clip)
        if len(times_s) < 2:
            return BadInputError(_SINGLE_MOMENT)
        figures = FlowFigures(self.interval_s)
        network = _raft(self.settings.raft_weights, self.settings.device)
        pairs = np.stack([frames_FHWC[:-1], frames_FHWC[1:]], 1)
        run = _RaftRun(network, self.settings.raft_iterations, self.settings.device)
        flows_PHW2 = in_batches_of(self.settings.raft_pairs, pairs, run)
        for flow_px, earlier_s, later_s in zip(flows_PHW2, times_s, times_s[1:], strict=False):
            figures.add(flow_px, earlier_s, later_s)
        return figures.columns(self.unit)

    def _moments(self, clip: ClipView) -> tuple[list[float], np.ndarray]:
        def take() -> tuple[list[float], np.ndarray]:
            collector: FrameCollector = clip.watched[self.axis]
            return collector.times_s, np.stack(collector.frames)

        return clip.once("flow frames", take)


class _RaftRun:
    """uint8 pairs [N, 2, H, W, 3] to flow in px [N, H, W, 2]."""

    def __init__(self, network: Any, iterations: int, device: str) -> None:
        self.network, self.iterations, self.device = network, iterations, device

    def __call__(self, pairs: np.ndarray) -> np.ndarray:
        import torch

        from .raft import MIN_SIDE_PX, STRIDE

        height, width = pairs.shape[2:4]
        sides = [max(-(-side // STRIDE) * STRIDE, MIN_SIDE_PX) for side in (height, width)]
        down, right = sides[0] - height, sides[1] - width
        x_2NCHW = torch.from_numpy(pairs).to(self.device).permute(1, 0, 4, 2, 3).float() / 127.5 - 1
        padding = (right // 2, right - right // 2, down // 2, down - down // 2)
        padded = [torch.nn.functional.pad(x, padding, mode="replicate") for x in x_2NCHW]
        with torch.inference_mode():
            flow_N2HW = self.network(*padded, self.iterations)
        flow_N2HW = flow_N2HW[:, :, down // 2 : down // 2 + height, right // 2 : right // 2 + width]
        return flow_N2HW.permute(0, 2, 3, 1).float().cpu().numpy()


@lru_cache(maxsize=1)
def _raft(path: str, device: str) -> Any:
    from safetensors.torch import load_file

    from .raft import RAFT

    network = RAFT()
    try:
        network.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise BadInputError(f"{path}: not RAFT's large network ({str(error).splitlines()[0]})") from None
    return network.eval().requires_grad_(False).to(device)


@lru_cache(maxsize=2)
def _sha256(path: str) -> str:
    return file_sha256(Path(path))
