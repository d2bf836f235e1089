"""Register a dataset version: its objects in the store, its listing, its commit and its tag, in this order."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...common.errors import BadInputError, StorageError
from ...common.identity import identity
from ...common.object_store import EmbeddedStore, StoreEndpoint, open_store
from ...common.progress import track
from ...common.report import StepReport, table
from ...common.storage import DataRoot, uri_md5, write_atomic
from ...common.storage_s3 import S3Root
from . import dvc_files
from .card import MANIFESTS, Members, card_bytes, make_card, next_number, read_members
from .registry import BRANCH, Registry, VersionTag
from .settings import VersionSettings

_TRIES = 8


def register_dataset(
    videos: Path,
    clips: Path,
    annotations: Path,
    selection: Path,
    out: Path,
    root: DataRoot,
    registry: Path,
    store: Path,
    settings: VersionSettings,
) -> StepReport:
    """Register the dataset that the four manifests describe; equal content finds its existing version.

    Args:
        videos: the videos manifest.
        clips: the clips manifest.
        annotations: the annotations manifest.
        selection: the selection manifest.
        out: JSON file to write: name, tag, revision, remote and counts.
        root: where the shards lie.
        registry: directory of the git repository of versions; made when it is not there.
        store: directory of the embedded object store; not used when the environment names a store.
        settings: names, remote, origin.

    Raises:
        BadInputError: the manifests do not belong together, or nothing is kept.
        StorageError: a shard is missing, the store does not answer, git or the origin refuses.
    """
    manifests = dict(zip(MANIFESTS, (videos, clips, annotations, selection), strict=True))
    members = read_members(manifests)
    with ExitStack() as stack:
        remote = _remote(root, store, settings, stack)
        files, shards_written = _store_shards(members, root, remote, settings.uploads)
        before = remote.writes
        files |= {f"manifests/{kind}.parquet": _stored(remote.put_file(path), path) for kind, path in manifests.items()}
        content = identity(name=settings.name, files=sorted((path, md5) for path, (md5, _) in files.items()))
        shards = {path: entry for path, entry in files.items() if path.startswith("shards/")}
        card = make_card(settings.name, members, shards, content, _own_version())
        if remote.endpoint.endpoint_url.startswith("http://127.0.0.1:") and (store / "ports.json").is_file():
            EmbeddedStore(store).pin(str(registry.resolve()))
        tag, revision, listing, reused = _publish(
            Registry(registry, settings.origin), remote, files, card, settings.name
        )
        written = shards_written + remote.writes - before
    dataset: dict[str, Any] = {
        "name": settings.name, "tag": str(tag), "revision": revision, "remote": remote.location,
        "clips": len(members.kept), "shards": len(members.shards), "bytes": listing.bytes,
        "objects_written": written, "objects_found": listing.files + 1 - written,  # the listing is an object too
    }  # fmt: skip
    about = {
        "endpoint_url": remote.endpoint.endpoint_url,
        "origin": settings.origin,
        "content": content,
        "counts": card["counts"],
    }
    stable = {key: value for key, value in dataset.items() if not key.startswith("objects_")}
    write_atomic(out, json.dumps(stable | about, indent=1, sort_keys=True).encode())
    return _report(dataset, card, reused)


def _remote(root: DataRoot, store: Path, settings: VersionSettings, stack: ExitStack) -> S3Root:
    """Where the bytes go: the data root itself when it is on S3 and nothing else is asked for."""
    if isinstance(root, S3Root) and settings.remote.rstrip("/") in ("", root.location):
        return root
    endpoint: StoreEndpoint = root.endpoint if isinstance(root, S3Root) else stack.enter_context(open_store(store))
    return S3Root(settings.remote or f"s3://{endpoint.bucket}/datasets", endpoint)


def _store_shards(
    members: Members, root: DataRoot, remote: S3Root, workers: int
) -> tuple[dict[str, tuple[str, int]], int]:
    """Bring the shards to the remote. Returns path in the dataset to (md5, bytes), and how many had to be written."""
    missing = [uri for uri in members.shards if not root.exists(uri)]
    if missing:
        raise BadInputError(
            f"{root.location}: {len(missing)} of {len(members.shards)} shards are not in the data root, such as "
            f"{missing[0]}; the clips manifest is of another root, or the shard was removed: run the split step again"
        )
    with ThreadPoolExecutor(max_workers=workers) as pool:
        copies = pool.map(lambda uri: remote.copy_from(root, uri), members.shards)
        written = sum(track(copies, "shards stored", total=len(members.shards)))
    return {f"shards/{uri_md5(uri)}.tar": (uri_md5(uri), root.size(uri)) for uri in members.shards}, written


def _stored(uri: str, path: Path) -> tuple[str, int]:
    return uri_md5(uri), path.stat().st_size


def _publish(
    registry: Registry, remote: S3Root, files: dict[str, tuple[str, int]], card: dict[str, Any], name: str
) -> tuple[VersionTag, str, dvc_files.Listing, bool]:
    """Find the version with this content, or make it. Returns its tag, commit and listing, and whether it was found."""
    for _ in range(_TRIES):
        with registry.locked():
            base = registry.revision(BRANCH)
            common = _common_files(registry, remote, name)
            tags = registry.tags(name)
            found = next(
                (tag for tag in reversed(tags) if read_card(registry, tag).get("content") == card["content"]), None
            )
            if found:
                listing = _store_listing(
                    remote, files, registry.read(str(found), card_path(name))
                )  # if the remote is a new one
                changed = {path: data for path, data in common.items() if registry.read(base, path) != data}
                if not changed or registry.publish(changed, "Point the remote at where the store is now"):
                    return found, registry.revision(str(found)), listing, True
                continue
            latest = tags[-1] if tags else None
            previous = read_card(registry, latest) if latest else {}
            tag = VersionTag(name, next_number(latest.number if latest else None, previous, card["members"]))
            data = card_bytes(card)
            listing = _store_listing(remote, files, data)
            own = {f"{name}.dvc": dvc_files.dvc_file(listing, name), card_path(name): data}
            if revision := registry.publish({**common, **own}, _message(tag, card), tag):
                return tag, revision, listing, False
    raise StorageError(f"{registry.directory}: the origin {registry.origin} moved {_TRIES} times meanwhile; run again")


def _common_files(registry: Registry, remote: S3Root, name: str) -> dict[str, bytes]:
    """What the repository needs beside the version itself, merged into what is committed."""

    def committed(path: str) -> bytes:
        return registry.read(BRANCH, path)

    return {
        dvc_files.CONFIG: dvc_files.configuration(
            committed(dvc_files.CONFIG), remote.location, remote.endpoint.endpoint_url
        ),
        dvc_files.CONFIG_IGNORE: committed(dvc_files.CONFIG_IGNORE) or b"/config.local\n/tmp\n/cache\n",
        dvc_files.DVC_IGNORE: committed(dvc_files.DVC_IGNORE),
        dvc_files.GIT_IGNORE: dvc_files.with_line(committed(dvc_files.GIT_IGNORE), f"/{name}"),
        dvc_files.ARTIFACTS: dvc_files.with_artifact(committed(dvc_files.ARTIFACTS), name),
    }


def _store_listing(remote: S3Root, files: dict[str, tuple[str, int]], card: bytes) -> dvc_files.Listing:
    """Store card and listing: all files it lists lie in the remote already."""
    listing = dvc_files.make_listing({**files, "dataset.json": (uri_md5(remote.put_bytes(card)), len(card))})
    remote.put_bytes(listing.data, ".dir")
    return listing


def card_path(name: str) -> str:
    """Where a dataset's card lies in the registry."""
    return f"cards/{name}.json"


def read_card(registry: Registry, tag: VersionTag) -> dict[str, Any]:
    """A version's card; empty when the version was not made by this step."""
    data = registry.read(str(tag), card_path(tag.name))
    return json.loads(data) if data else {}


def _message(tag: VersionTag, card: dict[str, Any]) -> str:
    counts = card["counts"]
    lines = [
        f"{tag}: {counts['clips']} clips of {counts['videos']} videos",
        "",
        f"train {counts['train']}, held out {counts['held_out']}, {counts['seconds']:g} s in {counts['shards']} shards",
    ]
    return "\n".join(lines)


def _own_version() -> str:
    try:
        return version("svdflow")
    except PackageNotFoundError:
        return "unknown"


def _report(dataset: dict[str, Any], card: dict[str, Any], reused: bool) -> StepReport:
    counts = card["counts"]
    rows: list[list[Any]] = [
        ["version", dataset["tag"]],
        ["found or new", "found: the content is that of an existing version" if reused else "new"],
        ["revision", dataset["revision"]],
        ["remote", dataset["remote"]],
        ["clips", f"{counts['clips']} (train {counts['train']}, held out {counts['held_out']})"],
        ["duration", f"{counts['seconds']:g} s"],
        ["shards", counts["shards"]],
        ["bytes", f"{dataset['bytes']:,}"],
        ["objects written", dataset["objects_written"]],
        ["objects found", dataset["objects_found"]],
    ]
    note = "git clone the registry, check the tag out and run dvc pull: every file comes back, checked by its md5."
    return StepReport(
        step="version",
        title="Dataset version",
        done=0 if reused else 1,
        reused=1 if reused else 0,
        counts={"clips": counts["clips"], "shards": counts["shards"]},
        summary={"dataset": dataset},
        sections=[table("Registered as", ["", ""], rows, note), _spread_table(card["statistics"])],
        versions=_versions(("dvc", "minio")),
    )


def _spread_table(statistics: dict[str, Any]) -> dict[str, Any]:
    columns = ["min", "p5", "median", "p95", "max"]
    rows = [[key, *[value[c] for c in columns]] for key, value in statistics.items() if value and "median" in value]
    return table("What the kept clips are like", ["", *columns], rows)


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
