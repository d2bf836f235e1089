"""`svdflow train --list` and `--dry-run` on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from svdflow.training.train.presets import Preset, all_presets

_WIDTH = 160  # of what goes to a file or a pipe
_COLUMNS = (
    ("steps", "steps"),
    ("batch", "batch"),
    ("lr", "learning rate"),
    ("p_mean", "P_mean"),
    ("p_std", "P_std"),
    ("ema", "EMA"),
)


def print_presets() -> None:
    """The stages with their numbers, and how far these are the paper's."""
    table = Table(box=None, header_style="bold")
    for column in ("stage", "", "kind", "starts from", "frames", "resolution", *(t for _, t in _COLUMNS), "source"):
        table.add_column(column, no_wrap=True)
    for preset in all_presets():
        size = f"{preset.values['height']}x{preset.values['width']}{_mark(preset, 'height')}"
        frames = _cell(preset, "frames") if preset.kind != "image" else "1"
        numbers = [_cell(preset, name) for name, _ in _COLUMNS]
        table.add_row(
            f"[bold]{preset.name}[/]", preset.row, preset.kind, preset.after or "Stable Diffusion 2.1", frames, size,
            *numbers, preset.source if preset.kind == "decoder" else f"SVD {preset.source}",
        )  # fmt: skip
    console = _console()
    console.print(table)
    console.print("* ours: the paper does not say   ~ implied by the paper   – none", highlight=False)
    for preset in all_presets():
        for mark, reasons in (("*", preset.ours), ("~", preset.implied)):
            for name, why in reasons.items():
                console.print(f"{mark} {preset.name}.{name}: {why}", highlight=False)


def print_forecast(
    stage: str, profile: str, sets: Sequence[str], init: Path | None, mfu: float, peak_tflops: float, as_json: bool
) -> None:
    """What a stage would take, as a table or as JSON."""
    from .stage_runs import forecast

    found = forecast(stage, profile, sets, init, mfu, peak_tflops)
    if as_json:
        print(found.to_json())
        return
    console = _console()
    counts, trace = found.parameters, found.trace
    middle = f", latent for frames not given {counts['middle']:,}" if counts["middle"] else ""
    console.print(
        f"{stage}: {found.frames} x {found.height} x {found.width}, {found.steps:,} steps, {found.samples:,} samples, "
        f"batch {found.micro_batch} x {found.processes} processes x {found.accumulation} accumulated, "
        f"{found.precision}\n"
        f"parameters {counts['total']:,} (spatial {counts['spatial']:,}, temporal {counts['temporal']:,}, vector "
        f"{counts['vector']:,}{middle}); {found.trainable:,} learn",
        highlight=False,
    )
    table = Table(box=None, header_style="bold", title="GiB in each process, before activations", title_justify="left")
    for column in ("ZeRO", "parameters", "gradients", "optimiser", "EMA", "buffers", "together"):
        table.add_column(column, justify="right")
    for zero, state in found.states.items():
        parts = (state.parameters, state.gradients, state.optimizer, state.average, state.buffers, state.total)
        chosen = "▸ " if zero == found.zero_stage else ""
        table.add_row(f"{chosen}{zero}", *map(_gib, parts))
    console.print(table)
    used = "with" if found.gradient_checkpointing else "without"
    console.print(
        f"kept for the backward pass: {_gib(trace.kept)} GiB, with activation checkpointing "
        f"{_gib(trace.kept_checkpointed)} GiB\n"
        f"in all {_gib(found.gpu_bytes)} GiB at ZeRO {found.zero_stage}, {used} checkpointing",
        highlight=False,
    )
    for card, fits in found.fits.items():
        most, batch = found.largest_micro_batch[card], found.micro_batch * found.processes * found.accumulation
        room = (
            f"a micro-batch of {most} at most, so processes x accumulation of {-(-batch // most)} or more"
            if most
            else ("not even a micro-batch of 1")
        )
        console.print(f"{card} GB card: {'fits' if fits else 'does not fit'}; {room}", highlight=False)
    if not all(found.fits.values()) and not found.gradient_checkpointing:
        console.print(
            f"activation checkpointing: --set train_{found.kind}.gradient_checkpointing=true", highlight=False
        )
    console.print(
        f"{found.flops_per_step:.3e} FLOPs a step (forward {trace.forward_flops / found.micro_batch:.3e}, backward "
        f"{trace.backward_flops / found.micro_batch:.3e} a sample)\n"
        f"{found.gpu_hours:,.1f} GPU-hours, {found.hours:,.1f} hours, at {found.mfu:.0%} of {found.peak_tflops:g} "
        "TFLOP/s (assumed, not measured: --mfu, --peak-tflops)",
        highlight=False,
    )


def print_calibration(model: Path, images: Path, out: Path | None, **options: Any) -> None:
    """Estimate a model's motion map and show what was measured; ``options`` as ``calibrate_model`` takes them."""
    from svdflow.training.train.calibrate import calibrate_model

    estimate, place = calibrate_model(model, images, out, **options)
    table = Table(box=None, header_style="bold")
    for column in ("bucket", "videos", "motion score", "deviation", "of the map"):
        table.add_column(column, justify="right")
    for row in estimate.table:
        table.add_row(str(row.bucket), str(row.videos), f"{row.mean:.3f}", f"{row.deviation:.3f}", f"{row.fitted:.3f}")
    console = _console()
    console.print(table)
    console.print(
        f"scores in {estimate.calibration.unit}; rank correlation of bucket and score {estimate.rank_correlation:.2f}\n"
        f"model: {place}",
        highlight=False,
        soft_wrap=True,
    )


def _cell(preset: Preset, name: str) -> str:
    value: Any = preset.values.get(name)
    return "–" if value is None else f"{value:g}{_mark(preset, name)}"


def _mark(preset: Preset, name: str) -> str:
    return "*" if name in preset.ours else "~" if name in preset.implied else ""


def _gib(count: int) -> str:
    return f"{count / 2**30:,.2f}"


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDTH)
