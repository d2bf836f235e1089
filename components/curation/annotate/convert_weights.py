"""Weights published as pickles, made into safetensors once: ``python -m svdflow.curation.annotate.convert_weights``.

Each file is known by the sha256 of its bytes, and read with torch's restricted unpickler, which builds tensors and
nothing else. The digest is pinned here, or (``any``) given by whoever vouches for the file. Besides this module
``split/transnet_weights.py`` reads a pickle, in the same way; models themselves are loaded from safetensors alone.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import BadInputError, SvdflowError
from ...common.identity import file_sha256


@dataclass(frozen=True)
class Release:
    """A published file: its digest, its usual name, and what its weights must hold (name to shape)."""

    sha256: str
    file: str
    shapes: Mapping[str, tuple[int, ...]]


_LAION_SIZES = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
RELEASES = {
    "laion-aesthetic": Release(
        "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
        "sac+logos+ava1-l14-linearMSE.pth",
        {
            f"layers.{layer}.{part}": shape if part == "weight" else shape[:1]
            for layer, shape in _LAION_SIZES.items()
            for part in ("weight", "bias")
        },
    ),
    "raft-large": Release(
        "ff5fadd56d26b40647388883af1547351ea17868b765c05b27231e72dd16a322",
        "raft_large_C_T_SKHT_V2-ff5fadd5.pth",
        {
            "feature_encoder.conv.weight": (256, 128, 1, 1),
            "update_block.flow_head.conv2.weight": (2, 256, 3, 3),
            "mask_predictor.conv.weight": (576, 256, 1, 1),
        },
    ),
    # of LPIPS, which the multi-view measurement takes: torchvision's networks, and the heads of the package lpips 0.1.4
    "alexnet": Release(
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        "alexnet-owt-7be5be79.pth",
        {"features.0.weight": (64, 3, 11, 11), "features.10.weight": (256, 256, 3, 3)},
    ),
    "lpips-alex": Release(
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        "alex.pth",
        {f"lin{layer}.model.1.weight": (1, width, 1, 1) for layer, width in enumerate((64, 192, 384, 256, 256))},
    ),
    "vgg16": Release(
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        "vgg16-397923af.pth",
        {"features.0.weight": (64, 3, 3, 3), "features.28.weight": (512, 512, 3, 3)},
    ),
    "lpips-vgg": Release(
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        "vgg.pth",
        {f"lin{layer}.model.1.weight": (1, width, 1, 1) for layer, width in enumerate((64, 128, 256, 512, 512))},
    ),
}


def convert(release: Release, source: Path, target: Path) -> None:
    """Write a release's weights as safetensors.

    Raises:
        BadInputError: the file is not the release's, or does not hold its weights.
    """
    import torch
    from safetensors.torch import save_file

    if not source.is_file():
        raise BadInputError(f"{source}: no such file; it is published as {release.file}")
    if (digest := file_sha256(source)) != release.sha256:
        raise BadInputError(f"{source}: its sha256 is {digest}, not {release.sha256} of {release.file}: not read")
    try:
        state: Any = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's refusals are of many kinds
        raise BadInputError(f"{source}: cannot be read as weights: {str(error).splitlines()[0]}") from None
    state = state.get("state_dict", state) if isinstance(state, Mapping) else {}
    tensors = {name: value.contiguous() for name, value in dict(state).items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise BadInputError(f"{source}: holds no weights by name")
    for name, shape in release.shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            raise BadInputError(f"{source}: has no {name} of shape {list(shape)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    save_file(tensors, partial, metadata={"source_sha256": release.sha256})
    partial.replace(target)


def pinned(sha256: str) -> Release:
    """A file that somebody else vouches for by its digest, whatever weights it holds.

    Raises:
        BadInputError: this is no sha256.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise BadInputError("any: give the file's sha256, as its publisher states it, by --sha256 (64 hex digits)")
    return Release(sha256, "the digest given", {})


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="convert_weights", description="Make safetensors of weights in a pickle.")
    parser.add_argument("release", choices=[*sorted(RELEASES), "any"])
    parser.add_argument("source", type=Path, help="the published file")
    parser.add_argument("target", type=Path, help="the safetensors file to write")
    parser.add_argument("--sha256", default="", help="of the file, for `any`")
    chosen = parser.parse_args(arguments)
    try:
        release = pinned(chosen.sha256.lower()) if chosen.release == "any" else RELEASES[chosen.release]
        convert(release, chosen.source, chosen.target)
    except SvdflowError as error:
        print(f"convert_weights: {error}", file=sys.stderr)
        return 1
    print(f"{chosen.target}: written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
