import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from svdflow.common.report import StepReport, curves, histogram, images, table, text, videos
from svdflow.common.video import encode_mp4
from svdflow.report.compose import summarize
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


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [-1e9, 1e9], [1e-12, 2e-12]])
def test_histograms_and_curves_of_odd_ranges_are_drawn(values):
    report = StepReport(
        "s", "S", sections=[histogram("h", values, "u", cut=values[0]), curves("c", {"x": (values, values)}, "x", "y")]
    )
    assert "nan" not in render_page([report], RUN).lower().replace("finance", "")
