"""The page of a UCF-101 run: the figure beside the paper's table, the protocol, generated and real videos."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from ...common.report import StepReport, first_rows, images, table, videos
from ...common.video import encode_mp4
from .protocol import PAPER_CLASSES, PAPER_VIDEOS, TABLE_2, Measured, real_name, result_of
from .videos import as_seen, real_frames


def ucf101_report(measured: Measured) -> StepReport:
    """The account of a run that has a figure."""
    made = measured.generated.made
    report = StepReport(
        "ucf101", "Zero-shot UCF-101", done=made, reused=len(measured.asked) - made, seconds=measured.seconds
    )
    result = result_of(measured)
    report.counts = {
        "classes": sum(1 for count in measured.drawn.values() if count),
        "generated videos": measured.asked_in_all,
        "real videos": measured.real_compared,
        "set aside": len(measured.refused),
    }
    report.summary = {"ucf101": {"model_sha256": measured.model_sha256, **result["figures"]}}
    report.set_aside = first_rows(sorted(measured.refused.items()))
    report.sections = [_beside_table_2(measured), _protocol(measured, result), *_pictures(measured)]
    if measured.refused:
        report.sections.append(
            table("Real videos set aside", ["video", "reason"], [list(row) for row in report.set_aside])
        )
    report.versions = {"torch": version("torch"), "diffusers": version("diffusers")}
    if measured.network:
        report.versions[measured.network.name] = measured.network.sha256[:12]
    return report


def _beside_table_2(measured: Measured) -> dict[str, Any]:
    assert measured.figure is not None
    name, value = measured.figure
    rows: list[list[Any]] = [[who, "fvd", f"{fvd:.2f}", None, "Table 2"] for who, fvd in TABLE_2.items()]
    rows[-1][3] = PAPER_VIDEOS  # of the others the paper quotes figures
    rows.append(["this model", name, f"{value:.2f}", measured.asked_in_all, "measured here"])
    if measured.comparable:
        note = "Same network, same number of videos of each class; sampler, steps and the real clips' place are ours."
    else:
        note = (
            f"Not comparable with the paper's figure, which has UCF-101's {PAPER_VIDEOS:,} videos of {PAPER_CLASSES} "
            "classes, I3D and the paper's sizes: a Fréchet distance changes with each. Compare it with figures of the "
            "same protocol alone."
        )
    return table("Fréchet video distance ↓", ["model", "figure", "value", "videos", "source"], rows, note=note)


def _protocol(measured: Measured, result: dict[str, Any]) -> dict[str, Any]:
    told = result["protocol"]
    seen, sampler = told["seen_by_the_network"], told["sampler"]
    rows: list[list[Any]] = [
        ["videos", f"{measured.asked_in_all:,} of {sum(measured.counts.values()):,} ({told['videos']['draw']})"],
        ["prompt", told["prompt"]],
        ["frames", f"{told['frames']} at {told['fps']:g} a second, {told['size_px'][1]}x{told['size_px'][0]} px"],
        ["guidance", f"{told['guidance']['scale']:g}, {told['guidance']['over_frames']} over the frames"],
        ["sampler (ours)", f"{sampler['name']}, {sampler['steps']} steps, motion bucket {sampler['motion_bucket']}"],
        ["size", f"{'x'.join(map(str, seen['resized_px'][::-1]))} px ({seen['how']}), then the centre "
                 f"{'x'.join(map(str, seen['cropped_px'][::-1]))}"],
        ["features", f"{told['features']['network']}, sha256 {told['features']['sha256'][:12]}…"],
        ["real clips", told["real"]["clip"]],
        ["distance", told["distance"]],
    ]  # fmt: skip
    return table("Protocol", ["what", "how"], rows, note=f"{told['source']}, where nothing else is said.")


def _pictures(measured: Measured) -> list[dict[str, Any]]:
    """Some generated videos, evenly over the classes, as the network sees them; and real ones of the same classes."""
    s = measured.settings
    firsts = [one for one in measured.asked if one.number == 0]
    places = np.unique(np.linspace(0, len(firsts) - 1, min(s.shown, len(firsts))).round().astype(int))
    chosen = [firsts[place] for place in places]
    if not chosen:
        return []
    frames = [as_seen(measured.generated.frames(one), s) for one in chosen]
    captions = [one.prompt for one in chosen]
    sections = [_playing("Generated videos", frames, captions, s.fps)]
    middles = [(video[len(video) // 2], text) for video, text in zip(frames, captions, strict=True)]
    sections.append(images("The frame in their middle", middles, height_px=120))
    by_class = {path.parent.name: path for path in reversed(measured.real) if real_name(path) not in measured.refused}
    of_same = [(one.of_class, by_class[one.of_class]) for one in chosen if one.of_class in by_class]
    if of_same:
        real = [real_frames(path, s) for _, path in of_same]
        sections.append(_playing("Real videos", real, [name for name, _ in of_same], s.fps))
    return sections


def _playing(title: str, of: list[np.ndarray], captions: list[str], fps: float) -> dict[str, Any]:
    playing: list[tuple[Any, str]] = [
        (encode_mp4(frames, fps), text) for frames, text in zip(of, captions, strict=True)
    ]
    return videos(title, playing, note="As the feature network is given them.", height_px=160)
