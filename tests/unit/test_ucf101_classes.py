"""UCF-101: which videos are asked for, and what the feature network is shown of generated and of real ones."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from svdflow.common.config import load_settings
from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.video import encode_mp4
from svdflow.evaluation.ucf101.classes import csv_counts, draw, folder_videos, part_of, plan, split_name
from svdflow.evaluation.ucf101.protocol import Measured, result_of
from svdflow.evaluation.ucf101.settings import Ucf101Settings
from svdflow.evaluation.ucf101.videos import Generated, as_seen, real_frames
from svdflow.evaluation.video_network import I3D_SHA256, NetworkFile


def test_a_folder_gives_its_classes_and_videos_in_order(tmp_path: Path) -> None:
    for name in ("YoYo/v_2.avi", "YoYo/v_1.AVI", "Archery/v.mp4", "Archery/notes.txt", "empty/readme", ".hidden/v.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "beside.avi").touch()
    found = folder_videos(tmp_path)
    assert {name: [path.name for path in paths] for name, paths in found.items()} == {
        "Archery": ["v.mp4"],
        "YoYo": ["v_1.AVI", "v_2.avi"],
    }
    assert list(found) == ["Archery", "YoYo"]
    with pytest.raises(BadInputError, match="holds no folder with videos"):
        folder_videos(tmp_path / "YoYo")
    with pytest.raises(BadInputError, match="no such folder"):
        folder_videos(tmp_path / "absent")


def test_a_csv_gives_the_same_counts(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("class,count\nTableTennisShot,140\nPlayingPiano,105\n")
    assert csv_counts(tmp_path / "classes.csv") == {"TableTennisShot": 140, "PlayingPiano": 105}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("class,count\n", "0 videos of 0 classes"),
        ("class,count\nA,0\n", "line 2: columns class and count"),
        ("class,count\nA,-3\n", "line 2: columns class and count"),
        ("class,count\nA,many\n", "line 2: columns class and count"),
        ("class,count\nA," + "9" * 5000 + "\n", "line 2: .* the count a number from 1 to 1000000"),
        ("name,number\nA,3\n", "line 2: columns class and count"),
        ("class,count\nA,3\nA,4\n", "line 3: A comes twice"),
        ("class,count\nA,1000001\n", "1 to 1000000 can be"),
        ("x" * 1_100_000, "are no list of classes"),
    ],
)
def test_a_csv_of_another_kind_is_refused_by_line(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text(content)
    with pytest.raises(BadInputError, match=says):
        csv_counts(tmp_path / "classes.csv")


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40), st.data())
def test_fewer_videos_keep_the_distribution_to_less_than_one_video_a_class(
    sizes: list[int], data: st.DataObject
) -> None:
    counts = {f"c{n}": size for n, size in enumerate(sizes)}
    wanted = data.draw(st.integers(0, sum(sizes)))
    found = draw(counts, wanted)
    assert sum(found.values()) == wanted and list(found) == list(counts)
    for name, size in counts.items():
        assert abs(found[name] - size * wanted / sum(sizes)) < 1 and found[name] <= size
    remainders = {name: size * wanted % sum(sizes) for name, size in counts.items()}
    up = {name for name, size in counts.items() if found[name] > size * wanted // sum(sizes)}
    assert all(remainders[a] >= remainders[b] for a in up for b in counts.keys() - up)


def test_all_videos_are_the_reference_itself_and_more_there_are_not() -> None:
    assert draw({"a": 3, "b": 2}, None) == draw({"a": 3, "b": 2}, 5) == {"a": 3, "b": 2}
    with pytest.raises(BadInputError, match="6 videos are wanted and the reference has 5"):
        draw({"a": 3, "b": 2}, 6)


def test_prompts_are_raw_class_names_unless_asked_otherwise() -> None:
    counts = {"TableTennisShot": 2, "YoYo": 1}
    assert [(one.prompt, one.number) for one in plan(counts, False)] == [
        ("TableTennisShot", 0),
        ("TableTennisShot", 1),
        ("YoYo", 0),
    ]
    assert [one.prompt for one in plan(counts, True)] == ["Table Tennis Shot", "Table Tennis Shot", "Yo Yo"]
    assert [split_name(name) for name in ("Archery", "TaiChi", "BMXRace", "already split", "Take2Go", "été")] == [
        "Archery", "Tai Chi", "BMX Race", "already split", "Take 2 Go", "été",
    ]  # fmt: skip


def test_parts_share_all_videos_and_none_is_in_two() -> None:
    everything = list(range(23))
    taken = [everything[first::parts] for first, parts in (part_of(f"{n}/5") for n in range(1, 6))]
    assert sorted(sum(taken, [])) == everything and max(map(len, taken)) - min(map(len, taken)) <= 1
    for wrong in ("0/5", "6/5", "1", "1/0", "-1/5", "a/b"):
        with pytest.raises(BadInputError, match="the second of eight parts"):
            part_of(wrong)


def test_the_defaults_are_the_papers() -> None:
    paper = load_settings(Ucf101Settings, "ucf101", "paper")
    assert (paper.frames, paper.fps, paper.guidance, paper.height, paper.width) == (16, 25, 7, 320, 576)
    assert paper.seen() == {"resized_height": 240, "resized_width": 432, "cropped_height": 240, "cropped_width": 320}
    assert paper.videos is None and not paper.split_words
    with pytest.raises(ConfigError, match=r"ucf101.cropped_width: 500 px cannot be cut out of 432"):
        load_settings(Ucf101Settings, "ucf101", "paper", {"ucf101.cropped_width": 500})


def test_a_generated_video_is_seen_as_pillows_antialiased_bilinear_filter_and_a_centre_crop_make_it() -> None:
    """Pillow widens the triangle by the scale as torch does; it rounds after each direction, hence one level."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 320, 576, 3), dtype=np.uint8)
    found = as_seen(frames, Ucf101Settings())
    assert found.shape == (2, 240, 320, 3) and found.dtype == np.uint8
    for given_frame, seen in zip(frames, found, strict=True):
        resized = np.asarray(Image.fromarray(given_frame).resize((432, 240), Image.Resampling.BILINEAR))
        assert np.abs(resized[:, 56:376].astype(int) - seen).max() <= 1


def numbered(path: Path, frames: int, fps: float, height: int = 48, width: int = 64) -> Path:
    """A video whose frame n has the brightness 4 n."""
    shades = 4 * np.arange(frames, dtype=np.uint8)
    path.write_bytes(encode_mp4(np.broadcast_to(shades[:, None, None, None], (frames, height, width, 3)), fps, crf=1))
    return path


def shown(path: Path, **changed: object) -> list[int]:
    told = {"frames": 5, "cropped_height": 48, "cropped_width": 64, **changed}
    frames = real_frames(path, Ucf101Settings.model_validate(told))
    assert frames.shape == (5, told["cropped_height"], told["cropped_width"], 3)
    return [round(float(frame.mean()) / 4) for frame in frames]


def test_a_real_clip_is_the_middle_at_the_same_rate(tmp_path: Path) -> None:
    own_rate = numbered(tmp_path / "25.mp4", 21, 25)
    assert shown(own_rate) == [8, 9, 10, 11, 12]
    assert shown(own_rate, real_clip="first") == [0, 1, 2, 3, 4]
    assert shown(own_rate, cropped_height=24, cropped_width=32) == [8, 9, 10, 11, 12]
    twice = numbered(tmp_path / "50.mp4", 41, 50)
    assert shown(twice) == [16, 18, 20, 22, 24]
    assert shown(numbered(tmp_path / "just.mp4", 5, 25)) == [0, 1, 2, 3, 4]
    with pytest.raises(BadInputError, match=r"short.mp4: is too short: it has not 5 frames at 25 a second"):
        shown(numbered(tmp_path / "short.mp4", 4, 25))


# 99 further classes with what remains of 13,320: the paper tells two, and the number of all
UCF101 = {"TableTennisShot": 140, "PlayingPiano": 105} | {f"C{n}": 132 for n in range(98)} | {"C98": 139}
OTHERS = {
    "one class": {"A": 13_320},
    "100 classes": {name: count for name, count in UCF101.items() if name != "C98"} | {"C0": 132 + 139},
    "one of the two": UCF101 | {"TableTennisShot": 139, "C0": 133},
    "the other one": UCF101 | {"PlayingPiano": 104, "C0": 133},
    "one video more": UCF101 | {"C0": 133},
}


@pytest.mark.parametrize(
    ("compared", "sha256", "counts", "real", "changed", "comparable"),
    [
        (13_320, I3D_SHA256, UCF101, UCF101, {}, True),
        (13_320, I3D_SHA256, UCF101, UCF101, {"steps": 30, "motion_bucket": 60}, True),  # the paper does not tell them
        (13_320, I3D_SHA256, UCF101, UCF101, {"split_words": True}, False),
        (13_320, I3D_SHA256, UCF101, UCF101, {"guidance": 6}, False),
        (13_320, I3D_SHA256, UCF101, UCF101, {"cropped_width": 240}, False),
        (13_319, I3D_SHA256, UCF101, UCF101, {}, False),
        (13_320, "0" * 64, UCF101, UCF101, {}, False),
        *[(sum(other.values()), I3D_SHA256, other, other, {}, False) for other in OTHERS.values()],
        *[(sum(other.values()), I3D_SHA256, UCF101, other, {}, False) for other in OTHERS.values()],
    ],
)
def test_a_figure_stands_beside_the_papers_only_where_all_that_is_told_is_the_same(
    compared: int,
    sha256: str,
    counts: dict[str, int],
    real: dict[str, int],
    changed: dict[str, object],
    comparable: bool,
) -> None:
    settings = Ucf101Settings.model_validate(changed)
    network = NetworkFile(Path("net.pt"), sha256)
    measured = Measured(
        {}, "", "Euler", settings, [], sum(counts.values()), counts, counts, cast(Generated, None), network,
        real=[Path("real", name, f"{n}.avi") for name, count in real.items() for n in range(count)],
        real_compared=compared, figure=("fvd", 1.0),
    )  # fmt: skip
    assert measured.comparable == comparable == result_of(measured)["comparable_with_table_2"]
