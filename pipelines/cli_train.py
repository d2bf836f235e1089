"""The commands `svdflow train …`, one for each stage that ships. What they do is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svdflow.training.train.presets import Preset, all_presets

train = typer.Typer(
    help="Train one stage of the model on a registered dataset version, or tell what it would take.",
    invoke_without_command=True,
    no_args_is_help=True,
    epilog="The stages are files of components/training/stages with the paper's numbers; a profile and --set lie on "
    "top, in the section train_KIND. `svdflow run training` trains image, video and image to video one after another.",
)

_PEAK_TFLOPS = 312.0  # of an A100 in bf16, which the paper trained on
_MFU = 0.35  # ours


@train.callback()
def stages(
    list_: Annotated[
        bool, typer.Option("--list", help="Print the table of all stages and their numbers.", is_eager=True)
    ] = False,
) -> None:
    """List the stages when asked."""
    if list_:
        from .stage_table import print_presets

        print_presets()
        raise typer.Exit


@train.command("calibrate")
def calibrate(
    model: Annotated[
        Path, typer.Argument(help="A released model (directory or ORG/NAME\\[@REV]), or svdflow's own without a map.")
    ],
    images: Annotated[Path, typer.Option(help="Folder of pictures to start videos from; ten or more.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Model directory to write. Default: the map goes into MODEL.")
    ] = None,
    height: Annotated[int, typer.Option(min=64, help="Of the videos, pixels.")] = 576,
    width: Annotated[int, typer.Option(min=64, help="Of the videos, pixels.")] = 1024,
    frames: Annotated[int | None, typer.Option(min=2, help="Of each video. Default: the model's own number.")] = None,
    fps: Annotated[float, typer.Option(help="Frames a second that the motion is made for.")] = 7,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    seeds: Annotated[int, typer.Option(min=1, help="Videos for each bucket and picture.")] = 2,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a map that the model has.")] = False,
) -> None:
    """Estimate what motion each motion bucket of a model stands for, and keep that map with the model.

    The released models' map was never published. Without one, the first training fits a map to its own dataset; with
    this one, motion scores of clips mean what the model has learnt.
    """
    from .stage_table import print_calibration

    size = (height, width)
    print_calibration(model, images, out, size=size, frames=frames, fps=fps, steps=steps, seeds=seeds, replace=replace)


def _add(preset: Preset) -> None:
    """A command for one stage."""

    def command(
        profile: Annotated[str, typer.Option(help="paper, local, test, or a YAML file of your own.")] = "local",
        init: Annotated[
            Path | None,
            typer.Option(help="Model to start from: svdflow's or diffusers' directory, or ORG/NAME\\[@REV] of a hub."),
        ] = None,
        dataset: Annotated[
            str,
            typer.Option(metavar="NAME@TAG", help="A registered version. Default: the newest in WORKDIR."),
        ] = "",
        workdir: Annotated[
            Path, typer.Option("--workdir", "-w", help="Where registry, data, reports and the models lie.")
        ] = Path("runs/svd"),
        set_: Annotated[
            list[str] | None, typer.Option("--set", metavar="STEP.SETTING=VALUE", help="Change a setting; repeatable.")
        ] = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Train nothing: predict memory, FLOPs and hours from shapes alone.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print it as JSON.")] = False,
        mfu: Annotated[
            float, typer.Option(min=0.01, max=1, help="With --dry-run: the share of the peak that is reached.")
        ] = _MFU,
        peak_tflops: Annotated[
            float, typer.Option(min=0.01, help="With --dry-run: the GPU's peak; 312 is an A100 in bf16.")
        ] = _PEAK_TFLOPS,
    ) -> None:
        if dry_run:
            from .stage_table import print_forecast

            print_forecast(preset.name, profile, set_ or [], init, mfu, peak_tflops, as_json)
            return
        from .local.outcome import tell
        from .stage_runs import train_stage

        result, model = train_stage(preset.name, workdir, profile, set_ or [], dataset, init)
        tell(result)
        if result.status == 0:
            print(f"model: {model}")
        raise typer.Exit(result.status)

    kind, after = preset.kind.replace("_", " "), f" It starts from {preset.after} (--init)." if preset.after else ""
    text = f"{preset.row}: {preset.title}.\n\nTrains a model of kind {kind}.{after} Settings: train_{preset.kind}."
    train.command(preset.name, help=text, short_help=f"{preset.row}: {preset.title}")(command)


for _preset in all_presets():
    _add(_preset)
