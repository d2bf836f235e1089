"""CoCa, the paper's image captioner, through the package open_clip (no dependency of this one)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...common.clip_encoder import (
    open_clip_identity,
    open_clip_model,
    open_clip_module,
    open_clip_parts,
    open_clip_transform,
)
from ...common.errors import SvdflowError
from ...common.pretrained import one_thread
from .annotator import ClipView, register
from .captioners import ImageCaptioner, caption_columns, filled, middle_frame
from .settings import AnnotateSettings

_START, _END = 49406, 49407  # of CLIP's tokenizer


@register
class CoCa(ImageCaptioner):
    """Caption of the middle frame by open_clip's CoCa; greedy, so that it is the same every time."""

    name, version = "coca", "2"

    def __init__(self, settings: AnnotateSettings) -> None:
        super().__init__(settings)
        self.architecture, self.file = open_clip_parts(settings.coca_model, "annotate.coca_model")

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {**super().config(), "weights": open_clip_identity(self.settings.coca_model, "annotate.coca_model")}

    def captions(self, clips: Sequence[ClipView]) -> list[dict[str, Any] | SvdflowError]:
        """See the base class."""
        import torch
        from PIL import Image

        s = self.settings
        one_thread(s.device)
        network, transform = (
            open_clip_model(self.architecture, self.file, s.device),
            open_clip_transform(self.architecture),
        )
        pictures = filled([middle_frame(clip) for clip in clips], s.unit_clips)
        x_NCHW = torch.stack([transform(Image.fromarray(rgb)) for rgb in pictures]).to(s.device)
        tokens_NL = greedy_tokens(network, x_NCHW, s.caption_tokens)
        return [
            caption_columns(self.axis, open_clip_module().decode(row), f"{self.architecture}/{Path(self.file).name}")
            for row in (words_of(tokens) for tokens in tokens_NL[: len(clips)].tolist())
        ]


def greedy_tokens(network: Any, x_NCHW: Any, most: int) -> Any:
    """The likeliest next token, again and again, until every caption has ended: torch [N, L], the start included.

    open_clip's own ``generate`` (3.3) refuses transformers 5, and samples.
    """
    import torch

    with torch.inference_mode():
        latent, states = network._encode_image(x_NCHW)
        tokens = torch.full((len(x_NCHW), 1), _START, device=x_NCHW.device)
        for _ in range(most):
            seen = {"image_latent": latent, "image_embs": states, "output_labels": False}
            logits = network(x_NCHW, tokens, **seen)["logits"][:, -1]
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
            if (tokens == _END).any(1).all():
                break
    return tokens


def words_of(tokens: list[int]) -> Any:
    """What lies between a caption's start and its end."""
    import torch

    return torch.tensor(tokens[1 : tokens.index(_END)] if _END in tokens else tokens[1:], dtype=torch.long)
