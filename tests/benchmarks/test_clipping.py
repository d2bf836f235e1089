"""Clipping at speed, in bounded memory, and through thirty kills. Figures are printed; run with ``-s``."""

from __future__ import annotations

import os
import platform
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import av
import cv2
import numpy as np
import psutil
import pytest

from svdflow.common.video import encode_mp4
from svdflow.curation.split.cascade import Cascade
from svdflow.curation.split.clip_check import is_the_source
from svdflow.curation.split.clipping import cut_clips, plan_spans
from svdflow.curation.split.cuts import merge_detections, shots_between
from svdflow.curation.split.scan import scan_video
from svdflow.curation.split.settings import SplitSettings
from svdflow.curation.split.tar_shard import TarShard
from tests.killed_split import finished, start
from tests.split_footage import shots, write_videos

FPS = 24
DEFAULTS = SplitSettings()


def looped(source: bytes, path: Path, times: int) -> Path:
    """A video played several times over, by stream copy."""
    piece = path.with_name("piece.mp4")
    piece.write_bytes(source)
    with av.open(str(path), "w", format="mp4") as target:
        copy, shift = None, 0
        for _ in range(times):
            with av.open(str(piece)) as container:
                stream = container.streams.video[0]
                copy = copy or target.add_stream_from_template(stream)
                ends = 0
                for packet in container.demux(stream):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        ends = max(ends, packet.pts + packet.duration)
                        packet.stream = copy
                        target.mux(packet)
                shift = ends
    return path


@pytest.fixture(scope="module")
def full_hd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of 1080p H.264 with a key frame a second and five shots: the 720p trailer enlarged, and looped."""
    trailer = Path(__file__).resolve().parents[2] / ".cache" / "media" / "trailer_bbb.mp4"
    if not trailer.is_file():
        pytest.skip("sample footage is not there: make setup")
    with av.open(str(trailer)) as container:
        frames = [
            frame.reformat(1920, 1080, "rgb24").to_ndarray()
            for number, frame in enumerate(container.decode(video=0))
            if 560 <= number < 680
        ]
    path = tmp_path_factory.mktemp("full hd") / "v.mp4"
    return looped(encode_mp4(np.stack(frames), FPS, crf=20, gop=FPS), path, 12)


@pytest.mark.parametrize("end", ["key_frame", "cut"])
def test_clipping_is_fifty_times_faster_than_real_time(full_hd, tmp_path, end):
    """From known cuts to a tar of checked clips; detecting the cuts is measured elsewhere."""
    cv2.setNumThreads(1)
    scan = scan_video(full_hd, Cascade(DEFAULTS.levels, DEFAULTS.detect_width_px), FPS, "packets")
    frames = scan_video(full_hd, Cascade(DEFAULTS.levels, DEFAULTS.detect_width_px), FPS)
    cuts = merge_detections(scan.detections, scan.times_s, scan.gap_s)
    bare, taken, decoded = [], [], []
    for _ in range(3):
        began = time.perf_counter()
        plan = plan_spans(scan.packets, scan.times_s, shots_between(cuts, len(scan.pts)), end, 1.0, 20.0)
        with TarShard(tmp_path / "shard.tar") as shard:
            for number, (_, clip) in enumerate(cut_clips(full_hd, scan, plan.spans, tmp_path)):
                shard.add(f"{number}.mp4", clip)
        bare.append(time.perf_counter() - began)
        for how, known, seconds in (("packets", scan, taken), ("ends", frames, decoded)):
            began = time.perf_counter()
            with TarShard(tmp_path / "shard.tar") as shard:
                for number, (span, clip) in enumerate(cut_clips(full_hd, known, plan.spans, tmp_path)):
                    assert is_the_source(clip, known, span, how)
                    shard.add(f"{number}.mp4", clip)
            seconds.append(time.perf_counter() - began)
    length_s = scan.times_s[-1]
    kept_s = sum(scan.times_s[span.last + 1] - scan.times_s[span.first] for span in plan.spans)
    rate = full_hd.stat().st_size * 8e-6 / length_s
    print(f"\n{platform.machine()}: {length_s:.0f} s of 1080p H.264 at {rate:.1f} Mbit/s, {len(plan.spans)} clips of")
    print(
        f"{kept_s:.1f} s that end at a {end}: {length_s / median(taken):.0f} times faster than real time, each checked;"
    )
    print(
        f"unchecked {length_s / median(bare):.0f} times; with each clip's first and last GOP decoded and compared "
        f"{length_s / median(decoded):.1f} times"
    )
    assert length_s / median(taken) >= 50


RUN = """
import sys
from pathlib import Path
from svdflow.common.storage import DataRoot
from svdflow.curation.split.settings import SplitSettings
from svdflow.curation.split.split import split_videos
if __name__ == "__main__":
    base = Path(sys.argv[1])
    root = DataRoot.open(base / "data")
    split_videos(base / "videos.parquet", base / "clips.parquet", root, SplitSettings(end="cut"))
"""


def peak_tree_bytes(base: Path) -> int:
    """The most memory that the step and its worker had together, sampled twenty times a second."""
    (base / "run.py").write_text(RUN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(base / "run.py"), str(base)]
    process = psutil.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        total = 0
        for one in (process, *process.children(recursive=True)):
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                pass
        peak = max(peak, total)
        time.sleep(0.05)
    assert process.returncode == 0
    return peak


def test_memory_is_the_same_for_a_minute_and_for_an_hour(tmp_path):
    frames, _ = shots([300, 420], 40)
    minute = encode_mp4(frames, 12.0, gop=24)
    peaks = {}
    for minutes in (1, 60):
        base = tmp_path / str(minutes)
        base.mkdir()
        write_videos(base, {"v.mp4": looped(minute, tmp_path / "looped.mp4", minutes).read_bytes()})
        peaks[minutes] = peak_tree_bytes(base)
    print(f"\n{platform.machine()}: process tree of one worker: {peaks[1] / 2**20:.0f} MiB for 1 minute, "
          f"{peaks[60] / 2**20:.0f} MiB for 60 minutes")  # fmt: skip
    assert peaks[60] < 2**30
    assert peaks[60] < 1.15 * peaks[1]


def test_thirty_kills_at_random_moments_change_nothing(tmp_path):
    files = {f"{n}.mp4": encode_mp4(shots([20 + n, 15, 12], n)[0], 12.0, gop=6) for n in range(4)}
    (tmp_path / "calm").mkdir()
    write_videos(tmp_path / "calm", files)
    began = time.monotonic()
    assert finished(tmp_path / "calm", start(tmp_path / "calm")) == 0
    length_s = time.monotonic() - began
    manifest, rng, base = (tmp_path / "calm" / "clips.parquet").read_bytes(), random.Random(11), tmp_path / "stormy"
    base.mkdir()
    killed = 0
    for number in range(30):
        if number % 6 == 0:  # from nothing again: else all is done after a few
            base = tmp_path / f"stormy {number}"
            base.mkdir()
            write_videos(base, files)
        process = start(base)
        time.sleep(rng.uniform(0, length_s))
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate(timeout=60)
        killed += process.returncode == -signal.SIGKILL
        if number % 6 == 5:
            assert finished(base, start(base)) == 0
            assert (base / "clips.parquet").read_bytes() == manifest
    print(f"\n{killed} of 30 runs were killed; each time the manifest came out the same, byte for byte")
    assert killed >= 15
