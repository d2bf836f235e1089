"""A folder of pictures to training samples of one frame, to be mixed with clips or for the image stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...common.decoding import decode_each, in_cluster
from ...common.errors import BadInputError
from ...common.fanout import in_pods
from ...common.identity import file_sha256, identity
from ...common.manifests import write_manifest
from ...common.report import StepReport, text
from ...common.storage import DataRoot
from .samples import encode_units
from .settings import EncodeSettings
from .sources import PictureSource, Sequence
from .units import Unit
from .variants import nearest_size, variants

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
IMAGE_FPS = 7.0  # a picture has no frame rate; the model is told the one it knows best, as with orbits
_MAX_CAPTION_BYTES = 10_000
_SIZE = "picture_size"


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
    found: dict[str, tuple[Path, str]] = {}
    for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
        unit_id, caption = identity(image=file_sha256(path)), _caption(path.with_suffix(".txt"))
        if unit_id not in found or not found[unit_id][1]:
            found[unit_id] = path, caption  # equal bytes are one picture, with the first caption that one of them has
    if not found:
        raise BadInputError(f"{source}: holds no picture ({', '.join(SUFFIXES)})")
    sources = [PictureSource(str(path), root.put_file(path) if in_cluster() else None) for path, _ in found.values()]
    works = [PictureWork(root.location, unit_id, given) for unit_id, given in zip(found, sources, strict=True)]
    units = [
        _unit(work, caption, size, settings)
        for work, (_, caption), size in zip(works, found.values(), _sizes(works, root), strict=True)
    ]
    return encode_units(units, out, root, settings, "Encode images", "encode_images")


@dataclass(frozen=True)
class PictureWork:
    """A picture whose size is wanted."""

    root: str
    unit_id: str
    source: PictureSource


@in_pods
def picture_size(work: PictureWork) -> tuple[int, int]:
    """Height and width of a picture, upright.

    Raises:
        BadInputError: it is none.
    """
    height, width = next(work.source.frames(DataRoot.open(work.root))).shape[:2]
    return height, width


def _sizes(works: list[PictureWork], root: DataRoot) -> Iterator[tuple[int, int] | None]:
    """Height and width of each picture, found or measured; None for those that are none."""
    kept = [root.find(_SIZE, work.unit_id) for work in works]
    missing = [work for work, size in zip(works, kept, strict=True) if size is None]
    outcomes = iter(decode_each(picture_size, missing, root, "sizes"))
    for work, size in zip(works, kept, strict=True):
        if size is None and (size := next(outcomes).value) is not None:
            root.record(_SIZE, work.unit_id, size)
        yield (size[0], size[1]) if size and min(size) > 0 else None


def _unit(work: PictureWork, caption: str, picture: tuple[int, int] | None, settings: EncodeSettings) -> Unit:
    # what is no picture is met again, and counted, when it is encoded
    height, width = picture or settings.targets[0]
    size = nearest_size(height, width, settings.targets)
    ways = variants(height, width, size, "train", settings)
    return Unit(
        unit_id=work.unit_id,
        sequence=Sequence(1, IMAGE_FPS, 0.0, 1),
        size=size,
        variants=ways if picture else ways[:1],
        key_parts={},
        starts=1,
        window=(1, 1),
        captions=[caption] * 3,
        row={"split": "train", "motion_score": None, "elevation_deg": None},
        source=work.source,
    )


def _caption(path: Path) -> str:
    if not path.is_file():
        return ""
    with open(path, "rb") as stream:
        return " ".join(stream.read(_MAX_CAPTION_BYTES).decode(errors="replace").split())
