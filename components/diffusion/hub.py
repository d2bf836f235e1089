"""Models on a hub: ``ORGANISATION/NAME`` or ``ORGANISATION/NAME@REVISION`` in place of a directory.

Of a repository the parts of a directory in diffusers' format are fetched, into the hub's own cache on this machine:
configurations, tokenisers and safetensors weights, in full precision where there are such. Nothing pickled, no single
file beside the parts. A revision is a branch, a tag or, to have the same model for ever, a commit.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..common.errors import BadInputError

_NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w][\w./-]*))?")
_CONFIGS = ["model_index.json", "svdflow.json", "*/*.json", "*/*.txt"]
_WEIGHTS = ["*/*.safetensors"]
_OTHER_PRECISIONS = ["*.fp16.*", "*.non_ema.*", "*/*onnx*", "*/*flax*"]
_LEFT_OUT = [*_OTHER_PRECISIONS[1:], "*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl", "*.msgpack"]
_ETAG_TIMEOUT_S = 20.0


def resolve_model(name: str | Path, weights: bool = True) -> Path:
    """Where a model lies on this machine: the path itself, or what is fetched of the repository that it names.

    Args:
        name: a path, or ``ORGANISATION/NAME[@REVISION]``; a path that is there comes first.
        weights: false fetches configurations alone.

    Raises:
        BadInputError: there is neither, or the repository cannot be fetched.
    """
    path = Path(name)
    if path.exists():
        return path.absolute()
    named = _NAME.fullmatch(str(name))
    if named is None:
        raise BadInputError(f"{name}: there is no such model here, and no repository of a hub is called so")
    return _fetch(named["repository"], named["revision"], weights)


def origin_of(directory: Path) -> str:
    """What a model directory is called: its name, or ``ORGANISATION/NAME@COMMIT`` in the hub's cache."""
    repository = directory.parent.parent.name
    if directory.parent.name == "snapshots" and repository.startswith("models--"):
        return f"{repository.removeprefix('models--').replace('--', '/', 1)}@{directory.name}"
    return directory.name


def _fetch(repository: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"

    def fetch(patterns: list[str], but: list[str]) -> Path:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=patterns, ignore_patterns=but, endpoint=endpoint,
                cache_dir=os.environ.get("HF_HUB_CACHE") or None, etag_timeout=_ETAG_TIMEOUT_S,
            )
        )  # fmt: skip

    shown = f"{repository}{f'@{revision}' if revision else ''}"
    try:
        if not weights:
            return fetch(_CONFIGS, _LEFT_OUT)
        found = fetch(_CONFIGS + _WEIGHTS, _LEFT_OUT + _OTHER_PRECISIONS)
        if not list(found.glob("unet/*.safetensors")):
            found = fetch(_CONFIGS + _WEIGHTS, _LEFT_OUT)
    except errors.GatedRepoError:
        reason = "its licence has to be accepted there first; HF_TOKEN then names a token that may read it"
    except errors.RepositoryNotFoundError:
        reason = "there is no such repository, or it is private and HF_TOKEN names no token that may read it"
    except errors.RevisionNotFoundError:
        reason = f"it has no revision {revision}"
    except (errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError, errors.HTTPError) as error:
        why = str(error.__cause__ or error).splitlines()[0][:150]
        reason = f"the hub does not answer ({why}); fetch it where there is a network, and give its directory"
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0][:200]
    else:
        if (found / "unet" / "config.json").is_file():
            return found
        reason = "it holds no unet/config.json, so it is no model in diffusers' format"
    raise BadInputError(f"{shown}: there is no such directory here, and from {endpoint} it cannot be fetched: {reason}")
