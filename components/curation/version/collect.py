"""Remove from store and data root the objects that nothing needs any more.

Needed is what a version holds (by its tag, or by the branch), what was written within the grace period, and, in a data
root, what a cached result names. Everything else is left over: from versions whose tag was deleted, from registrations
that were killed, from results that were replaced. A registration or a run under way is seen by its claim. What fan-outs
over a cluster have written down goes when nobody can wait for it any more, and not within the grace period.

Some records are no cached results, for nothing can compute them again: what was taken down, on which side of train and
held out a video is, what a dataset was like. They stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ...common.fanout_files import PLACE, resting
from ...common.progress import track
from ...common.storage import DataRoot, Entry
from ...common.storage_directory import DirectoryRoot
from . import claims
from .references import (
    OBJECTS,
    RESULTS,
    named_objects,
    records,
    require_all_registries,
    version_objects,
    with_trees,
)
from .registry import Registry

GRACE_DAYS = 14.0
KEPT_KINDS = ("forgotten", "split_sides", "distributions")  # of records that are no cached results
_DAY_S = 86_400.0


@dataclass
class Leftovers:
    """What one place holds and does not need.

    Attributes:
        location: the store's or the data root's.
        kept: why to (objects, bytes) of what stays.
        entries: what goes.
        removed: whether it is gone.
    """

    location: str
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    removed: bool = False

    @property
    def bytes(self) -> int:
        """Of what goes."""
        return sum(entry.bytes for entry in self.entries)


def collect(
    registries: Iterable[Registry],
    remote: DataRoot,
    root: DataRoot | None,
    grace_days: float = GRACE_DAYS,
    results: bool = False,
    remove: bool = False,
    now: Callable[[], float] = time.time,
) -> list[Leftovers]:
    """Find what is left over, and remove it if asked to.

    Args:
        registries: all that keep versions in this store.
        remote: the store.
        root: the data root, if it is to be looked at too; it may be the store.
        grace_days: what is younger stays.
        results: whether cached results that are older than the grace period go too: later runs compute them again.
        remove: remove; otherwise only tell.
        now: the clock, s since 1970.

    Returns:
        One account for the store, and one for the data root where that is another place.

    Raises:
        BadInputError: another registry relies on the store and is not among those given.
        StorageError: what a version needs cannot be known, or a registration or a run is under way.
    """
    known = list(registries)
    if not remove:
        return _look(known, remote, root, grace_days, results, now())
    with _alone_in(remote, root, "removing what no version needs"):
        found = _look(known, remote, root, grace_days, results, now())
        for place, account in zip((remote, root), found, strict=False):
            if place is not None:
                for entry in track(sorted(account.entries, key=_records_first), "left-over objects removed"):
                    place.remove(entry.uri)
                account.removed = True
    return found


@contextmanager
def _alone_in(remote: DataRoot, root: DataRoot | None, what: str) -> Iterator[None]:
    """Nobody registers in the store inside the block, and no run uses the data root, from whatever work directory.

    Raises:
        StorageError: somebody does now.
    """
    with claims.removing(remote, what):
        if root is None or root.location == remote.location:
            yield
            return
        with claims.removing(root, what):
            yield


def _look(
    registries: list[Registry], remote: DataRoot, root: DataRoot | None, grace_days: float, results: bool, now: float
) -> list[Leftovers]:
    require_all_registries(registries, remote)
    held: set[str] = set()
    for registry in registries:
        with registry.locked():
            held = held.union(*version_objects(registry, remote).values())
    oldest = now - grace_days * _DAY_S
    same = root is not None and root.location == remote.location
    out = [_account(remote, held, oldest, results, cached=same)]
    if root is not None and not same:
        out.append(_account(root, held, oldest, results, cached=True))
    if root is not None:
        for name in resting(root, now, grace_days * _DAY_S):
            out[-1].entries += root.entries(f"{PLACE}{name}/")
        if not same and isinstance(root, DirectoryRoot):
            out[-1].entries += _partials(root, oldest)
    return out


def _account(place: DataRoot, held: set[str], oldest: float, results: bool, cached: bool) -> Leftovers:
    account = Leftovers(place.location)
    named: set[str] = set()
    if cached:
        old = {e.uri: e for e in place.entries(RESULTS) if results and e.written_at < oldest and not _is_kept(e.uri)}
        account.entries += old.values()
        for uri, data in records(place):
            if uri not in old:
                named |= named_objects(data)
        named = with_trees(named, place)
    for entry in place.entries(OBJECTS):
        why = (
            "held by a version" if entry.uri in held
            else "named by a cached result" if entry.uri in named
            else "within the grace period" if entry.written_at >= oldest
            else ""
        )  # fmt: skip
        if why:
            count, size = account.kept.get(why, (0, 0))
            account.kept[why] = (count + 1, size + entry.bytes)
        else:
            account.entries.append(entry)
    return account


def _is_kept(uri: str) -> bool:
    return uri.split("/")[1] in KEPT_KINDS


def _partials(root: DirectoryRoot, oldest: float) -> list[Entry]:
    """Files that killed processes left half written."""
    found = []
    for path in root.directory.rglob("*.partial-*"):
        status = path.stat()
        if path.is_file() and status.st_mtime < oldest:
            found.append(Entry(path.relative_to(root.directory).as_posix(), status.st_size, status.st_mtime))
    return found


def _records_first(entry: Entry) -> tuple[bool, str]:
    """Order of removal: no record may name an object that is gone."""
    return not entry.uri.startswith(RESULTS), entry.uri
