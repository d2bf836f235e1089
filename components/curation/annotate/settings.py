"""What is measured on each clip, with which annotators, and their settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...common.config import Settings

AXES = (  # in the order in which they run
    "motion",
    "text",
    "watermark",
    "nsfw",
    "aesthetic",
    "embedding",
    "caption_image",
    "caption_video",
    "caption_summary",
    "similarity",
)


class AnnotateSettings(Settings):
    """Settings of the annotate step. An annotator is named for what it is: see the README for the list of each axis."""

    # which annotator serves each axis; None leaves its columns null
    motion: str | None = "farneback-flow"  # paper, App. C
    text: str | None = "pp-ocr-detector"  # ours: the paper takes CRAFT, whose weights are a pickle
    watermark: str | None = None  # not in the paper
    nsfw: str | None = None  # not in the paper (its model card speaks of a safety filter)
    aesthetic: str | None = "clip-aesthetic-head"  # paper, App. C: LAION's score on CLIP embeddings
    embedding: str | None = "clip"  # paper, App. C
    caption_image: str | None = "transformers-captioner"  # the paper takes CoCa, which transformers does not have
    caption_video: str | None = "endpoint"  # the paper takes V-BLIP, which transformers does not have
    caption_summary: str | None = "endpoint"  # paper: "a lightweight LLM", unnamed
    similarity: str | None = "clip"  # paper, App. C
    plugins: tuple[str, ...] = ()  # modules with annotators of your own, as "mycompany.logos"

    # optical flow
    flow_fps: float = Field(2.0, gt=0)  # paper, App. C
    flow_short_side_px: int = Field(128, ge=16)  # ours: the paper is silent (RAFT: 450); part of the score's unit
    raft_weights: str = ""  # safetensors file, made of torchvision's release by convert_weights
    raft_iterations: int = Field(20, ge=1)  # as video2dataset
    # text
    text_long_side_px: int = Field(480, ge=64)  # ours: what the detector sees
    text_box_threshold: float = Field(0.7, gt=0, lt=1)  # ours
    # image classifiers: hub id or directory, and the label whose probability is the score
    watermark_model: str = ""
    watermark_revision: str | None = None
    watermark_label: str = "watermark"
    nsfw_model: str = ""
    nsfw_revision: str | None = None
    nsfw_label: str = "nsfw"
    # CLIP: ViT-L/14 is the variant that LAION's head was trained on (ours: the paper names none)
    clip_model: str = "openai/clip-vit-large-patch14"  # hub id, directory, or "open_clip:ARCHITECTURE/FILE.safetensors"
    clip_revision: str | None = None
    aesthetic_head: str = ""  # safetensors file of LAION's head, made by convert_weights
    # captions
    captioner_model: str = "Salesforce/blip-image-captioning-large"  # ours; or a local directory
    captioner_revision: str | None = None
    coca_model: str = ""  # open_clip's architecture and a file, as "coca_ViT-L-14/coca.safetensors"; the paper: "CoCa"
    video_captioner_model: str = "llava-hf/llava-onevision-qwen2-7b-ov-hf"  # ours; or a local directory
    video_captioner_revision: str | None = None
    summary_model: str = "HuggingFaceH4/zephyr-7b-beta"  # ours; or a local directory
    summary_revision: str | None = None
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
    workers: int | None = None  # processes that decode; all cores when None
    unit_clips: int = Field(16, ge=1)  # clips a model sees at once, in a process of its own; 1: where they were decoded
    unit_mb: int = Field(128, ge=1)  # 10⁶ bytes of pictures in a unit: it is closed before they are more; 3 units wait
    models_memory_mb: int | None = Field(None, ge=1)  # of the process of the models; when None 40 % of the machine's
    caption_clips: int = Field(8, ge=1)  # clips a language model sees at once
    raft_pairs: int = Field(8, ge=1)  # pairs of frames RAFT sees at once
    endpoint_requests: int = Field(16, ge=1)  # requests under way at once
    clip_timeout_s: float = Field(600.0, gt=0)

    def caption_rows(self) -> int:
        """Rows of every batch of a language model."""
        return min(self.caption_clips, self.unit_clips)

    def chosen(self) -> dict[str, str]:
        """Axis to annotator name, in the order in which they run."""
        return {axis: name for axis in AXES if (name := getattr(self, axis))}
