"""The files that make up one version: in the store under their md5, in the registry as what names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ...common.errors import StorageError
from ...common.storage import DataRoot, object_uri, uri_md5
from . import dvc_files
from .card import MANIFESTS, card_bytes
from .croissant import croissant_bytes, make_croissant
from .registry import Registry, VersionTag

Files = dict[str, tuple[str, int]]  # path in the dataset to (md5, bytes)


@dataclass(frozen=True)
class VersionFiles:
    """A stored version: its listing, and path to content of what the registry commits for it."""

    listing: dvc_files.Listing
    committed: dict[str, bytes]


def card_path(name: str) -> str:
    """Where a dataset's card lies in the registry."""
    return f"cards/{name}.json"


def croissant_path(name: str) -> str:
    """Where a dataset's Croissant description lies in the registry."""
    return f"croissant/{name}.json"


def read_card(registry: Registry, tag: VersionTag) -> dict[str, Any]:
    """A version's card; empty when the version was not made by this step."""
    data = registry.read(str(tag), card_path(tag.name))
    return json.loads(data) if data else {}


def store_version(
    remote: DataRoot, tag: VersionTag, files: Files, card: Mapping[str, Any], manifests: Mapping[str, Path]
) -> VersionFiles:
    """Store card, Croissant description and listing of a version; the files it lists lie in the remote already.

    Args:
        remote: the store.
        tag: the version's name and number.
        files: shards and manifests.
        card: what ``card.make_card`` made.
        manifests: local copies of them, by kind.
    """
    about = card_bytes(card)
    schemas = {kind: pq.read_schema(path) for kind, path in manifests.items()}
    croissant = croissant_bytes(make_croissant(card, tag.number, files, schemas))
    listing = _store_listing(remote, files, {"dataset.json": about, "croissant.json": croissant})
    committed = {
        f"{tag.name}.dvc": dvc_files.dvc_file(listing, tag.name),
        card_path(tag.name): about,
        croissant_path(tag.name): croissant,
    }
    return VersionFiles(listing, committed)


def store_again(registry: Registry, remote: DataRoot, tag: VersionTag, files: Files) -> dvc_files.Listing:
    """Store what belongs to an existing version beside shards and manifests, as it was: for a new remote, or a loss."""
    paths = {"dataset.json": card_path(tag.name), "croissant.json": croissant_path(tag.name)}
    committed = {name: registry.read(str(tag), path) for name, path in paths.items()}
    return _store_listing(remote, files, {name: data for name, data in committed.items() if data})


def _store_listing(remote: DataRoot, files: Files, described: Mapping[str, bytes]) -> dvc_files.Listing:
    stored = {name: (uri_md5(remote.put_bytes(data)), len(data)) for name, data in described.items()}
    listing = dvc_files.make_listing({**files, **stored})
    remote.put_bytes(listing.data, ".dir")
    return listing


def listed_files(registry: Registry, ref: str, name: str, remote: DataRoot) -> dict[str, str]:
    """Path to md5 of every file of a version, from the listing in the store.

    Raises:
        StorageError: the store does not hold the listing.
    """
    return read_listing(registry.read(ref, f"{name}.dvc"), ref, remote)


def read_listing(dvc: bytes, label: str, remote: DataRoot) -> dict[str, str]:
    """As ``listed_files``, of a ``.dvc`` file's content."""
    uri = object_uri(dvc_files.listed_digest(dvc))
    if not remote.exists(uri):
        raise StorageError(
            f"{remote.location}: does not hold {label} (no {uri}); it is another store than the one "
            "it was registered in, or the objects were removed: register the dataset again"
        )
    return {entry["relpath"]: entry["md5"] for entry in json.loads(remote.read(uri))}


def fetch_manifests(listed: Mapping[str, str], remote: DataRoot) -> dict[str, Path]:
    """Local, read-only copies of a version's manifests, by kind."""
    return {kind: remote.fetch(object_uri(listed[f"manifests/{kind}.parquet"])) for kind in MANIFESTS}
