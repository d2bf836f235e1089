"""The motion map of a model that came without one: estimated from the model itself, and kept in a model directory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ...common.errors import BadInputError
from ...common.frames import fit_frame
from ...common.progress import Progress
from ...diffusion.calibration import PROBED_BUCKETS, EstimatedCalibration, calibrate, store_calibration
from ...diffusion.device import place, within_memory
from ...diffusion.hub import resolve_model
from ...diffusion.import_model import open_model
from ...diffusion.model_directory import CARD, save_model
from ..encode.sources import read_image

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def calibrate_model(
    source: Path,
    pictures: Path,
    out: Path | None,
    *,
    size: tuple[int, int] = (576, 1024),
    frames: int | None = None,
    fps: float = 7,
    steps: int = 25,
    seeds: int = 2,
    buckets: Sequence[int] = PROBED_BUCKETS,
    replace: bool = False,
) -> tuple[EstimatedCalibration, Path]:
    """Generate from pictures at each bucket, measure the flow, and keep the map that it gives.

    Args:
        source: a model directory of svdflow's, a released one, or a released one's repository.
        pictures: a folder of them; they are cut to the size. Ten or more, of the kind that the model is meant for.
        out: the model directory to write, with the model and its map; None writes the map into ``source`` itself, which
            must be one of svdflow's then.
        size: height and width to generate at.
        frames: of each video; the model's own number by default.
        fps: of the videos.
        steps: of the sampler.
        seeds: videos per bucket and picture.
        buckets: to try.
        replace: whether a map that the model has already may be replaced.

    Returns:
        The estimate, and the model directory that has it.

    Raises:
        BadInputError: no picture, no such model, one that has a map already, or motion that does not rise.
    """
    files = sorted(path for path in pictures.glob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise BadInputError(f"{pictures}: holds no picture ({', '.join(PICTURES)})")
    if out is None and not (source / CARD).is_file():
        raise BadInputError(f"{source}: is no model directory of svdflow's; say with --out where to write one")
    if out is not None and out.exists():
        raise BadInputError(f"{out}: is there already; name a new directory")
    model = place(open_model(resolve_model(source)))
    if model.card.get("motion_calibration") and not replace:
        raise BadInputError(f"{source}: has a motion map, under which it was trained; --replace if you mean to")
    images = [fit_frame(read_image(path), *size) for path in files]
    frames = frames or model.unet.config.num_frames
    what = f"{frames} frames of {size[1]}x{size[0]} px"
    with within_memory(what), Progress("videos", len(set(buckets)) * len(images) * seeds) as progress:
        estimate = calibrate(
            model, images, frames=frames, fps=fps, buckets=buckets,
            seeds=range(seeds), steps=steps, on_video=lambda bucket, _: progress.advance(note=f"bucket {bucket}"),
        )  # fmt: skip
    if out is None:
        store_calibration(source, estimate, replace=replace)
        return estimate, source
    model.card["motion_calibration"] = estimate.to_dict()
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_model(model, partial)
    partial.rename(out)
    return estimate, out
