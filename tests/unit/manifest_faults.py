"""Seeded faults of manifests: each with the manifest it is in and the expectation that is meant for it."""

import math
from dataclasses import dataclass

from manifest_rows import SOUND

from svdflow.common.manifests import SCHEMAS


@dataclass(frozen=True)
class put:
    """A fault in one row; several such faults of one manifest can be checked in one go."""

    index: int
    values: dict

    def __call__(self, rows: list[dict]) -> None:
        rows[self.index].update(self.values)


def every(change):
    return lambda rows: [change(dict(row)) for row in rows]


def swap(row: dict, a: str, b: str) -> dict:
    row[a], row[b] = row[b], row[a]
    return row


def in_ms(row: dict) -> dict:
    return {**row, "start_s": row["start_s"] * 1000, "end_s": row["end_s"] * 1000}


CLIPS = SOUND["clips"]()
FAULTS = {
    "a clip of no video": ("clips", put(2, {"video_id": "f" * 64}), "a clip's video is in the videos manifest"),
    "a clip of a video set aside": (
        "clips",
        put(0, {"video_id": SOUND["videos"]()[-1]["video_id"]}),
        "a clip's video is in the videos manifest",
    ),
    "frames swapped": (
        "clips",
        put(3, {"first_frame": 455, "last_frame": 360}),
        "a clip's last frame is not before its first",
    ),
    "a frame rate of another": ("clips", put(17, {"fps": 4.0}), "a clip's duration, frames and frame rate agree"),
    "a clip past the end": ("clips", put(7, {"start_s": 17.0, "end_s": 21.0}), "a clip ends within its video"),
    "frames past the end": (
        "clips",
        put(11, {"first_frame": 400, "last_frame": 495}),
        "a clip's frames are within its video",
    ),
    "overlapping clips": ("clips", put(13, {"first_frame": 60, "last_frame": 155}), "clips of a video do not overlap"),
    "an offset off the block": (
        "clips",
        put(1, {"offset": CLIPS[1]["offset"] + 1}),
        "a clip's bytes start at a tar block",
    ),
    "an offset below zero": ("clips", put(5, {"offset": -512}), "a clip's bytes start at a tar block"),
    "members over one another": ("clips", put(9, {"offset": CLIPS[8]["offset"]}), "members of a shard do not overlap"),
    "a clip without bytes": ("clips", put(10, {"bytes": 0}), "a clip has bytes"),
    "a uri out of the root": ("clips", put(14, {"shard_uri": "../../etc/passwd"}), "a clip's shard is an object"),
    "a null id": ("clips", put(15, {"video_id": None}), "required values are there"),
    "start and end swapped": ("clips", every(lambda r: swap(r, "start_s", "end_s")), "a clip ends after it starts"),
    "width and height swapped": (
        "clips",
        every(lambda r: swap(r, "width", "height")),
        "a clip has the shape of its video",
    ),
    "clip times in ms": ("clips", every(in_ms), "a clip ends within its video"),
    "a clip twice": ("clips", lambda rows: [*rows, rows[5]], "clip ids are unique"),
    "no rows": ("clips", lambda rows: SCHEMAS["clips"].empty_table(), "the manifest has rows"),
    "a video duration in ms": (
        "videos",
        put(0, {"duration_s": 20_000.0}),
        "a video's duration, frames and frame rate agree",
    ),
    "set aside without a reason": ("videos", put(6, {"error": " "}), "a video set aside says why"),
    "a video twice": ("videos", lambda rows: [*rows, {**rows[0], "name": "again.mp4"}], "video ids are unique"),
    "nothing usable": (
        "videos",
        every(lambda r: {**r, "status": "set_aside", "error": "bad"}),
        "there are usable videos",
    ),
    "text area in percent": ("annotations", put(20, {"text_area": [2.0, 4.0, 0.0]}), "text area is a fraction"),
    "negative motion": ("annotations", put(0, {"motion_score": -1.0}), "motion is not negative"),
    "signs averaged away": (
        "annotations",
        put(1, {"motion_score": 0.01}),
        "mean motion does not exceed mean magnitude",
    ),
    "motion is NaN": ("annotations", put(2, {"motion_score": math.nan}), "figures are finite"),
    "a frame's score is infinite": ("annotations", put(3, {"aesthetic": [4.0, math.inf, 4.0]}), "figures are finite"),
    "similarity beyond 1": ("annotations", put(4, {"similarity_video": [0.1, 1.4, 0.2]}), "similarity is a cosine"),
    "similarity in percent": (
        "annotations",
        put(5, {"similarity_image": [30.0, 31.0, 29.0]}),
        "similarity is a cosine",
    ),
    "an empty caption": ("annotations", put(6, {"caption_video": "  "}), "captions are not empty"),
    "a caption of nobody": ("annotations", put(7, {"caption_video_model": None}), "a caption names its model"),
    "units mixed": ("annotations", put(8, {"motion_unit": "px/0.5s@short256"}), "motion scores share one unit"),
    "annotations of no clip": (
        "annotations",
        put(9, {"clip_id": "e" * 32}),
        "an annotation's clip is in the clips manifest",
    ),
    "a clip without annotations": ("annotations", lambda rows: rows[1:], "every clip has a row of annotations"),
    "annotated twice": ("annotations", lambda rows: [*rows, rows[0]], "annotated clips are unique"),
    "kept without a split": ("selection", put(1, {"split": None}), "a kept clip has a split, a dropped one has none"),
    "a split of another name": ("selection", put(2, {"split": "test"}), "split is train or held_out"),
    "a video in both splits": ("selection", put(5, {"split": "held_out"}), "no video is in both splits"),
    "dropped without a reason": (
        "selection",
        put(0, {"reasons": []}),
        "a dropped clip has reasons, a kept one has none",
    ),
    "failed on the right side": (
        "selection",
        put(4, {"motion_value": 3.0}),
        "an axis fails on the wrong side of its cut alone",
    ),
    "a clip of another video": ("selection", put(9, {"video_id": "d" * 64}), "selection and clips name the same video"),
    "a clip not decided on": ("selection", lambda rows: rows[1:], "selection and clips hold the same clips"),
    "nothing to train on": (
        "selection",
        every(lambda r: {**r, "split": r["split"] and "held_out"}),
        "there are clips to train on",
    ),
    "a sample of a dropped clip": (
        "samples",
        put(0, {"clip_id": CLIPS[0]["clip_id"]}),
        "a sample's clip is kept, in the same split",
    ),
    "a sample in the other split": (
        "samples",
        put(1, {"split": "held_out"}),
        "a sample's clip is kept, in the same split",
    ),
    "a sample with one caption": ("samples", put(2, {"captions": ["a"]}), "a sample's captions are three texts"),
    "shared tensors": (
        "samples",
        put(3, {"tensor_prefix": SOUND["samples"]()[4]["tensor_prefix"]}),
        "a sample has its own tensors",
    ),
    "elevation in turns": ("orbits", put(0, {"elevation_deg": 370.0}), "an orbit's elevation is an angle"),
    "an object in both splits": ("orbits", put(2, {"split": "held_out"}), "no object is in both splits"),
    "no source": ("videos", put(1, {"sources": []}), "a video has its sources, the first of them names it"),
    "bars over the whole picture": ("videos", put(2, {"letterbox": [0, 200, 0, 200]}), "black bars leave a picture"),
    "a pixel without width": ("videos", put(3, {"pixel_aspect": 0.0}), "a pixel's aspect is plausible"),
    "an eighth of a turn": ("videos", put(4, {"rotation": 45}), "rotation is a quarter turn"),
    "metadata cut short": (
        "videos",
        put(5, {"sources": [{"name": "v05.mp4", "uri": "x", "licence": None, "metadata": '{"a": '}]}),
        "what a list told about a source is JSON",
    ),
    "a source without a place": (
        "videos",
        every(lambda r: {**r, "sources": [{**source, "uri": ""} for source in r["sources"]]}),
        "sources have a name and a place, sorted by name",
    ),
    "more frames than its span": ("clips", put(20, {"frames": 97}), "a clip has no more frames than its span"),
    "evidence that is no JSON": ("clips", put(21, {"cut_evidence": "a cut"}), "cut evidence is JSON"),
    "a member without a name": ("clips", put(22, {"member": " "}), "a clip's member has a name"),
    "a watermark surer than sure": (
        "annotations",
        put(10, {"watermark": [0.1, 1.5, 0.1]}),
        "watermark is a probability",
    ),
    "a nsfw score below zero": ("annotations", put(11, {"nsfw": [-0.1, 0.0, 0.0]}), "nsfw is a probability"),
    "flow maps in a pickle": ("annotations", put(12, {"flow_uri": "flow.pt"}), "flow maps are an object"),
    "embeddings in /tmp": ("annotations", put(13, {"embedding_uri": "/tmp/x"}), "embeddings are an object"),
    "motion without a unit": (
        "annotations",
        put(14, {"motion_unit": None}),
        "a motion score has a unit, and flow maps a score",
    ),
    "annotators cut short": ("annotations", put(15, {"annotators": '{"motion": '}), "annotators are JSON"),
    "a share of more than all": ("selection", put(6, {"watermark_value": 1.2}), "a share is a fraction"),
    "missing what is there": ("selection", put(7, {"reasons": ["missing_text"]}), "a missing axis has no value"),
    "another reason": ("selection", put(8, {"reasons": ["text"]}), "a failed axis is among the reasons"),
    "a duplicate of nothing": (
        "selection",
        put(10, {"duplicate_value": 1.0}),
        "a place among duplicates is a whole number within a group",
    ),
    "a place of one half": (
        "selection",
        put(23, {"duplicate_value": 0.5}),
        "a place among duplicates is a whole number within a group",
    ),
    "a failure without a cut": (
        "selection",
        put(11, {"nsfw_failed": True}),
        "an axis fails on the wrong side of its cut alone",
    ),
    "a cut of its own": ("selection", put(13, {"motion_cut": 1.5}), "the cut of an axis is one for all clips"),
    "an infinite value": ("selection", put(14, {"aesthetic_value": math.inf}), "figures are finite"),
    "a cosine of two": ("selection", put(17, {"similarity_value": 2.0}), "similarity is a cosine"),
    "thresholds cut short": ("selection", put(18, {"thresholds": "{"}), "thresholds are JSON"),
    "near-duplicates on both sides": ("selection", put(22, {"split": "train"}), "near-duplicates are in one split"),
    "a sample of no speed": ("samples", put(5, {"fps": 0.0}), "a sample's frame rate is plausible"),
    "a sample elsewhere": ("samples", put(6, {"shard_uri": "http://x/y"}), "a sample's shard is an object"),
    "a sample without frames": ("samples", put(7, {"frames": 0}), "a sample has frames"),
    "a sample that went backwards": ("samples", put(9, {"motion_score": -2.0}), "a sample's motion is not negative"),
    "a sample without a place": ("samples", put(8, {"layout": "clip"}), "a sample says where its frames are"),
    "a window beyond its sequence": ("samples", put(10, {"stride": 6}), "a sample's windows lie in its sequence"),
    "a window that starts nowhere": ("samples", put(11, {"starts": [0, 4]}), "a sample's windows lie in its sequence"),
    "a sample twice": ("samples", lambda rows: [*rows, rows[0]], "sample ids are unique"),
    "an orbit of one view": ("orbits", put(4, {"frames": 1}), "an orbit has views"),
    "an orbit of four pixels": ("orbits", put(5, {"width": 4}), "an orbit's size is plausible"),
    "an orbit elsewhere": ("orbits", put(6, {"shard_uri": "../x.tar"}), "an orbit's shard is an object"),
    "an orbit twice": ("orbits", lambda rows: [*rows, rows[0]], "orbit ids are unique"),
}
