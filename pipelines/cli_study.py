"""The commands `svdflow study …`: which of several models people prefer. Imports happen when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

study = typer.Typer(
    help="Ask people which videos they prefer: make a study, take votes in a web page, rate the models by Elo, and "
    "choose a filter's percentage by it.",
    no_args_is_help=True,
)
Folder = Annotated[Path, typer.Argument(metavar="STUDY", help="The study's folder.")]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="quality=W,prompt=W",
        help="What each category weighs in both together. Default: quality .75 for motion and aesthetic, else even.",
    ),
]


@study.command()
def sample(
    model: Annotated[Path, typer.Argument(help="Directory of a text-to-video model.")],
    texts: Annotated[Path, typer.Argument(help="CSV with columns video (a name) and text.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the videos; those there are kept.")],
    frames: Annotated[int, typer.Option(min=1)] = 8,
    height: Annotated[int, typer.Option(min=8, help="px")] = 256,
    width: Annotated[int, typer.Option(min=8, help="px")] = 256,
    fps: Annotated[float, typer.Option(min=1)] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance: Annotated[float, typer.Option(min=1, help="The same for every frame.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the noise, which a video's name decides besides.")] = 0,
) -> None:
    """Make a model's videos for a list of texts, all models from the same noise.

    The defaults are those of the paper's filter study.
    """
    from svdflow.evaluation.study.texts import sample_texts

    made = sample_texts(
        model, texts, out, frames=frames, height=height, width=width, fps=fps, steps=steps, guidance=guidance, seed=seed
    )
    print(f"{made} videos made; {len(list(out.glob('*.mp4')))} in {out}")


@study.command()
def create(
    folder: Folder,
    videos: Annotated[
        list[str], typer.Option("--videos", metavar="NAME=FOLDER", help="A set of videos; twice or more.")
    ],
    texts: Annotated[
        Path | None, typer.Option(help="CSV with columns video and text; without it only quality is asked about.")
    ] = None,
    filter_: Annotated[
        str | None,
        typer.Option(
            "--filter", metavar="AXIS", help="The sets differ in what was dropped on this axis: NAME is the %."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="study.SETTING=VALUE", help="Change a setting; repeatable.")
    ] = None,
) -> None:
    """Make a study: every pair of sets, on every video, in every category.

    Files of the same name are compared; the folder of an evaluation (generated/held_out) can be given as it is. Who
    looks at the pages cannot tell whose a video is.
    """
    from svdflow.common.config import load_settings, parse_override
    from svdflow.common.errors import ConfigError
    from svdflow.curation.filter.settings import FilterSettings
    from svdflow.evaluation.study.create import create_study
    from svdflow.evaluation.study.settings import StudySettings

    if filter_ is not None and f"{filter_}_percent" not in FilterSettings.model_fields:
        axes = [name.removesuffix("_percent") for name in FilterSettings.model_fields if name.endswith("_percent")]
        raise ConfigError(f"--filter {filter_}: no axis of the filter; {', '.join(axes)} are")
    overrides = dict(parse_override(text) for text in set_ or [])
    strangers = [name for name in overrides if not name.startswith("study.")]
    if strangers:
        raise ConfigError(f"--set {strangers[0]}: a study has settings in the section study alone")
    settings = load_settings(StudySettings, "study", "paper", overrides)
    made = create_study(folder, dict(_set(text) for text in videos), settings, texts, filter_)
    tasks = len(made.tasks())
    print(f"{folder}: {len(made.contestants)} sets, {len(made.items)} videos of each, {tasks} questions")
    print(f"{tasks * settings.votes_per_task} votes are wanted. Take them with: svdflow study serve {folder}")


@study.command()
def serve(
    folder: Folder,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for others on the network, behind TLS outside of it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    code: Annotated[
        str | None, typer.Option(envvar="SVDFLOW_STUDY_CODE", help="What the raters' link bears. Default: made up.")
    ] = None,
) -> None:
    """Take votes in a web page until Ctrl-C; go on with the same command whenever you like."""
    import secrets

    from svdflow.common.errors import ConfigError
    from svdflow.evaluation.study.study import open_study

    try:
        from svdflow.evaluation.study.server import serve as take_votes
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'svdflow[study]'") from None
    if code is not None and not (code.isascii() and code.isalnum() and 8 <= len(code) <= 64):
        raise ConfigError("--code: 8 to 64 letters and digits")
    opened = open_study(folder)
    told = "CODE" if code else (code := secrets.token_hex(8))  # who gave one knows it; the log of a pod need not
    shown = "THIS-MACHINE" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    print(f"Link for raters: http://{shown}:{port}/?code={told}", flush=True)
    print("Ctrl-C ends it; every vote is on the disk when its page turns.", flush=True)
    take_votes(opened, host, port, code)


@study.command()
def results(folder: Folder, weights: Weights = None) -> None:
    """Rate the sets by the votes so far; writes results.json and results.html into STUDY."""
    from svdflow.evaluation.study.results import study_results
    from svdflow.evaluation.study.study import open_study

    from .studies import write_results

    opened = open_study(folder)
    found = study_results(opened, _weights(weights))
    write_results(opened, found)
    _tell(found, folder)


@study.command()
def choose(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", "-o", help="Profile to write, a YAML file for --profile.")],
    extends: Annotated[str, typer.Option(help="The profile that the new one lies on.")] = "paper",
    weights: Weights = None,
) -> None:
    """Choose the percentage that a filter drops by what people preferred, and write it as a profile."""
    import yaml

    from svdflow.common.config import load_profile
    from svdflow.common.files import write_atomic
    from svdflow.evaluation.study.results import choose_percentage
    from svdflow.evaluation.study.study import open_study

    from .studies import write_results

    load_profile(extends)
    opened = open_study(folder)
    percent, sure, found = choose_percentage(opened, _weights(weights))
    write_results(opened, found)
    _tell(found, folder)
    profile = {"extends": extends, "filter": {f"{opened.filter_axis}_percent": percent}}
    reason = f"# Chosen by {sum(c['votes'] for c in found['categories'].values())} votes; {sure}.\n"
    write_atomic(out, (reason + yaml.safe_dump(profile, sort_keys=False)).encode())
    print(f"Drop {percent:g} % on {opened.filter_axis}; {sure}.")
    print(f"Use it with: svdflow run curation --profile {out}")


@study.command()
def forget(
    folder: Folder,
    video_id: Annotated[
        str | None, typer.Argument(help="As in the videos manifest: sha256 of the video's bytes.")
    ] = None,
    item: Annotated[
        list[str] | None,
        typer.Option("--item", metavar="NAME", help="A video compared, by its name: where no source is known."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take out of STUDY what was made from a video that was taken down, and tell what changes in its results.

    The rest of the study and its votes stay. `svdflow data forget` does this to the studies that its work directory
    knows of; this is for others, as one that was moved.
    """
    import sys

    from svdflow.common.errors import BadInputError, ConfigError

    from .studies import forget_in

    if video_id is None and not item:
        raise ConfigError("give the id of a video, or --item NAME")
    if not yes:
        if not sys.stdin.isatty():
            raise BadInputError(f"taking videos out of {folder} cannot be undone; run it again with --yes")
        typer.confirm(f"This removes videos from {folder} for good. Go on?", abort=True)
    for line in forget_in(folder, video_id, item or []):
        print(line)


def _set(text: str) -> tuple[str, Path]:
    from svdflow.common.errors import ConfigError

    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise ConfigError(f"--videos {text}: NAME=FOLDER is needed")
    return name, Path(folder)


def _weights(text: str | None) -> Any:
    from svdflow.common.errors import ConfigError

    if text is None:
        return None
    try:
        return {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ConfigError(f"--weights {text}: as quality=0.75,prompt=0.25") from None


def _tell(found: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = {**{name: c for name, c in found["categories"].items()}, "together": found["together"]}
    table = Table("set", *shown)
    for name in sorted(found["contestants"], key=lambda name: -found["together"]["elo"][name]):
        cells = [
            f"{c['elo'][name]:.1f} [{c['elo_95'][name][0]:.1f}, {c['elo_95'][name][1]:.1f}]" for c in shown.values()
        ]
        table.add_row(name, *cells)
    Console().print(table)
    print(
        f"{found['tasks_with_all_votes']} of {found['tasks']} questions have all their votes; {folder / 'results.html'}"
    )
