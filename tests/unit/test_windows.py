"""Which frames of a clip are encoded, and which of them a window takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdflow.common.video import VideoFrame
from svdflow.common.windows import Window, choose_window, fitting_stride, nearest_in_time, spread, stride_for
from svdflow.training.encode.encode import plan_sequence
from svdflow.training.encode.settings import EncodeSettings

RATES = st.sampled_from([6.0, 12.0, 23.976, 25.0, 29.97, 60.0])


def numbered(times):
    """Frames that bear their own index in every pixel."""
    for index, time in enumerate(times):
        yield VideoFrame(index, float(time), np.full((2, 2, 3), index, np.uint8))


def taken(times, wanted):
    return [int(frame[0, 0, 0]) for frame in nearest_in_time(numbered(times), wanted)]


@given(frames=st.integers(1, 2000), fps=RATES, limit=st.integers(14, 500), max_fps=st.none() | st.floats(3, 60))
def test_a_sequence_is_every_kth_frame_of_the_clips_middle_within_the_limit(frames, fps, limit, max_fps):
    sequence = plan_sequence(frames, fps, EncodeSettings(max_frames=limit, max_fps=max_fps))
    stride = stride_for(fps, max_fps) if max_fps else 1
    assert sequence.fps == pytest.approx(fps / stride)
    assert sequence.frames == min(limit, len(range(0, frames, stride)))
    first, last = (sequence.times_s[i] * fps for i in (0, -1))
    assert first == pytest.approx(round(first), abs=1e-6) and last <= frames - 1 + 1e-6
    if sequence.frames == limit:  # as much is left before as behind, but for one stride
        assert abs(first - (frames - 1 - last)) <= 2 * stride


@given(
    available=st.integers(1, 300),
    frames=st.integers(1, 30),
    stride=st.integers(1, 12),
    count=st.none() | st.integers(1, 20),
    place=st.floats(0, 1, exclude_max=True),
)
def test_a_window_lies_in_its_sequence_and_starts_where_it_may(available, frames, stride, count, place):
    starts = spread(available, count)
    assert starts[0] == 0 and starts == sorted(set(starts)) and len(starts) == min(count or available, available)
    if frames > available:
        return
    window = choose_window(available, starts, frames, stride, place)
    assert window.first in starts and window.stride <= stride
    assert len(window.indices) == frames and max(window.indices) < available
    assert window.stride == stride or Window(0, window.stride + 1, frames).span > available or frames == 1


def test_every_start_that_fits_has_an_equal_share():
    windows = [choose_window(100, spread(100, 10), 14, 4, place) for place in np.linspace(0, 1, 500, endpoint=False)]
    firsts, counts = np.unique([w.first for w in windows], return_counts=True)
    assert firsts.tolist() == [0, 10, 20, 30, 40] and set(counts) == {100}


def test_a_stride_that_does_not_fit_is_made_smaller():
    assert [fitting_stride(n, 14, 4) for n in (53, 52, 40, 27, 14)] == [4, 3, 3, 2, 1]
    assert stride_for(25.0, 7.0) == 4 and stride_for(6.0, 30.0) == 1


@given(
    fps=st.sampled_from([12.0, 24.0, 29.97]),
    frames=st.integers(40, 120),
    wobble=st.floats(0, 0.3),
    seed=st.integers(0, 99),
)
def test_the_frames_taken_are_the_nearest_in_time(fps, frames, wobble, seed):
    times = (np.arange(frames) + wobble * np.random.default_rng(seed).uniform(-1, 1, frames)) / fps
    times -= times[0]
    wanted = np.arange(0, frames - 2, 2.5) / fps
    got = taken(times, wanted)
    assert len(got) == len(wanted)
    for time, index in zip(wanted, got, strict=True):
        assert abs(times[index] - time) <= np.abs(times - time).min() + 1e-9


def test_a_clip_that_ends_before_its_claim_gives_what_it_has():
    assert taken(np.arange(5) / 25, np.arange(0, 10, 2) / 25) == [0, 2, 4]
    assert taken(np.arange(5) / 25, [4.4 / 25, 4.6 / 25]) == [4]  # up to half a frame behind the last one
    assert taken([], [0.0]) == []


def test_no_more_than_a_chunk_of_a_long_clip_is_held():
    read = []

    def frames():
        for frame in numbered(np.arange(1000) / 25):
            read.append(frame.index)
            yield frame

    windows = nearest_in_time(frames(), np.arange(1000) / 25)
    for expected in range(50):
        assert int(next(windows)[0, 0, 0]) == expected % 256
    assert max(read) <= 50
