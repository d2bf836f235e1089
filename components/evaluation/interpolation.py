"""Measure an interpolation model on held-out clips: the three frames that it makes between two, against the true ones.

Beside it stand what needs no model (the two frames blended, the nearer one repeated, both moved along their optical
flow) and the same architecture with random weights. The truth is decoded from the clips, at the rate of the training.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import BadInputError
from ..common.files import write_atomic
from ..common.finished import find_finished, record_finished
from ..common.identity import file_sha256, identity, tree_sha256
from ..common.report import StepReport, images, table
from ..common.storage import DataRoot
from ..common.windows import fitting_stride, stride_for
from ..diffusion.settings import INTERPOLATED_FRAMES, INTERPOLATION_RATE
from .columns import MODEL, UNTRAINED, Source, loaders, make_videos, measured, motion_bucket, protocol_of, write_videos
from .held_out import check_held_out, choose_samples, load_clips
from .interpolation_figures import FIGURES, blended, middle_psnr, nearest, warped
from .metric import Clip, Videos
from .settings import InterpolationSettings

VERSION = "2"
_PAPER_FPS = 28.0  # of what the paper's comparison shows [P E.3], for a model that tells no rate
_TOO_SHORT = f"it holds no {INTERPOLATED_FRAMES} frames from its conditioning frame on"
BLEND, NEAREST, WARPED = "blend", "nearest", "flow_warp"
TITLES = {
    MODEL: "the model",
    UNTRAINED: "untrained weights",
    BLEND: "given frames blended",
    NEAREST: "nearer given frame",
    WARPED: "given frames along their flow",
}


def measure_interpolation(
    model: Path,
    samples: Path,
    clips: Path,
    selection: Path,
    metrics: Path,
    generated: Path,
    root: DataRoot,
    settings: InterpolationSettings,
) -> StepReport:
    """Make the frames between the ends of held-out windows, measure, and write metrics and videos.

    Args:
        model: directory of an interpolation model.
        samples: samples manifest; its held-out rows are used.
        clips: clips manifest, for the true frames.
        selection: selection manifest; a sample that it does not hold out is refused.
        metrics: the JSON file to write.
        generated: the directory for ``<sample>-generated.mp4``, ``<sample>-truth.mp4`` and ``sources.csv``.
        root: where clips lie and made frames are kept.
        settings: how many windows, their rate, sampler.

    Raises:
        BadInputError: the model is of another kind, or fewer than two held-out windows can be used.
    """
    from ..diffusion.model_directory import read_card

    card = read_card(model)
    if card["kind"] != "interpolation":
        raise BadInputError(f"{model}: a model of kind {card['kind']}; frames between others need one of interpolation")
    outputs = {"metrics": metrics, "generated": generated}
    model_sha256 = tree_sha256(model)
    key = identity(
        version=VERSION,
        model=model_sha256,
        inputs=[file_sha256(path) for path in (samples, clips, selection)],
        settings=settings.model_dump(mode="json"),
        torch=version("torch"),
    )
    if (finished := find_finished(root, "measure_interpolation", key, outputs)) is not None:
        return finished
    rate = settings.fps or trained_fps(card)
    rows = choose_samples(samples, settings.samples)
    check_held_out(rows, selection)
    fitting = {row["sample_id"]: window for row in rows if (window := window_at(row, rate)) is not None}
    held_out, refused = load_clips(list(fitting.values()), clips, root)
    refused |= {row["sample_id"]: _TOO_SHORT for row in rows if row["sample_id"] not in fitting}
    if len(held_out) < 2:
        raise BadInputError(
            f"{samples}: {len(held_out)} held-out windows can be used: {'; '.join(refused.values())[:400]}"
        )
    columns: dict[str, Videos] = {}
    done = total = 0
    for source in _sources(model, model_sha256, card, rate, settings):
        made, computed = make_videos(source, held_out, root)
        columns[source.name] = Videos(made)
        done += computed
        total += len(made) if source.depends_on else 0
    figures = measured(FIGURES, held_out, columns)
    result = {
        "format": 1,
        "model": {
            "sha256": model_sha256,
            "kind": card["kind"],
            "stage": card.get("stage"),
            "dataset": card.get("dataset"),
        },
        "figures": figures,
        "protocol": protocol_of(FIGURES, held_out, settings) | {"fps": [clip.fps for clip in held_out]},
    }
    write_atomic(metrics, json.dumps(result, indent=2, sort_keys=True).encode())
    write_videos(held_out, columns[MODEL], generated)
    report = _report(held_out, columns, figures, refused, model_sha256, settings)
    report.done, report.reused = done, total - done
    record_finished(root, "measure_interpolation", key, outputs, report)
    return report


def trained_fps(card: dict[str, Any]) -> float:
    """The rate of the windows that a model was trained on: the fastest asked for, or the usual one, or the paper's."""
    asked = (card.get("configuration") or {}).get("fps") or []
    return float(max(asked, default=0.0) or (card.get("conditioning") or {}).get("fps") or _PAPER_FPS)


def window_at(row: dict[str, Any], fps: float) -> dict[str, Any] | None:
    """A sample's row as that of five frames from its conditioning frame on, as near to a rate as training comes.

    Args:
        row: of the samples manifest.
        fps: wanted; a whole stride of the sample's frames is taken, a smaller one where it does not fit.

    Returns:
        The row with its ``frames`` and ``fps`` changed; None when it holds fewer frames.
    """
    own_fps = row["sequence_fps"] or row["fps"]
    available = (row["sequence_frames"] or row["frames"]) - (row["first_frame"] or 0)
    if available < INTERPOLATED_FRAMES:
        return None
    stride = fitting_stride(available, INTERPOLATED_FRAMES, stride_for(own_fps, fps))
    return row | {"frames": INTERPOLATED_FRAMES, "fps": own_fps / stride}


def _sources(
    model: Path, model_sha256: str, card: dict[str, Any], rate: float, settings: InterpolationSettings
) -> list[Source]:
    trained, untrained = loaders(model, settings.seed)
    sampler = settings.model_dump(mode="json", include={"steps", "guidance_min", "guidance_max", "noise_aug", "seed"})
    depends_on = {
        "model": model_sha256, "sampler": sampler, "window_fps": rate, "interpolation": VERSION,
        "torch": version("torch"),
    }  # fmt: skip
    sources = [Source(MODEL, TITLES[MODEL], depends_on, lambda clip: _between(trained(), card, clip, settings))]
    if settings.untrained_baseline:
        fresh = {**depends_on, "weights": "random"}
        sources.append(
            Source(UNTRAINED, TITLES[UNTRAINED], fresh, lambda clip: _between(untrained(), card, clip, settings))
        )
    for name, make in ((BLEND, blended), (NEAREST, nearest), (WARPED, warped)):
        sources.append(Source(name, TITLES[name], {}, lambda clip, make=make: make(clip.frames_FHWC)))  # type: ignore[misc]
    return sources


def _between(model: Any, card: dict[str, Any], clip: Clip, settings: InterpolationSettings) -> np.ndarray:
    from ..diffusion.device import within_memory
    from ..diffusion.interpolating import interpolate

    seed = int(identity(sample=clip.sample_id, seed=settings.seed)[:8], 16)  # whichever others are chosen
    height, width = clip.frames_FHWC.shape[1:3]
    with within_memory(f"{INTERPOLATED_FRAMES} frames of {width}x{height} px"):
        return interpolate(
            model,
            clip.frames_FHWC[[0, -1]],
            fps=clip.fps / INTERPOLATION_RATE,
            motion_bucket=motion_bucket(card, clip.motion_score),
            noise_aug=settings.noise_aug,
            steps=settings.steps,
            guidance=(settings.guidance_min, settings.guidance_max),
            guidance_shape="linear",
            seed=seed,
        )


def _report(
    held_out: list[Clip],
    columns: dict[str, Videos],
    figures: dict[str, dict[str, float | None]],
    refused: dict[str, str],
    model_sha256: str,
    settings: InterpolationSettings,
) -> StepReport:
    report = StepReport("measure_interpolation", "Measure the interpolation model")
    report.counts = {
        "held-out samples": len(held_out) + len(refused),
        "windows compared": len(held_out),
        "frames compared": len(held_out) * (INTERPOLATED_FRAMES - 2),
    }
    report.summary = {
        "interpolation": {
            "samples": len(held_out),
            "set_aside": len(refused),
            "model_sha256": model_sha256,
            **figures,
        }
    }
    arrows = {"higher": "↑", "lower": "↓"}
    rows: list[list[Any]] = [
        [metric.title, f"{figure} {arrows[side]} ({metric.units[figure]})", *figures[figure].values()]
        for metric in FIGURES
        for figure, side in metric.better.items()
    ]
    rates = sorted({round(clip.fps, 3) for clip in held_out})
    told = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
    note = f"{len(held_out)} held-out windows of {INTERPOLATED_FRAMES} frames at {told} fps, {settings.steps} steps."
    titles = [TITLES[name] for name in columns]
    report.sections.append(table("Frames between two given ones", ["metric", "figure", *titles], rows, note=note))
    scores = {
        name: [middle_psnr(clip.frames_FHWC, made) for clip, made in zip(held_out, column.frames, strict=True)]
        for name, column in columns.items()
    }
    shown = [MODEL, BLEND, WARPED]
    sheets = []
    for place in np.unique(np.linspace(0, len(held_out) - 1, min(settings.sheets, len(held_out))).round().astype(int)):
        strips = [held_out[place].frames_FHWC, *[columns[name].frames[place] for name in shown]]
        sheet = np.concatenate([np.concatenate(list(strip), axis=1) for strip in strips])
        compared = ", ".join(f"{TITLES[name]} {scores[name][place]:.1f} dB" for name in shown)
        sheets.append((sheet, compared))
    if sheets:
        order = ", ".join(["the true frames", *[TITLES[name] for name in shown]])
        report.sections.append(
            images(
                "Held-out windows",
                sheets,
                note=f"From top to bottom: {order}. The first and the last frame are given.",
                height_px=240,
            )
        )
    each: list[list[Any]] = [
        [clip.sample_id[:12], clip.fps, *[scores[name][place] for name in columns]]
        for place, clip in enumerate(held_out[:50])
    ]
    report.sections.append(table("PSNR by window (dB)", ["sample", "fps", *titles], each))
    if refused:
        report.sections.append(
            table("Samples set aside", ["sample", "reason"], [[k, v] for k, v in sorted(refused.items())[:50]])
        )
    report.versions = {"torch": version("torch"), "diffusers": version("diffusers")}
    return report
