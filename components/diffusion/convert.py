"""A model of any origin into another form: a model directory, or the authors' single file."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..common.errors import BadInputError
from .hub import resolve_model
from .import_model import open_model
from .model_directory import save_model
from .single_file import export_single_file, import_single_file

SINGLE_FILE = ".safetensors"


def convert_model(source: Path, out: Path, *, frames: int | None = None, half: bool = False) -> None:
    """Write a model in another form, whole or not at all.

    Args:
        source: a model directory of svdflow's, a released one or its repository, or a file in the authors' layout.
        out: a directory; or, for image-to-video models, a file in the authors' layout, which ends in ``.safetensors``.
        frames: of the videos that a single file's model makes, which the file does not tell: 14 for svd, 25 for svd_xt.
        half: write a single file in 16 bits.

    Raises:
        BadInputError: there is no such model, it has no place in the form asked for, or something lies there already.
    """
    import torch

    single = out.suffix == SINGLE_FILE
    if out.exists():
        raise BadInputError(f"{out}: is there already; name a new place")
    if half and not single:
        raise BadInputError(f"{out}: a model directory is written in full precision; only a single file takes 16 bits")
    place = resolve_model(source)
    if frames is not None and place.is_dir():
        raise BadInputError(f"{source}: tells its number of frames itself; only a single file has to be told")
    model = open_model(place) if frames is None else import_single_file(place, num_frames=frames)
    if single:
        export_single_file(model, out, torch.float16 if half else torch.float32)
        return
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_model(model, partial)
    partial.rename(out)
