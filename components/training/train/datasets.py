"""The samples of a stage: those it is given, and those of other manifests mixed in by weight."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ...common.errors import BadInputError
from ...common.manifests import read_manifest, read_rows
from . import buckets, held_apart
from .buckets import check_samples, usable_rows
from .held_apart import why_left_out
from .packed_rows import PackedRows
from .settings import MixedSamples, StageSettings


@dataclass(frozen=True)
class Datasets:
    """What a stage is trained on.

    Attributes:
        train: usable training samples of all manifests.
        dataset: the manifest of each of them, by number.
        held_out: usable held-out samples of the stage's own manifest.
        weights: of the manifests.
        left_out: samples that the stage cannot use, by reason.
        motion_unit: of the training samples' motion scores; "" when none has one, or it is unknown.
    """

    train: PackedRows
    dataset: list[int]
    held_out: PackedRows
    weights: tuple[float, ...]
    left_out: Counter[str] = field(default_factory=Counter)
    motion_unit: str = ""


def manifests_of(samples: Path, settings: StageSettings) -> list[Path]:
    """The stage's own samples manifest, and those mixed in."""
    return [samples, *(Path(part.samples or "") for part in settings.mix)]


def resolve_mix(
    stage: str, settings: StageSettings, datasets: Path | None = None, pictures: Path | None = None
) -> StageSettings:
    """The settings with a samples manifest for everything that is mixed in.

    Args:
        stage: the settings' own.
        settings: of the stage.
        datasets: folder with the samples manifests of dataset versions, ``<tag>.parquet``.
        pictures: samples manifest of pictures; one without samples, or that the stage cannot take, is left out.

    Raises:
        BadInputError: a dataset version of the mix has not been encoded.
    """
    mix = []
    for index, part in enumerate(settings.mix):
        if part.samples is None:
            found = datasets / f"{part.dataset}.parquet" if datasets else None
            if found is None or not found.is_file():
                raise BadInputError(
                    f"train_{stage}.mix.{index}.dataset: samples of {part.dataset} are not at hand here; the pipelines "
                    "check datasets out and encode them, elsewhere name a samples manifest (samples)"
                )
            part = part.model_copy(update={"samples": str(found)})
        mix.append(part)
    if pictures is not None and settings.takes_images(stage) and read_rows("samples", pictures):
        mix.append(MixedSamples(dataset=None, samples=str(pictures), weight=settings.images))
    return settings.model_copy(update={"mix": tuple(mix)})


def read_datasets(samples: Path, stage: str, settings: StageSettings) -> Datasets:
    """Read the manifests of a stage and keep what it can use.

    What a dataset holds out no other is trained on (``held_apart.py``): such samples are left out and counted.

    Raises:
        BadInputError: a manifest cannot be read, its samples are of another size, none is long enough, none is left
            to train on, or motion scores are of several units.
    """
    train: list[PackedRows] = []
    dataset: list[int] = []
    held_out: list[PackedRows] = []
    left_out = Counter[str]()
    paths = manifests_of(samples, settings)
    manifests = [PackedRows(read_manifest("samples", path)) for path in paths]
    reasons = why_left_out([rows.only(*held_apart.COLUMNS) for rows in manifests])
    for number, (path, rows, barred) in enumerate(zip(paths, manifests, reasons, strict=True)):
        left_out.update(reason for reason in barred if reason)
        may = rows.where([not reason for reason in barred])
        sizes = may.only(*buckets.COLUMNS)
        check_samples(sizes, stage, settings, path)
        holds_window, dropped = usable_rows(sizes, stage, settings)
        left_out.update(dropped)
        usable = may.where(holds_window)
        sides = [row["split"] for row in usable.only("split")]
        mine = usable.where([side == "train" for side in sides])
        apart = len(rows) - len(may)
        if not mine and (number or apart):
            why = f"; {apart} show what a dataset of the mix holds out" if apart else ""
            remedy = "leave it out of mix" if number else "leave the other out of mix"
            raise BadInputError(f"{path}: holds no training sample that stage {stage} can use{why}; {remedy}")
        train.append(mine)
        dataset += [number] * len(mine)
        if not number:
            held_out.append(usable.where([side == "held_out" for side in sides]))
    weights = (settings.weight, *(part.weight for part in settings.mix))
    whole = PackedRows.joined(train)
    return Datasets(whole, dataset, held_out[0], weights, left_out, _motion_unit(whole, paths))


def _motion_unit(rows: PackedRows, paths: list[Path]) -> str:
    scored = rows.only("motion_unit", "motion_score")
    units = {row["motion_unit"] for row in scored if row["motion_score"] is not None} - {None, ""}
    if len(units) > 1:
        raise BadInputError(
            f"{', '.join(map(str, paths))}: motion scores are in {' and '.join(sorted(units))}, of which no one map to "
            "motion buckets can be made; annotate all datasets of a mix with the same flow settings"
        )
    return min(units, default="")
