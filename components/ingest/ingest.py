"""Raw footage into the manifest ``videos``: what there is, what each file is, and the bytes in the data root."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.config import Settings
from ..common.errors import BadInputError
from ..common.fanout import default_workers, map_units
from ..common.identity import file_sha256, identity
from ..common.manifests import write_manifest
from ..common.progress import track
from ..common.report import StepReport, images, table
from ..common.storage import DataRoot
from . import examine
from .footage import VERSION as FOOTAGE_VERSION
from .footage import FootageSettings, write_footage

_MAX_SIDECAR_BYTES = 1 << 20
_SHOWN = 24  # videos with a picture in the report
_LISTED = 200  # rows of a table in the report


class IngestSettings(Settings):
    """What is taken in. The paper does not tell where its videos come from: all of this is ours."""

    generated_clips: int = 0  # short videos made by svdflow and added to the source, labelled "generated"
    generated_seed: int = 0
    footage: FootageSettings = FootageSettings()
    licence: str | None = None  # of files whose sidecar names none
    timeout_s: float = 600.0  # for hashing or probing one file


@dataclass(frozen=True)
class _File:
    name: str
    path: Path
    sidecar: dict[str, Any]


def ingest_videos(source: str, out: Path, root: DataRoot, settings: IngestSettings) -> StepReport:
    """Take in every file below a folder: one row per file, in the order of their names.

    A file is known by the sha256 of its bytes; what is known about it is kept and not found out again. A second file
    with the same bytes is set aside as a duplicate. What is no usable video is set aside with a reason, and counted.

    Args:
        source: folder of videos, searched recursively. "" when only generated footage is wanted. ``<name>.json`` beside
            ``<name>.<ext>`` is its sidecar: ``description``, ``licence`` and ``source`` are read. ``<name>.txt`` is
            read as a description. Hidden files are passed over.
        out: the manifest ``videos`` to write.
        root: takes the bytes.
        settings: what to add, and limits.

    Raises:
        BadInputError: the folder does not exist, or there is no file to take in.
    """
    files = list(_files_below(Path(source), "")) if source else []
    if source and not Path(source).is_dir():
        raise BadInputError(f"{source}: is no folder; name a folder of video files")
    files += _generated(root, settings)
    if not files:
        place = f"{source}: holds no file" if source else "no folder of videos is named and ingest.generated_clips is 0"
        raise BadInputError(f"{place}; name a folder of video files, or set ingest.generated_clips")
    digests, verdicts, done = _verdicts(files, root, settings)
    rows: list[dict[str, Any]] = []
    first_of: dict[str, str] = {}
    for file in files:
        sha256, verdict = digests[file.name], verdicts[file.name]
        if sha256 in first_of and sha256:
            verdict = {**verdict, "error": verdict.get("error") or f"duplicate: same bytes as {first_of[sha256]}"}
        first_of.setdefault(sha256, file.name)
        rows.append(_row(file, sha256, verdict, settings))
    write_manifest("videos", rows, out)
    report = _report(rows, verdicts, root, done)
    faults = [[file.name, file.sidecar["fault"]] for file in files if "fault" in file.sidecar]
    if faults:
        report.sections.append(table("Sidecars that cannot be read", ["video", "why"], faults[:_LISTED]))
    return report


def _generated(root: DataRoot, settings: IngestSettings) -> list[_File]:
    if settings.generated_clips <= 0:
        return []
    key = identity(version=FOOTAGE_VERSION, seed=settings.generated_seed, footage=settings.footage)
    directory = root.scratch("footage", key)
    paths = write_footage(directory, settings.generated_clips, settings.generated_seed, settings.footage)
    return [_File(f"generated/{path.name}", path, _sidecar(path)) for path in paths]


def _files_below(directory: Path, prefix: str) -> Iterator[_File]:
    """Files below a folder in sorted order; hidden ones, and sidecars of others, are passed over."""
    if not directory.is_dir():
        return
    entries = sorted(
        (e for e in os.scandir(directory) if not e.name.startswith(".")), key=lambda e: os.fsencode(e.name)
    )
    stems = {Path(e.name).stem for e in entries if Path(e.name).suffix.lower() not in (".json", ".txt")}
    for entry in entries:
        name = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")  # names need not be text
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(path, name + "/")
        elif path.suffix.lower() not in (".json", ".txt") or path.stem not in stems:
            yield _File(name, path, _sidecar(path))


def _sidecar(path: Path) -> dict[str, Any]:
    """What lies beside a video about it; a sidecar that cannot be read says so under ``fault``."""
    about: dict[str, Any] = {}
    sidecar, note = path.with_suffix(".json"), path.with_suffix(".txt")
    try:
        if note.is_file() and note != path and note.stat().st_size <= _MAX_SIDECAR_BYTES:
            about["description"] = note.read_text(encoding="utf-8").strip() or None
        if sidecar.is_file() and sidecar != path:
            if sidecar.stat().st_size > _MAX_SIDECAR_BYTES:
                raise ValueError(f"larger than {_MAX_SIDECAR_BYTES} bytes")
            loaded = json.loads(sidecar.read_bytes())
            if not isinstance(loaded, dict):
                raise ValueError("no JSON object")
            for field in ("description", "licence", "source"):
                if isinstance(loaded.get(field), str):
                    about[field] = loaded[field].strip() or None
    except (OSError, ValueError) as error:
        about["fault"] = f"{sidecar.name}: {str(error).splitlines()[0].replace(str(sidecar), sidecar.name)}"
    return about


def _verdicts(
    files: list[_File], root: DataRoot, settings: IngestSettings
) -> tuple[dict[str, str], dict[str, dict], int]:
    """For every file name its hash ("" when unreadable) and its verdict, and how many verdicts had to be found."""
    digests: dict[str, str] = {}
    verdicts: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(default_workers()) as threads:  # hashing needs no process of its own: it releases the GIL
        hashed = threads.map(_digest, [file.path for file in files])
        for file, (sha256, fault) in zip(files, track(hashed, "files hashed", len(files)), strict=True):
            digests[file.name] = sha256
            if fault:
                verdicts[file.name] = {"error": fault}
    known: dict[str, dict[str, Any]] = {}
    wanted: dict[str, str] = {}  # path to hash: one path for each content that is not known yet
    for file in files:
        sha256 = digests[file.name]
        if not sha256 or sha256 in known or sha256 in wanted.values():
            continue
        found = root.find("ingest", identity(sha256=sha256, version=examine.VERSION))
        if found is not None and (not found.get("uri") or root.exists(found["uri"])):
            known[sha256] = found
        else:
            wanted[str(file.path)] = sha256
    for probed in map_units(examine.examine, list(wanted), "videos", timeout_s=settings.timeout_s):
        known[wanted[probed.unit]] = _keep(probed.unit, wanted[probed.unit], probed.value, probed.error, root)
    for file in files:
        if file.name not in verdicts:
            verdicts[file.name] = known[digests[file.name]]
    return digests, verdicts, len(wanted)


def _digest(path: Path) -> tuple[str, str | None]:
    """Hex sha256 of a file, or "" and the reason."""
    try:
        return file_sha256(path), None
    except OSError as error:
        return "", f"unreadable: {error.strerror or error}"


def _keep(path: str, sha256: str, verdict: dict[str, Any] | None, fault: str | None, root: DataRoot) -> dict[str, Any]:
    """Store what was found out. A crash or a time-out is no verdict on the bytes: it is tried again in the next run."""
    if verdict is None:
        return {"error": f"crash: probing it {(fault or '').replace(path, 'the file')}"}
    kept = {"error": verdict["error"]} if "error" in verdict else {"info": verdict["info"]}
    if "info" in kept:
        kept["uri"] = root.put_file(Path(path))
        kept["thumbnail"] = root.put_bytes(verdict["thumbnail"])
    root.record("ingest", identity(sha256=sha256, version=examine.VERSION), kept)
    return kept


def _row(file: _File, sha256: str, verdict: dict[str, Any], settings: IngestSettings) -> dict[str, Any]:
    source = file.sidecar.get("source")
    try:
        size = file.path.stat().st_size
    except OSError:
        size = 0
    return {
        "video_id": sha256,
        "uri": verdict.get("uri", ""),
        "name": file.name,
        "bytes": size,
        **verdict.get("info", {}),
        "licence": file.sidecar.get("licence") or settings.licence,
        "source": source if source in ("footage", "generated") else "footage",
        "description": file.sidecar.get("description"),
        "status": "set_aside" if verdict.get("error") else "ok",
        "error": verdict.get("error"),
    }


def _report(rows: list[dict[str, Any]], verdicts: dict[str, dict], root: DataRoot, done: int) -> StepReport:
    kept = [row for row in rows if row["status"] == "ok"]
    aside = [row for row in rows if row["status"] != "ok"]
    by_reason = dict(sorted(Counter(row["error"].split(":")[0] for row in aside).items()))
    hours = sum(row["duration_s"] for row in kept) / 3600
    generated = sum(row["source"] == "generated" for row in kept)
    report = StepReport("ingest", "Raw footage taken in", done=done, reused=len({r["video_id"] for r in rows}) - done)
    report.counts = {
        "files": len(rows),
        "videos": len(kept),
        "set aside": len(aside),
        **{f"set aside: {k}": v for k, v in by_reason.items()},
    }
    report.summary = {
        "videos": {
            "files": len(rows),
            "ok": len(kept),
            "set_aside": len(aside),
            "hours": round(hours, 6),
            "generated": generated,
            "by_reason": by_reason,
        }
    }
    shown = _spread([row for row in kept if row["source"] != "generated"], _SHOWN // 2)
    shown += _spread([row for row in kept if row["source"] == "generated"], _SHOWN - len(shown))
    pictures = [
        (_picture(root.read(verdicts[row["name"]]["thumbnail"])), f"{row['name']} ({row['source']})") for row in shown
    ]
    report.sections = [images("First and middle frames", pictures, note=_note(len(shown), len(kept), "videos"))]
    columns = [
        "name",
        "source",
        "container",
        "codec",
        "size (px)",
        "fps",
        "frames",
        "duration (s)",
        "rotation (°)",
        "licence",
        "description",
    ]
    report.sections.append(
        table(
            "Videos",
            columns,
            [_cells(row) for row in kept[:_LISTED]],
            note=_note(min(len(kept), _LISTED), len(kept), "videos"),
        )
    )
    if aside:
        listed = [[row["name"], row["bytes"], row["error"]] for row in aside[:_LISTED]]
        report.sections.append(
            table("Set aside", ["name", "bytes", "why"], listed, note=_note(len(listed), len(aside), "files"))
        )
    return report


def _cells(row: dict[str, Any]) -> list[Any]:
    container = (row["container"] or "").split(",")[0]
    size = f"{row['width']}×{row['height']}"
    values = [row["name"], row["source"], container, row["codec"], size, round(row["fps"], 3), row["frames"]]
    return [*values, round(row["duration_s"], 3), row["rotation"], row["licence"], row["description"]]


def _spread(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    return rows if len(rows) <= most else [rows[i] for i in np.linspace(0, len(rows) - 1, most).astype(int)]


def _picture(jpeg: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _note(shown: int, total: int, what: str) -> str:
    return "" if shown == total else f"{shown} of {total} {what} are shown"
