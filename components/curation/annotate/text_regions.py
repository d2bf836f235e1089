"""How much of a frame is covered by text: a detector alone, nothing is read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...common.errors import BadInputError
from .annotator import Annotator, ClipView, register


@lru_cache(maxsize=1)
def _detector() -> Any:
    spec = find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        raise BadInputError("text detection needs the PP-OCR detector: pip install --no-deps rapidocr-onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    path = Path(spec.origin).parent / "models" / "ch_PP-OCRv4_det_infer.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def text_boxes(rgb: np.ndarray, long_side_px: int = 480, box_threshold: float = 0.7) -> list[np.ndarray]:
    """Boxes around lines of text, turned as the text is: corners [4, 2] as fractions of width and height.

    Args:
        rgb: uint8 [H, W, 3].
        long_side_px: what the frame is scaled to for the detector.
        box_threshold: mean likelihood from which on a region counts.
    """
    from rapidocr_onnxruntime.ch_ppocr_det.utils import DBPostProcess

    scale = long_side_px / max(rgb.shape[:2])
    height, width = (max(32, round(side * scale / 32) * 32) for side in rgb.shape[:2])
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    x_1CHW = ((small[..., ::-1] / 255.0 - 0.5) / 0.5).transpose(2, 0, 1)[None].astype(np.float32)
    session = _detector()
    likelihood = session.run(None, {session.get_inputs()[0].name: x_1CHW})[0]
    boxes, _ = DBPostProcess(thresh=0.3, box_thresh=box_threshold, unclip_ratio=1.6, use_dilation=True)(
        likelihood, (height, width)
    )
    return [np.asarray(box, float).reshape(-1, 2) / (width, height) for box in boxes]


def covered(boxes: Sequence[np.ndarray]) -> float:
    """Area of the union of boxes within the unit square, 0 to 1: where they overlap they count once."""
    import shapely

    shapes = [shapely.convex_hull(shapely.Polygon(corners)) for corners in boxes]
    return float(shapely.intersection(shapely.union_all(shapes), shapely.box(0, 0, 1, 1)).area)


def text_area(rgb: np.ndarray, long_side_px: int = 480, box_threshold: float = 0.7) -> float:
    """Fraction of a frame (uint8 RGB [H, W, 3]) that lies in text boxes."""
    return covered(text_boxes(rgb, long_side_px, box_threshold))


@register
class PPOCRDetector(Annotator):
    """PP-OCR v4's text detector on small key frames; the area is that of the union of its boxes."""

    name, version, axis = "pp-ocr-detector", "2", "text"
    columns = ("text_area",)

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {"long_side_px": self.settings.text_long_side_px, "box_threshold": self.settings.text_box_threshold}

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        s = self.settings
        return {"text_area": [text_area(rgb, s.text_long_side_px, s.text_box_threshold) for rgb in clip.pictures()]}
