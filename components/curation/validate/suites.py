"""The expectations on the rows of each manifest, for Great Expectations; ``links`` has what needs several rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

KEYS = {
    "videos": "name",
    "clips": "clip_id",
    "annotations": "clip_id",
    "selection": "clip_id",
    "samples": "sample_id",
    "orbits": "orbit_id",
}
_FRAMES = ("first", "middle", "last")
_OBJECT = r"^files/md5/[0-9a-f]{2}/[0-9a-f]{30}$"
_ID = r"^[0-9a-f]{16,64}$"
_SIMILARITIES = ("similarity_image", "similarity_video", "similarity_summary")
_CAPTIONS = ("caption_image", "caption_video", "caption_summary")


@dataclass(frozen=True)
class RowExpectation:
    """One expectation of Great Expectations on one column (or pair); several may share a name.

    Attributes:
        name: what holds when all is well, as shown to people.
        kind: Great Expectations' class without its ``Expect``.
        arguments: of that class.
        severity: "critical" stops a run, "warning" does not.
    """

    name: str
    kind: str
    arguments: dict[str, Any] = field(hash=False)
    severity: str = "critical"


def between(
    name: str, column: str, low: float | None, high: float | None, strict_low: bool = False, severity: str = "critical"
) -> RowExpectation:
    """A column's values lie in a range."""
    arguments = {"column": column, "min_value": low, "max_value": high, "strict_min": strict_low}
    return RowExpectation(name, "ColumnValuesToBeBetween", arguments, severity)


def matches(name: str, column: str, regex: str) -> RowExpectation:
    """A column's texts match a regular expression."""
    return RowExpectation(name, "ColumnValuesToMatchRegex", {"column": column, "regex": regex})


def one_of(name: str, column: str, values: list[Any]) -> RowExpectation:
    """A column's values are among those named."""
    return RowExpectation(name, "ColumnValuesToBeInSet", {"column": column, "value_set": values})


def present(name: str, column: str, severity: str = "critical") -> RowExpectation:
    """A column has no null."""
    return RowExpectation(name, "ColumnValuesToNotBeNull", {"column": column}, severity)


def ordered(name: str, later: str, earlier: str, or_equal: bool = False) -> RowExpectation:
    """One column is greater than another."""
    arguments = {
        "column_A": later,
        "column_B": earlier,
        "or_equal": or_equal,
        "ignore_row_if": "either_value_is_missing",
    }
    return RowExpectation(name, "ColumnPairValuesAToBeGreaterThanB", arguments)


SUITES: dict[str, list[RowExpectation]] = {
    "videos": [
        matches("video id is a sha256", "video_id", r"^[0-9a-f]{64}$"),
        matches("a video's uri is an object's", "uri", _OBJECT),
        between("a video has bytes", "bytes", 1, None),
        *[
            present("a usable video has all its figures", c)
            for c in ("container", "codec", "duration_s", "fps", "width", "height", "frames")
        ],
        between("a video lasts longer than nothing", "duration_s", 0, None, strict_low=True),
        between("a video's frame rate is plausible", "fps", 0.1, 1000),
        *[between("a video's size is plausible", side, 16, 16384) for side in ("width", "height")],
        between("a video has frames", "frames", 1, None),
        between("a video's duration, frames and frame rate agree", "seconds_of_frames_per_duration", 0.5, 2.0),
        one_of("rotation is a quarter turn", "rotation", [0, 90, 180, 270]),
        one_of("a video is footage or generated", "source", ["footage", "generated"]),
        present("a video's licence is known", "licence", severity="warning"),
    ],
    "clips": [
        matches("clip id is an identity", "clip_id", _ID),
        between("a clip starts at zero or later", "start_s", 0, None),
        ordered("a clip ends after it starts", "end_s", "start_s"),
        between("a clip's first frame is zero or later", "first_frame", 0, None),
        ordered("a clip's last frame is not before its first", "last_frame", "first_frame", or_equal=True),
        between("a clip has frames", "frames", 1, None),
        between("a clip's frame rate is plausible", "fps", 0.1, 1000),
        *[between("a clip's size is plausible", side, 16, 16384) for side in ("width", "height")],
        between("a clip's duration, frames and frame rate agree", "seconds_of_frames_per_duration", 0.5, 2.0),
        matches("a clip's shard is an object", "shard_uri", _OBJECT),
        between("a clip's bytes start at a tar block", "offset", 512, None),
        between("a clip's bytes start at a tar block", "offset_in_block", 0, 0),
        between("a clip has bytes", "bytes", 1, None),
        matches("a clip's member has a name", "member", r"\S"),
        RowExpectation("cut evidence is JSON", "ColumnValuesToBeJsonParseable", {"column": "cut_evidence"}),
    ],
    "annotations": [
        between("motion is not negative", "motion_score", 0, None),
        between("mean motion does not exceed mean magnitude", "camera_excess", None, 1.001),
        *[between("text area is a fraction", f"text_area_{f}", 0, 1) for f in _FRAMES],
        *[between("aesthetic score is on its scale", f"aesthetic_{f}", -5, 15, severity="warning") for f in _FRAMES],
        *[between("similarity is a cosine", f"{c}_{f}", -1.0001, 1.0001) for c in _SIMILARITIES for f in _FRAMES],
        *[matches("captions are not empty", c, r"\S") for c in _CAPTIONS],
        RowExpectation("annotators are JSON", "ColumnValuesToBeJsonParseable", {"column": "annotators"}),
        present("every clip has a motion score", "motion_score", severity="warning"),
        *[present("every clip has its text measured", f"text_area_{f}", severity="warning") for f in _FRAMES],
        *[present("every clip has an aesthetic score", f"aesthetic_{f}", severity="warning") for f in _FRAMES],
        *[present("every clip has its captions", c, severity="warning") for c in _CAPTIONS],
    ],
    "selection": [
        one_of("split is train or held_out", "split", ["train", "held_out"]),
        RowExpectation("thresholds are JSON", "ColumnValuesToBeJsonParseable", {"column": "thresholds"}),
    ],
    "samples": [
        one_of("split is train or held_out", "split", ["train", "held_out"]),
        matches("a sample's shard is an object", "shard_uri", _OBJECT),
        between("a sample has frames", "frames", 1, None),
        *[between("a sample's size is plausible", side, 8, 16384) for side in ("width", "height")],
        between("a sample's frame rate is plausible", "fps", 0.1, 1000),
        between("a sample's motion is not negative", "motion_score", 0, None),
        between("a sample's elevation is an angle", "elevation_deg", -90, 90),
    ],
    "orbits": [
        one_of("split is train or held_out", "split", ["train", "held_out"]),
        matches("an orbit's shard is an object", "shard_uri", _OBJECT),
        between("an orbit's elevation is an angle", "elevation_deg", -90, 90),
        between("an orbit has views", "frames", 2, None),
        *[between("an orbit's size is plausible", side, 8, 16384) for side in ("width", "height")],
    ],
}


def frame_of(kind: str, table: Any) -> pd.DataFrame:
    """An Arrow table as the frame that the suite of its kind reads: lists of three spread out, derived columns added.

    Of videos, only the usable ones: what was set aside is not expected to be sound.
    """
    import numpy as np

    frame = table.to_pandas()
    for column in [f.name for f in table.schema if str(f.type).startswith("fixed_size_list")]:
        names = [f"{column}_{part}" for part in _FRAMES]
        rows = [[None] * 3 if cell is None else list(cell) for cell in frame[column]]
        frame[names] = pd.DataFrame(rows, columns=names, index=frame.index, dtype=float)
        frame = frame.drop(columns=column)
    if kind == "videos":
        frame = frame[frame["status"] == "ok"].reset_index(drop=True)
        frame["seconds_of_frames_per_duration"] = frame["frames"] / frame["fps"] / frame["duration_s"]
    if kind == "clips":
        frame["seconds_of_frames_per_duration"] = (
            frame["frames"] / frame["fps"] / (frame["end_s"] - frame["start_s"]).abs()
        )
        frame["offset_in_block"] = frame["offset"] % 512
    if kind == "annotations":  # |mean of vectors| <= mean of |vectors|: else the signs were averaged away
        mean = np.hypot(frame["camera_motion_first"], frame["camera_motion_middle"])
        frame["camera_excess"] = mean / frame["motion_score"].where(frame["motion_score"] > 1e-6)
    return frame
