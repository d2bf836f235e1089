"""What points at what: the objects that versions need, and those that cached results in a data root need."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...common.errors import BadInputError
from ...common.storage import DataRoot, object_uri
from .dvc_files import listed_digest
from .registry import BRANCH, Registry
from .version_files import read_listing

OBJECTS, RESULTS = "files/md5", "results"
_REGISTRIES = "svdflow/registries"
_OBJECT = re.compile(rb"files/md5/[0-9a-f]{2}/[0-9a-f]{30}(?:\.dir)?")


def named_objects(data: bytes) -> set[str]:
    """The objects that a record, or any other JSON, names."""
    return {uri.decode() for uri in _OBJECT.findall(data)}


def version_objects(registry: Registry, remote: DataRoot, refs: Iterable[str] | None = None) -> dict[str, set[str]]:
    """What every version holds: ref and dataset to the objects, listings included.

    Args:
        registry: of the versions.
        remote: their store.
        refs: tags or commits; by default every tag and the branch.

    Raises:
        StorageError: a listing is not in the store, so that what its version needs cannot be known.
    """
    found = {}
    read: dict[str, set[str]] = {}
    for ref in refs if refs is not None else [*map(str, registry.tags()), BRANCH]:
        for path in [path for path in registry.names(ref) if path.endswith(".dvc") and "/" not in path]:
            dvc = registry.read(ref, path)
            listing = object_uri(listed_digest(dvc))
            if listing not in read:
                label = f"{ref} ({path})"
                read[listing] = {listing, *(object_uri(md5) for md5 in read_listing(dvc, label, remote).values())}
            found[f"{ref} {path.removesuffix('.dvc')}"] = read[listing]
    return found


def records(root: DataRoot) -> Iterator[tuple[str, bytes]]:
    """The cached results of a data root: URI and content."""
    for uri in root.list(RESULTS):
        yield uri, root.read(uri)


def with_trees(uris: set[str], root: DataRoot) -> set[str]:
    """Objects, and for directory listings among them the files that they list."""
    out = set(uris)
    for uri in uris:
        if uri.endswith(".dir") and root.exists(uri):
            out |= {object_uri(entry["md5"]) for entry in json.loads(root.read(uri))}
    return out


def mark_registry(registry: Registry, remote: DataRoot) -> None:
    """Leave a mark in the store, so that whoever removes objects knows which registries rely on it."""
    uri = f"{_REGISTRIES}/{registry.root_commit()}.json"
    place = registry.origin or str(registry.directory)
    mark = json.dumps({"registry": place, "host": socket.gethostname()}, sort_keys=True).encode()
    if not remote.exists(uri) or remote.read(uri) != mark:
        remote.put_named(uri, mark)


def require_all_registries(registries: Iterable[Registry], remote: DataRoot) -> None:
    """Refuse to remove objects while a registry that relies on the store is not known of.

    Raises:
        BadInputError: there is one; names it and the remedy.
    """
    known = {registry.root_commit() for registry in registries}
    others = [uri for uri in remote.list(_REGISTRIES) if Path(uri).stem not in known]
    if others:
        mark = json.loads(remote.read(others[0]))
        raise BadInputError(
            f"{remote.location}: the registry {mark.get('registry')} on {mark.get('host')} keeps versions here too; "
            f"name it with --also, so that they stay (or, if it is no more, remove {others[0]} from the store)"
        )
