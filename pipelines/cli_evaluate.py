"""The commands `svdflow evaluate …`: the paper's own protocols. Imports happen when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

evaluate = typer.Typer(
    help="Measure a model by the paper's protocols: zero-shot UCF-101, and orbits of objects. What was done is found, "
    "what was broken off goes on.",
    no_args_is_help=True,
)
Workdir = Annotated[Path, typer.Option("--workdir", "-w", help="Where videos, features and the result lie.")]


@evaluate.command()
def ucf101(
    model: Annotated[Path, typer.Argument(help="Directory of a text-to-video model.")],
    reference: Annotated[
        Path,
        typer.Option(help="UCF-101, one folder of videos a class; or a CSV with columns class and count, then --real."),
    ],
    features: Annotated[
        Path | None, typer.Option(help="i3d_torchscript.pt. Without it videos are made, and nothing is measured.")
    ] = None,
    features_sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="Of another TorchScript network. It is a program: trust it first.")
    ] = None,
    real: Annotated[Path | None, typer.Option(help="Folder of the real videos. Default: the reference.")] = None,
    videos: Annotated[
        int | None, typer.Option(min=2, help="Fewer, with the same distribution; the figure says so in its name.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. Default: 50, ours.")] = None,
    split_words: Annotated[bool, typer.Option("--split-words", help="Prompt Table Tennis Shot.")] = False,
    part: Annotated[
        str | None, typer.Option(metavar="2/8", help="Do the second of eight parts, for one GPU of eight.")
    ] = None,
    workdir: Workdir = Path("runs/ucf101"),
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="ucf101.SETTING=VALUE", help="Change a setting; repeatable.")
    ] = None,
) -> None:
    """Zero-shot UCF-101: videos of class names, and their Fréchet video distance to real ones.

    As the paper's Table 2: 13,320 videos with the distribution of the classes, 16 frames at 25 a second, guidance 7,
    I3D features. Writes ucf101.json and ucf101.html.
    """
    import time

    from svdflow.common.config import load_settings
    from svdflow.evaluation.ucf101.protocol import measure_ucf101, result_of
    from svdflow.evaluation.ucf101.report import ucf101_report
    from svdflow.evaluation.ucf101.settings import SECTION, Ucf101Settings
    from svdflow.evaluation.video_network import NetworkFile

    overrides = _overrides(set_, SECTION)
    asked = {"videos": videos, "steps": steps, "split_words": split_words or None}
    overrides |= {f"{SECTION}.{name}": value for name, value in asked.items() if value is not None}
    settings = load_settings(Ucf101Settings, SECTION, "paper", overrides)
    network = NetworkFile.of(features, features_sha256, "--features-sha256") if features else None
    started = time.monotonic()
    measured = measure_ucf101(model, reference, _root(workdir), settings, network, real, part)
    measured.seconds = time.monotonic() - started
    here, made = len(measured.asked), measured.generated.made
    print(f"{made} videos made, {here - made} found; {here} of {measured.asked_in_all}")
    if measured.figure is None:
        print(f"Nothing measured yet: what is missing is {measured.lacking}")
        return
    _write(workdir, "ucf101", result_of(measured), [ucf101_report(measured)], overrides)
    name, value = measured.figure
    print(f"{name}: {value:.2f}{'' if measured.comparable else ' (not comparable with the paper: see the page)'}")
    print(workdir / "ucf101.html")


@evaluate.command()
def multiview(
    model: Annotated[Path, typer.Argument(help="Directory of a multi-view model.")],
    objects: Annotated[Path, typer.Option(help="Folder of GLB and OBJ files; the paper's are 50 of GSO.")],
    before: Annotated[
        Path | None, typer.Option(help="The model that its training started from, to stand beside it.")
    ] = None,
    lpips: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="BACKBONE HEADS", help="LPIPS: safetensors of AlexNet or VGG-16, and of its linear heads."
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="CLIP-S: hub id, directory, or open_clip:ARCHITECTURE/FILE.safetensors."),
    ] = None,
    workdir: Workdir = Path("runs/multiview"),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.SETTING=VALUE", help="Of multiview or render; repeatable."),
    ] = None,
) -> None:
    """Orbits of objects from one view, against rendered ones: PSNR, and LPIPS and CLIP-S where weights are given.

    As the paper's figure 10a: every object is rendered as the training's are, and measured. The models must not have
    been trained on any of them; nothing here can know. Writes multiview.json and multiview.html.
    """
    from svdflow.common.config import load_settings
    from svdflow.multiview.figure_10a import measure_objects
    from svdflow.multiview.settings import MeasureSettings, RenderSettings

    overrides = _overrides(set_, "multiview", "render")
    if lpips:
        overrides |= {"multiview.lpips_backbone": str(lpips[0]), "multiview.lpips_heads": str(lpips[1])}
    if clip:
        overrides["multiview.clip_model"] = clip
    render = load_settings(RenderSettings, "render", "paper", {"render.held_out_percent": 100, **overrides})
    settings = load_settings(MeasureSettings, "multiview", "paper", {"multiview.orbits": None, **overrides})
    result, reports = measure_objects(model, before, objects, workdir, _root(workdir), render, settings)
    _write(workdir, "multiview", result, reports, overrides)
    for name, value in result["figures"].items():
        print(f"{name}: {value:.4g}")
    print(workdir / "multiview.html")


def _root(workdir: Path) -> Any:
    import os

    from svdflow.common.storage import DataRoot

    return DataRoot.open(os.environ.get("SVDFLOW_DATA_ROOT") or workdir / "data")


def _overrides(given: list[str] | None, *sections: str) -> dict[str, Any]:
    from svdflow.common.config import parse_override
    from svdflow.common.errors import ConfigError

    overrides = dict(parse_override(text) for text in given or [])
    if strangers := [name for name in overrides if name.split(".")[0] not in sections]:
        raise ConfigError(f"--set {strangers[0]}: this command has settings in {' and '.join(sections)} alone")
    return overrides


def _write(workdir: Path, name: str, result: dict[str, Any], reports: list[Any], overrides: dict[str, Any]) -> None:
    """``NAME.json``, and ``NAME.html`` in the form of a run's page."""
    import json

    from svdflow.common.files import write_atomic
    from svdflow.report.compose import versions
    from svdflow.report.page import render_page

    run = {
        "id": workdir.name, "pipeline": f"evaluate {name}", "profile": "paper", "settings_changed": overrides,
        "failed": [], "versions": versions(reports),
    }  # fmt: skip
    write_atomic(workdir / f"{name}.json", (json.dumps(result, indent=2, sort_keys=True) + "\n").encode())
    write_atomic(workdir / f"{name}.html", render_page(reports, run).encode())
