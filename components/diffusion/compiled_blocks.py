"""torch.compile of a UNet block by block.

A UNet is a few kinds of block, repeated: one compilation serves all blocks of a kind and size, where a compilation of
the whole network would unroll every one of them, and recompile it all for another number of frames. What lies between
the blocks runs as it did: activation checkpointing, hooks, the switch for images.
"""

from __future__ import annotations

import torch
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock

REPEATED = (BasicTransformerBlock, TemporalBasicTransformerBlock, ResnetBlock2D, TemporalResnetBlock)
# The blocks of a kind share their code, and so one count: Stable Video Diffusion's residual blocks come in a dozen
# sizes, times those of the buckets. Past the limit (8) torch would run further ones uncompiled.
_VARIANTS = 64


def compile_blocks(unet: torch.nn.Module, backend: str = "inductor") -> int:
    """Have every repeated block of a UNet compiled at its first call; names and weights do not change.

    Args:
        unet: a diffusers UNet of any kind, with or without adapters and activation checkpointing.
        backend: of ``torch.compile``.

    Returns:
        How many blocks these are.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    blocks = [module for module in unet.modules() if type(module) in REPEATED]
    for block in blocks:
        # Sizes are fixed in every graph: of several graphs that would do, checkpointing may find another one when it
        # runs a block again (https://github.com/pytorch/pytorch/issues/166926).
        block.compile(backend=backend, dynamic=False)
    return len(blocks)
