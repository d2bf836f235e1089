"""What videos were made from: a list beside them, by which a takedown finds them wherever they went."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from ..common.errors import BadInputError
from ..common.files import write_atomic

SOURCES = "sources.csv"  # in a folder of videos: columns video (a name without its ending) and source (a video's id)
_ID = re.compile(r"[0-9a-f]{64}")


def write_sources(folder: Path, pairs: Iterable[tuple[str, str]]) -> None:
    """Write the list: names of videos, and the ids (sha256) of those that they were made from.

    Raises:
        StorageError: it cannot be written.
    """
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(("video", "source"))
    rows.writerows(pairs)
    write_atomic(folder / SOURCES, stream.getvalue().encode())


def read_sources(folder: Path) -> dict[str, tuple[str, ...]]:
    """Name to the ids of the videos that it was made from; empty where the folder has no list.

    Raises:
        BadInputError: the list cannot be read, or a row has no name or no id.
    """
    path = folder / SOURCES
    found: dict[str, set[str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            for number, row in enumerate(csv.DictReader(stream), 2):
                name, source = ((row.get(column) or "").strip() for column in ("video", "source"))
                if not name or not _ID.fullmatch(source):
                    raise BadInputError(
                        f"{path}, line {number}: columns video (a file's name without its ending) and source (the 64 "
                        "hex digits of a video's id) are needed"
                    )
                found.setdefault(name, set()).add(source)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{path}: cannot be read as CSV ({error})") from error
    return {name: tuple(sorted(sources)) for name, sources in found.items()}
