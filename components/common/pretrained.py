"""Loading what transformers can load, by hub id or from a local directory; weights as safetensors alone."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import BadInputError
from .identity import file_sha256, tree_sha256


def loaded(kind: Any, model: str, revision: str | None, **options: Any) -> Any:
    """``kind.from_pretrained``.

    Raises:
        BadInputError: there is no such model, or it is of another kind.
    """
    where = {"revision": revision} if revision else {}
    try:
        return kind.from_pretrained(model, **where, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{model!r} cannot be loaded: {reason}; name a hub id or a directory") from error


@lru_cache(maxsize=16)
def weights(model: str, revision: str | None) -> str:
    """What names a model's weights: the content of a local directory, or a hub id with its revision. Computed once."""
    return tree_sha256(Path(model)) if Path(model).is_dir() else f"{model}@{revision or 'main'}"


@lru_cache(maxsize=4)
def weights_file(path: str) -> str:
    """What names a file of weights: the sha256 of its content, computed once."""
    return file_sha256(Path(path))


def one_thread(device: str) -> None:
    """For a process beside which as many as there are cores work already."""
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
