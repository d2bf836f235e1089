"""The columns of a comparison: where the videos of each come from, found or made, and what the metrics say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..common.config import Settings
from ..common.files import write_atomic
from ..common.identity import identity
from ..common.lossless_frames import keep_once, unpack_frames
from ..common.progress import track
from ..common.storage import DataRoot
from ..common.video import encode_mp4
from .metric import Clip, Metric, Videos
from .sources import write_sources

VERSION = "1"  # of how a video is kept
MODEL, UNTRAINED = "model", "untrained"


@dataclass
class Source:
    """Where a column of the table comes from: its name and title, what its videos depend on, and how one is made.

    What depends on nothing is made anew each time.
    """

    name: str
    title: str
    depends_on: dict[str, Any]
    generate: Callable[[Clip], np.ndarray]


def make_videos(source: Source, held_out: list[Clip], root: DataRoot) -> tuple[list[np.ndarray], int]:
    """A source's video of each clip, found or made; and how many were made."""
    out, made = [], 0
    for clip in track(held_out, f"videos, {source.title}"):
        if not source.depends_on:
            out.append(source.generate(clip))
            continue
        key = identity(version=VERSION, sample=clip.sample_id, **source.depends_on)
        uri, fresh = keep_once(root, "evaluation_video", key, partial(source.generate, clip))
        made += fresh
        out.append(unpack_frames(root, uri))
    return out, made


def measured(
    chosen: Sequence[Metric], held_out: list[Clip], columns: dict[str, Videos]
) -> dict[str, dict[str, float | None]]:
    """Figure name to source name to value."""
    truth = Videos([clip.frames_FHWC for clip in held_out])
    figures: dict[str, dict[str, float | None]] = {}
    for metric in track(chosen, "metrics"):
        for name, column in columns.items():
            for figure, value in metric.measure(held_out, truth, column).items():
                figures.setdefault(figure, {})[name] = None if value is None else round(value, 6)
    return figures


def protocol_of(chosen: Sequence[Metric], held_out: list[Clip], settings: Settings) -> dict[str, Any]:
    """What a reader must know to compare the figures."""
    frames, height, width = held_out[0].frames_FHWC.shape[:3]
    return {
        "samples": len(held_out),
        "sample_ids": [clip.sample_id for clip in held_out],
        "frames": frames,
        "height": height,
        "width": width,
        "settings": settings.model_dump(mode="json"),
        "metrics": {
            m.name: {"title": m.title, "protocol": m.protocol, "units": m.units, "features": m.features} for m in chosen
        },
        "better": {figure: side for m in chosen for figure, side in m.better.items()},
    }


def write_videos(held_out: list[Clip], made: Videos, generated: Path) -> None:
    """Write each clip as ``<sample>-truth.mp4``, and what was made of it as ``<sample>-generated.mp4``.

    Beside them ``sources.csv`` tells which video each sample was cut from.
    """
    generated.mkdir(parents=True, exist_ok=True)
    for clip, frames in zip(held_out, made.frames, strict=True):
        write_atomic(generated / f"{clip.sample_id}-generated.mp4", encode_mp4(frames, clip.fps))
        write_atomic(generated / f"{clip.sample_id}-truth.mp4", encode_mp4(clip.frames_FHWC, clip.fps))
    write_sources(generated, [(clip.sample_id, clip.video_id) for clip in held_out if clip.video_id])


def loaders(model: Path, seed: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Two functions: the model of a directory, and the same with random weights; loaded when called, one at a time."""
    loaded: dict[str, Any] = {}  # models are large, and not needed when every video is found

    def trained() -> Any:
        from ..diffusion.device import place
        from ..diffusion.model_directory import load_model

        if MODEL not in loaded:
            loaded.clear()
            loaded[MODEL] = place(load_model(model))
        return loaded[MODEL]

    def untrained() -> Any:
        if UNTRAINED not in loaded:
            fresh = randomize(trained(), seed)
            loaded.clear()
            loaded[UNTRAINED] = fresh
        return loaded[UNTRAINED]

    return trained, untrained


def randomize(model: Any, seed: int) -> Any:
    """The same model, its UNet with random weights; the global generator is left as it was."""
    import dataclasses

    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = type(model.unet).from_config(model.unet.config).eval().requires_grad_(False)
    return dataclasses.replace(model, unet=unet.to(model.unet.device))


def motion_bucket(card: dict[str, Any], score: float | None) -> float:
    """The bucket of a score by the calibration in a model's card; the released default where either is missing."""
    from ..diffusion.motion import MotionCalibration
    from ..diffusion.settings import SamplingSettings

    values = card.get("motion_calibration")
    if score is None or not values:
        return SamplingSettings().motion_bucket
    return MotionCalibration.from_dict(values).apply(score)
