"""The clips' vectors out of the data root: each read once by itself, and from then on together with many others.

Annotate writes an object for every clip, so that a takedown can remove it. To compare all clips, each of them would be
a request, in every run. So what was read is kept in packs, by the beginning of the objects' names: a run reads a pack
and, by themselves, only the objects that came since; what has changed is packed anew. The record of a pack names the
clips that are in it: a takedown drops both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import BadInputError
from ...common.identity import identity
from ...common.storage import DataRoot, object_uri, uri_md5

PACKS, VERSION = "filter_vectors", "1"
KINDS = ("image", "thumbnail")
_PACK = 4096  # clips in a pack, at most about so many
_READERS = 32  # objects read at once: an object store answers late, and many at a time
_BATCH = 1 << 14  # rows

_Row = tuple[int, int, str, str]  # place among the embedded, row in ``scored``, clip id, URI


def gather(connection: Any, count: int, root: DataRoot, scratch: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows of the embedded clips in ``scored``, int64 [N], and their vectors: float16 [N, D] each, on disk.

    Args:
        connection: with ``scored`` and ``annotations``.
        count: N.
        root: where the embeddings lie.
        scratch: takes the vectors.

    Raises:
        BadInputError: an object holds no embeddings, or they are of several sizes.
    """
    clips = np.empty(count, np.int64)
    kinds: dict[str, np.ndarray] = {}
    for beginning, rows in _buckets(connection, count):
        places = np.array([place for place, *_ in rows])
        clips[places] = [clip for _, clip, _, _ in rows]
        vectors = _vectors(root, beginning, rows)
        for name in KINDS:
            if name not in kinds:
                shape = (count, vectors[name].shape[1])
                kinds[name] = np.lib.format.open_memmap(scratch / f"{name}.npy", "w+", np.float16, shape)
            if kinds[name].shape[1] != vectors[name].shape[1]:
                raise _several_sizes(rows)
            kinds[name][places] = vectors[name]
    return clips, [kinds[name] for name in KINDS]


def _buckets(connection: Any, count: int) -> Iterator[tuple[str, list[_Row]]]:
    """The embedded clips by the beginning of their object's name, which is a digest: parts of about equal size."""
    digits = next(digits for digits in range(32) if count <= _PACK * 16**digits)
    reader = (
        connection.cursor()
        .sql(
            """SELECT row_number() OVER (ORDER BY s.rowid) - 1 AS place, s.rowid AS clip, s.clip_id, a.embedding_uri
               FROM scored s JOIN annotations a USING (clip_id) WHERE s.embedded ORDER BY a.embedding_uri, place"""
        )
        .to_arrow_reader(_BATCH)
    )
    beginning, rows = "", list[_Row]()
    for batch in reader:
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            of_row = uri_md5(row[3])[:digits]
            if rows and of_row != beginning:
                yield beginning, rows
                rows = []
            beginning = of_row
            rows.append(row)
    if rows:
        yield beginning, rows


def _vectors(root: DataRoot, beginning: str, rows: Sequence[_Row]) -> dict[str, np.ndarray]:
    """Vectors of each kind of the clips of one bucket, in the order of the rows: [N, D]."""
    from safetensors.numpy import save

    uris = sorted({uri for *_, uri in rows})
    key = identity(version=VERSION, beginning=beginning)
    record = root.find(PACKS, key)
    packed = _unpacked(root, record["pack"]) if record else {}
    missing = [uri for uri in uris if uri not in packed]
    with ThreadPoolExecutor(_READERS) as pool:
        packed |= dict(zip(missing, pool.map(lambda uri: _middle_frame(root, uri), missing), strict=True))
    try:
        whole = {name: np.stack([packed[uri][name] for uri in uris]).astype(np.float16) for name in KINDS}
    except ValueError:
        raise _several_sizes(rows) from None
    if missing:
        names = np.array([list(bytes.fromhex(uri_md5(uri))) for uri in uris], np.uint8)
        pack = root.put_bytes(save({**whole, "names": names}))
        root.record(PACKS, key, {"pack": pack, "clips": [clip_id for _, _, clip_id, _ in rows]})
        if record and record["pack"] != pack:
            root.remove(record["pack"])  # no record names it any more: a takedown would not find it
    at = {uri: n for n, uri in enumerate(uris)}
    order = [at[uri] for *_, uri in rows]
    return {name: vectors[order] for name, vectors in whole.items()}


def _unpacked(root: DataRoot, pack: str) -> dict[str, dict[str, np.ndarray]]:
    """URI to its vectors; nothing where the pack is gone."""
    from safetensors.numpy import load

    if not root.exists(pack):
        return {}
    stored = load(root.read(pack))
    digests = [bytes(row).hex() for row in stored["names"]]
    return {object_uri(digest): {name: stored[name][n] for name in KINDS} for n, digest in enumerate(digests)}


def _middle_frame(root: DataRoot, uri: str) -> dict[str, np.ndarray]:
    """The middle frame's vectors: "image", and "thumbnail"."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        stored = load(root.read(uri))
        return {name: stored[name][1] for name in KINDS}
    except (SafetensorError, KeyError, IndexError) as error:
        raise BadInputError(f"{uri}: no embeddings of three frames ({error}); annotate the clips again") from error


def _several_sizes(rows: Sequence[_Row]) -> BadInputError:
    return BadInputError(
        f"annotations: embeddings of several sizes, such as {rows[0][3]}: they are of several models; "
        "annotate all clips with one, or set filter.near_duplicate_cosine=null"
    )
