"""A study's folder: what is compared. Written once; votes are appended beside it, and a takedown takes items out.

::

    STUDY/study.json          contestants, items, settings, and the digest of every video
    STUDY/videos/<sha256>.mp4 every video, encoded alike, under a name that does not tell whose it is
    STUDY/votes.jsonl         a line for each vote
    STUDY/secret              seals what raters are shown; for the server alone
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from ...common.errors import BadInputError
from ...common.files import write_atomic
from .settings import Category, StudySettings

FORMAT = 1


@dataclass(frozen=True)
class Item:
    """What all contestants made a video of.

    One that was forgotten keeps its place, so that votes on the others still mean them, and its sources; all else of it
    is empty.

    Attributes:
        name: of the files that are compared.
        text: that the contestants were given; None where there is none.
        videos: sha256, in the order of the contestants.
        sources: ids of the videos that these were made from; empty when nothing tells.
    """

    name: str
    text: str | None
    videos: tuple[str, ...]
    sources: tuple[str, ...] = ()

    @property
    def forgotten(self) -> bool:
        return not self.videos


@dataclass(frozen=True)
class Check:
    """An attention check: a video and a ruined copy of it; who looks cannot miss which is which.

    Of one that was forgotten both are empty; its place stays.
    """

    good: str
    ruined: str

    @property
    def forgotten(self) -> bool:
        return not self.good


@dataclass(frozen=True)
class Task:
    """One question about one pair: ``votes_per_task`` raters answer it."""

    category: Category
    item: int
    first: int  # contestants, ``first`` below ``second``: sides are drawn anew for every rater
    second: int

    @property
    def name(self) -> str:
        """Short and unique."""
        return f"{self.category}-{self.item}-{self.first}-{self.second}"


@dataclass(frozen=True)
class Study:
    """A study as it was created."""

    folder: Path
    contestants: tuple[str, ...]
    items: tuple[Item, ...]
    checks: tuple[Check, ...]
    settings: StudySettings
    filter_axis: str | None  # contestants are percentages dropped on it

    def tasks(self) -> list[Task]:
        """Every pair of contestants on every item in every category ([P, E.1]: one against one, all pairs)."""
        pairs = list(combinations(range(len(self.contestants)), 2))
        return [
            Task(category, number, *pair)
            for category in self.settings.categories
            for number, item in enumerate(self.items)
            if not item.forgotten
            for pair in pairs
        ]

    def shown(self) -> set[str]:
        """Digests of all videos that it has."""
        compared = {digest for item in self.items for digest in item.videos}
        checking = {digest for check in self.checks for digest in (check.good, check.ruined)}
        return (compared | checking) - {""}

    @property
    def votes(self) -> Path:
        return self.folder / "votes.jsonl"

    def video(self, digest: str) -> Path:
        return self.folder / "videos" / f"{digest}.mp4"

    def secret(self) -> bytes:
        """The key that seals the server's tickets, as Fernet takes it."""
        return (self.folder / "secret").read_bytes()


def open_study(folder: Path) -> Study:
    """Read a study.

    Raises:
        BadInputError: the folder holds none, or one that this version cannot read.
    """
    path = folder / "study.json"
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise BadInputError(f"{path}: format {found['format']!r}; this version of svdflow reads format {FORMAT}")
        items = tuple(
            Item(i["name"], i["text"], tuple(i["videos"]), tuple(i.get("sources", ()))) for i in found["items"]
        )
        checks = tuple(Check(**check) for check in found["checks"])
        settings = StudySettings(**found["settings"])
        return Study(folder, tuple(found["contestants"]), items, checks, settings, found["filter_axis"])
    except FileNotFoundError:
        raise BadInputError(f"{folder}: no study is there; make one with `svdflow study create`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{path}: cannot be read as a study ({error})") from error


def save_study(study: Study, folder: Path) -> None:
    """Write a study's description, whole or not at all.

    Args:
        study: what is asked.
        folder: where; its own, or the one that it is made in.

    Raises:
        StorageError: it cannot be written.
    """
    found = {
        "format": FORMAT,
        "contestants": study.contestants,
        "items": [asdict(item) for item in study.items],
        "checks": [asdict(check) for check in study.checks],
        "settings": study.settings.model_dump(mode="json"),
        "filter_axis": study.filter_axis,
    }
    write_atomic(folder / "study.json", json.dumps(found, indent=1).encode())


def percentages(names: list[str]) -> list[float]:
    """The percentages that contestants of a filter study are named by.

    Raises:
        BadInputError: a name is no percentage from 0 to below 100.
    """
    out = []
    for name in names:
        try:
            percent = float(name.removesuffix("%"))
        except ValueError:
            percent = -1.0
        if not 0 <= percent < 100:
            raise BadInputError(f"{name!r}: in a study of a filter, a set's name is the percentage dropped, as 12.5")
        out.append(percent)
    if len(set(out)) < len(out):
        raise BadInputError(f"{', '.join(names)}: two sets with the same percentage")
    return out
