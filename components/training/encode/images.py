"""A folder of pictures to training samples of one frame, to be mixed with clips or for the image stage."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ...common.errors import BadInputError
from ...common.identity import file_sha256, identity
from ...common.manifests import write_manifest
from ...common.report import StepReport, text
from ...common.storage import DataRoot
from .samples import encode_units
from .settings import EncodeSettings
from .units import Sequence, Unit
from .variants import nearest_size, variants

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
IMAGE_FPS = 7.0  # a picture has no frame rate; the model is told the one it knows best, as with orbits
_FORMATS = ["PNG", "JPEG", "WEBP"]
_MAX_PIXELS = 8192 * 8192
_MAX_CAPTION_BYTES = 10_000


def encode_images(source: Path | None, out: Path, root: DataRoot, settings: EncodeSettings) -> StepReport:
    """Encode the pictures below a folder; the caption of ``a.png`` is the text in ``a.txt``, if there is one.

    Args:
        source: the folder; None writes a manifest of no samples.
        out: the samples manifest to write. All samples are for training; ``clip_id`` is an identity of the bytes.
        root: where shards go.
        settings: sizes, crops, flips and encoders; frames and rates do not matter.

    Raises:
        BadInputError: there is no such folder, or no picture in it. A picture that cannot be used is counted.
    """
    if source is None:
        write_manifest("samples", [], out)
        return StepReport("encode_images", "Encode images", sections=[text("Samples", "no pictures are mixed in")])
    if not source.is_dir():
        raise BadInputError(f"{source}: there is no folder of pictures here")
    units: dict[str, Unit] = {}
    for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
        unit = _unit(path, settings)
        if unit.unit_id not in units or not units[unit.unit_id].captions[0]:
            units[unit.unit_id] = unit  # equal bytes are one picture, with the first caption that one of them has
    if not units:
        raise BadInputError(f"{source}: holds no picture ({', '.join(SUFFIXES)})")
    return encode_units(units.values(), out, root, settings, "Encode images", "encode_images")


def _unit(path: Path, settings: EncodeSettings) -> Unit:
    size = settings.targets[0]
    ways = [variants(*size, size, "train", settings)[0]]
    try:
        height, width = read_image(path).shape[:2]
        size = nearest_size(height, width, settings.targets)
        ways = variants(height, width, size, "train", settings)
    except BadInputError:
        pass  # it is met again, and counted, when it is encoded
    return Unit(
        unit_id=identity(image=file_sha256(path)),
        sequence=Sequence(1, IMAGE_FPS, 0.0, 1),
        size=size,
        variants=ways,
        key_parts={},
        starts=1,
        window=(1, 1),
        captions=[_caption(path.with_suffix(".txt"))] * 3,
        row={"split": "train", "motion_score": None, "elevation_deg": None},
        load=partial(_frames, path),
    )


def read_image(path: Path) -> np.ndarray:
    """A picture upright, uint8 RGB [H, W, 3].

    Raises:
        BadInputError: it is no PNG, JPEG or WebP, is damaged, or claims too many pixels.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(), Image.open(path, formats=_FORMATS) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is ours
            if image.width * image.height > _MAX_PIXELS:
                raise BadInputError(f"{path}: claims more than {_MAX_PIXELS} pixels")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInputError(f"{path}: is no picture that can be read ({str(error).splitlines()[0][:200]})") from error


def _frames(path: Path) -> Iterator[np.ndarray]:
    yield read_image(path)


def _caption(path: Path) -> str:
    if not path.is_file():
        return ""
    with open(path, "rb") as stream:
        return " ".join(stream.read(_MAX_CAPTION_BYTES).decode(errors="replace").split())
