"""Motion against geometry: known shifts and zooms, fixed clocks, a fixed unit, maps that are means of the flow."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svdflow.common.config import load_settings
from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.flow import dis_flow, flow_figures, flow_frame, flow_map
from svdflow.common.video import VideoFrame
from svdflow.curation.annotate.annotator import ClipView, Watcher, load
from svdflow.curation.annotate.motion import DISFlow, FarnebackFlow, FlowFigures, FlowWatcher, frames_at_rate
from svdflow.curation.annotate.settings import AnnotateSettings

LOCAL = load_settings(AnnotateSettings, "annotate", "local")


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def moving(
    dx: float, dy: float, count: int = 5, fps: float = 2.0, zoom: float = 1.0, side: int = 128
) -> list[VideoFrame]:
    """A texture that moves by (dx, dy) px and grows by ``zoom`` per frame."""
    large = texture(3 * side, 3 * side)
    frames = []
    for n in range(count):
        scale, middle = zoom**n, 1.5 * side
        matrix = np.array(
            [[scale, 0, side / 2 - scale * middle + dx * n], [0, scale, side / 2 - scale * middle + dy * n]]
        )
        frames.append(VideoFrame(n, n / fps, cv2.warpAffine(large, matrix, (side, side), flags=cv2.INTER_LINEAR)))
    return frames


def show(watcher: Watcher, frames: list[VideoFrame]) -> None:
    """What the decode does: the frames that the watcher asks for, in order."""
    for index in watcher.wants(np.array([frame.time_s for frame in frames])):
        watcher.see(frames[index])


def watched(frames: list[VideoFrame], fps: float = 2.0, short_side_px: int = 128, flow=None) -> np.ndarray:
    watcher = FlowWatcher(1 / fps, short_side_px, **({"flow": flow} if flow else {}))
    show(watcher, frames)
    return watcher.figures.total / len(watcher.figures.maps)


@pytest.mark.parametrize("flow", [None, dis_flow], ids=["farneback", "dis"])
@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (-3, 0), (0, 2), (2, -2)])
def test_a_shift_is_measured_as_the_shift(dx: float, dy: float, flow) -> None:
    magnitude, found_dx, found_dy, radial = watched(moving(dx, dy), flow=flow)
    assert magnitude == pytest.approx(np.hypot(dx, dy), rel=0.1)
    assert (found_dx, found_dy) == pytest.approx((dx, dy), abs=0.3) and abs(radial) < 0.3


def test_a_zoom_moves_outward_by_what_geometry_says() -> None:
    _, dx, dy, radial = watched(moving(0, 0, zoom=1.03))
    x = np.arange(128) - 63.5
    assert radial == pytest.approx(0.03 * np.hypot(x, x[:, None]).mean(), rel=0.15)
    assert abs(dx) < 0.3 and abs(dy) < 0.3
    assert watched(moving(0, 0, zoom=1 / 1.03))[3] < 0


def test_opposite_motions_cancel_in_the_map_and_not_in_the_score() -> None:
    flow = np.zeros((128, 256, 2), np.float32)
    flow[:, 0::2, 0], flow[:, 1::2, 0] = 3, -3
    assert flow_figures(flow).tolist() == pytest.approx([3, 0, 0, 0], abs=0.05)
    assert not flow_map(flow).any()


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_flow_map_is_the_mean_of_each_area_in_half_precision(rows: int, columns: int, seed: int) -> None:
    """For whole numbers of pixels to a cell, the mean by reshaping."""
    height, width = (16, 16 * columns) if rows <= columns else (16 * rows, 16)
    flow = np.random.default_rng(seed).normal(0, 5, (8 * height, 8 * width, 2)).astype(np.float32)
    found = flow_map(flow)
    assert found.dtype == np.float16 and found.shape == (height, width, 2) and min(found.shape[:2]) == 16
    assert found == pytest.approx(flow.reshape(height, 8, width, 8, 2).mean((1, 3)), abs=2e-2)


def test_absurd_flow_stays_finite_in_a_map() -> None:
    assert np.isfinite(flow_map(np.full((32, 32, 2), 1e9, np.float32))).all()


def test_frames_are_taken_by_time_not_by_number() -> None:
    """At any frame rate the same motion per second gives the same score."""
    scores = [watched(moving(dx=6 / fps, dy=0, count=int(2 * fps) + 1, fps=fps))[0] for fps in (2.0, 8.0, 12.0)]
    assert scores == pytest.approx([3, 3, 3], rel=0.1)


@given(
    gaps=st.lists(st.floats(0.001, 1.5), min_size=1, max_size=80),
    interval_s=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
)
def test_the_clock_takes_the_first_frame_of_each_tick_whatever_the_frame_rate(gaps, interval_s) -> None:
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    taken = frames_at_rate(times, interval_s)
    ticks = np.floor((times + 1e-6) / interval_s)
    expected = [int(np.argmax(ticks == tick)) for tick in np.unique(ticks)]
    assert taken == (expected if len(expected) > 1 else [0, len(times) - 1])


def test_a_frame_that_comes_late_is_scaled_to_the_interval() -> None:
    frames = moving(2, 0, count=4)
    late = [
        VideoFrame(f.index, t, f.rgb) for f, t in zip(frames, (0.0, 0.5, 1.2, 2.0), strict=True)
    ]  # 0.7 s and 0.8 s apart
    assert watched(late)[0] == pytest.approx(np.mean([2, 2 * 0.5 / 0.7, 2 * 0.5 / 0.8]), rel=0.1)


def test_the_flow_resolution_sets_the_unit() -> None:
    large = moving(4, 0, side=256)
    assert watched(large, short_side_px=256)[0] == pytest.approx(4, rel=0.1)
    assert watched(large, short_side_px=128)[0] == pytest.approx(2, rel=0.1)
    units = {
        FarnebackFlow(LOCAL).unit,
        FarnebackFlow(LOCAL.model_copy(update={"flow_short_side_px": 256})).unit,
        FarnebackFlow(LOCAL.model_copy(update={"flow_fps": 4.0})).unit,
        DISFlow(LOCAL).unit,
    }
    assert units == {"px/0.5s@short128", "px/0.5s@short256", "px/0.25s@short128", "px/0.5s@short128 dis-flow"}


def seen_by(annotator, frames: list[VideoFrame]) -> ClipView:
    view = ClipView("c", key_frames=[frames[0], frames[len(frames) // 2], frames[-1]])
    view.watched["motion"] = annotator.watcher()
    show(view.watched["motion"], frames)
    return view


def test_a_clip_shorter_than_an_interval_is_measured_from_end_to_end() -> None:
    frames = moving(1, 0, count=4, fps=12)
    annotator = FarnebackFlow(LOCAL)
    columns = annotator.annotate(seen_by(annotator, frames))
    assert columns["motion_score"] == pytest.approx(6, rel=0.1)  # 3 px in a quarter of a second
    with pytest.raises(BadInputError, match="two frames"):
        annotator.annotate(seen_by(annotator, frames[:1]))


def test_score_camera_and_maps_tell_of_the_same_flow(root) -> None:
    from safetensors.numpy import load as load_tensors

    annotator = FarnebackFlow(LOCAL)
    found = annotator.annotate(seen_by(annotator, moving(3, 0, count=5, side=160)))
    stored = annotator.store(found, root)
    kept = load_tensors(root.read(stored["flow_uri"]))
    assert kept["flow_px"].shape == (4, 16, 16, 2) and kept["flow_px"].dtype == np.float16
    assert kept["time_s"].tolist() == [0.0, 0.5, 1.0, 1.5]
    assert kept["flow_px"].astype(float).mean((0, 1, 2)) == pytest.approx(found["camera_motion"][:2], abs=1e-2)
    assert found["motion_score"] == pytest.approx(3 * 128 / 160, rel=0.1)
    assert len({annotator.store(found, root)["flow_uri"] for _ in range(8)}) == 1  # equal content, equal bytes


def test_flow_between_equal_moments_is_no_pair() -> None:
    with pytest.raises(BadInputError, match="two frames"):
        FlowFigures(0.5).columns("")


# RAFT: the network is not trained here, but its parts have closed forms


def test_raft_has_the_parameters_that_torchvision_documents_for_its_large_network() -> None:
    from svdflow.curation.annotate.raft import RAFT

    network = RAFT()
    assert sum(p.numel() for p in network.parameters()) == 5_257_536


def test_raft_correlates_by_products_and_looks_them_up_where_the_flow_says() -> None:
    import torch

    from svdflow.curation.annotate.raft import _coordinates, _correlations, _look_up

    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 6, 16, 24)
    pyramid = _correlations(a, b)
    assert [tuple(p.shape[2:]) for p in pyramid] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    y, x, dy, dx = 7, 11, -2, 3
    at = _coordinates(a) + torch.tensor([2.0, 1.0]).reshape(1, 2, 1, 1)  # a flow of two to the right, one down
    seen = _look_up(pyramid, at)[0, :81, y, x].reshape(9, 9)  # columns of the window first
    expected = (a[0, :, y, x] * b[0, :, y + 1 + dy, x + 2 + dx]).sum() / 6**0.5
    assert float(seen[dx + 4, dy + 4]) == pytest.approx(float(expected), abs=1e-5)


def test_raft_upsampling_of_an_even_flow_is_eight_times_that_flow() -> None:
    import torch

    from svdflow.curation.annotate.raft import _upsample

    fine = _upsample(torch.ones(1, 2, 5, 7) * torch.tensor([1.5, -0.5]).reshape(1, 2, 1, 1), torch.randn(1, 576, 5, 7))
    assert fine.shape == (1, 2, 40, 56)
    assert fine[0, :, 8:-8, 8:-8].mean((1, 2)).tolist() == pytest.approx([12, -4], abs=1e-4)


def test_raft_is_loaded_from_safetensors_and_its_figures_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from svdflow.curation.annotate.raft import RAFT

    torch.manual_seed(0)
    save_file(RAFT().state_dict(), tmp_path / "raft.safetensors")
    chosen = LOCAL.model_copy(
        update={
            "motion": "raft-flow",
            "raft_weights": str(tmp_path / "raft.safetensors"),
            "raft_iterations": 1,
            "raft_pairs": 2,
        }
    )
    annotator = load(chosen)[0]
    views = [seen_by(annotator, moving(dx, 1, count=count)) for dx, count in ((1, 2), (3, 4))]
    for view in views:
        annotator.prepare(view)
    together = annotator.measure([view.without_frames() for view in views])
    alone = [annotator.annotate(view) for view in views]
    for one, other in zip(together, alone, strict=True):
        assert one["motion_score"] == other["motion_score"] and one["motion_unit"] == "px/0.5s@short128 raft-flow"
        assert np.array_equal(one["flow_uri"]["flow_px"], other["flow_uri"]["flow_px"])
    with pytest.raises(ConfigError, match="convert_weights raft-large"):
        load(LOCAL.model_copy(update={"motion": "raft-flow"}))


def test_grey_frames_have_the_short_side_asked_for() -> None:
    assert flow_frame(texture(240, 400), 128).shape == (128, 213)
    assert flow_frame(texture(400, 240), 128).shape == (213, 128)
