"""Figures of interpolation against closed forms; what needs no model against what it is good and bad at."""

import json
from pathlib import Path

import numpy as np
import pytest

from svdflow.common.errors import GateRefused
from svdflow.common.psnr import EQUAL_DB
from svdflow.evaluation.gate import check_gate
from svdflow.evaluation.interpolation import trained_fps, window_at
from svdflow.evaluation.interpolation_figures import FIGURES, blended, middle_psnr, nearest, warped
from svdflow.evaluation.metric import Clip, Videos
from svdflow.evaluation.settings import GateSettings


def sliding(shift_px: float, size: int = 64) -> np.ndarray:
    """Five frames of smooth clouds that slide to the right."""
    import cv2

    coarse = np.random.default_rng(0).uniform(40, 215, (size, size + 60, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(coarse, (0, 0), 4)
    smooth = (smooth - smooth.mean()) * 6 + 128
    frames = []
    for place in range(5):
        shift = np.float32([[1, 0, place * shift_px - 40], [0, 1, 0]])
        frames.append(cv2.warpAffine(smooth, shift, (size, size), flags=cv2.INTER_LINEAR))
    return np.stack(frames).round().clip(0, 255).astype(np.uint8)


def figures(true: np.ndarray, made: np.ndarray) -> dict[str, float]:
    clip = Clip("a", true, 28.0, None, ())
    return {
        name: value
        for metric in FIGURES
        for name, value in metric.measure([clip], Videos([true]), Videos([made])).items()
    }


def test_the_blend_is_a_fade_itself_and_the_nearest_frame_a_cut() -> None:
    levels = np.array([0, 40, 80, 120, 160], np.uint8)
    fade = np.broadcast_to(levels[:, None, None, None], (5, 32, 32, 3))
    assert np.array_equal(blended(fade), fade) and middle_psnr(fade, blended(fade)) == EQUAL_DB
    assert nearest(fade)[:, 0, 0, 0].tolist() == [0, 0, 0, 160, 160]
    # 40, 80 and 40 levels off: mean of 20 log10(255 / d)
    expected = np.mean([20 * np.log10(255 / d) for d in (40, 80, 40)])
    assert middle_psnr(fade, nearest(fade)) == pytest.approx(expected)
    other_ends = fade.copy()
    other_ends[[0, -1]] = 77  # the given frames do not count
    assert middle_psnr(fade, other_ends) == EQUAL_DB


def test_on_sliding_pictures_flow_is_better_than_blending_which_is_better_than_nothing() -> None:
    true = sliding(2.0)
    by = {made: figures(true, make(true)) for made, make in (("b", blended), ("n", nearest), ("w", warped))}
    assert by["w"]["psnr_db"] > by["b"]["psnr_db"] + 3 and by["b"]["psnr_db"] > by["n"]["psnr_db"]
    assert by["w"]["flow_error_px"] < by["b"]["flow_error_px"] and by["w"]["flow_error_px"] < 0.5
    assert figures(true, true) == {"psnr_db": EQUAL_DB, "flow_error_px": 0.0}
    for make in (blended, nearest, warped):
        assert np.array_equal(make(true)[[0, -1]], true[[0, -1]])
        looked_at = true.copy()
        looked_at[1:-1] = 0
        assert np.array_equal(make(looked_at), make(true)), "a baseline sees the given frames alone"


def test_the_nearest_frame_is_off_by_the_way_that_things_have_gone() -> None:
    # frames 1 and 2 are the first one, 2 and 4 px behind; frame 3 is the last one, 2 px ahead; less at the edges
    expected = np.mean([2, 4, 2])
    true = sliding(2.0)
    assert 0.6 * expected < figures(true, nearest(true))["flow_error_px"] < 1.05 * expected


def test_windows_are_five_frames_at_the_rate_that_training_comes_to() -> None:
    row = {"frames": 14, "fps": 6.0, "first_frame": 2, "sequence_frames": 60, "sequence_fps": 24.0}
    assert window_at(row, 28.0) == row | {"frames": 5, "fps": 24.0}
    assert window_at(row, 8.0) == row | {"frames": 5, "fps": 8.0}
    assert window_at(row | {"sequence_frames": 10}, 6.0) == row | {"frames": 5, "fps": 24.0, "sequence_frames": 10}
    assert window_at(row | {"sequence_frames": 6}, 24.0) is None
    whole = {"frames": 8, "fps": 7.0, "first_frame": None, "sequence_frames": None, "sequence_fps": None}
    assert window_at(whole, 28.0) == whole | {"frames": 5, "fps": 7.0}


def test_the_rate_is_that_of_the_training_by_the_models_card() -> None:
    card = {"configuration": {"fps": [14.0, 28.0]}, "conditioning": {"fps": 12.0}}
    assert trained_fps(card) == 28.0
    assert trained_fps(card | {"configuration": {"fps": None}}) == 12.0
    assert trained_fps({}) == 28.0


def test_the_gate_asks_of_interpolation_what_it_has_figures_for(tmp_path: Path) -> None:
    def judge(model: float, **asked: float) -> None:
        content = {
            "model": {"kind": "interpolation", "sha256": "ab"},
            "protocol": {"samples": 100},
            "figures": {"psnr_db": {"model": model, "untrained": 12.0, "blend": 24.0}},
        }
        (tmp_path / "m.json").write_text(json.dumps(content))
        check_gate(tmp_path / "m.json", GateSettings(**asked), tmp_path / "verdict.json")

    judge(23.5)
    assert [c["name"] for c in json.loads((tmp_path / "verdict.json").read_text())["gate"]["criteria"]] == [
        "kind of model", "held-out samples", "PSNR gain over untrained weights",
        "PSNR gain over the given frames blended",
    ]  # fmt: skip
    with pytest.raises(GateRefused, match="PSNR gain over the given frames blended is -2 dB, needed at least -1 dB"):
        judge(22.0)
    with pytest.raises(GateRefused, match="is -0.5 dB, needed at least -0.4 dB"):
        judge(23.5, max_blend_loss_db=0.5 - 0.1)
    with pytest.raises(GateRefused, match="untrained weights is 0.5 dB"):
        judge(12.5, max_blend_loss_db=20.0)
