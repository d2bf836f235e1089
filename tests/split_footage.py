"""Made-up footage for the tests of cut detection and clipping, encoded in the ways that matter to stream copy."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from svdflow.common.identity import file_sha256
from svdflow.common.manifests import write_manifest
from svdflow.common.storage import DataRoot
from svdflow.curation.split.cascade import Cascade
from svdflow.curation.split.clipping import Plan, cut_clips, plan_spans
from svdflow.curation.split.cuts import Transition, merge_detections, shots_between
from svdflow.curation.split.scan import Scan, scan_video
from svdflow.curation.split.settings import SplitSettings
from svdflow.ingest.footage import join_shots, make_scene

LOOSE = SplitSettings(end="cut", min_s=0.3, max_s=10.0, verify="every_frame")
FPS = 12.0


def shots(lengths: list[int], seed: int = 0, fade: int = 0) -> tuple[np.ndarray, list[int]]:
    """Scenes one after the other, and the first frame of each but the first."""
    return join_shots([make_scene([seed, n], length, 96, 128).frames for n, length in enumerate(lengths)], fade)


PIXELS = {"prores_ks": "yuv422p10le", "mjpeg": "yuvj420p"}


def encode(
    frames: np.ndarray,
    codec: str = "libx264",
    container: str = "mp4",
    times: list[int] | None = None,
    sound: bool = False,
    **options: str,
) -> bytes:
    """A video of frames at 12 fps, or shown at ``times`` (in 1/1200 s)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as target:
        stream = target.add_stream(codec, rate=12, options={"threads": "1", **options})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], PIXELS.get(codec, "yuv420p")
        if times:
            stream.codec_context.time_base = Fraction(1, 1200)
        voice = target.add_stream("aac", rate=16000, layout="mono") if sound else None
        if voice:
            loud = np.sin(np.arange(round(len(frames) / FPS * 16000)) / 7)
            for start in range(0, len(loud), 1024):
                block = av.AudioFrame.from_ndarray(loud[None, start : start + 1024].astype(np.float32), "fltp", "mono")
                block.sample_rate, block.pts, block.time_base = 16000, start, Fraction(1, 16000)
                target.mux(voice.encode(block))
            target.mux(voice.encode())
        for number, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1200)
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return buffer.getvalue()


def decoded(data: bytes | Path) -> list[np.ndarray]:
    """All frames as the decoder gives them, straight from PyAV."""
    with av.open(io.BytesIO(data) if isinstance(data, bytes) else str(data)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


def find_cuts(path: Path, settings: SplitSettings = LOOSE) -> tuple[Scan, list[Transition]]:
    """One pass over a video with the cascade of some settings."""
    scan = scan_video(path, Cascade(settings.levels, settings.detect_width_px), FPS)
    return scan, merge_detections(scan.detections, scan.times_s, scan.gap_s)


def cut_everything(
    path: Path, end: str = "cut", min_s: float = 0.2, max_s: float = 60.0, audio: bool = False
) -> tuple[Plan, list, list[Transition]]:
    """Spans and clips of a file, with nothing verified on the way, and the file's cuts."""
    scan, cuts = find_cuts(path)
    plan = plan_spans(scan.packets, scan.times_s, shots_between(cuts, len(scan.pts)), end, min_s, max_s)
    clips = [(span, clip.read_bytes()) for span, clip in cut_clips(path, scan, plan.spans, path.parent, audio)]
    return plan, clips, cuts


def write_videos(base: Path, files: dict[str, bytes]) -> Path:
    """A manifest of files that all pass for usable, whatever is in them, and their bytes in ``base / "data"``."""
    root, rows = DataRoot.open(base / "data"), []
    for name, data in files.items():
        path = base / name
        path.write_bytes(data)
        rows.append(
            {
                "video_id": file_sha256(path), "uri": root.put_file(path), "name": name, "sources": [],
                "bytes": len(data), "fps": FPS, "width": 128, "height": 96, "source": "generated", "status": "ok",
            }
        )  # fmt: skip
    write_manifest("videos", rows, base / "videos.parquet")
    return base / "videos.parquet"
