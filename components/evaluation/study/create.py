"""Making a study: videos of the same name out of several folders, all in one form, or nothing at all."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import secrets
import shutil
import tempfile
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...common.errors import BadInputError, StorageError
from ...common.progress import track
from ...common.video import encode_mp4, probe, read_frames
from ..sources import read_sources
from .notes import note_study
from .settings import StudySettings
from .study import Check, Item, Study, percentages, save_study
from .texts import read_texts

MAX_FRAMES, MAX_PIXELS = 1024, 1 << 29  # of a video, and of all its frames together
_CHECKS, _CRF = 8, 12
_TRIES = 5
_SUFFIXES = {".mp4", ".webm", ".mov", ".mkv", ".gif"}
_GENERATED, _TRUTH = "-generated", "-truth"


def create_study(
    folder: Path,
    contestants: Mapping[str, Path],
    settings: StudySettings,
    texts: Path | None = None,
    filter_axis: str | None = None,
) -> Study:
    """Make a study of folders of videos, in which files of the same name are compared.

    Args:
        folder: to be made; nothing is there before, and nothing is left when it fails.
        contestants: name to folder. Files ``X-generated.mp4`` of an evaluation count as X, its ``X-truth.mp4`` not.
        settings: what is asked.
        texts: CSV with columns ``video`` and ``text``; without it nobody is asked about prompt following.
        filter_axis: where the contestants were trained with different shares of an axis dropped, that axis; their names
            are the percentages.

    What each video was made from is taken over from the folders' ``sources.csv``, as evaluations leave it, and the
    study is noted in the work directories that videos come from: so a takedown finds it.

    Raises:
        BadInputError: fewer than two contestants or no item, a video that one has and another has not, one that cannot
            be read, a text that is missing.
        StorageError: others removed what was begun, again and again; or the disk is full.
    """
    if folder.exists():
        raise BadInputError(f"{folder}: is there already; votes belong to one study, so give another folder")
    if len(contestants) < 2:
        raise BadInputError("a study compares two or more sets of videos: give --videos NAME=FOLDER twice or more")
    if filter_axis is not None:
        percentages(list(contestants))
    names, videos = _matched(contestants)
    said = _texts(texts, names) if texts else {}
    if not texts:
        left = tuple(c for c in settings.categories if c != "prompt")
        if not left:
            raise BadInputError("prompt following cannot be voted on without texts: give --texts FILE.csv")
        settings = settings.model_copy(update={"categories": left})
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep_begun(folder)
    told = [read_sources(directory) for directory in contestants.values()]
    making, held = _begin(folder)
    notes: list[Path] = []
    try:
        (making / "videos").mkdir()
        items = []
        for name in track(names, "videos"):
            digests = tuple(_take(videos[contestant][name], making) for contestant in contestants)
            sources = tuple(sorted({source for each in told for source in each.get(name, ())}))
            items.append(Item(name, said.get(name), digests, sources))
        study = Study(folder, tuple(contestants), tuple(items), _checks(items, making), settings, filter_axis)
        save_study(study, making)
        (making / "votes.jsonl").touch()
        _write_secret(making / "secret")
        os.chmod(making, 0o755)
        notes = note_study(folder, contestants.values())  # before it is there: a takedown that comes now looks for it
        os.rename(making, folder)
    except BaseException:
        for note in notes:
            note.unlink(missing_ok=True)
        shutil.rmtree(making, ignore_errors=True)
        raise
    finally:
        os.close(held)
    return study


def _beside(folder: Path) -> str:
    """What the name of a study begins with while it is made; no other program's files are called so."""
    return f".{folder.name}.svdflow-study-"


def _begin(folder: Path) -> tuple[Path, int]:
    """A folder beside the study's in which it is made, and the descriptor that holds it against ``sweep_begun``."""
    for _ in range(_TRIES):
        making = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_beside(folder)))
        try:
            held = os.open(making, os.O_RDONLY)
        except FileNotFoundError:  # swept before it was held
            continue
        fcntl.flock(held, fcntl.LOCK_EX)
        if making.is_dir():
            return making, held
        os.close(held)
    raise StorageError(f"{folder}: others who make this study removed what was begun {_TRIES} times; run it again")


def sweep_begun(folder: Path) -> None:
    """Remove what processes that were killed while they made this study left beside it; who still makes it holds it."""
    for left in folder.parent.glob(f"{glob.escape(_beside(folder))}*"):
        try:
            held = os.open(left, os.O_RDONLY)
        except OSError:  # swept by another meanwhile, or somebody else's
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(held)


def _matched(contestants: Mapping[str, Path]) -> tuple[list[str], dict[str, dict[str, Path]]]:
    videos: dict[str, dict[str, Path]] = {}
    for contestant, directory in contestants.items():
        if not directory.is_dir():
            raise BadInputError(f"{contestant}: {directory} is no folder of videos")
        found: dict[str, Path] = {}
        for path in sorted(directory.iterdir()):
            if path.suffix.lower() not in _SUFFIXES or path.stem.endswith(_TRUTH):
                continue
            name = path.stem.removesuffix(_GENERATED)
            if name in found:
                raise BadInputError(f"{path}: {found[name].name} beside it is of the same name; keep one of them")
            found[name] = path
        videos[contestant] = found
    everything = sorted(set().union(*videos.values()))
    if not everything:
        raise BadInputError(f"{', '.join(map(str, contestants.values()))}: no video is there ({' '.join(_SUFFIXES)})")
    for contestant, found in videos.items():
        lacking = [name for name in everything if name not in found]
        if lacking:
            raise BadInputError(
                f"{contestant} ({contestants[contestant]}) lacks {len(lacking)} of {len(everything)} videos that "
                f"others have, as {lacking[0]}; a comparison needs the same names in every folder"
            )
    return everything, videos


def _texts(path: Path, names: list[str]) -> dict[str, str]:
    said = read_texts(path)
    lacking = [name for name in names if name not in said]
    if lacking:
        raise BadInputError(f"{path}: has no text for {len(lacking)} of {len(names)} videos, as {lacking[0]}")
    return said


def _take(path: Path, making: Path) -> str:
    """A video in the form that all have here, whoever made it; returns its digest."""
    return _keep(*_frames(path), making)


def _frames(path: Path) -> tuple[np.ndarray, float]:
    info = probe(path)
    if info.frames > MAX_FRAMES or info.frames * info.width * info.height > MAX_PIXELS:
        raise BadInputError(
            f"{path}: {info.frames} frames of {info.width}x{info.height} px are more than a rater's page takes "
            f"({MAX_FRAMES} frames, {MAX_PIXELS >> 20} million pixels together)"
        )
    frames_FHWC = read_frames(path, range(info.frames))
    height, width = (side // 2 * 2 for side in frames_FHWC.shape[1:3])
    return frames_FHWC[:, :height, :width], info.fps


def _keep(frames_FHWC: np.ndarray, fps: float, making: Path) -> str:
    data = encode_mp4(frames_FHWC, fps, crf=_CRF)
    digest = hashlib.sha256(data).hexdigest()
    (making / "videos" / f"{digest}.mp4").write_bytes(data)
    return digest


def _checks(items: list[Item], making: Path) -> tuple[Check, ...]:
    """Ruined: frames in disorder, each in large blocks of the wrong brightness."""
    checks = []
    for number, item in enumerate(items[:_CHECKS]):
        good = item.videos[number % len(item.videos)]
        frames_FHWC, fps = _frames(making / "videos" / f"{good}.mp4")
        generator = np.random.default_rng(number)
        height, width = frames_FHWC.shape[1:3]
        blocks = generator.integers(0, 256, (len(frames_FHWC), 4, 6, 1))
        rows, columns = np.arange(height) * 4 // height, np.arange(width) * 6 // width
        mixed = generator.permutation(len(frames_FHWC))
        ruined = frames_FHWC[mixed] // 4 + (blocks[:, rows][:, :, columns] * 3 // 4).astype(np.uint8)
        checks.append(Check(good, _keep(ruined.astype(np.uint8), fps, making)))
    return tuple(checks)


def _write_secret(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(urlsafe_b64encode(secrets.token_bytes(32)))
