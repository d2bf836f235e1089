"""What a report keeps of many items, in memory that does not grow with their number, whatever order they come in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Least(Generic[T]):
    """Of many items those with the least keys.

    Args:
        most: how many.

    Attributes:
        seen: how many there were.
    """

    def __init__(self, most: int) -> None:
        self.most, self.seen = most, 0
        self._kept: list[tuple[Any, T]] = []

    def add(self, key: Any, item: T) -> None:
        """Take an item; no two have one key."""
        self.seen += 1
        self._kept.append((key, item))
        if len(self._kept) >= 2 * self.most:
            self._trim()

    def __iter__(self) -> Iterator[T]:
        """Those kept, in the order of their keys."""
        self._trim()
        return (item for _, item in self._kept)

    def _trim(self) -> None:
        self._kept.sort(key=lambda entry: entry[0])
        del self._kept[self.most :]


class Seconds:
    """A sum of seconds in whole microseconds: in whatever order they come it is the same."""

    def __init__(self) -> None:
        self.microseconds = 0

    def add(self, seconds: float) -> None:
        """Add some."""
        self.microseconds += round(seconds * 1e6)

    @property
    def value(self) -> float:
        """In s."""
        return self.microseconds / 1e6
