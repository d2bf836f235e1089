"""Validation: sound manifests pass, and each seeded fault is caught by the expectation that is meant for it."""

import html.parser
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from manifest_rows import SOUND

from svdflow.common.errors import ConfigError, ValidationFailed
from svdflow.common.manifests import SCHEMAS
from svdflow.curation.validate.links import LINKS
from svdflow.curation.validate.settings import ValidateSettings
from svdflow.curation.validate.suites import SUITES
from svdflow.curation.validate.validate import check_manifests, require_valid, validate_manifests


def write(directory: Path, kinds=tuple(SOUND), **broken) -> dict[str, Path]:
    """Write manifests straight with Arrow: our own writer would refuse some of the faults."""
    paths = {}
    for kind in kinds:
        rows = SOUND[kind]()
        if kind in broken:
            changed = broken[kind](rows)
            rows = rows if changed is None else changed
        schema = pa.schema([field.with_nullable(True) for field in SCHEMAS[kind]])
        pq.write_table(
            rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=schema),
            directory / f"{kind}.parquet",
        )
        paths[kind] = directory / f"{kind}.parquet"
    return paths


def broken_names(directory: Path, settings: ValidateSettings | None = None, kinds=tuple(SOUND), **broken) -> set[str]:
    report = check_manifests(write(directory, kinds, **broken), directory / "page.html", settings or ValidateSettings())
    return {f"{b['manifest']}: {b['expectation']}" for b in report.summary["validation"]["broken"]}


def test_sound_manifests_break_nothing(tmp_path: Path) -> None:
    report = validate_manifests(write(tmp_path), tmp_path / "page.html", ValidateSettings())
    assert report.summary["validation"]["failed"] == 0 and report.summary["validation"]["warnings"] == 0
    names = {(kind, e.name) for kind, suite in SUITES.items() for e in suite} | {
        (link.manifest, link.name) for link in LINKS
    }
    structure = 3 * len(SOUND)
    assert report.summary["validation"]["expectations"] == len(names) + structure  # nothing was left out unseen


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
    "a video twice": ("videos", lambda rows: [*rows, {**rows[0], "name": "again.mp4"}], "usable videos are unique"),
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
}
KINDS = {
    "videos": ("videos",),
    "clips": ("videos", "clips"),
    "annotations": ("clips", "annotations"),
    "selection": ("clips", "selection"),
    "samples": ("selection", "samples"),
    "orbits": ("orbits",),
}
ALONE = [name for name, (_, change, _) in FAULTS.items() if not isinstance(change, put)]


@pytest.mark.parametrize("fault", ALONE)
def test_a_fault_is_caught_by_the_expectation_meant_for_it(fault: str, tmp_path: Path) -> None:
    kind, change, name = FAULTS[fault]
    assert f"{kind}: {name}" in broken_names(tmp_path, kinds=KINDS[kind], **{kind: change})


@pytest.mark.parametrize("kind", SOUND)
def test_faults_in_single_rows_are_each_caught_by_the_expectation_meant_for_them(kind: str, tmp_path: Path) -> None:
    faults = [(change, name) for of, change, name in FAULTS.values() if of == kind and isinstance(change, put)]
    assert len({change.index for change, _ in faults}) == len(faults)  # each has a row of its own

    def change_all(rows):
        for change, _ in faults:
            change(rows)

    report = check_manifests(
        write(tmp_path, KINDS[kind], **{kind: change_all}), tmp_path / "page.html", ValidateSettings()
    )
    caught = {b["expectation"]: b["rows"] for b in report.summary["validation"]["broken"] if b["manifest"] == kind}
    for name, count in Counter(name for _, name in faults).items():
        assert caught.get(name, 0) >= count, name


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda t: t.rename_columns(["clip", *t.schema.names[1:]]), "columns are the declared ones"),
        (lambda t: t.drop_columns(["fps"]), "columns are the declared ones"),
        (lambda t: t.select(t.schema.names[::-1]), "columns are the declared ones"),
        (lambda t: t.set_column(3, "end_s", pa.array(["x"] * len(t))), "types are the declared ones"),
    ],
)
def test_another_schema_is_an_expectation_too_and_no_traceback(change, name: str, tmp_path: Path) -> None:
    def other(rows):
        return change(pa.Table.from_pylist(rows, schema=SCHEMAS["clips"]))

    assert broken_names(tmp_path, clips=other) == {f"clips: {name}"}


def test_what_is_no_manifest_is_told_and_the_others_are_checked(tmp_path: Path) -> None:
    paths = write(tmp_path, annotations=put(0, {"motion_score": -1.0}))
    paths["clips"].write_bytes(b"not parquet")
    paths["videos"].unlink()
    with pytest.raises(ValidationFailed) as caught:
        validate_manifests(paths, tmp_path / "page.html", ValidateSettings())
    line = str(caught.value)
    assert (
        "clips: the manifest can be read" in line
        and "videos: the manifest can be read" in line
        and "annotations: motion is not negative (1 row)" in line
    )
    assert "\n" not in line


def test_the_page_is_written_before_the_refusal_shows_the_rows_and_asks_for_nothing(tmp_path: Path) -> None:
    paths = write(tmp_path, annotations=put(0, {"caption_image": " ", "clip_id": "<script>alert(1)</script>"}))
    with pytest.raises(ValidationFailed):
        validate_manifests(paths, tmp_path / "page.html", ValidateSettings())
    page = (tmp_path / "page.html").read_text()
    assert "captions are not empty" in page and "&lt;script&gt;" in page and "<script" not in page
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", page) and "url(" not in page and "@import" not in page
    html.parser.HTMLParser().feed(page)


def test_a_warning_does_not_stop_a_run(tmp_path: Path) -> None:
    def unscored(rows):
        return [
            {**row, "motion_score": None, "camera_motion": None, "motion_unit": None} if n == 2 else row
            for n, row in enumerate(rows)
        ]

    report = validate_manifests(write(tmp_path, annotations=unscored), tmp_path / "page.html", ValidateSettings())
    assert (report.summary["validation"]["failed"], report.summary["validation"]["warnings"]) == (0, 1)
    assert "every clip has a motion score" in (tmp_path / "page.html").read_text()


def test_an_expectation_can_be_made_to_warn_and_a_wrong_name_is_refused(tmp_path: Path) -> None:
    soft = ValidateSettings(only_warn=("motion is not negative",))
    assert broken_names(tmp_path, soft, annotations=put(0, {"motion_score": -1.0, "camera_motion": None})) == set()
    with pytest.raises(ConfigError, match="motion is fine"):
        check_manifests({}, tmp_path / "page.html", ValidateSettings(only_warn=("motion is fine",)))


def test_batches_count_what_one_pass_counts(tmp_path: Path) -> None:
    def negative(rows):
        return [{**row, "motion_score": -1.0} if n % 2 else row for n, row in enumerate(rows)]

    counts = []
    for size in (1_000_000, 9):
        report = check_manifests(
            write(tmp_path, ("annotations",), annotations=negative),
            tmp_path / "page.html",
            ValidateSettings(batch_rows=size, rows_shown=3),
        )
        counts.append(report.summary["validation"]["broken"])
        with pytest.raises(ValidationFailed, match=r"motion is not negative \(12 rows\)"):
            require_valid(report)
    assert counts[0] == counts[1]
