"""What the model makes of a few held-out samples, while it trains: one MP4 each, and a grid of their frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.video import encode_mp4
from ...diffusion.autoencoder import decode_latents
from ...diffusion.interpolating import between, clip_noise, frame_noise, sample_between
from ...diffusion.model_directory import VideoModel
from ...diffusion.motion import MotionCalibration
from ...diffusion.sampling import generate, generate_from_text
from ...diffusion.settings import SamplingSettings
from .data import SampleSource
from .draws import middle_draw
from .job import GRID, SMALL_GRID
from .objective import bucket_of
from .settings import StageSettings

_COLUMNS = 8
_PAGE_PX = 480


class _Network:
    """The network under training as sampling calls a U-Net: tensors in main memory in and out."""

    def __init__(self, net: Callable[..., Any], config: Any, device: torch.device) -> None:
        self.net, self.config, self._place = net, config, device
        self.device = torch.device("cpu")  # where sampling is to bring its tensors

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **given: Any) -> tuple[torch.Tensor]:
        moved = {name: v.to(self._place) if torch.is_tensor(v) else v for name, v in given.items()}
        return (self.net(sample.to(self._place), timestep.to(self._place), **moved)[0].float().cpu(),)


def write_samples(
    folder: Path,
    model: VideoModel,
    net: Callable[..., Any],
    device: torch.device,
    source: SampleSource,
    settings: StageSettings,
    rank: int,
    processes: int,
) -> None:
    """Generate from ``sample_count`` samples with fixed seeds; write ``sample_<i>.mp4``, and frames for the grid.

    Every process makes its share; all must call this together, equally often, since at ZeRO 3 each call of the network
    needs them all. Rank 0 joins the frames with ``write_grid`` afterwards.
    """
    count = min(settings.sample_count, len(source.rows))
    if not count:
        return
    seen = replace(model, unet=_Network(net, model.unet.config, device))
    model.vae.to("cpu")
    try:
        for first in range(0, count, processes):
            index = min(first + rank, count - 1)
            make = _interpolate if model.kind == "interpolation" else _generate
            frames_FHWC, shown_FHWC = make(seen, source, index, settings)
            if first + rank < count:
                rate = source.fps(middle_draw(index))
                folder.mkdir(parents=True, exist_ok=True)  # it may have been cleared away while they were made
                np.save(folder / f"sample_{index}.npy", shown_FHWC)
                if len(frames_FHWC) > 1:
                    (folder / f"sample_{index}.mp4").write_bytes(encode_mp4(frames_FHWC, rate))
    finally:
        model.vae.to(device)


def write_grid(folder: Path) -> np.ndarray | None:
    """Join the samples' frames to one picture, a row each, and remove the single arrays. uint8 [H, W, 3].

    None where there are none, also when a takedown removes them meanwhile.
    """
    try:
        return _grid(folder)
    except FileNotFoundError:
        return None


def _grid(folder: Path) -> np.ndarray | None:
    from PIL import Image

    paths = sorted(folder.glob("sample_*.npy"), key=lambda p: int(p.stem.removeprefix("sample_")))
    if not paths:
        return None
    rows = []
    for path in paths:
        frames_FHWC = np.load(path)
        chosen = np.linspace(0, len(frames_FHWC) - 1, min(_COLUMNS, len(frames_FHWC))).round().astype(int)
        rows.append(np.concatenate(list(frames_FHWC[chosen]), axis=1))
        path.unlink()
    grid = np.concatenate(rows)
    picture = Image.fromarray(grid)
    picture.save(folder / GRID, quality=90)
    picture.thumbnail((_PAGE_PX, _PAGE_PX))
    picture.save(folder / SMALL_GRID, quality=82)
    return grid


def _told(model: VideoModel, source: SampleSource, index: int) -> dict[str, Any]:
    """The rate and the motion that a sample is told with."""
    given = model.card.get("motion_calibration")
    calibration = MotionCalibration.from_dict(given) if given else None
    bucket = bucket_of(calibration, source.rows[index]["motion_score"])
    return {"fps": source.fps(middle_draw(index)), "motion_bucket": bucket}


def _interpolate(
    model: VideoModel, source: SampleSource, index: int, settings: StageSettings
) -> tuple[np.ndarray, np.ndarray]:
    """A clip between its own ends, and what its row of the grid shows: the ends, what was made and what is true."""
    draw = middle_draw(index)
    true_Fchw = torch.from_numpy(source.latents(draw))
    place = true_Fchw.shape[1:]
    noises_12chw = torch.stack([frame_noise(index, end, *place) for end in (0, 1)])[None]
    conditions = between(
        true_Fchw[None, [0, -1]], torch.from_numpy(source.end_images(draw))[None], noises_12chw,
        noise_aug=SamplingSettings().noise_aug, **_told(model, source, index),
    )  # fmt: skip
    made_Fchw = sample_between(model, conditions, clip_noise(index, 0, *place)[None], settings.sample_steps)[0]
    made_Fchw[[0, -1]] = true_Fchw[[0, -1]]
    made_FHWC, true_FHWC = decode_latents(model.vae, made_Fchw), decode_latents(model.vae, true_Fchw)
    return made_FHWC, np.concatenate([true_FHWC[[0, -1]], made_FHWC[1:-1], true_FHWC[1:-1]])


def _generate(
    model: VideoModel, source: SampleSource, index: int, settings: StageSettings
) -> tuple[np.ndarray, np.ndarray]:
    """A video of a sample's conditions; all of it is shown."""
    row, draw = source.rows[index], middle_draw(index)
    window = source.window(draw, single_frame=model.kind == "image")
    common = _told(model, source, index)
    common |= {"steps": settings.sample_steps, "seed": index}
    if model.kind in ("image", "text_to_video"):
        made_FHWC = generate_from_text(
            model, row["captions"][0], frames=window.frames, height=row["height"], width=row["width"], **common
        )
    else:
        elevation = row["elevation_deg"] if model.kind == "multi_view" else None
        made_FHWC = generate(model, source.picture(draw), frames=window.frames, elevation_deg=elevation, **common)
    return made_FHWC, made_FHWC
