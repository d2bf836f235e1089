"""Registered datasets, as the command line lists, shows and pulls them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...common.errors import BadInputError, ServiceError, StorageError
from ...common.object_store import EmbeddedStore, StoreEndpoint
from ...common.storage_s3 import S3Root
from . import dvc_files
from .git import Git
from .registry import BRANCH, Registry, VersionTag
from .settings import NAME_PATTERN
from .version_files import croissant_path, read_card, read_listing

_TRAILER = re.compile(r"[A-Z][a-z-]+: .")


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
    """A version's card, with ``tag``, ``revision``, ``created``, ``remote``, and who registered it from what.

    Args:
        registry: the registry's directory.
        tag: ``name@v1.2.3``; ``name@v1`` and ``name@v1.2`` mean the newest of that series, ``name`` the newest of all.

    Raises:
        BadInputError: there is no registry or no such version; names those there are.
    """
    opened = Registry.existing(registry)
    found = resolve(opened, tag)
    location, endpoint_url = dvc_files.configured_remote(opened.read(BRANCH, dvc_files.CONFIG))
    revision, created = opened.revision(str(found)), opened.date(str(found))
    about: dict[str, Any] = {"tag": str(found), "revision": revision, "created": created}
    registered = dict(line.split(": ", 1) for line in opened.message(found).splitlines() if _TRAILER.match(line))
    if registered:
        about["registered"] = registered
    return {**read_card(opened, found), **about, "remote": location, "endpoint_url": endpoint_url}


def show_croissant(registry: Path, tag: str) -> str:
    """A version's Croissant description, JSON-LD, with the date at which it was registered.

    Raises:
        BadInputError: as ``show_dataset``, or the version is from before there was such a description.
    """
    opened = Registry.existing(registry)
    found = resolve(opened, tag)
    data = opened.read(str(found), croissant_path(found.name))
    if not data:
        raise BadInputError(f"{found}: was registered without a Croissant description; register its manifests again")
    described = {**json.loads(data), "datePublished": opened.date(str(found))[:10]}
    return json.dumps(described, indent=1, ensure_ascii=False) + "\n"


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
    with open_version_store(opened, store) as remote:
        location, endpoint = remote.location, remote.endpoint
        read_listing(opened.read(str(found), f"{found.name}.dvc"), str(found), remote)
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
    git("fetch", "--quiet", "--force", "origin", "refs/tags/*:refs/tags/*")  # a takedown moves tags
    git("checkout", "--quiet", "--detach", f"refs/tags/{tag}")


@contextmanager
def open_version_store(registry: Registry, store: Path) -> Iterator[S3Root]:
    """The store that a registry's versions lie in; the embedded one is started when it is that.

    Raises:
        BadInputError: the registry names none.
        StorageError, ServiceError: it does not answer or start.
    """
    location, endpoint_url = dvc_files.configured_remote(registry.read(BRANCH, dvc_files.CONFIG))
    if not location:
        raise BadInputError(f"{registry.directory}: names no store; register a dataset first")
    with ExitStack() as stack:
        yield S3Root(location, _endpoint(location, endpoint_url, store, stack))


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
