"""The curation steps as a whole, as ratios taken within one run: against the same work tool by tool, on two cores, in
bounded memory, and killed thirty times.

pytest -s tests/benchmarks/test_curation.py

Throughput is compared in CPU seconds of whole process trees bound to one core, starts of processes and imports
included on our side. Figures of wall time (two workers) mean something on an idle machine alone.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import av
import psutil
import pytest

from tests import curation_runs
from tests.footage_sets import write_good_videos

ROUNDS = int(os.environ.get("SVDFLOW_BENCH_ROUNDS", "3"))
LONG_MINUTES = float(os.environ.get("SVDFLOW_BENCH_MINUTES", "60"))
KILLS = int(os.environ.get("SVDFLOW_BENCH_KILLS", "30"))
GIB = 1 << 30


def machine() -> str:
    model = [line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    name = (model or [platform.machine()])[0].strip()
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


@pytest.fixture(scope="module", autouse=True)
def _named():
    print(f"\n{machine()}")


def regular(source: Path, target: Path, crf: int = 23) -> Path:
    """The same pictures in H.264 as the web has it: a key frame at cuts and every two seconds."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        pictures = container.streams.video[0]
        options = {"preset": "veryfast", "crf": str(crf), "g": str(round(2 * pictures.average_rate))}
        stream = out.add_stream("libx264", rate=round(pictures.average_rate), options=options)
        stream.width, stream.height, stream.pix_fmt = pictures.width, pictures.height, "yuv420p"
        for number, frame in enumerate(container.decode(pictures)):
            frame.pts, frame.time_base = number, 1 / stream.codec_context.framerate
            frame.pict_type = av.video.frame.PictureType.NONE
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return target


def looped(source: Path, target: Path, seconds: float) -> Path:
    """A video again and again, by stream copy, until it is so long. Its name makes it another file than its like."""
    with av.open(str(target), "w") as out:
        out.metadata["title"] = target.stem
        copy, shift, shift_s = None, 0, 0.0
        while shift_s < seconds:
            with av.open(str(source)) as container:
                stream = container.streams.video[0]
                copy = copy or out.add_stream_from_template(stream)
                packets = [packet for packet in container.demux(stream) if packet.size]
                earliest = min(packet.dts for packet in packets)
                length = max(packet.pts + packet.duration for packet in packets) - earliest
                for packet in packets:
                    packet.pts, packet.dts = packet.pts - earliest + shift, packet.dts - earliest + shift
                    packet.stream = copy
                    out.mux(packet)
                shift, shift_s = shift + length, float((shift + length) * stream.time_base)
    return target


# CPU seconds by stage, of this process, in a file beside the script; a call within another stage's counts for itself
# alone. Spawned workers import the script anew, so they are profiled as well.
PROFILE = """
import functools, inspect, json, os, time
from pathlib import Path

spent, running = {}, []

def charge(stage):
    now = time.process_time()
    if running:
        spent[running[-1][0]] = spent.get(running[-1][0], 0.0) + now - running[-1][1]
        running[-1][1] = now
    if stage:
        running.append([stage, now])
    else:
        running.pop()
        if running:
            running[-1][1] = now
        else:
            Path(__file__).with_name(f"profile-{os.getpid()}.json").write_text(json.dumps(spent))

def staged(stage, function):
    def timed(*arguments, **options):
        charge(stage)
        try:
            return function(*arguments, **options)
        finally:
            charge(None)

    def steps(*arguments, **options):
        items, end = function(*arguments, **options), object()
        step = staged(stage, lambda: next(items, end))
        while (item := step()) is not end:
            yield item

    return functools.wraps(function)(steps if inspect.isgeneratorfunction(function) else timed)
"""

# Runs in a process of its own: the steps as they are, with the operators that need no GPU and no hub
STEPS = (
    PROFILE
    + """
import sys
from svdflow.curation.annotate import measure
from svdflow.curation.split import split
from svdflow.common.storage import DataRoot
from svdflow.ingest.ingest import IngestSettings, ingest_videos
from svdflow.curation.split.settings import SplitSettings
from svdflow.curation.split.split import split_videos
from svdflow.curation.annotate.settings import AXES, AnnotateSettings
split.scan_video = staged("decode and detect", split.scan_video)
split.cut_clips = staged("clipping", split.cut_clips)
split.is_the_source = staged("verification", split.is_the_source)
measure.measure_clip = staged("operators", measure.measure_clip)
from svdflow.curation.annotate.annotate import annotate_clips

if __name__ == "__main__":
    source, verify, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    root = DataRoot.open(out / "data")
    videos, clips, annotations = (out / f"{kind}.parquet" for kind in ("videos", "clips", "annotations"))
    ingest_videos(source, videos, root, IngestSettings(generated_clips=0))
    Path(out / "ingested").touch()
    while not (out / "go").exists():
        time.sleep(0.01)
    split_videos(videos, clips, root, SplitSettings(end="cut", min_s=0.65, max_s=10.0, verify=verify))
    axes = dict.fromkeys(AXES) | {"motion": "farneback-flow", "text": "pp-ocr-detector",
                                  "aesthetic": "colourfulness-contrast-sharpness"}
    annotate_clips(videos, clips, annotations, root, AnnotateSettings(**axes))
"""
)

# The same work, one tool after the other: a pass over the video for each detector, a copy for each clip, a decode of
# each clip for each operator. Detectors, thresholds, rates, sizes, operators and decoder are ours.
TOOLS = (
    PROFILE
    + """
import sys
import av, cv2, numpy as np
from scenedetect import SceneManager, open_video
from scenedetect.detectors import AdaptiveDetector, ContentDetector, HistogramDetector
from svdflow.common.flow import dense_flow, flow_figures, flow_frame, flow_map
from svdflow.common.manifests import read_rows
from svdflow.common.video import decode
from svdflow.curation.annotate.heuristics import picture_quality
from svdflow.curation.annotate.look import key_indices
from svdflow.curation.annotate.motion import frames_at_rate
from svdflow.curation.annotate.settings import AnnotateSettings
from svdflow.curation.annotate.text_regions import text_area
from svdflow.curation.split.settings import SplitSettings

cv2.setNumThreads(1)
KINDS = {"adaptive": AdaptiveDetector, "content": ContentDetector, "histogram": HistogramDetector}

def detect(path, fps, level, width_px):
    video = open_video(str(path), backend="pyav", threading_mode="NONE")
    manager = SceneManager()
    manager.auto_downscale, manager.downscale = False, round(video.frame_size[0] / width_px)
    manager.add_detector(KINDS[level.detector](level.threshold, min_scene_len=0))
    manager.detect_scenes(video, frame_skip=round(fps / level.fps) - 1 if level.fps else 0)
    return manager.get_scene_list()

def copy(path, start_s, end_s, target):
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        stream = source.streams.video[0]
        clip = out.add_stream_from_template(stream)
        source.seek(int(start_s / stream.time_base), stream=stream)
        for packet in source.demux(stream):
            if packet.size and packet.pts is not None:
                if packet.dts is not None and packet.dts * stream.time_base > end_s + 0.5:
                    break
                if start_s - 1e-3 <= packet.pts * stream.time_base < end_s - 1e-3:
                    packet.stream = clip
                    out.mux(packet)

detect, copy = staged("decode and detect", detect), staged("clipping", copy)

def chosen(path, indices):
    wanted = set(indices)
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                yield frame.to_ndarray(format="rgb24")

def times(path):
    with av.open(str(path)) as container:
        pts = sorted(p.pts for p in container.demux(container.streams.video[0]) if p.size)
        return (np.array(pts) - pts[0]) * float(container.streams.video[0].time_base)

def operators(clip, settings):
    stamps = times(clip)
    last, flows = None, []
    for rgb in chosen(clip, frames_at_rate(stamps, 1 / settings.flow_fps)):
        grey = flow_frame(rgb, settings.flow_short_side_px)
        if last is not None:
            flow = dense_flow(last, grey)
            flows.append((flow_figures(flow), flow_map(flow)))
        last = grey
    for rgb in chosen(clip, key_indices(stamps)):
        text_area(rgb, settings.text_long_side_px, settings.text_box_threshold)
    for rgb in chosen(clip, key_indices(stamps)):
        picture_quality(rgb)

operators = staged("operators", operators)

if __name__ == "__main__":
    data, out, settings = Path(sys.argv[1]), Path(sys.argv[2]), AnnotateSettings()
    for video in read_rows("videos", data / "videos.parquet"):
        path = data / "data" / video["uri"]
        for level in SplitSettings().levels:
            detect(path, video["fps"], level, SplitSettings().detect_width_px)
        for row in read_rows("clips", data / "clips.parquet"):
            if row["video_id"] != video["video_id"]:
                continue
            clip = out / f"{row['clip_id']}.mp4"
            copy(path, row["start_s"], row["end_s"], clip)
            operators(clip, settings)
"""
)


def launch(script: str, cores: set[int], *arguments: str | Path) -> subprocess.Popen:
    """A script in a process of its own, with all it starts bound to some cores and one thread each."""
    folder = Path(str(arguments[-1]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "work.py").write_text(script)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(folder / "work.py"), *map(str, arguments)],
        env=environment,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen) -> None:
    _, err = process.communicate()
    assert process.returncode == 0, err[-3000:]


STAGES = ("decode and detect", "clipping", "verification", "operators")


def profile(folder: Path, total_s: float) -> dict[str, float]:
    """CPU seconds of each stage, all processes together; the rest is start-up, imports and hand-over."""
    told = [json.loads(path.read_text()) for path in folder.glob("profile-*.json")]
    seconds = {stage: sum(each.get(stage, 0.0) for each in told) for stage in STAGES}
    return seconds | {"the rest": total_s - sum(seconds.values())}


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_apart(halves: Sequence[Path], outs: Sequence[Path], cores: Sequence[int]) -> float:
    """Wall seconds of two runs at once that know nothing of each other: what the machine itself allows."""
    pairs = zip(halves, outs, cores, strict=True)
    processes = [launch(STEPS, {core}, source, "packets", out) for source, out, core in pairs]
    while not all((out / "ingested").exists() for out in outs):
        time.sleep(0.01)
    started = time.monotonic()
    for out in outs:
        (out / "go").touch()
    for process in processes:
        ended(process)
    return time.monotonic() - started


def run_steps(source: Path, out: Path, cores: set[int], verify: str = "packets") -> tuple[float, float]:
    """CPU and wall seconds of splitting and annotating; ingest is not counted."""
    process = launch(STEPS, cores, source, verify, out)
    while not (out / "ingested").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    ingest_s = sum(psutil.Process(process.pid).cpu_times()[:4])
    before, started = cpu_of_children(), time.monotonic()
    (out / "go").touch()
    ended(process)
    return cpu_of_children() - before - ingest_s, time.monotonic() - started


@pytest.fixture(scope="module")
def footage(media: Path, tmp_path_factory) -> Path:
    """Eight videos of 55 s that share no byte: what is measured once for equal clips would not be measured here."""
    folder = tmp_path_factory.mktemp("footage")
    for n in range(8):
        regular(media / "trailer_bbb.mp4", folder / f"trailer {n}.mp4", crf=18 + n)
    return folder


@pytest.fixture(scope="module")
def halves(footage, tmp_path_factory) -> tuple[Path, Path]:
    """Every other one of them, and the rest."""
    folders = tmp_path_factory.mktemp("even"), tmp_path_factory.mktemp("odd")
    for n in range(8):
        os.link(footage / f"trailer {n}.mp4", folders[n % 2] / f"trailer {n}.mp4")
    return folders


@pytest.fixture(scope="module")
def half(halves) -> Path:
    return halves[0]


def test_the_steps_are_twice_as_fast_as_the_same_work_tool_by_tool(half, tmp_path):
    core, rounds, profiles = {min(os.sched_getaffinity(0))}, [], []
    for n in range(ROUNDS):
        ours, _ = run_steps(half, tmp_path / f"steps {n}", core)
        unverified, _ = run_steps(half, tmp_path / f"unverified {n}", core, verify="off")
        before = cpu_of_children()
        ended(launch(TOOLS, core, tmp_path / f"steps {n}", tmp_path / f"tools {n}"))
        rounds.append((cpu_of_children() - before, ours, unverified))
        profiles.append((profile(tmp_path / f"tools {n}", rounds[-1][0]), profile(tmp_path / f"steps {n}", ours)))
    tools_s, ours_s, unverified_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(tools / ours for tools, ours, _ in rounds)
    alike = statistics.median(tools / unverified for tools, _, unverified in rounds)
    print(
        f"220 s of 720p, CPU time: tool by tool {tools_s:.1f} s; ours {ours_s:.1f} s, {ratio:.2f} times the throughput"
    )
    for stage in profiles[0][0]:
        theirs, own = (statistics.median(each[side][stage] for each in profiles) for side in (0, 1))
        print(f"  {stage:18} tool by tool {theirs:6.1f} s; ours {own:6.1f} s")
    print(
        "without the check of each clip against its source, which no tool makes: "
        f"{unverified_s:.1f} s, {alike:.2f} times"
    )
    assert ratio >= 2.0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_workers_do_nearly_twice_the_work_of_one(footage, halves, tmp_path):
    one, two = sorted(os.sched_getaffinity(0))[:2]
    rounds, bounds = [], []
    for n in range(ROUNDS):
        _, alone = run_steps(footage, tmp_path / f"one {n}", {one})
        _, both = run_steps(footage, tmp_path / f"two {n}", {one, two})
        apart = run_apart(halves, [tmp_path / f"apart {n} {side}" for side in (0, 1)], (one, two))
        rounds.append(alone / both)
        bounds.append(alone / apart)
    print(
        f"two workers against one: {statistics.median(rounds):.2f} times (rounds {[round(r, 2) for r in rounds]}); two "
        f"separate runs, each with half of the videos on a core of its own: {statistics.median(bounds):.2f} times"
    )
    assert statistics.median(rounds) >= 1.8


def peak_of_tree(process: subprocess.Popen) -> int:
    """Most memory of a process and all below it while it runs, shared pages counted once (PSS)."""
    peak = 0
    while process.poll() is None:
        total = 0
        try:
            for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                total += each.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
        peak = max(peak, total)
        time.sleep(0.1)
    return peak


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path, media):
    peaks = {}
    for minutes in (1.0, LONG_MINUTES):
        source, out = tmp_path / f"{minutes} source", tmp_path / f"{minutes} out"
        source.mkdir()
        looped(media / "bikes.mp4", source / "long.mp4", 60 * minutes)
        out.mkdir()
        (out / "go").touch()
        process = launch(STEPS, {min(os.sched_getaffinity(0))}, source, "packets", out)
        peaks[minutes] = peak_of_tree(process)
        ended(process)
    short, long = peaks.values()
    print(f"process tree of one worker: {short / 1e6:.0f} MB for 1 minute, {long / 1e6:.0f} MB for {LONG_MINUTES:g}")
    assert max(peaks.values()) < GIB
    assert long < 1.15 * short


def test_thirty_kills_at_random_points_leave_the_manifests_of_an_undisturbed_run(tmp_path):
    write_good_videos(tmp_path / "footage", count=3)
    curation_runs.finish(tmp_path / "undisturbed", tmp_path / "footage")
    truth = curation_runs.manifests(tmp_path / "undisturbed")
    total = len(curation_runs.events(tmp_path / "undisturbed"))
    seed = time.time_ns()
    draw, hit = random.Random(seed), []
    for n in range(KILLS):
        workdir, point, delay_s = tmp_path / f"killed {n}", draw.randrange(total), draw.uniform(0, 1.5)
        process = curation_runs.start(workdir, tmp_path / "footage")
        if curation_runs.wait_until(process, workdir, lambda seen, point=point: len(seen) > point):
            time.sleep(delay_s)
        if process.poll() is None:
            step = curation_runs.events(workdir)[-1]["step"]
            curation_runs.kill_everything(process, workdir)
            hit.append(step)
        curation_runs.finish(workdir, tmp_path / "footage")
        assert curation_runs.manifests(workdir) == truth, f"seed {seed}, kill {n}: {delay_s:.2f} s after event {point}"
    print(f"{len(hit)} kills of {KILLS}, in {json.dumps({step: hit.count(step) for step in sorted(set(hit))})}")
    assert len(hit) >= 0.8 * KILLS
