"""What probing says of a video's frames and end is what splitting finds: else validation refuses the clips."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_clipping import OPEN_GOP, edited

from svdflow.curation.split.cuts import Detection
from svdflow.curation.split.scan import scan_video
from svdflow.ingest.examine import ProbeSettings, _Times, examine
from tests.split_footage import encode, shots


class _Blind:
    """Finds no cut: only the times are of interest."""

    gap_s = 0.0

    def look(self, *_) -> list[Detection]:
        return []

    def finish(self) -> list[Detection]:
        return []


def recording(frames: int = 30, **options: str) -> bytes:
    return encode(shots([frames])[0], container="mpegts", **{"g": "10", "bf": "0", **options})


def uneven(container: str, bf: str) -> bytes:
    steps = [40] * 30 + [600] * 8 + [40] * 22
    return encode(shots([60])[0], container=container, times=np.cumsum([0, *steps[:-1]]).tolist(), g="10", bf=bf)


FILES = {
    "plain": lambda: encode(shots([40])[0], g="10", bf="2"),
    "three recordings": lambda: recording() * 3,
    "three recordings with B frames": lambda: recording(bf="2") * 3,
    "two recordings with an open GOP": lambda: recording(**OPEN_GOP) * 2,
    "two of different length": lambda: recording(50) + recording(14),
    "variable rate": lambda: uneven("matroska", "0"),
    "variable rate with B frames": lambda: uneven("matroska", "2"),
    "variable rate in MP4": lambda: uneven("mp4", "2"),
    "hidden by an edit list": lambda: edited(encode(shots([40])[0], g="8", bf="2"), hide=5),
    "MPEG-4 in AVI with B frames": lambda: encode(shots([40])[0], "mpeg4", "avi", g="8", bf="2"),
    "MPEG-4 in AVI": lambda: encode(shots([40])[0], "mpeg4", "avi", g="8"),
    "cut short": lambda: encode(shots([40])[0], container="matroska", g="5")[:20_000],
}


@pytest.mark.parametrize("name", FILES)
def test_frames_and_end_are_those_that_decoding_finds(tmp_path: Path, name: str) -> None:
    path = tmp_path / "video"
    path.write_bytes(FILES[name]())
    info = examine(str(path), ProbeSettings())["info"]
    scan = scan_video(path, _Blind(), info["fps"], checksums="off")
    assert 0 <= info["frames"] - len(scan.pts) <= 2, "what does not decode is counted by probing alone"
    assert info["duration_s"] == pytest.approx(scan.times_s[-1], abs=2 / info["fps"])
    assert scan.times_s[-1] <= info["duration_s"] + 1 / info["fps"]
    assert info["frames"] / info["fps"] == pytest.approx(info["duration_s"], rel=0.34)


def test_recordings_one_after_the_other_last_as_long_as_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "one.ts").write_bytes(recording())
    (tmp_path / "three.ts").write_bytes(recording() * 3)
    one, three = (examine(str(tmp_path / f"{name}.ts"), ProbeSettings())["info"] for name in ("one", "three"))
    assert three["duration_s"] == pytest.approx(3 * one["duration_s"])
    assert (three["frames"], three["fps"], three["variable_fps"]) == (90, one["fps"], False)


@pytest.mark.parametrize("last_s", [1.0, 12.0])
def test_a_last_picture_that_is_shown_for_long_makes_the_rate_a_mean(tmp_path: Path, last_s: float) -> None:
    """As a slide show has it; 24 frames a second before. Validation holds rate, frames and duration against another."""
    times = _Times(Fraction(1, 24), 24.0)
    for n in range(24):
        length = round(24 * last_s) if n == 23 else 1
        times.add(SimpleNamespace(pts=n, dts=n, duration=length, is_discard=False))
    times.finish()
    variable, fps, duration_s = times.rate(24.0)
    assert (variable, duration_s) == (True, pytest.approx(23 / 24 + last_s))
    assert fps == pytest.approx(24 / duration_s)


def test_a_rate_that_changes_behind_the_frames_that_are_looked_at_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svdflow.ingest.examine._TIMED", 100)
    times = _Times(Fraction(1, 30), 30.0)
    for n in range(200):
        at = n if n < 120 else 120 + 30 * (n - 120)
        times.add(SimpleNamespace(pts=at, dts=at, duration=1, is_discard=False))
    times.finish()
    variable, fps, duration_s = times.rate(30.0)
    assert variable and fps == pytest.approx(200 / duration_s) and duration_s == pytest.approx((120 + 30 * 79 + 1) / 30)
