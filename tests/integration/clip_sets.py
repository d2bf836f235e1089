"""Small data sets for tests: clips in a data root, with their manifests."""

import io
import json
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from svdflow.common.identity import identity
from svdflow.common.manifests import AXES, write_manifest
from svdflow.common.storage import DataRoot
from svdflow.common.video import encode_mp4, probe


@dataclass
class ClipSet:
    """Manifests of videos and clips, and the root that holds the bytes."""

    videos: Path
    clips: Path
    ids: list[str]


def clip_set(
    root: DataRoot,
    directory: Path,
    shots: list[np.ndarray | bytes],
    fps: float = 12.0,
    descriptions: list[str | None] | None = None,
) -> ClipSet:
    """One video with one clip per shot (frames [F, H, W, 3], or an MP4), all in one tar shard."""
    names = [sha256(shot if isinstance(shot, bytes) else np.ascontiguousarray(shot)).hexdigest() for shot in shots]
    mp4s = [shot if isinstance(shot, bytes) else encode_mp4(shot, fps) for shot in shots]
    buffer = io.BytesIO()
    offsets = []
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, mp4 in enumerate(mp4s):
            info = tarfile.TarInfo(f"{number:04d}.mp4")
            info.size = len(mp4)
            offsets.append(tar.offset + 512)
            tar.addfile(info, io.BytesIO(mp4))
    shard = root.put_bytes(buffer.getvalue())
    videos, clips = [], []
    for number, (mp4, offset) in enumerate(zip(mp4s, offsets, strict=True)):
        info, video_id = probe(mp4), identity(video=number) * 2
        clip_id = identity(clip=number, content=names[number])
        shape = {"frames": info.frames, "fps": info.fps, "width": info.width, "height": info.height}
        videos.append(
            {
                "video_id": video_id,
                "uri": shard,
                "name": f"v{number:03d}.mp4",
                "sources": [{"name": f"v{number:03d}.mp4", "uri": f"v{number:03d}.mp4"}],
                "bytes": len(mp4),
                "container": "mp4",
                "codec": "h264",
                "duration_s": info.duration_s,
                "rotation": 0,
                "licence": "CC0-1.0",
                "source": "generated",
                "status": "ok",
                "description": (descriptions or [None] * len(mp4s))[number],
                **shape,
            }
        )
        clips.append(
            {
                "clip_id": clip_id,
                "video_id": video_id,
                "start_s": 0.0,
                "end_s": info.duration_s,
                "first_frame": 0,
                "last_frame": info.frames - 1,
                "cut_evidence": json.dumps({}),
                "shard_uri": shard,
                "member": f"{number:04d}.mp4",
                "offset": offset,
                "bytes": len(mp4),
                **shape,
            }
        )
    write_manifest("videos", videos, directory / "videos.parquet")
    write_manifest("clips", clips, directory / "clips.parquet")
    return ClipSet(directory / "videos.parquet", directory / "clips.parquet", [row["clip_id"] for row in clips])


def all_kept(made: ClipSet, directory: Path, held_out: Collection[int] = ()) -> tuple[Path, Path]:
    """Manifests of annotations and selection that keep every clip; those of these numbers are held out."""
    selection = [
        {"clip_id": clip, "video_id": clip, "keep": True, "reasons": [], "thresholds": "{}"}
        | {"split": "held_out" if n in held_out else "train"}
        | {f"{axis}_failed": False for axis in AXES}
        for n, clip in enumerate(made.ids)
    ]
    notes = [{"clip_id": clip, "caption_image": "a clip", "annotators": "{}"} for clip in made.ids]
    write_manifest("selection", selection, directory / "selection.parquet")
    write_manifest("annotations", notes, directory / "annotations.parquet")
    return directory / "annotations.parquet", directory / "selection.parquet"
