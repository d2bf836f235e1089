"""Training gathers windows from sequences of encoded frames; what it is told of them follows the window."""

import dataclasses

import numpy as np
import pytest

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.sample_tensors import pack_picture, picture_name, read_picture, unpack_picture
from svdflow.common.shards import ShardReader, write_shard
from svdflow.common.storage import DataRoot
from svdflow.common.windows import spread
from svdflow.training.train.buckets import usable_rows
from svdflow.training.train.data import Gathering, SampleSource
from svdflow.training.train.draws import Plan, latent_noise, noise
from svdflow.training.train.settings import stage_settings

FRAMES, RATE = 60, 24.0
STARTS = spread(FRAMES, 8)


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    """A sample of 60 frames whose tensors tell which frame they are of."""
    folder = tmp_path_factory.mktemp("sequence")
    root, rng = DataRoot.open(folder / "root"), np.random.default_rng(0)
    pictures = rng.integers(0, 255, (FRAMES, 16, 24, 3), dtype=np.uint8)
    index = np.arange(FRAMES, dtype=np.float32)
    tensors = {
        "mean": np.broadcast_to(index[:, None, None, None], (FRAMES, 4, 2, 3)).astype(np.float16),
        "logvar": np.full((FRAMES, 4, 2, 3), 2 * np.log(0.5), np.float32),
        "images": np.broadcast_to(index[:, None], (FRAMES, 5)),
        **{picture_name(start): pack_picture(pictures[start]) for start in STARTS},
    }
    write_shard(folder / "shard", {"clip": tensors, "words": {"text": np.arange(6.0).reshape(3, 2, 1)}})
    uri = root.put_file(folder / "shard")
    row = {
        "sample_id": "clip-00", "layout": "frames", "shard_uri": uri, "tensor_prefix": "clip", "frames": 14,
        "height": 16, "width": 24, "fps": 8.0, "first_frame": 7, "stride": 3, "sequence_frames": FRAMES,
        "sequence_fps": RATE, "starts": STARTS, "text_uri": uri, "text_prefix": "words", "motion_score": 1.0,
        "elevation_deg": None,
    }  # fmt: skip
    return root, row, pictures


def draws(count, **values):
    settings = stage_settings("image_to_video", {"batch": 8, "processes": 1, **values})
    plan = Plan(settings, 1)
    return [plan.draw(i) for i in range(count)]


def test_a_window_is_every_stride_th_frame_and_all_conditions_are_of_its_first_one(sequence):
    root, row, pictures = sequence
    source = SampleSource(root, [row], Gathering((5,), (24.0, 12.0, 6.0)))
    seen = set()
    for draw in draws(200):
        window = source.window(draw)
        indices = list(window.indices)
        np.testing.assert_array_equal(source.latents(draw)[:, 0, 0, 0], indices)
        assert source.latents(draw).dtype == np.float32
        assert (source.image(draw) == indices[0]).all() and source.image(draw).shape == (5,)
        np.testing.assert_array_equal(source.picture(draw), pictures[indices[0]])
        assert source.fps(draw) == pytest.approx(RATE / window.stride)
        assert source.text(draw)[0, 0] == 2 * draw.caption
        seen.add((window.first, window.stride))
    assert {stride for _, stride in seen} == {1, 2, 4}
    assert {first for first, _ in seen} <= set(STARTS) and len(seen) > 12


def test_text_to_video_starts_windows_at_any_frame_and_image_to_video_where_pixels_are_kept(sequence):
    root, row, _ = sequence
    settings = stage_settings("video", {"frames": 8})
    firsts = {
        stage: {SampleSource(root, [row], Gathering.of(stage, settings, True)).window(d).first for d in draws(300)}
        for stage in ("video", "image_to_video")
    }
    assert len(firsts["video"]) > 30 and firsts["image_to_video"] <= set(STARTS)


def test_without_wishes_the_reference_window_s_length_and_rate_are_taken(sequence):
    root, row, _ = sequence
    source = SampleSource(root, [row])
    assert {(w.frames, w.stride) for w in map(source.window, draws(50))} == {(14, 3)}
    assert source.typical_fps == source.fps(draws(1)[0]) == 8.0


def test_the_choice_of_window_is_a_function_of_seed_and_ordinal(sequence):
    root, row, _ = sequence
    source = SampleSource(root, [row], Gathering((5,), (24.0, 12.0)))
    windows = [source.window(draw) for draw in draws(40)]
    assert windows == [source.window(draw) for draw in draws(40, processes=2, accumulation=2)]
    assert windows != [source.window(draw) for draw in draws(40, seed=1)]


def test_sampled_latents_have_the_posterior_s_mean_and_deviation(sequence):
    root, row, _ = sequence
    source = SampleSource(root, [row], Gathering((4,), sampled=True))
    plain = SampleSource(root, [row], Gathering((4,)))
    residual = np.stack([source.latents(d) - plain.latents(d) for d in draws(300)])
    assert abs(residual.mean()) < 0.02 and abs(residual.std() - 0.5) < 0.01
    draw = draws(1)[0]
    np.testing.assert_array_equal(source.latents(draw), source.latents(draw))
    shape = (4, 4, 2, 3)
    assert abs(np.corrcoef(latent_noise(draw, shape).ravel(), noise(draw, shape).ravel())[0, 1]) < 0.3


def test_the_held_out_loss_takes_the_mean_and_training_samples_as_the_released_code_does():
    settings = stage_settings("video", {})
    assert settings.latent == "sample"
    assert Gathering.of("video", settings, training=True).sampled
    assert not Gathering.of("video", settings, training=False).sampled
    assert not Gathering.of("video", stage_settings("video", {"latent": "mean"}), training=True).sampled


def test_a_single_frame_is_any_of_the_sequence(sequence):
    root, row, _ = sequence
    source = SampleSource(root, [row], Gathering.of("image", stage_settings("image", {}), True))
    frames = [source.latents(dataclasses.replace(d), single_frame=True) for d in draws(400)]
    assert {f.shape for f in frames} == {(1, 4, 2, 3)}
    assert len({round(float(f.mean())) for f in frames}) > 50


def test_samples_that_hold_no_window_are_left_out_by_reason(sequence):
    _, row, _ = sequence
    short = row | {"sequence_frames": 20}
    usable, dropped = usable_rows([row, short, short], "video", stage_settings("video", {"frames": 25}))
    assert usable == [True, False, False] and dropped == {"fewer than 25 frames": 2}
    assert usable_rows([short], "video", stage_settings("video", {"frames": 14}))[1] == {}
    assert usable_rows([short], "image", stage_settings("image", {"frames": None}))[1] == {}
    with_images = stage_settings("video", {"frames": 25, "short_frames": [8, 1]})
    still = row | {"sequence_frames": 1, "starts": [0]}
    usable, dropped = usable_rows([row, short, still], "video", with_images)
    assert usable == [True] * 3 and not dropped
    lengths = Gathering.of("video", with_images, True)
    assert [size[0] for size in SampleSource(None, [row, short, still], lengths).buckets] == [25, 8, 1]
    with pytest.raises(ConfigError, match="must be fewer than frames, which is 8"):
        stage_settings("video", {"frames": 8, "short_frames": [8]})
    with pytest.raises(ConfigError, match="positive rates"):
        stage_settings("video", {"fps": []})


def test_pictures_come_back_without_loss_and_damaged_ones_are_refused_unopened(sequence):
    root, row, pictures = sequence
    reader = ShardReader.open(root, row["shard_uri"])
    np.testing.assert_array_equal(read_picture(reader, row, STARTS[3]), pictures[STARTS[3]])
    with pytest.raises(BadInputError, match="is no RGB PNG of 25x16 px; encode"):
        read_picture(reader, row | {"width": 25}, STARTS[3])
    packed = pack_picture(pictures[0])
    for damaged in (packed[:20], np.zeros(99, np.uint8), packed[40:]):
        with pytest.raises(BadInputError, match="encode the clip again"):
            unpack_picture(damaged, 16, 24, "here")
