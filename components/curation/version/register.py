"""Register a dataset version: its objects in the store, its listing, its commit and its tag, in this order."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...common.errors import BadInputError, StorageError
from ...common.files import write_atomic
from ...common.manifests import current_file
from ...common.object_store import EmbeddedStore, StoreEndpoint, open_store
from ...common.progress import track
from ...common.report import StepReport, table
from ...common.storage import DataRoot, uri_md5
from ...common.storage_s3 import S3Root
from . import claims, dvc_files
from .card import MANIFESTS, Members, make_card, next_number, read_members
from .denied import refuse_forgotten
from .provenance import own_version, trailers
from .references import mark_registry
from .registry import BRANCH, Registry, VersionTag
from .settings import VersionSettings
from .version_files import Files, read_card, store_again, store_version

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
    source: str = "",
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
        source: what the manifests come from, as ``run 20260102-…``; recorded with the version.

    Raises:
        BadInputError: the manifests do not belong together, nothing is kept, or a video in them was taken down.
        StorageError: a shard is missing, the store does not answer, git or the origin refuses.
    """
    given = dict(zip(MANIFESTS, (videos, clips, annotations, selection), strict=True))
    members = read_members(given)
    opened = Registry(registry, settings.origin)
    refuse_forgotten(opened, given)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        manifests = {kind: current_file(kind, path, scratch) for kind, path in given.items()}
        remote = open_remote(root, store, settings, stack)
        stack.enter_context(claims.adding(remote, f"registering {settings.name}"))
        files, shards_written = _store_shards(members, root, remote, settings.uploads)
        before = remote.writes
        files |= {f"manifests/{kind}.parquet": _stored(remote.put_file(path), path) for kind, path in manifests.items()}
        card = make_card(settings.name, members, files, own_version())
        if remote.endpoint.endpoint_url.startswith("http://127.0.0.1:") and (store / "ports.json").is_file():
            EmbeddedStore(store).pin(str(registry.resolve()))
        tag, revision, listing, reused = _publish(opened, remote, files, card, manifests, source)
        written = shards_written + remote.writes - before
        mark_registry(opened, remote)
    dataset: dict[str, Any] = {
        "name": settings.name, "tag": str(tag), "revision": revision, "remote": remote.location,
        "clips": members.clips, "shards": len(members.shards), "bytes": listing.bytes,
        "objects_written": written, "objects_found": listing.files + 1 - written,  # the listing is an object too
    }  # fmt: skip
    about = {
        "endpoint_url": remote.endpoint.endpoint_url,
        "origin": settings.origin,
        "content": card["content"],
        "counts": card["counts"],
    }
    stable = {key: value for key, value in dataset.items() if not key.startswith("objects_")}
    write_atomic(out, json.dumps(stable | about, indent=1, sort_keys=True).encode())
    return _report(dataset, card, reused)


def open_remote(root: DataRoot, store: Path, settings: VersionSettings, stack: ExitStack) -> S3Root:
    """Where the bytes go: the data root itself when it is on S3 and nothing else is asked for."""
    if isinstance(root, S3Root) and settings.remote.rstrip("/") in ("", root.location):
        return root
    endpoint: StoreEndpoint = root.endpoint if isinstance(root, S3Root) else stack.enter_context(open_store(store))
    return S3Root(settings.remote or f"s3://{endpoint.bucket}/datasets", endpoint)


def _store_shards(members: Members, root: DataRoot, remote: S3Root, workers: int) -> tuple[Files, int]:
    """Bring the shards to the remote. Returns path in the dataset to (md5, bytes), and how many had to be written."""
    digests = {uri: uri_md5(uri) for uri in members.shards}  # refuses what is no object of a data root
    missing = [uri for uri in members.shards if not root.exists(uri)]
    if missing:
        raise BadInputError(
            f"{root.location}: {len(missing)} of {len(members.shards)} shards are not in the data root, such as "
            f"{missing[0]}; the clips manifest is of another root, or the shard was removed: run the split step again"
        )
    with ThreadPoolExecutor(max_workers=workers) as pool:
        copies = pool.map(lambda uri: remote.copy_from(root, uri), members.shards)
        written = sum(track(copies, "shards stored", total=len(members.shards)))
    return {f"shards/{md5}.tar": (md5, root.size(uri)) for uri, md5 in digests.items()}, written


def _stored(uri: str, path: Path) -> tuple[str, int]:
    return uri_md5(uri), path.stat().st_size


def _publish(
    registry: Registry, remote: S3Root, files: Files, card: dict[str, Any], manifests: Mapping[str, Path], source: str
) -> tuple[VersionTag, str, dvc_files.Listing, bool]:
    """Find the version with this content, or make it. Returns its tag, commit and listing, and whether it was found."""
    name = card["name"]
    for _ in range(_TRIES):
        with registry.locked():
            refuse_forgotten(registry, manifests)
            base = registry.revision(BRANCH)
            common = common_files(registry, remote, name)
            tags = registry.tags(name)
            found = next(
                (tag for tag in reversed(tags) if read_card(registry, tag).get("content") == card["content"]), None
            )
            if found:  # its files are stored again where the remote is a new one, or lost some
                listing = store_again(registry, remote, found, files)
                changed = {path: data for path, data in common.items() if registry.read(base, path) != data}
                if not changed or registry.publish(changed, "Point the remote at where the store is now"):
                    return found, registry.revision(str(found)), listing, True
                continue
            latest = tags[-1] if tags else None
            previous = read_card(registry, latest) if latest else {}
            tag = VersionTag(name, next_number(latest.number if latest else None, previous, card["members"]))
            stored = store_version(remote, tag, files, card, manifests)
            message = version_message(tag, card, trailers(registry.git, source))
            if revision := registry.publish({**common, **stored.committed}, message, tag):
                return tag, revision, stored.listing, False
    raise moved_meanwhile(registry, _TRIES)


def moved_meanwhile(registry: Registry, tries: int) -> StorageError:
    """The error of one who lost to others that published, each time."""
    return StorageError(f"{registry.directory}: the origin {registry.origin} moved {tries} times meanwhile; run again")


def common_files(registry: Registry, remote: S3Root, name: str) -> dict[str, bytes]:
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


def version_message(tag: VersionTag, card: Mapping[str, Any], about: Iterable[str], said: str = "") -> str:
    """The message of a version's commit and tag: what it holds, and the trailers ``about``."""
    counts = card["counts"]
    lines = [
        f"{tag}: " + (said or f"{counts['clips']} clips of {counts['videos']} videos"),
        "",
        f"train {counts['train']}, held out {counts['held_out']}, {counts['seconds']:g} s in {counts['shards']} shards",
        "",
        *about,
    ]
    return "\n".join(lines)


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
