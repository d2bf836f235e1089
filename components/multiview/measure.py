"""Measure a multi-view model on held-out objects: orbits from one view, against the rendered views."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..common.decoding import decode_each, in_cluster
from ..common.errors import BadInputError
from ..common.finished import find_finished, record_finished
from ..common.identity import file_sha256, identity, tree_sha256
from ..common.lossless_frames import keep_once, unpack_frames
from ..common.manifests import read_rows
from ..common.pixels import kept_frames
from ..common.progress import track
from ..common.report import StepReport, images, table
from ..common.storage import DataRoot
from .render import GENERATED, strip
from .settings import MeasureSettings
from .stored_orbits import OrbitPlace, keep_views
from .view_metrics import ViewMetric, view_metrics

VERSION = "1"  # of generated orbits
_MEASURED = "2"  # of the figures
AFTER, BEFORE, SHUFFLED, COPY = "after", "before", "shuffled_elevation", "copy_input"
TITLES = {
    AFTER: "the multi-view model",
    BEFORE: "the model it started from",
    SHUFFLED: "the multi-view model, told another orbit's elevation",
    COPY: "the input view copied",
}


def rendered_views(rows: list[dict[str, Any]], root: DataRoot) -> Iterator[np.ndarray]:
    """The views of orbits; of objects that others made they are unpacked where those were rendered: in pods.

    Args:
        rows: of the orbits manifest.
        root: where the views lie.

    Raises:
        BadInputError: a shard holds no views, or others.
    """
    foreign = {row["orbit_id"] for row in rows if row["source"] != GENERATED} if in_cluster() else set()
    places = [OrbitPlace(root.location, row["shard_uri"]) for row in rows if row["orbit_id"] in foreign]
    outcomes = iter(decode_each(keep_views, places, root, "views"))
    for row in rows:
        if row["orbit_id"] not in foreign:
            yield unpack_frames(root, row["shard_uri"])
            continue
        outcome = next(outcomes)
        if outcome.value is None:
            raise BadInputError(outcome.error or row["shard_uri"])
        yield kept_frames(root, outcome.value, row["frames"], row["height"], row["width"])


def measure_orbits(
    model: Path, before: Path | None, orbits: Path, root: DataRoot, settings: MeasureSettings
) -> StepReport:
    """Generate held-out orbits from their first view and compare them, view by view, with the rendered ones.

    Beside the model stand the model it started from, itself told a wrong elevation, and the input view copied. The
    figures are of all views but the input view, as [P, figure 10a], there on other objects: PSNR, and LPIPS and CLIP-S
    where the settings name their weights.

    Args:
        model: directory of the multi-view model.
        before: directory of the model that its training started from (image-to-video or multi-view); None for no such
            column.
        orbits: orbits manifest; its held-out rows are used.
        root: where views lie and generated orbits are kept.
        settings: how many orbits, sampler.

    Raises:
        BadInputError: a model is of another kind, or there is no held-out orbit.
    """
    from ..diffusion.model_directory import read_card

    kinds = {path: read_card(path)["kind"] for path in (model, before) if path is not None}
    if kinds[model] != "multi_view":
        raise BadInputError(f"{model}: a model of kind {kinds[model]}; orbits need multi_view")
    if before is not None and kinds[before] not in ("multi_view", "image_to_video"):
        raise BadInputError(f"{before}: a model of kind {kinds[before]} cannot start from a picture")
    metrics = view_metrics(settings)
    key = identity(
        version=_MEASURED,
        models=[path and tree_sha256(path) for path in (model, before)],
        orbits=file_sha256(orbits),
        settings=settings.model_dump(mode="json"),
        weights=[metric.weights for metric in metrics],
        torch=version("torch"),
    )
    if (finished := find_finished(root, "measure_multiview", key, {})) is not None:
        return finished
    rows = choose_orbits(orbits, settings.orbits)
    truth = list(rendered_views(rows, root))
    true_elevations = [row["elevation_deg"] for row in rows]
    asked: list[tuple[str, Path, list[float]]] = [
        (AFTER, model, true_elevations),
        (SHUFFLED, model, wrong_elevations(true_elevations)),
    ]
    if before is not None:
        asked.append((BEFORE, before, true_elevations))
    columns: dict[str, list[np.ndarray]] = {}
    done = 0
    for name, directory, elevations in asked:
        columns[name], made = _orbits(
            directory, kinds[directory], rows, truth, elevations, root, settings, TITLES[name]
        )
        done += made
    columns[COPY] = [np.repeat(views[:1], len(views), axis=0) for views in truth]
    scores = _scores(metrics, truth, columns)
    report = _report(rows, truth, columns, metrics, scores, settings, done)
    record_finished(root, "measure_multiview", key, {}, report)
    return report


def _scores(
    metrics: list[ViewMetric], truth: list[np.ndarray], columns: dict[str, list[np.ndarray]]
) -> dict[str, dict[str, list[float]]]:
    """Metric to whose orbits to the figure of each orbit, without the input view."""
    from ..diffusion.device import within_memory

    scores: dict[str, dict[str, list[float]]] = {m.name: {name: [] for name in columns} for m in metrics}
    height, width = truth[0].shape[1:3]
    for metric in metrics:
        for place, views in enumerate(track(truth, f"orbits, {metric.title}")):
            made = {name: orbits[place][1:] for name, orbits in columns.items()}
            with within_memory(f"{metric.title} of {len(views) - 1} views of {width}x{height} px"):
                figures = metric.measure(views[1:], made)
            for name, value in figures.items():
                scores[metric.name][name].append(value)
    return scores


def choose_orbits(orbits: Path, count: int | None) -> list[dict[str, Any]]:
    """Held-out rows of an orbits manifest: one of each object, then another of each, until there are ``count``; or all.

    Raises:
        BadInputError: there is none.
    """
    by_object: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in read_rows("orbits", orbits):
        if row["split"] == "held_out":
            by_object[row["object_id"]].append(row)
    ranked = [(place, thing, row) for thing, rows in by_object.items() for place, row in enumerate(rows)]
    if not ranked:
        raise BadInputError(
            f"{orbits}: holds no held-out orbit; raise render.held_out_objects, or render.held_out_percent for a folder"
        )
    return [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])[:count]]


def wrong_elevations(true_deg: list[float]) -> list[float]:
    """For each orbit the elevation of the one half-way round in their order: each is used once, and wrong by much."""
    order = np.argsort(true_deg, kind="stable")
    wrong = np.empty(len(order))
    wrong[order] = np.array(true_deg, float)[np.roll(order, -(len(order) // 2))]
    return [float(value) for value in wrong]


def _orbits(
    directory: Path,
    kind: str,
    rows: list[dict[str, Any]],
    truth: list[np.ndarray],
    elevations: list[float],
    root: DataRoot,
    settings: MeasureSettings,
    what: str,
) -> tuple[list[np.ndarray], int]:
    """A model's orbits, found or generated; and how many were generated."""
    from ..diffusion.device import place
    from ..diffusion.model_directory import load_model

    sampler = settings.sampler()
    model_sha256 = tree_sha256(directory)
    model = cache(lambda: place(load_model(directory)))  # not needed when every orbit is found
    out, made = [], 0
    for row, views, elevation in track(list(zip(rows, truth, elevations, strict=True)), f"orbits, {what}"):
        told = elevation if kind == "multi_view" else None
        key = identity(
            version=VERSION,
            model=model_sha256,
            orbit=row["orbit_id"],
            elevation=told,
            sampler=sampler,
            torch=version("torch"),
        )
        make = partial(_generate, model, views, told, row["orbit_id"], settings)
        uri, fresh = keep_once(root, "generated_orbit", key, make)
        made += fresh
        out.append(unpack_frames(root, uri))
    return out, made


def _generate(
    model: Callable[[], Any], views: np.ndarray, elevation_deg: float | None, orbit_id: str, settings: MeasureSettings
) -> np.ndarray:
    from ..diffusion.device import within_memory
    from ..diffusion.sampling import generate

    # one seed per orbit, the same for every model and elevation: they differ by nothing else
    seed = int(identity(orbit=orbit_id, seed=settings.seed)[:8], 16)
    height, width = views.shape[1:3]
    with within_memory(f"{len(views)} views of {width}x{height} px"):
        return generate(
            model(), views[0], frames=len(views), fps=settings.fps, motion_bucket=settings.motion_bucket,
            noise_aug=settings.noise_aug, steps=settings.steps,
            guidance=(settings.guidance_min, settings.guidance_max), seed=seed, elevation_deg=elevation_deg,
        )  # fmt: skip


def _report(
    rows: list[dict[str, Any]],
    truth: list[np.ndarray],
    columns: dict[str, list[np.ndarray]],
    metrics: list[ViewMetric],
    scores: dict[str, dict[str, list[float]]],
    settings: MeasureSettings,
    done: int,
) -> StepReport:
    objects = len({row["object_id"] for row in rows})
    generated = (len(columns) - 1) * len(rows)
    report = StepReport("measure_multiview", "Measure the multi-view model", done=done, reused=generated - done)
    report.counts = {
        "held-out objects": objects,
        "orbits": len(rows),
        "views compared": sum(len(views) - 1 for views in truth),
    }
    named = [name for name in TITLES if name in columns]
    means = {f"{m.name}_{name}": round(float(np.mean(scores[m.name][name])), 4) for m in metrics for name in named}
    report.summary = {
        "multiview": {**means, "measured_objects": objects, "measured_orbits": len(rows), "views": len(truth[0])}
    }
    note = f"{len(rows)} held-out orbits of {objects} objects, {settings.steps} steps; all views but the input view."
    arrows = {"higher": "↑", "lower": "↓"}
    for metric in metrics:
        summed: list[list[Any]] = []
        for name in named:
            values = scores[metric.name][name]
            summed.append([TITLES[name], means[f"{metric.name}_{name}"], float(np.min(values)), float(np.max(values))])
        title = f"{metric.title} of generated orbits {arrows[metric.better]}"
        about = f"{note} {metric.protocol[0].upper()}{metric.protocol[1:]}."
        report.sections.append(table(title, ["orbits by", "mean", "lowest", "highest"], summed, note=about))
    shown = [name for name in (AFTER, BEFORE) if name in columns]
    psnr = scores["psnr"]
    sheets = []
    for place in range(min(settings.sheets, len(rows))):
        sheet = np.concatenate([strip(truth[place]), *[strip(columns[name][place]) for name in shown]], axis=0)
        caption = f"{rows[place]['elevation_deg']:.0f}°: {psnr[AFTER][place]:.1f} dB"
        if BEFORE in columns:
            caption += f", before {psnr[BEFORE][place]:.1f} dB"
        sheets.append((sheet, caption))
    if sheets:
        rows_note = (
            f"From top to bottom: rendered, {', '.join(TITLES[name] for name in shown)}. The first view is given."
        )
        report.sections.append(images("Held-out orbits", sheets, note=rows_note, height_px=216))
    each: list[list[Any]] = [
        [row["orbit_id"][:12], row["elevation_deg"], *[psnr[name][place] for name in named]]
        for place, row in enumerate(rows[:50])
    ]
    heads = ["orbit", "elevation (°)", *[TITLES[name] for name in named]]
    report.sections.append(table("PSNR by orbit (dB)", heads, each))
    report.versions = {"torch": version("torch"), "diffusers": version("diffusers")}
    report.versions |= {metric.title: metric.weights[:64] for metric in metrics if metric.weights}
    return report
