"""Buckets, crops and flips: where a clip goes, what is cut off it, which variants it gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdflow.common.config import validate_settings
from svdflow.common.errors import ConfigError
from svdflow.common.frames import crop_shares, fit_frame
from svdflow.training.encode.settings import EncodeSettings
from svdflow.training.encode.variants import nearest_size, variants

SIZES = ((64, 64), (48, 88), (88, 48), (32, 128))
SIDES = st.integers(16, 2000)


@given(height=SIDES, width=SIDES)
def test_a_clip_goes_where_least_of_it_is_cut_off(height, width):
    chosen = nearest_size(height, width, SIZES)
    kept = {size: 1 / max(size[1] * height / (size[0] * width), size[0] * width / (size[1] * height)) for size in SIZES}
    assert kept[chosen] == pytest.approx(max(kept.values()))


@pytest.mark.parametrize(
    ("shape", "size"), [((1080, 1920), (48, 88)), ((1920, 1080), (88, 48)), ((500, 480), (64, 64))]
)
def test_common_aspects_go_to_their_buckets(shape, size):
    assert nearest_size(*shape, SIZES) == size


@given(
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    size=st.sampled_from(SIZES),
    place=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_shares_cut_off_are_those_of_the_picture(height, width, size, place):
    left, top, right, bottom = crop_shares(height, width, *size, place)
    assert min(left, top, right, bottom) >= 0 and (left + right) * (top + bottom) == pytest.approx(0, abs=0.02)
    # a ramp shows which part is left, by its ends
    ramp = np.broadcast_to(np.linspace(0, 255, width)[None, :, None], (height, width, 3)).astype(np.uint8)
    cut = fit_frame(np.ascontiguousarray(ramp), *size, place)
    assert cut.shape == (*size, 3)
    tolerance = 2.0 * 255 / min(width, size[1]) + 4
    assert abs(float(cut[:, 0].mean()) - 255 * left) < tolerance
    assert abs(float(cut[:, -1].mean()) - 255 * (1 - right)) < tolerance
    flipped = fit_frame(np.ascontiguousarray(ramp), *size, place, flip=True)
    np.testing.assert_array_equal(flipped[:, ::-1], cut)


def test_variants_are_all_crops_plain_and_flipped_for_training_and_one_for_held_out_clips():
    settings = EncodeSettings(crops=("start", "centre", "end"), flips=True)
    found = variants(100, 400, (64, 64), "train", settings)
    assert {(v.place, v.flipped) for v in found} == {(p, f) for p in (0.0, 0.5, 1.0) for f in (False, True)}
    assert len({v.number for v in found}) == 6
    assert [(v.place, v.flipped) for v in variants(100, 400, (64, 64), "held_out", settings)] == [(0.5, False)]


def test_a_picture_of_the_bucket_s_own_aspect_has_no_crops_to_choose_from():
    settings = EncodeSettings(crops=("start", "centre", "end"))
    assert [v.place for v in variants(200, 200, (64, 64), "train", settings)] == [0.5]


def test_nothing_is_flipped_unless_asked_for():
    assert [v.flipped for v in variants(100, 400, (64, 64), "train", EncodeSettings())] == [False]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"sizes": [(64, 60)]}, "60x64 px: both sides must be multiples of 8"),
        ({"crops": []}, "one or more of"),
        ({"crops": ["left"]}, "encode.crops"),
        ({"max_frames": 8}, "fewer than the 14 frames"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(values, word):
    with pytest.raises(ConfigError, match=word):
        validate_settings(EncodeSettings, "encode", values)
