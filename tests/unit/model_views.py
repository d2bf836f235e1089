"""Views of clips for annotators that are models, and what must hold of all of those."""

import cv2
import numpy as np

from svdflow.common.config import load_settings
from svdflow.common.video import VideoFrame
from svdflow.curation.annotate.annotator import ClipView, ModelAnnotator, load
from svdflow.curation.annotate.settings import AnnotateSettings

LOCAL = load_settings(AnnotateSettings, "annotate", "local")
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def chosen(axis: str, **changed) -> ModelAnnotator:
    (found,) = (a for a in load(LOCAL.model_copy(update=changed)) if a.axis == axis)
    assert isinstance(found, ModelAnnotator)
    return found


def view_of(pictures: list[np.ndarray], **columns: str | None) -> ClipView:
    frames = [VideoFrame(n, n / 2, picture) for n, picture in enumerate(pictures)]
    return ClipView("clip", key_frames=frames, spread_frames=pictures, columns=dict(columns))


def handed_on(annotator: ModelAnnotator, view: ClipView) -> ClipView:
    """As a clip comes to the process of the models: without its frames."""
    annotator.prepare(view)
    return view.without_frames()


def assert_neighbours_do_not_matter(annotator: ModelAnnotator, views: list[ClipView], unit: int) -> list:
    """Alone, in other company and in another place of the unit, a clip's result is the same to the bit."""
    alone = [annotator.measure([handed_on(annotator, view)])[0] for view in views]
    for order in (range(len(views)), reversed(range(len(views))), [1, 0], [len(views) - 1, 1]):
        company = list(order)[:unit]
        together = annotator.measure([handed_on(annotator, views[i]) for i in company])
        for i, found in zip(company, together, strict=True):
            assert_equal(found, alone[i])
    return alone


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert all(np.array_equal(value[k], other[name][k]) for k in value)
        else:
            assert value == other[name], name


def clips_of(count: int) -> list[ClipView]:
    return [
        view_of(
            [texture(48, 64, 3 * n + k) for k in range(3)], caption_image="red disc", caption_video="moves " * (n + 1)
        )
        for n in range(count)
    ]
