"""Captions by models that transformers loads, by hub id or from a local directory; greedy decoding throughout.

Each model sees several clips at once, in batches that are always of one size (see ``batching`` and ``generation``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ...common.errors import BadInputError, SvdflowError
from ...common.picture import shrink
from ...common.pretrained import loaded, one_thread, weights
from .annotator import ClipView, ModelAnnotator, register
from .captions_local import described
from .generation import written_after
from .prompts import PROMPTS, summary_question
from .settings import AnnotateSettings

PICTURE_PX = 512  # short side of the picture to be captioned: as large as any of these models reads it


def middle_frame(clip: ClipView) -> np.ndarray:
    """The middle frame, made as small as models read it, uint8 RGB [H, W, 3]; taken along, as they run late."""
    return clip.once("middle frame", lambda: shrink(clip.key_frames[1].rgb, PICTURE_PX))


def spread_frames(clip: ClipView) -> list[np.ndarray]:
    """Frames spread over the clip, made small; taken along, for captioners that run late."""
    return clip.once("spread frames", lambda: clip.spread_frames)


def caption_columns(axis: str, caption: str, model: str) -> dict[str, Any] | SvdflowError:
    """A caption and who wrote it; an error when nothing was written."""
    words = " ".join(caption.split())
    return {axis: words, f"{axis}_model": model} if words else BadInputError(f"{model} wrote nothing")


class ImageCaptioner(ModelAnnotator):
    """Base of what captions the middle frame, unless the video brought its own caption and that is preferred."""

    axis, columns, uses_description = "caption_image", ("caption_image", "caption_image_model"), True

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {"tokens": self.settings.caption_tokens, "describe": self.settings.prefer_description}

    def prepare(self, clip: ClipView) -> None:
        """Keep the middle frame."""
        if not described(clip, self.settings.prefer_description):
            middle_frame(clip)

    def measure(self, clips: Sequence[ClipView]) -> list[dict[str, Any] | SvdflowError]:
        """Their columns."""
        own = [described(clip, self.settings.prefer_description) for clip in clips]
        mute = [clip for clip, words in zip(clips, own, strict=True) if words is None]
        written = iter(self.captions(mute) if mute else [])
        return [words or next(written) for words in own]

    def captions(self, clips: Sequence[ClipView]) -> Sequence[dict[str, Any] | SvdflowError]:
        """Columns of clips without a caption of their own."""
        raise NotImplementedError


@register
class TransformersCaptioner(ImageCaptioner):
    """An image-to-text model that asks for nothing but a picture, as BLIP."""

    name, version = "transformers-captioner", "3"

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        s = self.settings
        return {**super().config(), "weights": weights(s.captioner_model, s.captioner_revision)}

    def captions(self, clips: Sequence[ClipView]) -> list[dict[str, Any] | SvdflowError]:
        """See the base class."""
        import torch

        s = self.settings
        model = f"{s.captioner_model}@{s.captioner_revision or 'main'}"
        processor, network = _vision_model(s.captioner_model, s.captioner_revision, s.device)
        pictures = filled([middle_frame(clip) for clip in clips], s.unit_clips)
        inputs = processor(images=pictures, return_tensors="pt").to(s.device)
        with torch.inference_mode():
            tokens = network.generate(**inputs, max_new_tokens=s.caption_tokens, do_sample=False, num_beams=1)
        written = processor.batch_decode(tokens, skip_special_tokens=True)
        return [caption_columns(self.axis, text, model) for text in written[: len(clips)]]


@register
class TransformersVideoCaptioner(ModelAnnotator):
    """A vision-language model with a chat template, shown frames spread over the clip."""

    name, version, axis = "transformers-video-captioner", "2", "caption_video"
    columns = ("caption_video", "caption_video_model")

    def __init__(self, settings: AnnotateSettings) -> None:
        super().__init__(settings)
        self.spread = settings.video_caption_frames

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        s, prompt = self.settings, PROMPTS[self.axis]
        return {
            "weights": weights(s.video_captioner_model, s.video_captioner_revision),
            "tokens": s.caption_tokens,
            "frames": self.spread,
            "prompt": [prompt.version, prompt.text],
        }

    def prepare(self, clip: ClipView) -> None:
        """Keep the frames."""
        spread_frames(clip)

    def measure(self, clips: Sequence[ClipView]) -> list[dict[str, Any] | SvdflowError]:
        """Their columns."""
        s = self.settings
        processor, network = _vision_model(s.video_captioner_model, s.video_captioner_revision, s.device)
        model = PROMPTS[self.axis].signed(f"{s.video_captioner_model}@{s.video_captioner_revision or 'main'}")
        asked = [self._prompt(processor, clip) for clip in clips]
        pad = _pad_token(getattr(processor, "tokenizer", processor))
        written = written_after(network, asked, s.caption_rows(), 2 * s.caption_tokens, pad)
        texts = processor.batch_decode(written, skip_special_tokens=True)
        return [caption_columns(self.axis, text, model) for text in texts]

    def _prompt(self, processor: Any, clip: ClipView) -> dict[str, Any]:
        frames = [{"type": "image", "image": _picture(rgb)} for rgb in spread_frames(clip)]
        chat = [{"role": "user", "content": [*frames, {"type": "text", "text": PROMPTS[self.axis].text}]}]
        made = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return dict(made)


@register
class TransformersSummary(ModelAnnotator):
    """A language model with a chat template, given the image's and the video's caption."""

    name, version, axis = "transformers-summary", "2", "caption_summary"
    columns = ("caption_summary", "caption_summary_model")
    needs = ("caption_image", "caption_video")

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        s, prompt = self.settings, PROMPTS[self.axis]
        return {
            "weights": weights(s.summary_model, s.summary_revision),
            "tokens": s.caption_tokens,
            "prompt": [prompt.version, prompt.text],
        }

    def measure(self, clips: Sequence[ClipView]) -> list[dict[str, Any] | SvdflowError]:
        """Their columns; null for clips without captions."""
        s = self.settings
        tokenizer, network = _language_model(s.summary_model, s.summary_revision, s.device)
        model = PROMPTS[self.axis].signed(f"{s.summary_model}@{s.summary_revision or 'main'}")
        captions = [[text for name in self.needs if (text := clip.columns.get(name))] for clip in clips]
        asked = [self._prompt(tokenizer, texts) for texts in captions if texts]
        written = written_after(network, asked, s.caption_rows(), 2 * s.caption_tokens, _pad_token(tokenizer))
        summaries = iter(tokenizer.batch_decode(written, skip_special_tokens=True) if written else [])
        return [
            caption_columns(self.axis, next(summaries), model) if texts else dict.fromkeys(self.columns)
            for texts in captions
        ]

    def _prompt(self, tokenizer: Any, captions: list[str]) -> dict[str, Any]:
        chat = [{"role": "user", "content": summary_question(captions)}]
        made = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return {"input_ids": made["input_ids"]}


def _pad_token(tokenizer: Any) -> int:
    """What fills a prompt up. It is masked: any token would do where the model has none of its own."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def filled(pictures: list[np.ndarray], size: int) -> list[np.ndarray]:
    """Pictures of a batch that is always of one size (see ``batching``)."""
    return pictures + [pictures[0]] * (size - len(pictures))


def _picture(rgb: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(rgb)


@lru_cache(maxsize=2)
def _vision_model(model: str, revision: str | None, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    one_thread(device)
    network = loaded(AutoModelForImageTextToText, model, revision, use_safetensors=True)
    return loaded(AutoProcessor, model, revision), network.eval().requires_grad_(False).to(device)


@lru_cache(maxsize=1)
def _language_model(model: str, revision: str | None, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    one_thread(device)
    network = loaded(AutoModelForCausalLM, model, revision, use_safetensors=True)
    return loaded(AutoTokenizer, model, revision), network.eval().requires_grad_(False).to(device)
