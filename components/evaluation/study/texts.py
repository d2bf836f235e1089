"""Videos for a study: a text-to-video model's answer to each of a list of texts."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from ...common.errors import BadInputError
from ...common.files import write_atomic
from ...common.identity import identity
from ...common.progress import track
from ...common.video import encode_mp4

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def sample_texts(
    model: Path,
    texts: Path,
    out: Path,
    *,
    frames: int = 8,
    height: int = 256,
    width: int = 256,
    fps: float = 8,
    steps: int = 50,
    guidance: float = 12.0,
    seed: int = 0,
) -> int:
    """Write ``OUT/<video>.mp4`` for each row of a CSV with columns ``video`` and ``text``; those there are kept.

    The defaults are those of the paper's filter study: 8 frames of 256x256 px, 50 steps of deterministic DDIM, guidance
    12 (App. E.2.1). The noise of a row depends on its name and the seed alone, so that two models get the same.

    Returns:
        How many were made.

    Raises:
        BadInputError: the list cannot be read, a name is no file's, or the model takes no text.
    """
    from ...diffusion.device import place, within_memory
    from ...diffusion.model_directory import load_model
    from ...diffusion.sampling import generate_from_text

    rows = read_texts(texts)
    lacking = {name: text for name, text in rows.items() if not (out / f"{name}.mp4").exists()}
    if not lacking:
        return 0
    loaded = place(load_model(model))
    for name, text in track(lacking.items(), "videos", total=len(lacking)):
        noise = int(identity(video=name, seed=seed)[:8], 16)
        with within_memory(f"{frames} frames of {width}x{height} px"):
            made = generate_from_text(
                loaded, text, frames=frames, height=height, width=width, fps=fps, steps=steps, seed=noise,
                guidance=(guidance, guidance),
            )  # fmt: skip
        write_atomic(out / f"{name}.mp4", encode_mp4(made, fps))
    return len(lacking)


def read_texts(path: Path) -> dict[str, str]:
    """Video names and what each is to show, in order.

    Raises:
        BadInputError: it is no CSV with columns ``video`` and ``text``, a row lacks one, or a name comes twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{path}: cannot be read as CSV ({error})") from error
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        name, text = ((row.get(column) or "").strip() for column in ("video", "text"))
        if not _NAME.fullmatch(name) or not text:
            raise BadInputError(
                f"{path}, line {number}: columns video (letters, digits, . _ -: a file's name without its ending) and "
                "text are needed"
            )
        if name in found:
            raise BadInputError(f"{path}, line {number}: {name} comes twice")
        found[name] = text
    if not found:
        raise BadInputError(f"{path}: holds no text")
    return found
