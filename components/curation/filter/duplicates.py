"""Near-duplicates: the groups of clips that are alike, and the place of each within its group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...common.storage import DataRoot
from .settings import FilterSettings
from .similar import Groups, join_alike
from .vectors import gather


@dataclass(frozen=True)
class Duplicates:
    """What the search found.

    Attributes:
        looked: whether it was made.
        exact: whether every pair of clips was compared.
        embedded: clips with an embedding.
        groups: groups of two and more.
        clips: clips in them.
        largest: clips of the largest.
    """

    looked: bool = False
    exact: bool = True
    embedded: int = 0
    groups: int = 0
    clips: int = 0
    largest: int = 0


def find_duplicates(
    connection: Any, passes: str, root: DataRoot, scratch: Path, settings: FilterSettings
) -> Duplicates:
    """Make the table ``places``: clip (its row in ``scored``), group (its lowest clip id), place, barred.

    Two clips are alike when the middle frames are, in embedding or in a tiny grey picture (which knows a scene again
    where a network does not). A group is a connected component: its ends need not be alike. Place 0 is the clip to
    keep: one that passes the other axes before one that does not, then the best aesthetic score, then the lowest id.

    Args:
        connection: with ``scored`` and ``annotations``.
        passes: SQL over ``scored``, whether a clip passes the other axes.
        root: where the embeddings lie.
        scratch: takes the vectors while they are compared.
        settings: from which cosine on.
    """
    connection.execute('CREATE TABLE places (clip BIGINT, "group" VARCHAR, place BIGINT, barred BOOLEAN)')
    embedded = connection.execute("SELECT count(*) FROM scored WHERE embedded").fetchall()[0][0]
    if settings.near_duplicate_cosine is None:
        return Duplicates()
    if embedded < 2:
        return Duplicates(looked=True, embedded=embedded)
    groups, exact = Groups(embedded), True
    clips, kinds = gather(connection, embedded, root, scratch)
    for vectors in kinds:
        exact &= join_alike(groups, vectors, settings.near_duplicate_cosine, settings.duplicates_exact_up_to)
    names = groups.names()
    sizes = np.bincount(names, minlength=embedded)
    grouped = sizes[names] > 1
    connection.register("grouped", pa.table({"clip": clips[grouped], "named": clips[names[grouped]]}))
    connection.execute(
        f"""INSERT INTO places
            SELECT clip, min(clip_id) OVER (PARTITION BY named), row_number() OVER (
                       PARTITION BY named
                       ORDER BY {passes} DESC, nullif(aesthetic_value, 'nan'::DOUBLE) DESC NULLS LAST, clip) - 1, false
            FROM grouped g JOIN scored s ON s.rowid = g.clip"""
    )
    connection.unregister("grouped")
    return Duplicates(
        True, exact, embedded, int((sizes > 1).sum()), int(grouped.sum()), int(sizes.max()) if grouped.any() else 0
    )
