"""Captions without a caption model: from what is measured, or from what came with the video. Their names say so."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...common.visual_words import sentence
from .annotator import Annotator, ClipView, register

SIDECAR = "sidecar-description@1"
# share of the motion that must be the camera's before it is named: objects and repeating textures mislead the mean
_AGREEMENT = 0.7


def described(clip: ClipView, prefer_description: bool) -> dict[str, Any] | None:
    """The caption columns of a video that brought its own description, if those are preferred."""
    if not prefer_description or not (clip.description or "").strip():
        return None
    return {"caption_image": clip.description.strip(), "caption_image_model": SIDECAR}  # type: ignore[union-attr]


@register
class VisualWords(Annotator):
    """Colours, light and texture of the middle frame in a sentence."""

    name, version, axis = "visual-words", "1", "caption_image"
    columns = ("caption_image", "caption_image_model")
    stand_in_for = "CoCa"
    uses_description = True

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {"prefer_description": self.settings.prefer_description}

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        own = described(clip, self.settings.prefer_description)
        return own or {
            "caption_image": sentence(clip.key_frames[1].rgb),
            "caption_image_model": f"{self.name}@{self.version}",
        }


def motion_phrase(motion_score: float, camera: list[float], short_side_px: int) -> str:
    """What moves, in words.

    Args:
        motion_score: mean flow magnitude in px.
        camera: mean flow to the right and down, and outward, in px.
        short_side_px: resolution of the flow.
    """
    dx, dy, zoom = camera
    floor = short_side_px / 250
    if motion_score < floor / 3:
        return "nothing moves"
    parts = []
    shared = float(np.hypot(dx, dy))
    if (
        shared > floor and shared > _AGREEMENT * motion_score
    ):  # the whole picture goes one way: the camera goes the other
        if abs(dx) > abs(dy) / 2:
            parts.append("pans left" if dx > 0 else "pans right")
        if abs(dy) > abs(dx) / 2:
            parts.append("tilts up" if dy > 0 else "tilts down")
    if abs(zoom) > floor and abs(zoom) > _AGREEMENT * motion_score:
        parts.append("moves closer" if zoom > 0 else "moves away")
    speed = motion_score / short_side_px
    manner = "slowly" if speed < 0.02 else "fast" if speed > 0.08 else "steadily"
    if parts:
        return f"the camera {' and '.join(parts)} {manner}"
    return f"the camera is still while something moves {manner}"


@register
class MotionPhrase(Annotator):
    """Camera and speed in words, out of the optical flow."""

    name, version, axis = "motion-phrase", "1", "caption_video"
    columns = ("caption_video", "caption_video_model")
    needs = ("motion_score", "camera_motion")
    stand_in_for = "V-BLIP"

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {"short_side_px": self.settings.flow_short_side_px}

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        score, camera = clip.columns.get("motion_score"), clip.columns.get("camera_motion")
        if score is None or camera is None:
            return {"caption_video": None, "caption_video_model": None}
        words = motion_phrase(score, camera, self.settings.flow_short_side_px)
        return {"caption_video": words, "caption_video_model": f"{self.name}@{self.version}"}


@register
class TemplateSummary(Annotator):
    """Image caption and motion phrase joined into one sentence."""

    name, version, axis = "template-summary", "1", "caption_summary"
    columns = ("caption_summary", "caption_summary_model")
    needs = ("caption_image", "caption_video")
    stand_in_for = "an LLM's summary"

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        parts = [text.strip().rstrip(".") for name in self.needs if (text := clip.columns.get(name))]
        if not parts:
            return {"caption_summary": None, "caption_summary_model": None}
        return {"caption_summary": "; ".join(parts), "caption_summary_model": f"{self.name}@{self.version}"}
