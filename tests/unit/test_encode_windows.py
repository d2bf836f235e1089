"""Which frames of a clip become samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdflow.common.video import VideoFrame
from svdflow.training.encode.settings import EncodeSettings
from svdflow.training.encode.windows import plan_windows, take_windows


def numbered(times):
    """Frames that bear their own index in every pixel."""
    for index, time in enumerate(times):
        yield VideoFrame(index, float(time), np.full((16, 16, 3), index, np.uint8))


def settings(**values):
    return EncodeSettings(**{"frames": 8, "height": 16, "width": 16, "fps": 8, "windows_per_clip": 3} | values)


@given(
    frames=st.integers(1, 250),
    fps=st.sampled_from([6.0, 12.0, 23.976, 25.0, 29.97, 60.0]),
    count=st.integers(1, 6),
    target=st.floats(3, 30),
)
def test_windows_lie_inside_the_clip_and_do_not_overlap(frames, fps, count, target):
    asked = settings(windows_per_clip=count, fps=target)
    windows = plan_windows(frames, fps, asked)
    stride = max(1, round(fps / target))
    assert len(windows) <= count
    assert bool(windows) == (frames >= 7 * stride + 1)
    for window in windows:
        assert window.fps == pytest.approx(fps / stride)
        np.testing.assert_allclose(np.diff(window.times_s), 1 / window.fps)
        assert 0 <= window.times_s[0] and window.times_s[-1] <= (frames - 1) / fps + 1e-9
    for one, two in zip(windows, windows[1:], strict=False):
        assert one.times_s[-1] < two.times_s[0]


@given(
    fps=st.sampled_from([12.0, 24.0, 29.97]),
    frames=st.integers(40, 120),
    wobble=st.floats(0, 0.3),
    seed=st.integers(0, 99),
)
def test_the_frames_taken_are_the_nearest_in_time(fps, frames, wobble, seed):
    times = (np.arange(frames) + wobble * np.random.default_rng(seed).uniform(-1, 1, frames)) / fps
    times -= times[0]
    windows = plan_windows(frames - 2, fps, settings())
    taken = take_windows(numbered(times), windows, 16, 16)
    for window, got in zip(windows, taken, strict=True):
        assert got.shape == (8, 16, 16, 3)
        for time, frame in zip(window.times_s, got, strict=True):
            assert abs(times[frame[0, 0, 0]] - time) <= np.abs(times - time).min() + 1e-9


def test_at_a_constant_rate_every_stride_th_frame_is_taken():
    taken = take_windows(numbered(np.arange(50) / 25), plan_windows(50, 25, settings(windows_per_clip=1)), 16, 16)
    indices = taken[0][:, 0, 0, 0].tolist()
    assert np.diff(indices).tolist() == [3] * 7


def test_a_clip_that_ends_before_its_claim_gives_nothing():
    windows = plan_windows(50, 25, settings(windows_per_clip=2))
    assert take_windows(numbered(np.arange(30) / 25), windows, 16, 16) is None
    assert take_windows(numbered([]), windows, 16, 16) is None
