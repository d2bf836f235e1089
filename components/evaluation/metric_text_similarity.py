"""Image-text similarity without an image-text model: measured words of each frame, compared with the captions.

A stand-in for CLIP similarity, with far less to say: it knows colours, light and texture, and names no thing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..common.features import SENTENCE_FEATURES
from .metric import Clip, Metric, Videos


def measure(clips: Sequence[Clip], truth: Videos, generated: Videos) -> dict[str, float | None]:
    """Mean over clips with a caption of the mean over frames and captions; None when no clip has one."""
    from ..common.features import sentence_embeddings
    from ..common.visual_words import sentence

    values = []
    for clip, video in zip(clips, generated.frames, strict=True):
        if not clip.captions:
            continue
        sentences = [sentence(frame) for frame in video]
        vectors = sentence_embeddings([*sentences, *clip.captions])
        values.append(float((vectors[: len(sentences)] @ vectors[len(sentences) :].T).mean()))
    return {"visual_words_similarity": float(np.mean(values)) if values else None}


METRIC = Metric(
    name="text_similarity",
    title=f"Similarity of visual words to the captions ({SENTENCE_FEATURES}; stands in for CLIP similarity)",
    measure=measure,
    units={"visual_words_similarity": "cosine"},
    better={"visual_words_similarity": "higher"},
    protocol="colour, light and texture words measured in every frame, as a sentence; cosine with each caption; "
    "mean. Blind to content.",
)
