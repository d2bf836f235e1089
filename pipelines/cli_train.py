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


def _add(preset: Preset) -> None:
    """A command for one stage."""

    def command(
        profile: Annotated[str, typer.Option(help="paper, local, test, or a YAML file of your own.")] = "local",
        init: Annotated[
            Path | None,
            typer.Option(help="Model directory to start from: one of svdflow's, or a released one (diffusers)."),
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
