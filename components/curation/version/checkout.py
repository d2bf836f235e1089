"""A registered version as the steps after it take it: its four manifests, and its shards in the data root.

Objects are named by their content: what the data root has already is not transferred, and a version that was checked
out before is found without asking the store.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.errors import BadInputError
from ...common.files import write_atomic
from ...common.identity import identity
from ...common.progress import track
from ...common.report import StepReport, table
from ...common.storage import DataRoot, object_uri
from . import dvc_files
from .card import MANIFESTS
from .datasets import open_version_store, resolve
from .registry import BRANCH, Registry, VersionTag
from .settings import VersionSettings
from .version_files import listed_files, read_card

VERSION = "1"


def check_out_version(
    version: str,
    manifests: Mapping[str, Path],
    out: Path,
    root: DataRoot,
    registry: Path,
    store: Path,
    settings: VersionSettings,
) -> StepReport:
    """Bring a version's manifests and shards to where training reads them.

    Args:
        version: ``name@v1.2.3``, or shorter as ``datasets.resolve`` takes it; "" is the newest of all.
        manifests: kind to the file to write: videos, clips, annotations, selection.
        out: JSON file to write: name, tag, revision, remote and counts, as registering writes it.
        root: takes the objects that it lacks.
        registry: directory of the git repository of versions.
        store: directory of the embedded object store; not used when the environment names a store.
        settings: where versions are pushed to; a registry with an origin follows that first.

    Raises:
        BadInputError: there is no registry or no such version.
        StorageError, ServiceError: the store does not answer, or lacks an object.
    """
    opened = open_registry(registry, settings)
    tag = find_version(opened, version)
    dvc = opened.read(str(tag), f"{tag.name}.dvc")
    key = identity(version=VERSION, listing=dvc_files.listed_digest(dvc))
    found = root.find("checkout", key)
    copied, fresh = 0, found is None or not all(map(root.exists, _objects(found)))
    if fresh:
        with open_version_store(opened, store) as remote:
            listed = listed_files(opened, str(tag), tag.name, remote)
            found = {
                "manifests": {kind: object_uri(listed[f"manifests/{kind}.parquet"]) for kind in MANIFESTS},
                "shards": sorted(object_uri(md5) for path, md5 in listed.items() if path.startswith("shards/")),
            }
            for uri in track(_objects(found), "objects"):
                copied += root.copy_from(remote, uri)
        root.record("checkout", key, found)
    assert found is not None
    for kind, uri in found["manifests"].items():
        manifests[kind].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root.fetch(uri), manifests[kind])
    location, endpoint_url = dvc_files.configured_remote(opened.read(BRANCH, dvc_files.CONFIG))
    card = read_card(opened, tag)
    counts = card.get("counts", {})
    dataset: dict[str, Any] = {
        "name": tag.name, "tag": str(tag), "revision": opened.revision(str(tag)), "remote": location,
        "endpoint_url": endpoint_url, "origin": opened.origin, "content": card.get("content"), "counts": counts,
        "clips": counts.get("clips", 0), "shards": len(found["shards"]),
    }  # fmt: skip
    write_atomic(out, json.dumps(dataset, indent=1, sort_keys=True).encode())
    return _report(dataset, len(_objects(found)), copied, fresh)


def check_out_mix(
    out: Path, root: DataRoot, registry: Path, store: Path, settings: VersionSettings, report: StepReport
) -> None:
    """Bring the versions of ``settings.mix`` too: a folder each in ``out``, called by its tag, with its manifests.

    Args:
        out: the folder of these folders.
        root: see ``check_out_version``, as all others.
        registry: likewise.
        store: likewise.
        settings: likewise.
        report: of the version asked for; what is told of these is added to it.

    Raises:
        BadInputError: there is no such version.
        StorageError, ServiceError: the store does not answer, or lacks an object.
    """
    out.mkdir(parents=True, exist_ok=True)
    for version in settings.mix:
        folder = out / str(find_version(open_registry(registry, settings), version))
        manifests = {kind: folder / f"{kind}.parquet" for kind in MANIFESTS}
        more = check_out_version(version, manifests, folder / "dataset.json", root, registry, store, settings)
        report.done, report.reused = report.done + more.done, report.reused + more.reused
        report.sections += [section | {"title": f"Mixed in: {folder.name}"} for section in more.sections]
    tags = sorted(folder.name for folder in out.iterdir() if folder.is_dir())
    write_atomic(out / "mix.json", json.dumps(tags).encode())  # object stores know no folder without a file


def open_registry(directory: Path, settings: VersionSettings) -> Registry:
    """A registry to read from, in line with its origin if it has one.

    Raises:
        BadInputError: there is none, and no origin to get it from.
        StorageError: the origin refuses.
    """
    opened = Registry(directory, settings.origin) if settings.origin else Registry.existing(directory)
    if opened.origin:
        with opened.locked():  # which follows the origin
            pass
    return opened


def find_version(registry: Registry, version: str) -> VersionTag:
    """The version that a tag means, or the one registered last when the tag is "".

    Raises:
        BadInputError: there is none.
    """
    if version:
        return resolve(registry, version)
    tags = registry.tags()
    if not tags:
        raise BadInputError(f"{registry.directory}: holds no dataset version yet; run the pipeline curation first")
    return max(tags, key=lambda tag: (registry.date(str(tag)), tag.number))


def require_long_clips(registry: Registry, tag: VersionTag, frames: int, fps: float) -> None:
    """Refuse a version none of whose clips can hold a sample, by what its card tells.

    Args:
        registry: holds the version.
        tag: which one.
        frames: of a sample.
        fps: frame rate aimed at; a sample takes every k-th frame, with k such that the rate comes nearest.

    Raises:
        BadInputError: names the setting, and the longest clip.
    """
    statistics = read_card(registry, tag).get("statistics", {})
    seconds, rates = statistics.get("clip_seconds"), statistics.get("fps")
    if not seconds or not rates:
        return
    if rates["min"] == rates["max"]:
        step_s = max(1, round(rates["max"] / fps)) / rates["max"]
    else:  # of clips at any rate in between; a whole stride reaches at most 3/2 of the rate aimed at
        step_s = max(1 / rates["max"], 1 / (1.5 * fps))
    need = (frames - 1) * step_s
    if seconds["max"] < need:
        raise BadInputError(
            f"encode.frames: no clip of {tag} holds {frames} frames at {fps:g} a second ({need:.2f} s and more); the "
            f"longest has {seconds['max']:.2f} s: take fewer frames or a higher encode.fps, or cut longer clips"
        )


def _objects(found: Mapping[str, Any]) -> list[str]:
    return [*found["manifests"].values(), *found["shards"]]


def _report(dataset: dict[str, Any], objects: int, copied: int, fresh: bool) -> StepReport:
    counts = dataset["counts"]
    rows = [
        ["version", dataset["tag"]],
        ["revision", dataset["revision"]],
        ["remote", dataset["remote"]],
        ["clips", f"{dataset['clips']} (train {counts.get('train', 0)}, held out {counts.get('held_out', 0)})"],
        ["objects brought here", copied],
        ["objects that were here", objects - copied],
    ]
    return StepReport(
        step="checkout",
        title="Dataset version",
        done=int(fresh),
        reused=int(not fresh),
        counts={"clips": dataset["clips"], "shards": dataset["shards"]},
        summary={"dataset": {key: dataset[key] for key in ("name", "tag", "revision", "remote", "clips", "shards")}},
        sections=[table("Checked out", ["", ""], rows)],
    )
