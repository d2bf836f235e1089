"""The commands `svdflow data …`. What they do is in ``datasets.py``, imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(
    help="Versioned datasets: register, look at, compare, get, roll back, take videos out, tidy up.",
    no_args_is_help=True,
)

Workdir = Annotated[
    Path, typer.Option("--workdir", "-w", help="The work directory whose registry, store and data root are meant.")
]
Version = Annotated[
    str, typer.Argument(metavar="NAME@TAG", help="As demo@v1.2.3; demo@v1 is the newest v1, demo the newest of all.")
]
Also = Annotated[
    list[Path] | None,
    typer.Option("--also", help="Another registry directory with versions in the same store; repeatable."),
]
_WORKDIR = Path("runs/svd")


@data.command("register")
def register(
    name: Annotated[str | None, typer.Argument(help="The dataset's name. Default: that of the last run.")] = None,
    manifests: Annotated[
        Path | None,
        typer.Option(help="Folder with videos, clips, annotations and selection .parquet. Default: WORKDIR/manifests."),
    ] = None,
    selection: Annotated[Path | None, typer.Option(help="Another selection manifest, as of other thresholds.")] = None,
    origin: Annotated[
        str | None, typer.Option(help="Git URL or path to push to, by which several machines share versions.")
    ] = None,
    remote: Annotated[str | None, typer.Option(help="s3://bucket/prefix for the bytes.")] = None,
    note: Annotated[str, typer.Option(help="What it comes from; recorded with the version.")] = "",
    workdir: Workdir = _WORKDIR,
) -> None:
    """Make a dataset version of a selection and the manifests it belongs to.

    Content that is registered already finds its version. The number follows from what changed: v1.2.3 to v1.2.4 where
    the same clips are described anew, to v1.3.0 where other clips are kept, to v2.0.0 where the manifests' schema is
    another. The manifests are validated first, with the last run's settings (what is known to be sound is not looked at
    again): a broken hard expectation is a refusal. So is a video that was taken down (svdflow data forget).
    """
    from .datasets import register_by_hand

    register_by_hand(workdir, name, manifests, selection, origin, remote, note)


@data.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Only this dataset.")] = None, workdir: Workdir = _WORKDIR
) -> None:
    """List the dataset versions of a work directory's registry."""
    from .datasets import print_list

    print_list(workdir, name)


@data.command("show")
def show(
    dataset: Version,
    croissant: Annotated[bool, typer.Option("--croissant", help="Print the Croissant description, JSON-LD.")] = False,
    workdir: Workdir = _WORKDIR,
) -> None:
    """Show a version: counts, thresholds, statistics, licences, who registered it from what."""
    from .datasets import print_one

    print_one(workdir, dataset, croissant)


@data.command("diff")
def diff(
    old: Annotated[str, typer.Argument(metavar="NAME@OLD")],
    new: Annotated[str, typer.Argument(metavar="NAME@NEW")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    workdir: Workdir = _WORKDIR,
) -> None:
    """Tell which clips were added and dropped, and why, and how each axis moved."""
    from .datasets import print_diff

    print_diff(workdir, old, new, as_json)


@data.command("pull")
def pull(
    dataset: Version,
    destination: Annotated[Path, typer.Argument(help="A new or empty directory, or one pulled to before.")],
    workdir: Workdir = _WORKDIR,
) -> None:
    """Get a version's shards and manifests into a directory, by dvc pull. What is there is not transferred again."""
    from .datasets import pull

    pull(workdir, dataset, destination)


@data.command("rollback")
def rollback(
    dataset: Annotated[str, typer.Argument(metavar="NAME@OLD", help="The version to go back to.")],
    workdir: Workdir = _WORKDIR,
) -> None:
    """Make an older version the newest: its content gets a new tag. Nothing is rewritten or removed."""
    from .datasets import roll_back_to

    roll_back_to(workdir, dataset)


@data.command("export")
def export(
    dataset: Version,
    destination: Annotated[str, typer.Argument(help="A directory, or s3://bucket/prefix.")],
    split: Annotated[list[str] | None, typer.Option(help="train or held_out; repeatable. Default: both.")] = None,
    shard_mb: Annotated[float, typer.Option(min=0.001, help="Size of a shard, in 10⁶ bytes.")] = 256,
    workdir: Workdir = _WORKDIR,
) -> None:
    """Repack the kept clips of a version into fresh WebDataset shards, for trainers that know no svdflow.

    Beside every clip lies a JSON with its captions and scores. The same command goes on where it was cut off;
    `sha256sum -c SHA256SUMS` checks the result.
    """
    from .datasets import export_to

    export_to(workdir, dataset, destination, split, shard_mb)


@data.command("forget")
def forget(
    video_id: Annotated[str, typer.Argument(help="As in the videos manifest: sha256 of the video's bytes.")],
    reason: Annotated[str, typer.Option(help="Kept in the receipt.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    also: Also = None,
    study: Annotated[
        list[Path] | None,
        typer.Option("--study", help="The folder of a preference study besides those this work directory knows of."),
    ] = None,
    workdir: Workdir = _WORKDIR,
) -> None:
    """Take a video down: out of the store, every version, the cached results, this work directory and its studies.

    Shards with other videos' clips are written anew without this one's. Version tags go on to exist, one commit
    further; clones follow with `git fetch --tags --force`. A receipt stays in the registry, and no later version may
    hold the video. Not reached: copies that were pulled or exported, caches of a data root in S3 on other machines
    (~/.cache/svdflow there), and models trained on it; the receipt names these.
    """
    from .datasets import forget_one

    forget_one(workdir, video_id, reason, yes, also or [], study or [])


@data.command("gc")
def gc(
    grace_days: Annotated[float, typer.Option(min=0, help="What is younger stays.")] = 14,
    results: Annotated[
        bool, typer.Option("--results", help="Cached results older than that go too; later runs compute them again.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove. Otherwise it is only told what would go.")] = False,
    also: Also = None,
    workdir: Workdir = _WORKDIR,
) -> None:
    """Tell what no version, no run and no cached result needs, and remove it with --remove.

    To give a version up, delete its tag (git tag -d, and git push --delete at the origin) first.
    """
    from .datasets import tidy_up

    tidy_up(workdir, grace_days, results, remove, also or [])


@data.command("store")
def store(workdir: Workdir = _WORKDIR) -> None:
    """Serve the work directory's object store until Ctrl-C, so that plain dvc pull works in a clone of the registry."""
    from .datasets import serve_store

    serve_store(workdir)
