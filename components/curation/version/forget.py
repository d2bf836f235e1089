"""A takedown: one video leaves the store, every version, the caches and the work directory; a receipt stays.

Tags are moved: ``demo@v1.0.0`` goes on to exist and to be pulled by plain tools, one commit further, without the video.
The commit that it named before stays in the history, where it holds digests and counts and no content; the receipt
names both. Shards that hold other videos' clips too are written anew without this one's members.

Order: everything new is stored; then branch, tags and receipt change in one transaction; then old objects go. The
receipt lists them, so that a takedown that was killed is finished by the same command.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...common.errors import BadInputError
from ...common.manifest_views import open_views
from ...common.storage import DataRoot, object_uri, uri_md5
from ...common.storage_s3 import S3Root
from . import claims
from .card import make_card, read_members
from .denied import read_receipt, receipt_path
from .dvc_files import listed_digest
from .provenance import code_version, person
from .references import RESULTS, require_all_registries, version_objects
from .register import common_files, moved_meanwhile
from .registry import Registry, VersionTag
from .shard_rewrite import ShardRewriter
from .subject import Subject
from .traces import clips_in_results, find_traces, forget_in_workdir, forget_scratch, manifests_of_runs
from .version_files import VersionFiles, fetch_manifests, read_card, read_listing, store_version

RECEIPT_VERSION = "1"
DENIED = "forgotten"  # kind of the data root's record by which an ingest knows
_TRIES = 8


@dataclass
class Receipt:
    """What a takedown did. Holds no content: ids, digests and counts.

    Attributes:
        video_id: sha256 of the video's bytes.
        forgotten_at: UTC, ISO 8601; of the first takedown, if it was repeated.
        by, code: who did it, with which svdflow.
        reason: as given.
        clips: ids of its clips.
        versions: tag to commit ``before`` and ``after``, and how many of its ``clips`` the version had kept.
        objects_removed: place to the objects that it is to lack from now on.
        objects_rewritten: shard to the one that took its place, "" where nothing was left.
        results_removed: cached results that were dropped; they are computed again without it.
        workdir_files: files of the work directory that were removed or rewritten.
        models: trained on a version that held it. They are not changed: decide what is to be done with them.
    """

    video_id: str
    forgotten_at: str
    by: str
    code: str
    reason: str
    clips: list[str] = field(default_factory=list)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects_removed: dict[str, list[str]] = field(default_factory=dict)
    objects_rewritten: dict[str, str] = field(default_factory=dict)
    results_removed: int = 0
    workdir_files: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    receipt_version: str = RECEIPT_VERSION

    def data(self) -> bytes:
        """As it is committed."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()


def forget_video(
    registries: Sequence[Registry],
    video_id: str,
    remote: S3Root,
    root: DataRoot,
    workdir: Path | None = None,
    reason: str = "",
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[Receipt]:
    """Take a video down.

    Args:
        registries: all that keep versions in the store.
        video_id: as in the videos manifest.
        remote: the store of the versions.
        root: the data root.
        workdir: a work directory whose reports and manifests are gone through, too.
        reason: for the receipt.
        now: the clock.

    Returns:
        The receipts, as they are committed, one a registry. A video that was forgotten before is looked for again.

    Raises:
        BadInputError: no version, result or manifest knows this video (tells the id when a name was given), or another
            registry relies on the store.
        StorageError: a registration is under way, or store or git refuse.
    """
    with claims.removing(remote, f"forgetting video {video_id[:12]}"):
        require_all_registries(registries, remote)
        subject = _subject(registries, video_id, remote, root, workdir)
        return [
            _repeated(registry, registries[at + 1 :], subject, remote, root, workdir, reason, now)
            for at, registry in enumerate(registries)
        ]


def _repeated(
    registry: Registry,
    later: Sequence[Registry],
    subject: Subject,
    remote: S3Root,
    root: DataRoot,
    workdir: Path | None,
    reason: str,
    now: Callable[[], datetime],
) -> Receipt:
    """The takedown in one registry, anew while others publish; what those after it hold stays for their turn."""
    for _ in range(_TRIES):
        spared = set[str]()
        for other in later:
            with other.locked():
                spared = spared.union(*version_objects(other, remote).values())
        with registry.locked(), tempfile.TemporaryDirectory() as scratch:
            receipt = _take_down(registry, spared, subject, remote, root, workdir, reason, now, Path(scratch))
        if receipt:
            return receipt
    raise moved_meanwhile(registry, _TRIES)


def _subject(
    registries: Sequence[Registry], video_id: str, remote: S3Root, root: DataRoot, workdir: Path | None
) -> Subject:
    """What versions, manifests and cached results know of the video."""
    manifests = manifests_of_runs(workdir) if workdir else []
    clips: set[str] = set()
    for registry in registries:
        with registry.locked():
            versions = [_Version.read(registry, tag, remote) for tag in registry.tags()]
            manifests += [version.manifests for version in versions if version]
            earlier = read_receipt(registry, video_id)
            clips |= set(earlier["clips"]) if earlier else set()
    subject = Subject.find(video_id, manifests, clips)
    for row in clips_in_results(video_id, root):
        subject.add_clip(row)
    if not subject.known and not any(read_receipt(registry, video_id) for registry in registries):
        raise BadInputError(_unknown(video_id, registries[0], manifests))
    return subject


def _take_down(
    registry: Registry,
    spared: set[str],
    subject: Subject,
    remote: S3Root,
    root: DataRoot,
    workdir: Path | None,
    reason: str,
    now: Callable[[], datetime],
    scratch: Path,
) -> Receipt | None:
    """One try, with the registry locked; None when its origin moved meanwhile."""
    places: list[DataRoot] = [remote] if root.location == remote.location else [remote, root]
    versions = {tag: version for tag in registry.tags() if (version := _Version.read(registry, tag, remote))}
    video_id = subject.video_id
    root.record(DENIED, video_id, {"reason": reason})  # from here on an ingest can know

    shards = ShardRewriter(subject.members, places, scratch)
    shards.rewrite_all()
    moved: dict[VersionTag, tuple[str, str]] = {}
    files: dict[str, bytes] = {}
    before: set[str] = set()
    after: set[str] = set()
    receipt = _receipt(read_receipt(registry, video_id), video_id, reason, registry, now)
    newest = {tag.name: tag for tag in registry.tags()}
    for tag, version in versions.items():
        if not subject.is_in(version.manifests, version.objects):
            after |= version.objects
            continue
        before |= version.objects
        stored, left = _without(tag, version, subject, shards, registry, remote, scratch / str(tag))
        after |= {object_uri(entry["md5"]) for entry in json.loads(stored.listing.data)}
        after.add(object_uri(stored.listing.digest))
        commit, message = _commit(registry, tag, stored, video_id)
        moved[tag] = (commit, message)
        receipt.versions[str(tag)] = {"before": registry.revision(str(tag)), "after": commit, "clips": left}
        if newest[tag.name] == tag:
            files |= {**common_files(registry, remote, tag.name), **stored.committed}

    gone = (before | subject.objects | shards.moved.keys()) - after
    traces = find_traces(subject, root, gone, shards.digests, shards.moved)
    gone |= traces.objects - traces.elsewhere - after
    receipt.clips = sorted(subject.clips)
    receipt.objects_rewritten |= {old: new for old, (new, _) in shards.moved.items()}
    for place in places:
        there = {uri for uri in gone - (spared if place is remote else set()) if place.exists(uri)}
        known = receipt.objects_removed.get(place.location, [])
        receipt.objects_removed[place.location] = sorted({*known, *there})
    receipt.results_removed += len(traces.results)
    receipt.models = sorted({*receipt.models, *_models(root, receipt.versions)})
    if workdir:
        receipt.workdir_files = sorted({*receipt.workdir_files, *forget_in_workdir(workdir, subject, remove=False)})
    files[receipt_path(video_id)] = receipt.data()
    if not registry.publish(files, _said(receipt), moved=moved):
        return None

    for uri, data in traces.updated.items():
        root.put_named(uri, data)
    for place in places:
        for uri in receipt.objects_removed[place.location]:
            place.remove(uri)
    for uri in sorted(traces.results):  # last: until then a repeated takedown finds by them what is left
        root.remove(uri)
    forget_scratch(subject, {uri for uris in receipt.objects_removed.values() for uri in uris}, root)
    if workdir:
        forget_in_workdir(workdir, subject, remove=True)
    return receipt


@dataclass(frozen=True)
class _Version:
    """A version as it is: path to md5, local manifests, and all its objects with the listing."""

    listed: dict[str, str]
    manifests: dict[str, Path]
    objects: set[str]

    @staticmethod
    def read(registry: Registry, tag: VersionTag, remote: S3Root) -> _Version | None:
        """None for a version that was not made by svdflow: it has no manifests."""
        dvc = registry.read(str(tag), f"{tag.name}.dvc")
        if not dvc or not read_card(registry, tag):
            return None
        listed = read_listing(dvc, str(tag), remote)
        objects = {object_uri(md5) for md5 in (*listed.values(), listed_digest(dvc))}
        return _Version(listed, fetch_manifests(listed, remote), objects)


def _without(
    tag: VersionTag,
    version: _Version,
    subject: Subject,
    shards: ShardRewriter,
    registry: Registry,
    remote: S3Root,
    folder: Path,
) -> tuple[VersionFiles, int]:
    """Store a version without the video. Returns it, and how many kept clips it lost."""
    folder.mkdir()
    out = {kind: folder / f"{kind}.parquet" for kind in version.manifests}
    for kind, path in version.manifests.items():
        subject.write_without(kind, path, out[kind], shards.point_anew if kind == "clips" else None)
    members = read_members(out, may_be_empty=True)
    files = {f"shards/{uri_md5(uri)}.tar": (uri_md5(uri), remote.size(uri)) for uri in members.shards}
    for kind, path in out.items():
        files[f"manifests/{kind}.parquet"] = (uri_md5(remote.put_file(path)), path.stat().st_size)
    old = read_card(registry, tag)
    card = make_card(tag.name, members, files, old["provenance"]["svdflow"])
    card["manifest_schema"] = old["manifest_schema"]
    return store_version(remote, tag, files, card, out), old["counts"]["clips"] - members.clips


def _commit(registry: Registry, tag: VersionTag, stored: VersionFiles, video_id: str) -> tuple[str, str]:
    """A commit on top of the version's own, and the message for its tag: the old one, with what happened."""
    before = registry.revision(str(tag))
    message = f"{registry.message(tag)}\nForgotten: {video_id} (before: {before})"
    return registry.commit(before, stored.committed, message, registry.date(str(tag))), message


def _receipt(
    earlier: dict[str, Any] | None, video_id: str, reason: str, registry: Registry, now: Callable[[], datetime]
) -> Receipt:
    if earlier:
        return Receipt(**earlier)
    at = now().isoformat(timespec="seconds")
    return Receipt(video_id, at, person(registry.git), f"svdflow {code_version()}", " ".join(reason.split()))


def _said(receipt: Receipt) -> str:
    return (
        f"Forget video {receipt.video_id[:16]}\n\nIt left {len(receipt.versions)} versions; see "
        f"{receipt_path(receipt.video_id)}\n\nForgotten-by: {receipt.by}\nCode: {receipt.code}"
    )


def _models(root: DataRoot, versions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Trained models of the data root whose card names one of these versions, as it was before the takedown."""
    found = []
    for uri in root.list(f"{RESULTS}/train"):
        tree = json.loads(root.read(uri)).get("tree", "")
        dataset = _card(root, tree).get("dataset", {}) if tree else {}
        moved = versions.get(dataset.get("tag", ""))
        if moved and dataset.get("revision") != moved["after"]:
            found.append(tree)
    return found


def stage_of(root: DataRoot, tree: str) -> str:
    """The stage of a model that a receipt names; "" when it is not there any more."""
    return str(_card(root, tree).get("stage", ""))


def _card(root: DataRoot, tree: str) -> dict[str, Any]:
    if not root.exists(tree):
        return {}
    cards = [entry["md5"] for entry in json.loads(root.read(tree)) if entry["relpath"] == "svdflow.json"]
    return json.loads(root.read(object_uri(cards[0]))) if cards else {}


def _unknown(video_id: str, registry: Registry, manifests: list[dict[str, Path]]) -> str:
    """What to say of a video that nothing knows; helps who gave a name, or the beginning of an id."""
    near: dict[str, str] = {}
    for each in manifests:
        if "videos" in each:
            near |= _called(video_id, each["videos"])
    if near:
        hint = "; did you mean " + " or ".join(f"{known} ({name})" for known, name in sorted(near.items())[:3]) + "?"
    else:
        hint = "; the column video_id of the videos manifest has the ids (sha256 of a video's bytes)"
    return f"{registry.directory}: no version, cached result or manifest knows a video {video_id!r}{hint}"


def _called(text: str, videos: Path) -> dict[str, str]:
    """Videos of a manifest with this name, or whose id begins so: id to name."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_views("forget", {"videos": videos}, Path(scratch)) as connection,
    ):
        found = connection.execute(
            """SELECT video_id, name FROM videos
               WHERE list_contains([name] || [source.name FOR source IN sources], $1) OR starts_with(video_id, $1)""",
            [text],
        ).fetchall()
    return dict(found)
