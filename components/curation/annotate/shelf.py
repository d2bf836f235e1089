"""What is known of each clip, on disk: of all of them memory holds a number each, and the values of one at a time."""

from __future__ import annotations

import json
import tempfile
from array import array
from pathlib import Path
from typing import Any

_NOTHING = -1


class Shelf:
    """Plain JSON values by number, in a file without a name, which goes when the process does, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as the shelf)
        self._places, self._end = array("q"), 0

    def put(self, number: int, value: Any) -> None:
        """Keep a value; the last one of a number counts."""
        if number >= len(self._places):
            self._places.extend([_NOTHING] * (number + 1 - len(self._places)))
        data = json.dumps(value).encode() + b"\n"
        self._file.seek(self._end)
        self._file.write(data)
        self._places[number] = self._end
        self._end += len(data)

    def get(self, number: int) -> Any:
        """The value of a number, or None."""
        if number >= len(self._places) or self._places[number] == _NOTHING:
            return None
        self._file.seek(self._places[number])
        return json.loads(self._file.readline())
