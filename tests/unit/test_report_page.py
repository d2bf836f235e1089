import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from svdflow.common.report import (
    StepReport,
    curves,
    first_rows,
    funnel,
    histogram,
    images,
    leading,
    table,
    text,
    videos,
)
from svdflow.common.video import encode_mp4
from svdflow.report.compose import compose_report, summarize
from svdflow.report.overview import curation_overview
from svdflow.report.page import render_page

RUN = {
    "id": "r1",
    "pipeline": "svd",
    "profile": "test",
    "settings_changed": {"a.b": "<i>"},
    "failed": [],
    "versions": {"python": "3"},
}
EVIL = '<script>alert(1)</script>"&'


def full_report() -> StepReport:
    picture = np.zeros((48, 64, 3), np.uint8)
    clip = encode_mp4(np.zeros((4, 32, 32, 3), np.uint8), 4)
    return StepReport(
        "split", "Split", done=3, reused=1, counts={"videos in": 4, EVIL: 2}, seconds=1.5,
        summary={"clips": {"count": 2}},
        sections=[
            table(EVIL, ["a", "b"], [[1, EVIL], [None, 0.123456]]),
            text("words", EVIL),
            histogram("motion", [0.1, 0.2, math.nan, None, 5.0], "px", cut=0.15),
            histogram("none", [math.nan], "px"),
            curves("loss", {"train": ([0, 1, 2], [3.0, 2.0, math.nan])}, "step", "loss", log_y=True),
            images("frames", [(picture, EVIL)]),
            videos("clips", [(clip, EVIL)]),
            funnel("what is left", [("files", 9, None), (EVIL, 4, 2.0), ("kept", 1, 0.5)], EVIL),
        ],
    )  # fmt: skip


class Page(HTMLParser):
    void = {"meta", "link", "img", "br", "rect", "line"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    assert page.open == []
    return page


def test_the_page_is_well_formed_and_asks_the_network_for_nothing():
    page = parse(render_page([full_report()], RUN))
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not re.search(r"https?://|@import|url\(", render_page([full_report()], RUN))


def test_what_steps_say_is_text_and_never_markup():
    page = parse(render_page([full_report()], RUN))
    assert "script" not in page.tags


def test_every_kind_of_section_is_drawn():
    tags = parse(render_page([full_report()], RUN)).tags
    assert {"table", "svg", "polyline", "rect", "img", "video"} <= set(tags)


def test_a_report_survives_the_trip_through_json_with_nan_as_null():
    report = full_report()
    again = StepReport.from_json(report.to_json())
    assert again.counts == report.counts
    assert json.loads(report.to_json())["sections"][4]["series"]["train"][1][2] is None
    assert render_page([again], RUN)


def test_a_run_that_failed_at_once_still_has_a_page():
    html = render_page([], RUN | {"failed": ["ingest: the folder is empty"]})
    assert "the folder is empty" in html and "failed" in html


def test_the_summary_joins_the_steps_figures_and_counts_their_work():
    first = StepReport("ingest", "Ingest", done=2, summary={"videos": {"ok": 2}})
    second = StepReport("train_image", "Train", done=1, summary={"training": {"image": {"steps": 3}}}, seconds=2.0)
    third = StepReport("train_video", "Train", reused=1, summary={"training": {"video": {"steps": 4}}})
    summary = summarize([first, second, third], RUN)
    assert summary["training"] == {"image": {"steps": 3}, "video": {"steps": 4}}
    assert summary["work"]["train_video"] == {"done": 0, "reused": 1}
    assert summary["seconds"]["train_image"] == 2.0


def test_the_summary_joins_the_validations_of_a_run():
    def checked(step: str, expectations: int, warned: list[str], **rows: int) -> StepReport:
        told = {"expectations": expectations, "failed": 0, "warnings": len(warned), "broken": [], "warned": warned}
        return StepReport(step, "Validate", summary={"validation": told | {"manifests": rows}})

    reports = [checked("validate", 5, ["short clip"], clips=7), checked("validate_samples", 3, [], samples=6)]
    told = summarize([*reports, StepReport("encode", "Encode")], RUN)["validation"]
    assert (told["expectations"], told["failed"], told["warned"]) == (8, 0, ["short clip"])
    assert told["manifests"] == {"clips": 7, "samples": 6}


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [-1e9, 1e9], [1e-12, 2e-12]])
def test_histograms_and_curves_of_odd_ranges_are_drawn(values):
    report = StepReport(
        "s", "S", sections=[histogram("h", values, "u", cut=values[0]), curves("c", {"x": (values, values)}, "x", "y")]
    )
    assert "nan" not in render_page([report], RUN).lower().replace("finance", "")


def curation_reports() -> list[StepReport]:
    return [
        StepReport("ingest", "Ingest", summary={"videos": {"files": 5, "ok": 4, "hours": 40.0}},
                   slowest=[("a.mp4", 1.5)], largest=[("b.mp4", 3_000_000)], set_aside=[("c.mp4", EVIL)]),
        StepReport("split", "Split", summary={"clips": {"count": 1200, "hours": 20.0}}, slowest=[("b.mp4", 9.0)]),
        StepReport("annotate", "Annotate", summary={"annotations": {"clips": 1200, "annotated": 1100, "hours": 15.0}}),
        StepReport("filter", "Filter", summary={"selection": {"kept": 300, "hours_kept": 5.0}}),
    ]  # fmt: skip


def test_the_overview_tells_what_is_left_after_every_stage_in_count_and_hours():
    reports = curation_reports()
    stages, slowest, largest, aside = curation_overview(reports, summarize(reports, RUN))
    assert stages["stages"] == [
        ["files", 5, None], ["videos", 4, 40.0], ["clips", 1200, 20.0], ["clips annotated", 1100, 15.0],
        ["clips kept", 300, 5.0],
    ]  # fmt: skip
    assert [row[:2] for row in slowest["rows"]] == [["b.mp4", "Split"], ["a.mp4", "Ingest"]]
    assert largest["rows"] == [["b.mp4", 3.0]]
    assert aside["rows"] == [["c.mp4", "Ingest", EVIL]]
    html = render_page(reports, RUN, curation_overview(reports, summarize(reports, RUN)))
    assert "script" not in parse(html).tags
    for said in ('class="scroll"><table class="funnel"', "1,200", "40.0 h", "50.0 %", "33.3 %", "width:12.5%"):
        assert said in html


@pytest.mark.parametrize("ended", range(5))
def test_the_overview_tells_what_the_steps_that_ended_know(ended):
    reports = curation_reports()[:ended]
    sections = curation_overview(reports, summarize(reports, RUN))
    assert ("From footage to dataset" in [s["title"] for s in sections]) == (ended >= 2)
    assert render_page(reports, RUN, sections)


def test_leading_values_come_largest_first_and_no_more_than_asked():
    assert leading({"b": 2.0, "a": 2.0, "c": 9.0, "d": 1.0}, 3) == [("c", 9.0), ("a", 2.0), ("b", 2.0)]
    assert first_rows(((str(n), "why") for n in range(10**9)), 2) == [("0", "why"), ("1", "why")]


def test_a_page_names_its_pipeline_and_is_written_with_its_summary(tmp_path):
    folder = tmp_path / "steps" / "r7"
    folder.mkdir(parents=True)
    for report in curation_reports():
        (folder / f"{report.step}.json").write_bytes(report.to_json())
    html = compose_report(str(tmp_path), "r7", "test", {"a.count": 3.0, "a.share": 0.5}, "curation")
    assert "a.count=3, a.share=0.5" in html
    assert "<title>svdflow · curation · test</title>" in html and "From footage to dataset" in html
    assert (tmp_path / "report.html").read_text() == html
    assert json.loads((tmp_path / "summary.json").read_text())["run"]["pipeline"] == "curation"
    assert compose_report(str(tmp_path), "r8", "test", {}, "train") != html
    assert (folder / "report.html").read_text() == html, "another run in the same directory takes no page away"
