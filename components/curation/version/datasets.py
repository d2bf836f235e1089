"""Registered datasets, as the command line shows, compares and pulls them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...common.errors import BadInputError, ServiceError, StorageError
from ...common.object_store import EmbeddedStore, StoreEndpoint
from ...common.storage import object_uri
from ...common.storage_s3 import S3Root
from . import dvc_files
from .git import Git
from .register import read_card
from .registry import BRANCH, Registry, VersionTag
from .settings import NAME_PATTERN


@dataclass(frozen=True)
class DatasetVersion:
    """One registered version.

    Attributes:
        name, tag: the dataset's and the version's.
        revision: the commit.
        created: when it was registered, ISO 8601.
        clips, train, held_out: kept clips.
        seconds: their length together.
        shards, bytes: number of tar shards, bytes of all files.
        latest: whether no newer version of this name exists.
    """

    name: str
    tag: str
    revision: str
    created: str
    clips: int
    train: int
    held_out: int
    seconds: float
    shards: int
    bytes: int
    latest: bool


def list_datasets(registry: Path, name: str | None = None) -> list[DatasetVersion]:
    """The versions in a registry, by name and number; of one dataset if ``name`` is given.

    Raises:
        BadInputError: there is no registry.
    """
    opened = Registry.existing(registry)
    tags = opened.tags(name)
    newest = {tag.name: tag for tag in tags}
    return [_describe(opened, tag, latest=newest[tag.name] == tag) for tag in tags]


def show_dataset(registry: Path, tag: str) -> dict[str, Any]:
    """A version's card, with ``tag``, ``revision``, ``created`` and ``remote``.

    Args:
        registry: the registry's directory.
        tag: ``name@v1.2.3``; ``name@v1`` and ``name@v1.2`` mean the newest of that series, ``name`` the newest of all.

    Raises:
        BadInputError: there is no registry or no such version; names those there are.
    """
    opened = Registry.existing(registry)
    found = resolve(opened, tag)
    location, endpoint_url = dvc_files.configured_remote(opened.read(BRANCH, dvc_files.CONFIG))
    about = {"tag": str(found), "revision": opened.revision(str(found)), "created": opened.date(str(found))}
    return {**read_card(opened, found), **about, "remote": location, "endpoint_url": endpoint_url}


def diff_datasets(registry: Path, old: str, new: str) -> dict[str, Any]:
    """What changed between two versions, from their cards: dotted field to (old, new), for fields that differ."""
    before, after = _flat(show_dataset(registry, old)), _flat(show_dataset(registry, new))
    skipped = ("revision", "created", "content", "members")
    fields = [key for key in sorted({*before, *after}) if key not in skipped and before.get(key) != after.get(key)]
    return {key: (before.get(key), after.get(key)) for key in fields}


def pull_dataset(registry: Path, tag: str, destination: Path, store: Path) -> Path:
    """Materialise a version: a clone of the registry at ``destination``, the tag checked out, ``dvc pull``.

    A destination that is such a clone already is moved to the version, and only objects that it lacks are transferred;
    an interrupted pull goes on where it stopped. The embedded object store is started when the remote is that one.

    Args:
        registry: the registry's directory.
        tag: as for ``show_dataset``.
        destination: directory for the clone.
        store: directory of the embedded object store.

    Returns:
        The dataset's directory: ``shards/``, ``manifests/`` and ``dataset.json``.

    Raises:
        BadInputError: no such version, or the destination is something else.
        StorageError: the remote lacks a file or refuses.
        ServiceError: the embedded store or DVC does not start.
    """
    opened = Registry.existing(registry)
    found = resolve(opened, tag)
    destination = destination.resolve()
    try:
        _check_out(opened, found, destination)
    except OSError as error:
        raise BadInputError(f"{destination}: cannot be written ({error.strerror}); name another destination") from error
    location, endpoint_url = dvc_files.configured_remote(opened.read(BRANCH, dvc_files.CONFIG))
    with ExitStack() as stack:
        endpoint = _endpoint(location, endpoint_url, store, stack)
        _require_listing(opened, found, S3Root(location, endpoint))
        local = destination / ".dvc" / "config.local"  # wins over the configuration that the tag carries
        local.write_bytes(dvc_files.configuration(b"", location, endpoint.endpoint_url))
        environment = {**os.environ, **endpoint.environment(), "DVC_NO_ANALYTICS": "true"}
        command = [sys.executable, "-m", "dvc", "pull", f"{found.name}.dvc"]
        quiet = [] if sys.stderr.isatty() else ["--quiet"]
        done = subprocess.run(
            [*command, *quiet], cwd=destination, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=None if not quiet else subprocess.PIPE, check=False,
        )  # fmt: skip
    if done.returncode:
        said = " ".join((done.stderr or done.stdout or b"").decode(errors="replace").split())[-400:]
        if "No module named dvc" in said:
            raise ServiceError("pulling a dataset needs DVC: pip install 'svdflow[curation]'")
        raise StorageError(
            f"{destination}: dvc pull of {found} from {location} failed: {said}; run again, what has arrived is kept"
        )
    return destination / found.name


def resolve(registry: Registry, tag: str) -> VersionTag:
    """The version that a full or shortened tag means.

    Raises:
        BadInputError: there is none; names those there are.
    """
    known = registry.tags()
    if asked := re.fullmatch(rf"({NAME_PATTERN})(?:@v(\d+(?:\.\d+){{0,2}}))?", tag):
        number = tuple(int(part) for part in (asked[2] or "").split(".") if part)
        for each in reversed(known):
            if each.name == asked[1] and each.number[: len(number)] == number:
                return each
    have = ", ".join(map(str, known[-10:])) or "none yet: run the version step"
    raise BadInputError(f"{registry.directory}: there is no dataset version {tag!r}; there are: {have}")


def _describe(registry: Registry, tag: VersionTag, latest: bool) -> DatasetVersion:
    import yaml

    counts = read_card(registry, tag).get("counts", {})
    dvc = yaml.safe_load(registry.read(str(tag), f"{tag.name}.dvc")) or {"outs": [{}]}
    return DatasetVersion(
        tag.name, str(tag), registry.revision(str(tag)), registry.date(str(tag)), counts.get("clips", 0),
        counts.get("train", 0), counts.get("held_out", 0), counts.get("seconds", 0.0), counts.get("shards", 0),
        dvc["outs"][0].get("size", 0), latest,
    )  # fmt: skip


def _check_out(registry: Registry, tag: VersionTag, destination: Path) -> None:
    """Make ``destination`` a clone of the registry at the tag."""
    if not destination.exists() or not any(destination.iterdir()):
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = destination.with_name(f".{destination.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        Git(destination.parent)("clone", "--quiet", "--no-hardlinks", str(registry.directory), str(partial))
        if destination.exists():
            destination.rmdir()
        partial.rename(destination)
    git = Git(destination)
    if not (destination / ".git").exists() or git.line("config", "remote.origin.url") != str(registry.directory):
        raise BadInputError(
            f"{destination}: is not empty and no clone of {registry.directory}; name another destination"
        )
    git("fetch", "--quiet", "origin", "refs/tags/*:refs/tags/*")
    git("checkout", "--quiet", "--detach", f"refs/tags/{tag}")


def _endpoint(location: str, endpoint_url: str, store: Path, stack: ExitStack) -> StoreEndpoint:
    named = StoreEndpoint.from_environment()
    if named:
        return named
    if urlsplit(endpoint_url).hostname == "127.0.0.1":
        if not (store / "ports.json").is_file():
            raise ServiceError(
                f"{location} is in an embedded object store, and {store} holds none; name its directory, or set "
                "SVDFLOW_S3_ENDPOINT, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        return stack.enter_context(EmbeddedStore(store))
    return StoreEndpoint(
        endpoint_url, os.environ.get("AWS_ACCESS_KEY_ID", ""), os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    )


def _require_listing(registry: Registry, tag: VersionTag, remote: S3Root) -> None:
    digest = dvc_files.listed_digest(registry.read(str(tag), f"{tag.name}.dvc"))
    if not remote.exists(object_uri(digest)):
        raise StorageError(
            f"{remote.location}: does not hold {tag} (no {object_uri(digest)}); it is another store than the one "
            "it was registered in, or the objects were removed: register the dataset again"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{prefix}.{name}".lstrip(".")).items()
    }
