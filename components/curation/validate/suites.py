"""The expectations on the rows of each manifest, for Great Expectations; ``links`` has what needs several rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import pandas as pd

# what names a row to people; the first is the manifest's key
NAMED_BY = {
    "videos": ("video_id", "name"),
    "clips": ("clip_id",),
    "annotations": ("clip_id",),
    "selection": ("clip_id",),
    "samples": ("sample_id",),
    "orbits": ("orbit_id",),
}
_FRAMES = ("first", "middle", "last")
_BARS = ("left", "top", "right", "bottom")
_OBJECT = r"^files/md5/[0-9a-f]{2}/[0-9a-f]{30}$"
_ID = r"^[0-9a-f]{16,64}$"
_SAMPLE_ID = r"^[0-9a-f]{16,64}-[0-9]{2,}$"
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

    @property
    def columns(self) -> list[str]:
        """The columns it reads."""
        return [self.arguments[a] for a in ("column", "column_A", "column_B") if a in self.arguments]


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


def json_text(name: str, column: str) -> RowExpectation:
    """A column's texts are JSON."""
    return RowExpectation(name, "ColumnValuesToBeJsonParseable", {"column": column})


SUITES: dict[str, list[RowExpectation]] = {
    "videos": [
        matches("video id is a sha256", "video_id", r"^[0-9a-f]{64}$"),
        matches("a video's uri is an object's", "uri", _OBJECT),
        between("a video has bytes", "bytes", 1, None),
        *[
            present("a usable video has all its figures", c)
            for c in ("container", "codec", "duration_s", "fps", "width", "height", "frames")
        ],
        *[
            present("a usable video is fully probed", c, severity="warning")
            for c in ("rotation", "variable_fps", "pixel_aspect", "interlaced", "audio")
        ],
        between("a video lasts longer than nothing", "duration_s", 0, None, strict_low=True),
        between("a video's frame rate is plausible", "fps", 0.1, 1000),
        *[between("a video's size is plausible", side, 16, 16384) for side in ("width", "height")],
        between("a video has frames", "frames", 1, None),
        between("a video's duration, frames and frame rate agree", "seconds_of_frames_per_duration", 0.5, 2.0),
        one_of("rotation is a quarter turn", "rotation", [0, 90, 180, 270]),
        between("a pixel's aspect is plausible", "pixel_aspect", 0.1, 10),
        matches("the colour transfer has a name", "color_transfer", r"^[a-z0-9][a-z0-9_.-]*$"),
        *[between("black bars leave a picture", f"letterbox_{bar}", 0, None) for bar in _BARS],
        *[between("black bars leave a picture", f"picture_{side}", 1, None) for side in ("width", "height")],
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
        between("a clip has no more frames than its span", "frames_beyond_span", None, 0),
        between("a clip's frame rate is plausible", "fps", 0.1, 1000),
        *[between("a clip's size is plausible", side, 16, 16384) for side in ("width", "height")],
        between("a clip's duration, frames and frame rate agree", "seconds_of_frames_per_duration", 0.5, 2.0),
        matches("a clip's shard is an object", "shard_uri", _OBJECT),
        between("a clip's bytes start at a tar block", "offset", 512, None),
        between("a clip's bytes start at a tar block", "offset_in_block", 0, 0),
        between("a clip has bytes", "bytes", 1, None),
        matches("a clip's member has a name", "member", r"\S"),
        json_text("cut evidence is JSON", "cut_evidence"),
    ],
    "annotations": [
        between("motion is not negative", "motion_score", 0, None),
        between("mean motion does not exceed mean magnitude", "camera_excess", None, 1.001),
        *[between("text area is a fraction", f"text_area_{f}", 0, 1) for f in _FRAMES],
        *[between("aesthetic score is on its scale", f"aesthetic_{f}", -5, 15, severity="warning") for f in _FRAMES],
        *[between("watermark is a probability", f"watermark_{f}", 0, 1) for f in _FRAMES],
        *[between("nsfw is a probability", f"nsfw_{f}", 0, 1) for f in _FRAMES],
        *[between("similarity is a cosine", f"{c}_{f}", -1.0001, 1.0001) for c in _SIMILARITIES for f in _FRAMES],
        *[matches("captions are not empty", c, r"\S") for c in _CAPTIONS],
        matches("flow maps are an object", "flow_uri", _OBJECT),
        matches("embeddings are an object", "embedding_uri", _OBJECT),
        json_text("annotators are JSON", "annotators"),
        present("every clip has a motion score", "motion_score", severity="warning"),
        *[present("every clip has its text measured", f"text_area_{f}", severity="warning") for f in _FRAMES],
        *[present("every clip has an aesthetic score", f"aesthetic_{f}", severity="warning") for f in _FRAMES],
        *[present("every clip has its captions", c, severity="warning") for c in _CAPTIONS],
    ],
    "selection": [
        matches("clip id is an identity", "clip_id", _ID),
        one_of("split is train or held_out", "split", ["train", "held_out"]),
        between("motion is not negative", "motion_value", 0, None),
        *[between("a share is a fraction", f"{axis}_value", 0, 1) for axis in ("text", "watermark", "nsfw")],
        between("similarity is a cosine", "similarity_value", -1.0001, 1.0001),
        between("a place among duplicates is zero or more", "duplicate_value", 0, None),
    ],
    "samples": [
        matches("sample id is an identity and a window's number", "sample_id", _SAMPLE_ID),
        one_of("split is train or held_out", "split", ["train", "held_out"]),
        matches("a sample's shard is an object", "shard_uri", _OBJECT),
        matches("a sample's tensors have a name", "tensor_prefix", r"\S"),
        between("a sample has frames", "frames", 1, None),
        *[between("a sample's size is plausible", side, 8, 16384) for side in ("width", "height")],
        between("a sample's frame rate is plausible", "fps", 0.1, 1000),
        between("a sample's motion is not negative", "motion_score", 0, None),
        between("a sample's elevation is an angle", "elevation_deg", -90, 90),
    ],
    "orbits": [
        matches("orbit id is an identity", "orbit_id", _ID),
        one_of("split is train or held_out", "split", ["train", "held_out"]),
        matches("an orbit's shard is an object", "shard_uri", _OBJECT),
        between("an orbit's elevation is an angle", "elevation_deg", -90, 90),
        between("an orbit has views", "frames", 2, None),
        *[between("an orbit's size is plausible", side, 8, 16384) for side in ("width", "height")],
    ],
}


def expected_sound(kind: str, table: pa.Table) -> pa.Table:
    """The rows that a suite is held against: of videos, not those that were set aside."""
    return table.filter(pc.equal(table["status"], "ok")) if kind == "videos" else table


def frame_of(kind: str, table: pa.Table) -> pd.DataFrame:
    """An Arrow table as the frame that the suite of its kind reads: lists spread out, derived columns added.

    Only what the suite reads is made, row for row.
    """
    import numpy as np

    columns: dict[str, pa.ChunkedArray] = {}
    for spec in table.schema:
        column = table[spec.name]
        if pa.types.is_fixed_size_list(spec.type):
            parts = _BARS if spec.type.list_size == len(_BARS) else _FRAMES
            columns |= {f"{spec.name}_{part}": pc.list_element(column, n) for n, part in enumerate(parts)}
        else:
            columns[spec.name] = column
    wanted = {*NAMED_BY[kind], *(c for e in SUITES[kind] for c in e.columns), *_DERIVED_FROM.get(kind, ())}
    frame = pa.table({name: column for name, column in columns.items() if name in wanted}).to_pandas()
    if kind == "videos":
        frame["seconds_of_frames_per_duration"] = frame["frames"] / frame["fps"] / frame["duration_s"]
        frame["picture_width"] = frame["width"] - frame["letterbox_left"] - frame["letterbox_right"]
        frame["picture_height"] = frame["height"] - frame["letterbox_top"] - frame["letterbox_bottom"]
    if kind == "clips":
        frame["seconds_of_frames_per_duration"] = (
            frame["frames"] / frame["fps"] / (frame["end_s"] - frame["start_s"]).abs()
        )
        frame["frames_beyond_span"] = frame["frames"] - (frame["last_frame"] - frame["first_frame"] + 1).abs()
        frame["offset_in_block"] = frame["offset"] % 512
    if kind == "annotations":  # |mean of vectors| <= mean of |vectors|: else the signs were averaged away
        mean = np.hypot(frame["camera_motion_first"], frame["camera_motion_middle"])
        frame["camera_excess"] = mean / frame["motion_score"].where(frame["motion_score"] > 1e-6)
    return frame


_DERIVED_FROM = {
    "videos": ("frames", "fps", "duration_s", *(f"letterbox_{bar}" for bar in _BARS)),
    "clips": ("last_frame", "first_frame", "start_s", "end_s", "offset"),
    "annotations": ("camera_motion_first", "camera_motion_middle"),
}
