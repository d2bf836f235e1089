"""Image captions from any image-to-text model that transformers loads, by hub id or from a local directory."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ...common.errors import BadInputError
from .annotator import Annotator, ClipView, register, weights_identity
from .captions_local import described


@lru_cache(maxsize=1)
def _captioner(model: str, revision: str | None, device: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if device == "cpu":
        torch.set_num_threads(1)
    where: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        network = (
            AutoModelForImageTextToText.from_pretrained(model, use_safetensors=True, **where)
            .eval()
            .requires_grad_(False)
            .to(device)
        )
        return AutoProcessor.from_pretrained(model, **where), network
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"captioner {model!r} cannot be loaded: {str(error).splitlines()[0]}; annotate.captioner_model takes "
            "a hub id or a directory"
        ) from error


@lru_cache(maxsize=4)
def _weights(model: str, revision: str | None) -> str:
    return weights_identity(model, revision)


@register
class TransformersCaptioner(Annotator):
    """Caption of the middle frame, greedy decoding."""

    name, version, axis = "transformers-captioner", "1", "caption_image"
    columns = ("caption_image", "caption_image_model")
    uses_description = True

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        s = self.settings
        return {
            "weights": _weights(s.captioner_model, s.captioner_revision),
            "tokens": s.caption_tokens,
            "describe": s.prefer_description,
        }

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        import torch

        s = self.settings
        if own := described(clip, s.prefer_description):
            return own
        processor, network = _captioner(s.captioner_model, s.captioner_revision, s.device)
        inputs = processor(images=clip.key_frames[1].rgb, return_tensors="pt").to(s.device)
        with torch.inference_mode():
            tokens = network.generate(**inputs, max_new_tokens=s.caption_tokens, do_sample=False, num_beams=1)
        caption = processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
        if not caption:
            raise BadInputError(f"captioner {s.captioner_model} wrote nothing")
        return {
            "caption_image": caption,
            "caption_image_model": f"{s.captioner_model}@{s.captioner_revision or 'main'}",
        }
