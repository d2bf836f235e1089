"""What is measured on each clip, with which annotators, and their settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...common.config import Settings


class AnnotateSettings(Settings):
    """Settings of the annotate step. An annotator is named for what it is: see the README for the list of each axis."""

    # which annotator serves each axis
    motion: str = "farneback-flow"  # paper, App. C
    text: str = "pp-ocr-detector"  # ours: the paper takes CRAFT, whose weights are a pickle
    aesthetic: str = "clip-aesthetic-head"  # paper, App. C: LAION's score on CLIP embeddings
    embedding: str = "clip"  # paper, App. C
    caption_image: str = "transformers-captioner"  # the paper takes CoCa, which transformers does not have
    caption_video: str = "endpoint"  # the paper takes V-BLIP, which transformers does not have
    caption_summary: str = "endpoint"  # paper: "a lightweight LLM", unnamed
    similarity: str = "clip"  # paper, App. C

    # optical flow
    flow_fps: float = Field(2.0, gt=0)  # paper, App. C
    flow_short_side_px: int = Field(128, ge=16)  # ours: the paper is silent; part of the score's unit
    # text
    text_long_side_px: int = Field(480, ge=64)  # ours: what the detector sees
    text_box_threshold: float = Field(0.7, gt=0, lt=1)  # ours
    # CLIP
    clip_model: str = (
        "openai/clip-vit-large-patch14"  # ours: the variant that LAION's head was trained on; or a local directory
    )
    clip_revision: str | None = None
    aesthetic_head: str = ""  # safetensors file of LAION's head (linear layers); converted once from its pickle
    # captions
    captioner_model: str = "Salesforce/blip-image-captioning-large"  # ours; or a local directory
    captioner_revision: str | None = None
    caption_tokens: int = Field(60, ge=4)  # ours: longest caption
    video_caption_frames: int = Field(8, ge=1)  # as video2dataset's V-BLIP
    prefer_description: bool = False  # take the caption that came with a video as its image caption
    endpoint_url: str = ""  # an OpenAI-compatible server, as http://captioner:8000/v1
    endpoint_model: str = ""
    endpoint_key_variable: str = "SVDFLOW_CAPTION_KEY"  # name of the environment variable with the key
    endpoint_timeout_s: float = Field(60.0, gt=0)
    endpoint_tries: int = Field(4, ge=1)

    # how the work is done: does not change results
    device: Literal["cpu", "cuda"] = "cpu"
    workers: int | None = None  # processes; all cores when None
    clip_timeout_s: float = Field(600.0, gt=0)

    def chosen(self) -> dict[str, str]:
        """Axis to annotator name, in the order in which they run."""
        axes = (
            "motion",
            "text",
            "aesthetic",
            "embedding",
            "caption_image",
            "caption_video",
            "caption_summary",
            "similarity",
        )
        return {axis: getattr(self, axis) for axis in axes}
