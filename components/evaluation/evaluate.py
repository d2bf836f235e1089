"""Evaluate an image-to-video model on held-out clips, beside the same architecture untrained and a still picture.

Every generated video is kept in the data root under what it depends on, so that a broken run goes on where it stopped
and a metric that is added later generates nothing again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import BadInputError
from ..common.files import write_atomic
from ..common.finished import find_finished, record_finished
from ..common.identity import file_sha256, identity, tree_sha256
from ..common.report import StepReport, images, table, videos
from ..common.storage import DataRoot
from ..common.video import encode_mp4
from .columns import MODEL, UNTRAINED, Source, loaders, make_videos, measured, motion_bucket, protocol_of, write_videos
from .held_out import check_held_out, choose_samples, load_clips, motion_unit
from .metric import Clip, Metric, Videos
from .metrics import choose_metrics
from .settings import EvaluateSettings

VERSION = "2"
STILL = "first_frame_repeated"
TITLES = {MODEL: "the model", UNTRAINED: "untrained weights", STILL: "first frame repeated"}


def evaluate_model(
    model: Path,
    samples: Path,
    clips: Path,
    annotations: Path,
    selection: Path,
    metrics: Path,
    generated: Path,
    root: DataRoot,
    settings: EvaluateSettings,
) -> StepReport:
    """Generate the held-out clips from their first frames, measure, and write metrics and videos.

    Args:
        model: directory of an image-to-video model.
        samples: samples manifest; its held-out rows are used.
        clips: clips manifest, for the true frames.
        annotations: annotations manifest, for the unit of the motion scores.
        selection: selection manifest; a sample that it does not hold out is refused.
        metrics: the JSON file to write.
        generated: the directory for ``<sample>-generated.mp4``, ``<sample>-truth.mp4`` and ``sources.csv``.
        root: where clips lie and generated videos are kept.
        settings: how many clips, sampler, metrics.

    Raises:
        BadInputError: the model is of another kind, or fewer than two held-out clips can be used.
    """
    from ..diffusion.model_directory import read_card

    card = read_card(model)
    if card["kind"] != "image_to_video":
        raise BadInputError(
            f"{model}: a model of kind {card['kind']}; evaluation generates from first frames and needs image_to_video"
        )
    outputs = {"metrics": metrics, "generated": generated}
    key = identity(
        version=VERSION,
        model=tree_sha256(model),
        inputs=[file_sha256(path) for path in (samples, clips, annotations, selection)],
        settings=settings.model_dump(mode="json"),
        torch=version("torch"),
    )
    if (finished := find_finished(root, "evaluate", key, outputs)) is not None:
        return finished
    chosen = choose_metrics(settings)
    rows = choose_samples(samples, settings.samples)
    check_held_out(rows, selection)
    held_out, refused = load_clips(rows, clips, root)
    if len(held_out) < 2:
        raise BadInputError(
            f"{samples}: {len(held_out)} held-out samples can be used: {'; '.join(refused.values())[:400]}"
        )
    model_sha256 = tree_sha256(model)
    columns: dict[str, Videos] = {}
    done = 0
    for source in _sources(model, model_sha256, card, settings):
        videos_made, computed = make_videos(source, held_out, root)
        columns[source.name] = Videos(videos_made)
        done += computed
    figures = measured(chosen, held_out, columns)
    result = {
        "format": 1,
        "model": {
            "sha256": model_sha256,
            "kind": card["kind"],
            "stage": card.get("stage"),
            "dataset": card.get("dataset"),
        },
        "figures": figures,
        "protocol": protocol_of(chosen, held_out, settings) | {"motion_unit": motion_unit(annotations)},
    }
    write_atomic(metrics, json.dumps(result, indent=2, sort_keys=True).encode())
    write_videos(held_out, columns[MODEL], generated)
    total = len(held_out) * (len(columns) - (STILL in columns))
    report = _report(chosen, held_out, columns, figures, refused, result, settings, done, total - done)
    record_finished(root, "evaluate", key, outputs, report)
    return report


def _sources(model: Path, model_sha256: str, card: dict[str, Any], settings: EvaluateSettings) -> list[Source]:
    trained, untrained = loaders(model, settings.seed)
    sampler = settings.model_dump(mode="json", include={"steps", "guidance_min", "guidance_max", "noise_aug", "seed"})
    depends_on = {"model": model_sha256, "sampler": sampler, "torch": version("torch")}

    def source(name: str, depends_on: dict[str, Any], make: Callable[[Clip], np.ndarray]) -> Source:
        return Source(name, TITLES[name], depends_on, make)

    sources = [source(MODEL, depends_on, lambda clip: _sample(trained(), card, clip, settings))]
    if settings.untrained_baseline:
        fresh = {**depends_on, "weights": "random"}
        sources.append(source(UNTRAINED, fresh, lambda clip: _sample(untrained(), card, clip, settings)))
    sources.append(source(STILL, {}, lambda clip: np.repeat(clip.frames_FHWC[:1], len(clip.frames_FHWC), axis=0)))
    return sources


def _sample(model: Any, card: dict[str, Any], clip: Clip, settings: EvaluateSettings) -> np.ndarray:
    from ..diffusion.device import within_memory
    from ..diffusion.sampling import generate

    seed = int(identity(sample=clip.sample_id, seed=settings.seed)[:8], 16)  # whichever others are chosen
    frames, height, width = clip.frames_FHWC.shape[:3]
    with within_memory(f"{frames} frames of {width}x{height} px"):
        return generate(
            model, clip.frames_FHWC[0], frames=frames, fps=clip.fps,
            motion_bucket=motion_bucket(card, clip.motion_score), noise_aug=settings.noise_aug, steps=settings.steps,
            guidance=(settings.guidance_min, settings.guidance_max), seed=seed,
        )  # fmt: skip


def _report(
    chosen: list[Metric],
    held_out: list[Clip],
    columns: dict[str, Videos],
    figures: dict[str, dict[str, float | None]],
    refused: dict[str, str],
    result: dict[str, Any],
    settings: EvaluateSettings,
    done: int,
    reused: int,
) -> StepReport:
    report = StepReport("evaluate", "Evaluate the image-to-video model", done=done, reused=reused)
    report.counts = {
        "held-out samples": len(held_out) + len(refused),
        "compared": len(held_out),
        "videos generated": done + reused,
    }
    report.summary = {
        "evaluation": {
            "samples": len(held_out),
            "set_aside": len(refused),
            "model_sha256": result["model"]["sha256"],
            **figures,
        }
    }
    arrows = {"higher": "↑", "lower": "↓"}
    rows: list[list[Any]] = []
    for metric in chosen:
        for figure, unit in metric.units.items():
            label = f"{figure} {arrows.get(metric.better.get(figure, ''), '')} {unit and f'({unit})'}".strip()
            rows.append([metric.title, label, *[figures[figure].get(name) for name in columns]])
    note = (
        f"{len(held_out)} held-out clips, {settings.steps} steps. Distances on so few rank these columns and no others."
    )
    report.sections.append(table("Metrics", ["metric", "figure", *[TITLES[name] for name in columns]], rows, note=note))
    shown = (
        [0]
        if settings.videos_shown == 1
        else np.unique(np.linspace(0, len(held_out) - 1, min(settings.videos_shown, len(held_out))).round())
    )
    panels: list[tuple[Path | bytes, str]] = []
    order = [MODEL, *[name for name in (UNTRAINED,) if name in columns]]
    for place in map(int, shown):
        clip = held_out[place]
        side_by_side = np.concatenate([clip.frames_FHWC, *[columns[name].frames[place] for name in order]], axis=2)
        panels.append((encode_mp4(side_by_side, clip.fps), (clip.captions or (clip.sample_id,))[0][:90]))
    if panels:
        names = ", ".join(["the true clip", *[TITLES[name] for name in order]])
        report.sections.append(
            videos(
                "Held-out clips",
                panels,
                note=f"From left to right: {names}. All start from the same frame.",
                height_px=160,
            )
        )
        strip = columns[MODEL].frames[int(shown[0])]
        picks = np.linspace(0, len(strip) - 1, min(8, len(strip))).round().astype(int)
        pair = np.concatenate(
            [np.concatenate(list(v[picks]), axis=1) for v in (held_out[int(shown[0])].frames_FHWC, strip)], axis=0
        )
        report.sections.append(
            images("Frame by frame", [(pair, "above the true clip, below the model")], height_px=200)
        )
    if refused:
        report.sections.append(
            table("Samples set aside", ["sample", "reason"], [[k, v] for k, v in sorted(refused.items())[:50]])
        )
    report.versions = {"torch": version("torch"), "diffusers": version("diffusers")} | {
        k: v[:12] for m in chosen for k, v in m.features.items()
    }
    return report
