"""The map from motion score to motion bucket."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdflow.common.errors import BadInputError
from svdflow.diffusion.motion import MotionCalibration

scores = st.lists(st.floats(0, 1e4), min_size=1, max_size=200)


@given(scores=scores, more=st.lists(st.floats(-10, 2e4), min_size=2, max_size=20))
def test_more_motion_never_gives_a_lower_bucket(scores, more):
    calibration = MotionCalibration.fit(scores)
    buckets = [calibration.apply(score) for score in sorted(more)]
    assert buckets == sorted(buckets)
    assert 0 <= buckets[0] and buckets[-1] <= 255


@given(scores=scores)
def test_survives_json(scores):
    calibration = MotionCalibration.fit(scores, unit="px at 256")
    assert MotionCalibration.from_dict(calibration.to_dict()) == calibration


def test_buckets_are_evenly_used_whatever_the_distribution():
    values = np.random.default_rng(0).lognormal(0, 2, 800)
    buckets = [MotionCalibration.fit(values).apply(v) for v in values]
    counts, _ = np.histogram(buckets, bins=8, range=(0, 256))
    assert counts.min() > 85 and counts.max() < 115


def test_equal_scores_share_the_middle_of_their_ranks():
    assert MotionCalibration.fit([3.0]).apply(3.0) == 128
    assert MotionCalibration.fit([1.0, 1.0, 1.0]).apply(1.0) == 128
    still = MotionCalibration.fit([0.0] * 50 + list(np.linspace(1, 2, 50)))
    assert 50 < still.apply(0.0) < 80


@pytest.mark.parametrize(
    "broken",
    [{}, {"scores": [1, 2], "buckets": [3]}, {"scores": [2, 1], "buckets": [0, 1]},
     {"scores": [1, 2], "buckets": [9, 3]},
     {"scores": [1, 2], "buckets": [0, 300]}, {"scores": ["a"], "buckets": [0]}, {"scores": [], "buckets": []}],
)  # fmt: skip
def test_a_broken_calibration_is_refused(broken):
    with pytest.raises(BadInputError):
        MotionCalibration.from_dict(broken)


def test_no_finite_score_is_refused():
    with pytest.raises(BadInputError, match="no finite motion score"):
        MotionCalibration.fit([float("nan")])
