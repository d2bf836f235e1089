"""Near-duplicates: the groups of clips that are alike, and the place of each within its group."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...common.errors import BadInputError
from ...common.storage import DataRoot
from .settings import FilterSettings
from .similar import Groups, join_alike

_BATCH = 4096  # clips whose embeddings are read together
_READERS = 8  # objects read at once: an object store answers late, and many at a time


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
    clips, kinds = _gather(connection, embedded, root, scratch)
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


def _gather(connection: Any, count: int, root: DataRoot, scratch: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows of the embedded clips in ``scored``, int64 [N], and their vectors: float16 [N, D] each, on disk."""
    clips = np.empty(count, np.int64)
    kinds: dict[str, np.ndarray] = {}
    at = 0
    for rows, uris in _embedded(connection):
        with ThreadPoolExecutor(_READERS) as pool:
            read = list(pool.map(lambda uri: _middle_frame(root, uri), uris))
        for name in read[0]:
            if not at:
                shape = (count, len(read[0][name]))
                kinds[name] = np.lib.format.open_memmap(scratch / f"{name}.npy", "w+", np.float16, shape)
            try:
                kinds[name][at : at + len(read)] = np.stack([vectors[name] for vectors in read])
            except ValueError:
                raise BadInputError(
                    f"annotations: embeddings of several sizes, such as {uris[0]}: they are of several models; "
                    "annotate all clips with one, or set filter.near_duplicate_cosine=null"
                ) from None
        clips[at : at + len(rows)] = rows
        at += len(rows)
    return clips, list(kinds.values())


def _embedded(connection: Any) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Rows in ``scored`` and URIs of the embeddings, in the order of the clips."""
    reader = (
        connection.cursor()
        .sql(
            """SELECT s.rowid AS clip, a.embedding_uri AS uri FROM scored s JOIN annotations a USING (clip_id)
           WHERE s.embedded ORDER BY clip"""
        )
        .to_arrow_reader(_BATCH)
    )
    for batch in reader:
        yield batch["clip"].to_numpy(), batch["uri"].to_pylist()


def _middle_frame(root: DataRoot, uri: str) -> dict[str, np.ndarray]:
    """The middle frame's vectors: "image", and "thumbnail"."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        stored = load(root.read(uri))
        return {name: stored[name][1] for name in ("image", "thumbnail")}
    except (SafetensorError, KeyError, IndexError) as error:
        raise BadInputError(f"{uri}: no embeddings of three frames ({error}); annotate the clips again") from error
