"""The classes of UCF-101, how many videos each has, and so which videos are asked of a model."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import BadInputError

SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov")
_MAX_CSV_BYTES, _MAX_VIDEOS = 1 << 20, 1_000_000
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True)
class Asked:
    """One video that is asked for: of which class, its number among the class's, and in what words."""

    of_class: str
    number: int
    prompt: str


def folder_videos(folder: Path) -> dict[str, list[Path]]:
    """The videos of a folder with one folder a class, by class; both in the order of their names.

    Raises:
        BadInputError: there is no such folder, or it holds no class with a video.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder}: there is no such folder; name that of UCF-101, which has one folder a class")
    found: dict[str, list[Path]] = {}
    for room in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        inside = [path for path in room.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
        if inside:
            found[room.name] = sorted(inside)
    if not found:
        raise BadInputError(
            f"{folder}: holds no folder with videos ({', '.join(SUFFIXES)}); UCF-101 has one folder a class"
        )
    return found


def csv_counts(path: Path) -> dict[str, int]:
    """How many videos each class has, out of a CSV with columns ``class`` and ``count``.

    Raises:
        BadInputError: it is no such CSV, a count is no number from 1 to a million, or a class comes twice.
    """
    try:
        if path.stat().st_size > _MAX_CSV_BYTES:
            raise BadInputError(f"{path}: more than {_MAX_CSV_BYTES} bytes are no list of classes")
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{path}: cannot be read as CSV ({error})") from error
    counts: dict[str, int] = {}
    for line, row in enumerate(rows, 2):
        name, count = ((row.get(column) or "").strip() for column in ("class", "count"))
        if not name or not count.isdecimal() or len(count) > len(str(_MAX_VIDEOS)) or not int(count):
            raise BadInputError(
                f"{path}, line {line}: columns class and count are needed, the count a number from 1 to {_MAX_VIDEOS}"
            )
        if name in counts:
            raise BadInputError(f"{path}, line {line}: {name} comes twice")
        counts[name] = int(count)
    if not counts or sum(counts.values()) > _MAX_VIDEOS:
        raise BadInputError(
            f"{path}: {sum(counts.values())} videos of {len(counts)} classes; 1 to {_MAX_VIDEOS} can be"
        )
    return counts


def draw(counts: Mapping[str, int], videos: int | None) -> dict[str, int]:
    """So many videos with the distribution of ``counts``, by largest remainders; all of them for None.

    A class may come out with none. Of equal remainders the one that stands first is taken.

    Raises:
        BadInputError: more are wanted than there are.
    """
    total = sum(counts.values())
    if videos is None:
        return dict(counts)
    if videos > total:
        raise BadInputError(f"{videos} videos are wanted and the reference has {total}; leave the number out for all")
    shares = {name: divmod(count * videos, total) for name, count in counts.items()}
    most_left = sorted(shares, key=lambda name: -shares[name][1])[: videos - sum(whole for whole, _ in shares.values())]
    return {name: whole + (name in most_left) for name, (whole, _) in shares.items()}


def plan(counts: Mapping[str, int], split_words: bool) -> list[Asked]:
    """Every video that is asked for, by class and number."""
    return [
        Asked(name, number, split_name(name) if split_words else name)
        for name, count in counts.items()
        for number in range(count)
    ]


def split_name(name: str) -> str:
    """``Table Tennis Shot`` of ``TableTennisShot``; a name that is no such compound as it is."""
    words = _WORD.findall(name)
    return " ".join(words) if "".join(words) == name else name


def part_of(part: str) -> tuple[int, int]:
    """``2/8``, the second of eight parts, as (1, 8).

    Raises:
        BadInputError: it is no such thing.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise BadInputError(f"--part {part}: as 2/8, the second of eight parts")
    return int(found[1]) - 1, int(found[2])
