"""`svdflow data`: dataset versions on the terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from svdflow.curation.version.datasets import diff_datasets, list_datasets, pull_dataset, show_dataset


def print_list(workdir: Path) -> None:
    """A line for each version in the registry of a work directory."""
    table = Table(box=None, header_style="bold")
    for column in ("version", "clips", "train", "held out", "hours", "shards", "MB", "registered", "revision"):
        table.add_column(column, no_wrap=True)
    for each in list_datasets(registry(workdir)):
        hours, megabytes = f"{each.seconds / 3600:.3f}", f"{each.bytes / 1e6:.1f}"
        name = f"[bold]{each.tag}[/]" if each.latest else each.tag
        counts = [str(n) for n in (each.clips, each.train, each.held_out)]
        table.add_row(name, *counts, hours, str(each.shards), megabytes, each.created, each.revision[:10])
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def print_one(workdir: Path, dataset: str) -> None:
    """A version's card as YAML."""
    import yaml

    print(yaml.safe_dump(show_dataset(registry(workdir), dataset), sort_keys=False, allow_unicode=True), end="")


def print_diff(workdir: Path, old: str, new: str) -> None:
    """The fields of the cards that differ."""
    table = Table("field", old, new, box=None, header_style="bold")
    for field, (before, after) in diff_datasets(registry(workdir), old, new).items():
        table.add_row(field, str(before), str(after))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def pull(workdir: Path, dataset: str, destination: Path) -> None:
    """Materialise a version and say where it lies."""
    place = pull_dataset(registry(workdir), dataset, destination, store(workdir))
    shards = len(list((place / "shards").iterdir()))
    print(f"{place}: {shards} shards, manifests and dataset.json")


def serve_store(workdir: Path) -> None:
    """Serve the embedded object store until Ctrl-C, for plain DVC and other S3 clients."""
    from svdflow.common.object_store import EmbeddedStore

    with EmbeddedStore(store(workdir)) as endpoint:
        print(
            f"S3 at {endpoint.endpoint_url}; its keys are in {store(workdir) / 'credentials.json'}\nCtrl-C ends it",
            flush=True,
        )
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print()


def registry(workdir: Path) -> Path:
    """The git and DVC registry of a work directory."""
    return workdir.absolute() / "registry"


def store(workdir: Path) -> Path:
    """The embedded object store of a work directory."""
    return workdir.absolute() / "store"
