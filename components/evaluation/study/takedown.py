"""A takedown in a study: items that were made from a video leave it; the others, and the votes on them, stay.

An item's place stays, empty, so that every vote still means what it meant. Votes on it stay in their file, where they
tell nothing of the video, and count no longer. Order: the description first, by which nothing of it is shown any more;
then the results, which show videos; then the videos. What is killed on the way is finished by the next takedown.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from ...common.errors import BadInputError
from ...common.files import storage_error
from .create import sweep_begun
from .study import Check, Item, Study, open_study, save_study
from .votes import alone_with, read_votes

RESULTS = ("results.json", "results.html")  # as `svdflow study results` leaves them


@dataclass(frozen=True)
class Forgotten:
    """What a takedown did to a study.

    Attributes:
        items: how many left it.
        of: how many there were.
        checks: attention checks that went with them.
        checks_left: of the others.
        votes: on the items that left; they count no longer.
        files: videos and results that were removed.
        unknown: names of the items left of which nothing tells what they were made from.
    """

    items: int
    of: int
    checks: int
    checks_left: int
    votes: int
    files: int
    unknown: tuple[str, ...]


def forget_in_study(folder: Path, video_id: str | None, names: Collection[str] = ()) -> Forgotten:
    """Take out what was made from a video.

    Args:
        folder: the study's.
        video_id: sha256 of the video's bytes; None to go by names alone.
        names: of items to take out besides, for those that tell no source.

    Raises:
        BadInputError: there is no study, a server has it, or it has no item of such a name.
        StorageError: it cannot be written.
    """
    study = open_study(folder)
    with alone_with(study.votes):
        study = open_study(folder)
        sweep_begun(folder)
        left = {item.name for item in study.items if not item.forgotten}
        strangers = sorted(set(names) - left)
        gone = {
            number
            for number, item in enumerate(study.items)
            if not item.forgotten and not strangers and (video_id in item.sources or item.name in names)
        }
        digests = {digest for number in gone for digest in study.items[number].videos}
        without = _without(study, gone, digests)
        if gone:
            save_study(without, folder)
        files = _sweep_files(without)
        if strangers:
            raise BadInputError(f"{folder}: compares no {strangers[0]}; nothing was taken out")
        names_of = {task.name for task in study.tasks() if task.item in gone}
        return Forgotten(
            items=len(gone),
            of=len(left),
            checks=sum(check.good in digests for check in study.checks),
            checks_left=sum(not check.forgotten for check in without.checks),
            votes=sum(vote.task in names_of for vote in read_votes(study.votes)),
            files=files,
            unknown=tuple(item.name for item in without.items if not item.forgotten and not item.sources),
        )


def _without(study: Study, gone: Collection[int], digests: Collection[str]) -> Study:
    items = tuple(
        Item("", None, (), item.sources) if number in gone else item for number, item in enumerate(study.items)
    )
    checks = tuple(Check("", "") if check.good in digests else check for check in study.checks)
    return replace(study, items=items, checks=checks)


def _sweep_files(study: Study) -> int:
    """Remove videos that the study does not have, and with them results, which may show them."""
    shown = study.shown()
    strays = [path for path in (study.folder / "videos").iterdir() if path.stem not in shown]
    results = [path for name in RESULTS if (path := study.folder / name).exists()] if strays else []
    for path in (*results, *strays):
        try:
            path.unlink()
        except OSError as error:
            raise storage_error(path, error) from error
    return len(strays) + len(results)
