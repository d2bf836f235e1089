"""Validation: sound manifests pass, and each seeded fault is caught by the expectation that is meant for it."""

import html.parser
import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_faults import CLIPS, FAULTS, every, put
from manifest_rows import SHARD, SOUND

from svdflow.common.errors import ConfigError, ValidationFailed
from svdflow.common.manifests import SCHEMAS
from svdflow.common.report import StepReport
from svdflow.common.storage import DataRoot
from svdflow.curation.validate.links import LINKS
from svdflow.curation.validate.settings import ValidateSettings
from svdflow.curation.validate.step import validate_step
from svdflow.curation.validate.suites import SUITES
from svdflow.curation.validate.validate import Written, check_manifests, check_once, require_valid, validate_manifests


def write(directory: Path, kinds=tuple(SOUND), **broken) -> dict[str, Path]:
    """Write manifests straight with Arrow: our own writer would refuse some of the faults."""
    directory.mkdir(parents=True, exist_ok=True)
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


def written(directory: Path) -> Written:
    return Written(directory / "page.html", directory / "failing.jsonl")


def check(directory: Path, asked: ValidateSettings | None = None, kinds=tuple(SOUND), **broken) -> StepReport:
    return check_manifests(write(directory, kinds, **broken), written(directory), asked or ValidateSettings())


def names(report: StepReport, which: str = "broken") -> set[str]:
    return {f"{b['manifest']}: {b['expectation']}" for b in report.summary["validation"][which]}


def failing(directory: Path) -> list[dict]:
    return [json.loads(line) for line in written(directory).failing.read_text().splitlines()]


def test_sound_manifests_break_nothing(tmp_path: Path) -> None:
    report = validate_manifests(write(tmp_path), written(tmp_path), ValidateSettings())
    assert report.summary["validation"]["failed"] == 0 and report.summary["validation"]["warnings"] == 0
    expected = {(kind, e.name) for kind, suite in SUITES.items() for e in suite} | {(x.manifest, x.name) for x in LINKS}
    structure = 3 * len(SOUND)
    assert report.summary["validation"]["expectations"] == len(expected) + structure  # nothing was left out unseen
    assert written(tmp_path).failing.read_bytes() == b""


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
    report = check(tmp_path, kinds=KINDS[kind], **{kind: change})
    assert f"{kind}: {name}" in names(report)
    assert name in {line["expectation"] for line in failing(tmp_path)}


@pytest.mark.parametrize("kind", SOUND)
def test_faults_in_single_rows_are_each_caught_by_the_expectation_meant_for_them(kind: str, tmp_path: Path) -> None:
    faults = [(change, name) for of, change, name in FAULTS.values() if of == kind and isinstance(change, put)]
    assert len({change.index for change, _ in faults}) == len(faults)  # each has a row of its own

    def change_all(rows):
        for change, _ in faults:
            change(rows)

    report = check(tmp_path, kinds=KINDS[kind], **{kind: change_all})
    caught = {b["expectation"]: b["rows"] for b in report.summary["validation"]["broken"] if b["manifest"] == kind}
    for name, count in Counter(name for _, name in faults).items():
        assert caught.get(name, 0) >= count, name
    key = {"videos": "video_id", "samples": "sample_id", "orbits": "orbit_id"}.get(kind, "clip_id")
    rows = SOUND[kind]()
    change_all(rows)
    told = {(line["expectation"], line["row"].get(key)) for line in failing(tmp_path) if line["manifest"] == kind}
    grouped = {name for name, row in told if row is None}  # such as "no video is in both splits": a row per video
    for change, name in faults:
        assert name in grouped or (name, rows[change.index][key]) in told, (name, change)


def test_an_axis_that_is_nan_is_sound_in_a_selection_that_says_so(tmp_path: Path) -> None:
    told = put(0, {"text_value": math.nan, "reasons": ["motion", "nan_text"]})
    assert names(check(tmp_path, kinds=("selection",), selection=told)) == set()
    untold = put(0, {"text_value": math.nan})
    assert names(check(tmp_path, kinds=("selection",), selection=untold)) == {"selection: figures are finite"}


def test_one_null_does_not_hide_the_dangling_ids_beside_it(tmp_path: Path) -> None:
    def null_id(rows):
        rows[0]["clip_id"] = None

    report = check(tmp_path, kinds=("clips", "annotations"), clips=null_id, annotations=put(9, {"clip_id": "e" * 32}))
    told = {b["expectation"]: b["rows"] for b in report.summary["validation"]["broken"]}
    assert told["an annotation's clip is in the clips manifest"] == 2  # the dangling one, and that of the lost id


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

    assert names(check(tmp_path, kinds=("videos", "clips"), clips=other)) == {f"clips: {name}"}


def test_what_is_no_manifest_is_told_and_the_others_are_checked(tmp_path: Path) -> None:
    paths = write(tmp_path, annotations=put(0, {"motion_score": -1.0}))
    paths["clips"].write_bytes(b"not parquet")
    paths["videos"].unlink()
    with pytest.raises(ValidationFailed) as caught:
        validate_manifests(paths, written(tmp_path), ValidateSettings())
    line = str(caught.value)
    assert (
        "clips: the manifest can be read" in line
        and "videos: the manifest can be read" in line
        and "annotations: motion is not negative (1 row)" in line
    )
    assert "\n" not in line


def test_the_page_is_written_before_the_refusal_shows_the_rows_and_asks_for_nothing(tmp_path: Path) -> None:
    fault = put(0, {"caption_image": " ", "clip_id": "<script>alert(1)</script>"})
    paths = write(tmp_path, ("clips", "annotations"), annotations=fault)
    with pytest.raises(ValidationFailed):
        validate_manifests(paths, written(tmp_path), ValidateSettings())
    page = written(tmp_path).page.read_text()
    assert "captions are not empty" in page and "&lt;script&gt;" in page and "<script" not in page
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", page) and "url(" not in page and "@import" not in page
    html.parser.HTMLParser().feed(page)


SOFT = {
    "a video's licence is known": ("videos", put(0, {"licence": None})),
    "a usable video is fully probed": ("videos", put(1, {"variable_fps": None})),
    "video names are unique": ("videos", put(2, {"name": "v03.mp4", "sources": SOUND["videos"]()[3]["sources"]})),
    "aesthetic score is on its scale": ("annotations", put(0, {"aesthetic": [40.0, 41.0, 42.0]})),
    "watermark, once measured, is measured on every clip": ("annotations", put(1, {"watermark": None})),
    "an embedding, once measured, is measured on every clip": ("annotations", put(2, {"embedding_uri": SHARD})),
    "every clip has a motion score": (
        "annotations",
        put(3, {"motion_score": None, "camera_motion": None, "motion_unit": None, "flow_uri": None}),
    ),
    "every clip has its captions": ("annotations", put(4, {"caption_video": None, "caption_video_model": None})),
    "there are held-out clips": (
        "selection",
        every(lambda r: {**r, "split": r["split"] and "train"}),
    ),
}


def soft_faults() -> dict:
    def change_all(kind):
        def change(rows):
            for of, fault in SOFT.values():
                changed = fault(rows) if of == kind else None
                rows = rows if changed is None else changed
            return rows

        return change

    return {kind: change_all(kind) for kind, _ in SOFT.values()}


def test_soft_expectations_warn_in_page_and_summary_and_do_not_stop(tmp_path: Path) -> None:
    kinds = ("videos", "clips", "annotations", "selection")
    report = validate_manifests(write(tmp_path, kinds, **soft_faults()), written(tmp_path), ValidateSettings())
    warned = {f"{kind}: {name}" for name, (kind, _) in SOFT.items()}
    assert report.summary["validation"]["failed"] == 0
    assert names(report, "warned") == warned | {"annotations: flow, once measured, is measured on every clip"}
    page = written(tmp_path).page.read_text()
    assert "every clip has a motion score" in page and ">warns<" in page.replace("· ", ">").replace("</span>", "<")
    assert {line["severity"] for line in failing(tmp_path)} == {"warning"}


def test_what_is_missing_is_shown_as_missing_and_a_figure_that_is_none_as_such(tmp_path: Path) -> None:
    report = check(tmp_path, kinds=("videos",), videos=put(0, {"licence": None, "fps": math.nan}))
    (lines,) = (s["rows"] for s in report.sections if s["title"] == "What did not hold")
    shown = {name: example for _, name, _, _, example in lines}
    assert "licence=–" in shown["a video's licence is known"]
    assert "fps=nan" in shown["figures are finite"]
    page = written(tmp_path).page.read_text()
    assert "<td>–</td>" in page and "<td>nan</td>" in page


def test_what_is_hard_and_what_is_soft_can_be_told_and_a_wrong_name_is_refused(tmp_path: Path) -> None:
    soft = ValidateSettings(only_warn=("motion is not negative",))
    hard = ValidateSettings(also_stop=("a video's licence is known",))
    negative = put(0, {"motion_score": -1.0, "camera_motion": None})
    assert names(check(tmp_path, soft, ("annotations",), annotations=negative)) == set()
    assert names(check(tmp_path, hard, ("videos",), videos=put(0, {"licence": None}))) == {
        "videos: a video's licence is known"
    }
    for setting in ("only_warn", "also_stop"):
        with pytest.raises(ConfigError, match=f"{setting}.*motion is fine"):
            check_manifests({}, written(tmp_path), ValidateSettings(**{setting: ("motion is fine",)}))


# batches


def many_clips(faults) -> list[dict]:
    """3000 clips in 750 videos, with faults in and across what will be batches of 1000."""
    rows = SOUND["clips"](4, 750)
    for index, values in faults:
        rows[index].update(values)
    return rows


ACROSS = [
    (5, {"bytes": 0, "frames": -1}),
    (999, {"fps": 0.0}),
    (1000, {"fps": 0.0}),
    *[(n, {"shard_uri": "nowhere"}) for n in range(900, 1500)],
    (2999, {"clip_id": SOUND["clips"](1, 1)[0]["clip_id"]}),  # that of the first row, two batches away
    (2000, {"offset": 512}),  # over the first row's bytes
]


def test_batches_give_the_verdicts_counts_rows_and_page_of_one_whole(tmp_path: Path) -> None:
    results = []
    for size in (1000, 1_000_000):
        report = check(
            tmp_path / str(size),
            ValidateSettings(batch_rows=size, rows_kept=50),
            ("clips",),
            clips=lambda rows: many_clips(ACROSS),
        )
        out = written(tmp_path / str(size))
        results.append((report.summary, out.failing.read_text(), out.page.read_text()))
    assert results[0] == results[1]
    told = {b["expectation"]: b["rows"] for b in results[0][0]["validation"]["broken"]}
    assert told["a clip's shard is an object"] == 600 and told["a clip's frame rate is plausible"] == 2
    assert told["clip ids are unique"] == 1 and told["members of a shard do not overlap"] >= 1
    kept = Counter(line["expectation"] for line in map(json.loads, results[0][1].splitlines()))
    assert kept["a clip's shard is an object"] == 50  # bounded
    with pytest.raises(ValidationFailed, match=r"clips: a clip's shard is an object \(600 rows\)"):
        require_valid(report)


def test_a_row_that_breaks_one_expectation_in_two_columns_is_one_row(tmp_path: Path) -> None:
    broken = check(tmp_path, kinds=("clips",), clips=put(4, {"width": 1, "height": 1})).summary["validation"]["broken"]
    assert {"manifest": "clips", "expectation": "a clip's size is plausible", "rows": 1} in broken


SINGLE = [change for kind, change, _ in FAULTS.values() if kind == "clips" and isinstance(change, put)]


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.sets(st.sampled_from(range(len(SINGLE))), max_size=5), size=st.integers(5, 30))
def test_whatever_is_broken_the_size_of_a_batch_does_not_matter(tmp_path: Path, chosen: set, size: int) -> None:
    def change(rows):
        for fault in chosen:
            SINGLE[fault](rows)

    whole, parts = (check(tmp_path, ValidateSettings(batch_rows=n), ("clips",), clips=change) for n in (1000, size))
    assert whole.summary == parts.summary


# links, against plain Python


@contextmanager
def link_on(name: str, **rows) -> Iterator[list[tuple]]:
    import duckdb

    (link,) = [link for link in LINKS if link.name == name]
    with duckdb.connect() as connection:
        for kind, each in rows.items():
            connection.register(kind, pa.Table.from_pylist(each))
        yield connection.execute(link.broken).fetchall()


SPANS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 12), st.integers(0, 5)), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spans=SPANS)
def test_overlaps_are_found_exactly_when_two_clips_share_a_frame(spans) -> None:
    rows = [
        {"clip_id": f"{n}", "video_id": video, "first_frame": first, "last_frame": first + more}
        for n, (video, first, more) in enumerate(spans)
    ]
    frames = Counter((r["video_id"], f) for r in rows for f in range(r["first_frame"], r["last_frame"] + 1))
    with link_on("clips of a video do not overlap", clips=rows) as broken:
        assert bool(broken) == (max(frames.values()) > 1)


@settings(max_examples=30, deadline=None)
@given(ids=st.lists(st.integers(0, 9).map(str) | st.none(), min_size=1), there=st.lists(st.integers(0, 9).map(str)))
def test_dangling_ids_are_found_one_for_one(ids, there) -> None:
    clips = [{"clip_id": each} for each in [*there, None, "x"]]
    annotations = [{"clip_id": each} for each in [*ids, "x"]]
    with link_on("an annotation's clip is in the clips manifest", clips=clips, annotations=annotations) as broken:
        assert Counter(row[0] for row in broken) == Counter(each for each in ids if each not in there)


# as a step


def run_step_of(workdir: Path, paths: dict[str, Path]) -> None:
    files = {kind: str(path) for kind, path in paths.items()}
    page, rows = (str(workdir / "out" / name) for name in ("page", "rows"))
    validate_step("validate_selection", files, page, rows, str(workdir), "run", "test", {})


def test_a_hard_failure_stops_the_step_with_one_line_and_leaves_page_and_rows(tmp_path: Path, capfd) -> None:
    kinds = ("videos", "clips", "annotations", "selection")
    with pytest.raises(SystemExit) as stopped:
        run_step_of(tmp_path, write(tmp_path / "m", kinds, clips=put(10, {"bytes": 0})))
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("svdflow validate_selection:")]
    assert stopped.value.code == 1 and len(told) == 1
    assert "1 hard expectation is broken: clips: a clip has bytes (1 row)" in told[0]
    assert "a clip has bytes" in (tmp_path / "validation_selection.html").read_text()
    (line,) = (tmp_path / "validation_selection_failing_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["row"]["clip_id"] == CLIPS[10]["clip_id"] and json.loads(line)["row"]["bytes"] == 0
    assert "a clip has bytes" in (tmp_path / "steps" / "run" / "validate_selection.json").read_text()


def test_a_rerun_with_nothing_changed_takes_the_result_and_loads_no_heavy_library(tmp_path: Path) -> None:
    paths = write(tmp_path / "m", ("videos", "clips"), clips=put(10, {"bytes": 0}))
    root = DataRoot.open(tmp_path / "root")
    first = check_once(paths, written(tmp_path), root, ValidateSettings())
    kept = [path.read_bytes() for path in (written(tmp_path).page, written(tmp_path).failing)]
    code = f"""
import sys
from pathlib import Path
from svdflow.common.storage import DataRoot
from svdflow.curation.validate.settings import ValidateSettings
from svdflow.curation.validate.validate import Written, check_once
manifests = {{kind: Path({str(tmp_path / "m")!r}) / f"{{kind}}.parquet" for kind in ("videos", "clips")}}
out = Written(Path({str(tmp_path / "again.html")!r}), Path({str(tmp_path / "again.jsonl")!r}))
report = check_once(manifests, out, DataRoot.open({str(tmp_path / "root")!r}), ValidateSettings(batch_rows=7))
print(report.done, report.reused, [m for m in ("great_expectations", "pandas", "duckdb", "scipy") if m in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["0", str(first.done), "[]"]
    assert [(tmp_path / name).read_bytes() for name in ("again.html", "again.jsonl")] == kept
    changed = check_once(paths, written(tmp_path), root, ValidateSettings(only_warn=("a clip has bytes",)))
    assert changed.done and not changed.summary["validation"]["failed"]
    paths["videos"].unlink()  # a manifest that is gone is no manifest that was not asked for
    alone = check_once({"clips": paths["clips"]}, written(tmp_path), root, ValidateSettings())
    gone = check_once(paths, written(tmp_path), root, ValidateSettings())
    assert "videos: the manifest can be read" in names(gone) - names(alone)
