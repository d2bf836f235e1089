"""Loading what transformers can load, by hub id or from a local directory; weights as safetensors alone."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ...common.errors import BadInputError
from .annotator import weights_identity


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
    """What names a model's weights (see ``weights_identity``), computed once."""
    return weights_identity(model, revision)


def one_thread(device: str) -> None:
    """As many processes as cores work already."""
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
