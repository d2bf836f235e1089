"""Which studies show videos of a work directory: noted there, since a study lies wherever its maker wants it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from ...common.errors import BadInputError, StorageError
from ...common.files import write_atomic
from ...common.identity import identity

_NOTES, _GENERATED, _MANIFESTS = "studies", "generated", "manifests"


def note_study(study: Path, folders: Iterable[Path]) -> list[Path]:
    """Note a study in the work directories that its videos come from; folders of other places are passed over.

    Of one that cannot be written, as another team's, a line on stderr tells what its takedowns will not find.

    Returns:
        The notes.
    """
    place = str(study.absolute())
    notes = []
    for workdir in sorted({found for folder in folders if (found := _workdir_of(folder.resolve()))}):
        note = workdir / _NOTES / f"{identity(study=place)[:16]}.json"
        try:
            write_atomic(note, json.dumps({"study": place}).encode())
            notes.append(note)
        except StorageError as error:
            print(
                f"{workdir}: takes no note of this study ({error}), so that `svdflow data forget` there will not find "
                f"it; name it then: --study {place}",
                file=sys.stderr,
            )
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
