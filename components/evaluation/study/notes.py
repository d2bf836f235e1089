"""Which studies show videos of a work directory: noted there, since a study lies wherever its maker wants it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ...common.errors import BadInputError
from ...common.files import write_atomic
from ...common.identity import identity

_NOTES, _GENERATED, _MANIFESTS = "studies", "generated", "manifests"


def note_study(study: Path, folders: Iterable[Path]) -> list[Path]:
    """Note a study in the work directories that its videos come from; folders of other places are passed over.

    Returns:
        The notes.

    Raises:
        StorageError: a work directory cannot be written.
    """
    place = str(study.absolute())
    notes = []
    for workdir in sorted({found for folder in folders if (found := _workdir_of(folder.resolve()))}):
        notes.append(workdir / _NOTES / f"{identity(study=place)[:16]}.json")
        write_atomic(notes[-1], json.dumps({"study": place}).encode())
    return notes


def noted_studies(workdir: Path) -> list[Path]:
    """The folders of the studies that a work directory knows of; some may have been moved or removed since.

    Raises:
        BadInputError: a note is damaged.
    """
    found = []
    for note in sorted((workdir / _NOTES).glob("*.json")):
        try:
            found.append(Path(json.loads(note.read_bytes())["study"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInputError(f"{note}: does not tell where a study lies ({error}); remove it") from error
    return found


def _workdir_of(folder: Path) -> Path | None:
    """The work directory whose ``generated/`` a folder lies in."""
    for inner in (folder, *folder.parents):
        if inner.name == _GENERATED and (inner.parent / _MANIFESTS).is_dir():
            return inner.parent
    return None
