"""The true frames of a held-out sample are the very frames that were encoded."""

from pathlib import Path

import numpy as np
import pytest

from svdflow.common.errors import BadInputError
from svdflow.common.frames import fit_frame
from svdflow.common.manifests import AXES, write_manifest
from svdflow.common.video import decode, encode_mp4, probe
from svdflow.common.windows import choose_window, nearest_in_time, stride_for
from svdflow.evaluation.held_out import check_held_out, choose_samples, frames_from
from svdflow.training.encode.encode import plan_sequence
from svdflow.training.encode.settings import EncodeSettings


def sample_row(number: int, clip: str, split: str = "held_out") -> dict[str, object]:
    return {
        "sample_id": f"{clip}-{number:02d}",
        "clip_id": clip,
        "split": split,
        "shard_uri": "s",
        "tensor_prefix": "p",
        "frames": 8,
        "height": 64,
        "width": 64,
        "fps": 6.0,
        "captions": [],
    }


@pytest.mark.parametrize("name", ["bikes.mp4", "carphone_pristine.mp4"])
@pytest.mark.parametrize("fps", [6.0, 12.0])
def test_windows_are_found_again_by_their_first_frame(name: str, fps: float, media: Path) -> None:
    data = (media / name).read_bytes()
    info = probe(data)
    sequence = plan_sequence(info.frames, info.fps, EncodeSettings(frames=5))
    encoded = np.stack([fit_frame(rgb, 48, 64) for rgb in nearest_in_time(decode(data), sequence.times_s)])
    for place in (0.0, 0.4, 0.99):
        window = choose_window(len(encoded), range(len(encoded)), 5, stride_for(sequence.fps, fps), place)
        found = frames_from(decode(data), encoded[window.first], 5, sequence.fps / window.stride)
        assert found is not None and np.array_equal(found, encoded[list(window.indices)])


def test_a_frame_of_another_clip_or_a_clip_that_ends_too_early_gives_nothing() -> None:
    rng = np.random.default_rng(0)
    mp4 = encode_mp4(rng.integers(0, 255, (6, 32, 32, 3), dtype=np.uint8), 6.0)
    frames = np.stack([frame.rgb for frame in decode(mp4)])
    found = frames_from(decode(mp4), frames[1], 5, 6.0)
    assert found is not None and np.array_equal(found, frames[1:])
    assert frames_from(decode(mp4), frames[2], 5, 6.0) is None
    assert frames_from(decode(mp4), np.zeros((32, 32, 3), np.uint8), 2, 6.0) is None


def test_samples_are_spread_over_clips_before_a_clip_gives_a_second(tmp_path: Path) -> None:
    rows = [sample_row(i, clip) for clip in ("a", "b", "c") for i in range(3)] + [sample_row(0, "d", "train")]
    write_manifest("samples", rows, tmp_path / "samples.parquet")
    assert [row["sample_id"] for row in choose_samples(tmp_path / "samples.parquet", 4)] == [
        "a-00",
        "b-00",
        "c-00",
        "a-01",
    ]
    write_manifest("samples", rows[:1], tmp_path / "one.parquet")
    with pytest.raises(BadInputError, match="holds 1 held-out samples, evaluation needs two"):
        choose_samples(tmp_path / "one.parquet", 4)


def test_a_sample_that_the_selection_trains_on_is_refused(tmp_path: Path) -> None:
    row = {
        "clip_id": "a",
        "video_id": "v",
        "keep": True,
        "split": "held_out",
        "reasons": [],
        "thresholds": "{}",
        **{f"{axis}_failed": False for axis in AXES},
    }
    write_manifest("selection", [row], tmp_path / "good.parquet")
    write_manifest("selection", [row | {"split": "train"}], tmp_path / "bad.parquet")
    check_held_out([sample_row(0, "a")], tmp_path / "good.parquet")
    with pytest.raises(BadInputError, match="does not hold out clip a"):
        check_held_out([sample_row(0, "a")], tmp_path / "bad.parquet")
