"""Train and held out: by source video, decided by a hash of the video, near-duplicates never on both sides.

A side, once decided, stays when videos come:

* the hash alone decides in a large set. It looks at nothing but the video and the seed.
* In a small one, the hash may leave a side empty. No rule without a memory helps: of three videos to which it gives a
  side each, two have the same, and as a set of two they lack the other. So what was decided is recorded in the data
  root, and only videos without a record are dealt out.
* Near-duplicate clips on both sides: those to train on are dropped, held-out ones stay. No side flips for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ...common.identity import identity
from ...common.storage import DataRoot
from .settings import FilterSettings

SMALL = 10_000  # videos with kept clips up to which decisions are recorded and both sides are seen to
_RECORDS = "split_sides"


@dataclass(frozen=True)
class Sides:
    """How the videos were divided.

    Attributes:
        recorded: videos whose side an earlier run had decided, and that the hash was not asked for.
        decided: videos whose side was recorded by this run.
        empty: kinds of source of two videos and more that have no video on one of the sides.
    """

    recorded: int = 0
    decided: int = 0
    empty: tuple[str, ...] = ()


def draw(seed: str, name: str) -> str:
    """16 hex digits, equally distributed: the lowest are held out."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()[:16]


def below(fraction: float) -> str:
    """The draw from which on a video is not held out."""
    return f"{int(fraction * 2**64):016x}"


def divide(connection: Any, root: DataRoot, settings: FilterSettings) -> Sides:
    """Make the table ``sides``: the sources, with the side of those that have kept clips.

    Args:
        connection: with ``sources``, ``per_video``, ``places`` and the view ``judged`` (clip, video, keep).
        root: holds the record of sides decided.
        settings: fraction and seed.
    """
    connection.execute(
        """CREATE TABLE sides AS SELECT s.*, CASE WHEN p.kept > 0 THEN 'train' END AS side
           FROM sources s JOIN per_video p USING (video)"""
    )
    fraction, seed = settings.held_out_fraction, settings.split_seed
    videos = connection.execute("SELECT count(side) FROM sides").fetchall()[0][0]
    if not fraction or videos < 2:
        return Sides()
    recorded = read_record(root, seed, fraction)
    if videos <= SMALL:
        sources = dict(connection.execute("SELECT video_id, source FROM sides WHERE side IS NOT NULL").fetchall())
        linked = connection.execute(
            """SELECT DISTINCT s.video_id, p."group" FROM places p JOIN judged j ON j.clip = p.clip
               JOIN sides s ON s.video = j.video WHERE j.keep"""
        ).fetchall()
        dealt = deal(sources, link(linked), recorded, fraction, seed)
        fresh = {video: side for video, side in dealt.items() if video not in recorded}
        if len(set(dealt.values())) > 1:  # a set that cannot be divided has decided nothing
            write_record(root, seed, fraction, fresh)
        _overrule(connection, dealt)
        return Sides(len(dealt) - len(fresh), len(fresh), _empty(connection))
    connection.execute(
        """UPDATE sides SET side = 'held_out'
           WHERE side IS NOT NULL AND sha256(concat(?::VARCHAR, chr(0), video_id))[:16] < ?""",
        [seed, below(fraction)],
    )
    return Sides(_overrule(connection, recorded), 0, _empty(connection))


def deal(
    sources: Mapping[str, str], groups: Mapping[str, str], recorded: Mapping[str, str], fraction: float, seed: str
) -> dict[str, str]:
    """Video id to "train" or "held_out".

    A recorded video stays where it is. A group follows its recorded videos (as training data, where they are on both
    sides). Of the others, a group is held out when its draw is below ``fraction``; where that leaves a kind of source
    with less than its share (one group at least, of two and more), the next draws follow, and one group is always left
    to train on.

    Args:
        sources: video id to kind of source ("footage", "generated").
        groups: video id to the group that it goes with; one of its own where missing.
        recorded: video id to the side decided before.
        fraction: share to hold out, above 0.
        seed: another seed, another choice.
    """
    members: dict[str, list[str]] = {}
    for video in sorted(sources):
        members.setdefault(groups.get(video, video), []).append(video)
    kinds: dict[str, list[list[str]]] = {}
    for videos in members.values():
        kinds.setdefault(min(sources[video] for video in videos), []).append(videos)
    dealt: dict[str, str] = {}
    for of_kind in kinds.values():
        fresh, held, train = [], 0, 0
        for videos in of_kind:
            known = {recorded[video] for video in videos if video in recorded}
            side = "held_out" if known == {"held_out"} else "train"
            dealt |= {video: recorded.get(video, side) for video in videos}
            held, train = held + (known == {"held_out"}), train + ("train" in known)
            if not known:
                fresh.append((draw(seed, videos[0]), videos))
        fresh.sort()
        share = max(1, int(fraction * len(of_kind))) if len(of_kind) > 1 else 0
        wanted = max(share - held, sum(drawn < below(fraction) for drawn, _ in fresh))
        for _, videos in fresh[: min(wanted, len(fresh) - (0 if train else 1))]:
            dealt |= dict.fromkeys(videos, "held_out")
    return dealt


def link(pairs: list[tuple[str, Any]]) -> dict[str, str]:
    """Video id to group, for pairs of a video and a set of near-duplicate clips: who shares a set goes together."""
    group: dict[str, str] = {}

    def find(video: str) -> str:
        while group.setdefault(video, video) != video:
            group[video] = group[group[video]]
            video = group[video]
        return video

    first: dict[Any, str] = {}
    for video, named in sorted(pairs):
        one, two = find(first.setdefault(named, video)), find(video)
        group[max(one, two)] = min(one, two)
    return {video: find(video) for video in list(group)}


def bar_from_training(connection: Any) -> int:
    """Bar the kept clips to train on that are near-duplicates of kept held-out ones; how many they are."""
    of_side = """SELECT p.clip, p."group" FROM places p JOIN judged j ON j.clip = p.clip
                 JOIN sides s ON s.video = j.video WHERE j.keep AND s.side = '{}' """
    connection.execute(
        f"""UPDATE places SET barred = true WHERE clip IN (
                SELECT clip FROM ({of_side.format("train")})
                WHERE "group" IN (SELECT "group" FROM ({of_side.format("held_out")})))"""
    )
    return connection.execute("SELECT count(*) FROM places WHERE barred").fetchall()[0][0]


def read_record(root: DataRoot, seed: str, fraction: float) -> dict[str, str]:
    """Sides decided before; where two runs at once decided otherwise, the video is held out."""
    sides: dict[str, str] = {}
    for uri in sorted(root.list(f"results/{_RECORDS}/")):
        record = root.find(_RECORDS, uri.rsplit("/", 1)[-1].removesuffix(".json"))
        if record and (record["seed"], record["fraction"]) == (seed, fraction):
            for video, side in record["sides"].items():
                sides[video] = min(side, sides.get(video, side))
    return sides


def write_record(root: DataRoot, seed: str, fraction: float, sides: Mapping[str, str]) -> None:
    """Record sides. Records are named by their content and never changed: two runs at once lose nothing."""
    if sides:
        record = {"seed": seed, "fraction": fraction, "sides": dict(sides)}
        root.record(_RECORDS, identity(**record), record)


def _overrule(connection: Any, sides: Mapping[str, str]) -> int:
    """Put videos on the sides told; returns how many of them are here."""
    columns = {"video_id": pa.array(list(sides), pa.string()), "side": pa.array(list(sides.values()), pa.string())}
    connection.register("told", pa.table(columns))
    changed = connection.execute(
        """UPDATE sides SET side = told.side FROM told
           WHERE sides.video_id = told.video_id AND sides.side IS NOT NULL"""
    ).fetchall()[0][0]
    connection.unregister("told")
    return changed


def _empty(connection: Any) -> tuple[str, ...]:
    rows = connection.execute(
        "SELECT source FROM sides GROUP BY source HAVING count(side) > 1 AND count(DISTINCT side) < 2 ORDER BY source"
    ).fetchall()
    return tuple(source for (source,) in rows)
