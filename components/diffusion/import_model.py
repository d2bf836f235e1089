"""Models from elsewhere: directories in diffusers' format that svdflow did not write, and the authors' single file.

``open_model`` takes whatever there is: a model directory of svdflow's, a released Stable Video Diffusion or a Stable
Diffusion 2.1 directory, or a ``.safetensors`` file in the authors' layout.
"""

from __future__ import annotations

from pathlib import Path

from ..common.errors import BadInputError
from .hub import origin_of
from .model_directory import CARD, VideoModel, check_parts, load_model, load_parts, variant_of
from .sampling import EMPTY_PROMPT


def open_model(path: Path) -> VideoModel:
    """A model of any origin, in float32 and for inference.

    Raises:
        BadInputError: nothing there that is a model; or it is pickled, incomplete or damaged.
    """
    path = Path(path)
    if not path.is_dir():
        from .single_file import import_single_file

        return import_single_file(path)
    return load_model(path) if (path / CARD).is_file() else import_directory(path)


def import_directory(directory: Path) -> VideoModel:
    """A released directory: image-to-video (Stable Video Diffusion) or text-to-image (Stable Diffusion 2.1).

    Weights may be whole or in shards, in full precision or the ``fp16`` variant. What the UNet predicts is read off the
    scheduler's configuration. The released models' map of motion score to bucket is unknown, so the card has none:
    see ``calibration``.

    Raises:
        BadInputError: a part is missing, pickled, damaged or of another architecture; the message names it.
    """
    directory = Path(directory)
    if not (directory / "unet").is_dir():
        raise BadInputError(f"{directory}: no model there; it has neither {CARD} nor a folder unet/")
    has_text = (directory / "text_encoder").is_dir() and (directory / "tokenizer").is_dir()
    model = load_parts(directory, str(directory) if has_text else None)
    check_parts(model, directory)
    model.card = {
        "imported": {
            "name": origin_of(directory),
            "prediction_type": model.parameterisation.prediction,
            "weights": variant_of(directory) or "full precision",
        }
    }
    if has_text:
        model.card["unconditional"] = EMPTY_PROMPT
    return model
