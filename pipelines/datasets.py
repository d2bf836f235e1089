"""`svdflow data`: dataset versions on the terminal."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from svdflow.common.config import validate_settings
from svdflow.common.errors import BadInputError, ValidationFailed
from svdflow.common.manifests import current_file
from svdflow.common.object_store import EmbeddedStore
from svdflow.common.storage import DataRoot
from svdflow.common.storage_s3 import S3Root
from svdflow.curation.version import claims
from svdflow.curation.version.datasets import (
    list_datasets,
    open_version_store,
    pull_dataset,
    resolve,
    show_croissant,
    show_dataset,
)
from svdflow.curation.version.registry import Registry
from svdflow.curation.version.settings import VersionSettings

from .local.run import _locked

_WIDTH = 160  # of what goes to a file or a pipe
_SHOWN_OBJECTS = 20


def register_by_hand(
    workdir: Path,
    name: str | None,
    manifests: Path | None,
    selection: Path | None,
    origin: str | None,
    remote: str | None,
    note: str,
) -> None:
    """Validate manifests, register them as a version and say which.

    Raises:
        ValidationFailed: a hard expectation is broken; page and failing rows lie in the work directory.
    """
    from svdflow.curation.version.register import register_dataset

    asked = {"name": name, "origin": origin, "remote": remote}
    given = {key: value for key, value in asked.items() if value is not None}
    settings = validate_settings(VersionSettings, "version", {**last_settings(workdir), **given})
    folder = manifests or workdir / "manifests"
    paths = {kind: folder / f"{kind}.parquet" for kind in ("videos", "clips", "annotations", "selection")}
    if selection:
        paths["selection"] = selection
    with tempfile.TemporaryDirectory() as scratch:
        _validate(
            {kind: current_file(kind, path, Path(scratch)) for kind, path in paths.items()}, workdir, settings.name
        )
        report = register_dataset(
            **paths, out=Path(scratch) / "dataset.json", root=_root(workdir), registry=registry(workdir),
            store=store(workdir), settings=settings, source=note or f"by hand, {folder.absolute()}",
        )  # fmt: skip
    dataset = report.summary["dataset"]
    known = "has this content already" if report.reused else "is new"
    print(f"{dataset['tag']} {known}: {dataset['clips']} clips in {dataset['shards']} shards, {dataset['remote']}")


def _validate(manifests: dict[str, Path], workdir: Path, dataset: str) -> None:
    """Hold manifests against their expectations, as the last run did; the verdict on equal ones is found again."""
    from svdflow.curation.validate.settings import ValidateSettings
    from svdflow.curation.validate.validate import Written, check_once, require_valid

    settings = validate_settings(ValidateSettings, "validate", last_settings(workdir, "validate"))
    out = Written(workdir / "validation_register.html", workdir / "validation_register_failing_rows.jsonl")
    report = check_once(manifests, out, _root(workdir), settings, dataset)
    told = report.summary["validation"]
    try:
        require_valid(report)
    except ValidationFailed as refused:
        raise ValidationFailed(f"not registered: {refused} ({out.page})") from None
    if told["warnings"]:
        print(f"{told['warnings']} soft expectations are broken, which does not stop it: {out.page}", file=sys.stderr)


def print_list(workdir: Path, name: str | None = None) -> None:
    """A line for each version in the registry of a work directory."""
    if name:
        resolve(Registry.existing(registry(workdir)), name)  # there is one of that name
    versions = list_datasets(registry(workdir), name)
    columns = ("version", "clips", "train", "held out", "hours", "shards", "MB", "registered", "revision")
    table = _table(*columns)
    for each in versions:
        hours, megabytes = f"{each.seconds / 3600:.3f}", f"{each.bytes / 1e6:.1f}"
        tag = f"[bold]{each.tag}[/]" if each.latest else each.tag
        counts = [str(n) for n in (each.clips, each.train, each.held_out)]
        table.add_row(tag, *counts, hours, str(each.shards), megabytes, each.created, each.revision[:10])
    _print(table)


def print_one(workdir: Path, dataset: str, croissant: bool = False) -> None:
    """A version's card as YAML, or its Croissant description."""
    if croissant:
        print(show_croissant(registry(workdir), dataset), end="")
        return
    print(yaml.safe_dump(show_dataset(registry(workdir), dataset), sort_keys=False, allow_unicode=True), end="")


def print_diff(workdir: Path, old: str, new: str, as_json: bool = False) -> None:
    """Clips that came and went, with reasons; shifts of the axes; what else differs."""
    from svdflow.curation.version.compare import QUANTILES, compare_versions

    opened = Registry.existing(registry(workdir))
    with open_version_store(opened, store(workdir)) as remote:
        found = compare_versions(opened, resolve(opened, old), resolve(opened, new), remote)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    added, dropped = sum(found.added.values()), sum(found.dropped.values())
    print(f"{found.old} → {found.new}: {found.kept} clips in both, {added} added, {dropped} dropped")
    clips = _table("clips", "number", "why", "such as", title="Clips that came and went")
    for what, reasons, why in (
        ("added", found.added, "dropped from the old one for"), ("dropped", found.dropped, "fails"),
    ):  # fmt: skip
        for reason, count in reasons.items():
            said = reason if reason in ("not considered", "taken down", "no reason given") else f"{why} {reason}"
            clips.add_row(what, str(count), said, " ".join(found.examples[what][reason][:2]))
    axes = _table("axis", "", "clips", "mean", *QUANTILES, "cut at", title="Axes, over the kept clips")
    for shift in found.axes:
        for side, values, cut in (("old", shift.old, shift.old_cut), ("new", shift.new, shift.new_cut)):
            row = [_number(values[key]) for key in ("mean", *QUANTILES)]
            axes.add_row(shift.axis if side == "old" else "", side, str(values["clips"]), *row, _number(cut))
        change = [_difference(shift.old[key], shift.new[key]) for key in ("mean", *QUANTILES)]
        axes.add_row("", "shift", "", *change, _difference(shift.old_cut, shift.new_cut))
    fields = _table("field", found.old, found.new, title="What else differs")
    for key, (before, after) in found.fields.items():
        fields.add_row(key, str(before), str(after))
    for table in (clips, axes, fields):
        if table.row_count:
            _print(table)
    for change, count in found.splits.items():
        print(f"{count} clips changed split: {change}. Results on held-out clips of the two cannot be compared.")


def pull(workdir: Path, dataset: str, destination: Path) -> None:
    """Materialise a version and say where it lies."""
    place = pull_dataset(registry(workdir), dataset, destination, store(workdir))
    shards = len(list((place / "shards").iterdir()))
    print(f"{place}: {shards} shards, manifests and dataset.json")


def roll_back_to(workdir: Path, dataset: str) -> None:
    """Make an older version the newest and say under which tag."""
    from svdflow.curation.version.rollback import roll_back

    opened = Registry.existing(registry(workdir))
    to = resolve(opened, dataset)
    with open_version_store(opened, store(workdir)) as remote:
        new = roll_back(opened, to, remote, "by hand")
    print(f"{new} has the content of {to}")


def export_to(workdir: Path, dataset: str, destination: str, splits: list[str] | None, shard_mb: float) -> None:
    """Export a version and say what was written."""
    from svdflow.curation.version.export import SPLITS, export_version

    if wrong := set(splits or ()) - set(SPLITS):
        raise BadInputError(f"--split {sorted(wrong)[0]}: there are the splits {' and '.join(SPLITS)}")
    opened = Registry.existing(registry(workdir))
    tag = resolve(opened, dataset)
    with open_version_store(opened, store(workdir)) as remote:
        target = DataRoot.open(destination)
        out = export_version(opened, tag, remote, target, splits or SPLITS, shard_mb)
    print(
        f"{out.destination}: {out.clips} clips of {tag} in {out.written + out.found} shards "
        f"({out.bytes / 1e6:.1f} MB; {out.found} were there); check it with sha256sum -c SHA256SUMS"
    )


def forget_one(
    workdir: Path, video_id: str, reason: str, yes: bool, also: list[Path], studies: Sequence[Path] = ()
) -> None:
    """Take a video down, here and in the studies that show videos of this work directory, and say what went.

    Raises:
        BadInputError: not confirmed, nothing knows the video, or a study could not be reached (all else was done).
    """
    from svdflow.curation.version.forget import forget_video, stage_of

    from .studies import forget_in_all

    root = _root(workdir)
    if not yes:
        if not sys.stdin.isatty():
            raise BadInputError(f"forgetting {video_id} cannot be undone; run it again with --yes")
        print(f"This removes video {video_id} from every version in {registry(workdir)}. It cannot be undone.")
        if input("Type the first 8 characters of its id to go on: ").strip() != video_id[:8]:
            raise BadInputError("not confirmed; nothing was removed")
    with _locked(workdir.absolute()):
        registries = [Registry.existing(registry(workdir)), *map(Registry.existing, also)]
        with _compacted(registries[0], workdir) as remote, _unused(root, remote, video_id):
            receipts = forget_video(registries, video_id, remote, root, workdir.absolute(), reason)
    for opened, receipt in zip(registries, receipts, strict=True):
        removed = {uri for uris in receipt.objects_removed.values() for uri in uris}
        print(
            f"{opened.directory}: video {receipt.video_id} left {len(receipt.versions)} versions; "
            f"{len(removed)} objects, {receipt.results_removed} cached results and {len(receipt.workdir_files)} files "
            f"of runs went or were rewritten. Receipt: forgotten/{receipt.video_id}.json"
        )
        if receipt.models:
            models = [f"{stage_of(root, tree)} ({tree})".strip() for tree in receipt.models]
            print(f"models trained on a version that held it, unchanged: {', '.join(models)}")
    lines, unreached = forget_in_all(workdir, studies, video_id)
    for line in lines:
        print(line)
    if unreached:
        raise BadInputError("the takedown is done but for these studies: " + "; ".join(unreached))


def tidy_up(workdir: Path, grace_days: float, results: bool, remove: bool, also: list[Path]) -> None:
    """Tell what is left over, or remove it."""
    from svdflow.curation.version.collect import collect

    registries = [Registry.existing(registry(workdir)), *map(Registry.existing, also)]
    with _idle(workdir) as idle:
        root = _root(workdir) if idle else None
        if not idle:
            print(f"a run is in progress in {workdir}: its data root is left alone", file=sys.stderr)
        with _compacted(registries[0], workdir, remove) as remote:
            accounts = collect(registries, remote, root, grace_days, results, remove)
    for account in accounts:
        table = _table("what", "objects", "MB", title=account.location)
        for why, (count, size) in sorted(account.kept.items()):
            table.add_row(f"kept: {why}", str(count), f"{size / 1e6:.3f}")
        went = "removed" if account.removed else "would go"
        table.add_row(f"[bold]{went}[/]", str(len(account.entries)), f"{account.bytes / 1e6:.3f}")
        _print(table)
        for entry in account.entries[:_SHOWN_OBJECTS]:
            written = time.strftime("%Y-%m-%d", time.gmtime(entry.written_at))
            print(f"  {entry.uri}  {entry.bytes:,} bytes, written {written}")
        if len(account.entries) > _SHOWN_OBJECTS:
            print(f"  and {len(account.entries) - _SHOWN_OBJECTS} more")
    if not remove and any(account.entries for account in accounts):
        print("nothing was removed; run it again with --remove")


def serve_store(workdir: Path) -> None:
    """Serve the embedded object store until Ctrl-C, for plain DVC and other S3 clients."""
    with EmbeddedStore(store(workdir)) as endpoint:
        keys = store(workdir) / "aws-credentials"
        keys.unlink(missing_ok=True)
        with open(os.open(keys, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(
                f"[default]\naws_access_key_id = {endpoint.access_key}\naws_secret_access_key = {endpoint.secret_key}\n"
            )
        print(
            f"S3 at {endpoint.endpoint_url}. DVC and other clients find its keys, in another shell, by\n"
            f"  export AWS_SHARED_CREDENTIALS_FILE={shlex.quote(str(keys))}\nCtrl-C ends it",
            flush=True,
        )
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print()


def registry(workdir: Path) -> Path:
    """The git and DVC registry of a work directory."""
    return Path(last_settings(workdir).get("registry") or workdir / "registry").absolute()


def store(workdir: Path) -> Path:
    """The embedded object store of a work directory."""
    return Path(last_settings(workdir).get("store") or workdir / "store").absolute()


def _root(workdir: Path) -> DataRoot:
    return DataRoot.open(os.environ.get("SVDFLOW_DATA_ROOT") or workdir / "data")


def last_settings(workdir: Path, section: str = "version") -> dict[str, Any]:
    """A section of the settings of the last run in a work directory."""
    try:
        return (yaml.safe_load((workdir / "settings.yaml").read_text()) or {}).get(section) or {}
    except (OSError, yaml.YAMLError):
        return {}


@contextmanager
def _compacted(opened: Registry, workdir: Path, compact: bool = True) -> Iterator[S3Root]:
    """The store of a registry's versions, whose disk gives up removed bytes at the end if it is the embedded one."""
    with open_version_store(opened, store(workdir)) as remote:
        yield remote
        embedded = EmbeddedStore(store(workdir))
        if compact and embedded.serves(remote.endpoint):
            embedded.compact()


@contextmanager
def _unused(root: DataRoot, remote: DataRoot, video_id: str) -> Iterator[None]:
    """No run uses the data root meanwhile, from whatever work directory; one that is the store is seen to there."""
    with ExitStack() as stack:
        if root.location != remote.location:
            stack.enter_context(claims.removing(root, f"forgetting video {video_id[:12]}"))
        yield


@contextmanager
def _idle(workdir: Path) -> Iterator[bool]:
    """Keep runs from starting; False when one is in progress."""
    try:
        lock = _locked(workdir.absolute())
        lock.__enter__()
    except BadInputError:
        yield False
        return
    try:
        yield True
    finally:
        lock.__exit__()


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(box=None, header_style="bold", title=title, title_justify="left", title_style="bold underline")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _difference(old: float | None, new: float | None) -> str:
    return "" if old is None or new is None else f"{new - old:+.4g}"
