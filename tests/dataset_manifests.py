"""Small, real manifests and tar shards for tests of dataset versions."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from svdflow.common.manifests import AXES, write_manifest
from svdflow.common.storage import DataRoot


def make_manifests(
    root: DataRoot,
    directory: Path,
    videos: int = 3,
    keep: int = 4,
    caption: str = "a ball rolls",
    cut: float = 0.2,
    movie: Callable[[int, int], bytes] | None = None,
    prefix: str = "",
) -> dict[str, Path]:
    """Two clips a video, one shard a video; the first ``keep`` clips are kept, those of video 0 held out.

    Clips are no videos, unless ``movie`` makes them: 16 frames of 64x48 px, 8 a second.
    """
    rows: dict[str, list[dict]] = {kind: [] for kind in ("videos", "clips", "annotations", "selection")}
    for v in range(videos):
        suffix = ".mov" if v == 1 and not movie else ".mp4"  # of a codec that MP4 cannot hold
        members = {f"{v:02d}{c}{suffix}": movie(v, c) if movie else bytes([v, c]) * (500 + 100 * c) for c in range(2)}
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        shard = root.put_bytes(buffer.getvalue())
        buffer.seek(0)
        offsets = {info.name: info.offset_data for info in tarfile.open(fileobj=buffer)}
        rows["videos"].append({
            "video_id": f"{prefix}video{v}", "uri": shard, "name": f"{v}.mp4", "bytes": 1, "source": "generated",
            "status": "ok", "licence": "CC0",
            "sources": [{"name": f"{v}.mp4", "uri": f"{v}.mp4", "licence": "CC0", "metadata": None}],
        })  # fmt: skip
        for c, (name, data) in enumerate(members.items()):
            clip, index = f"{prefix}clip{v:02d}{c}", 2 * v + c
            kept = index < keep
            rows["clips"].append({
                "clip_id": clip, "video_id": f"{prefix}video{v}", "start_s": 0.0, "end_s": 2.0 + c, "first_frame": 0,
                "last_frame": 15, "cut_evidence": "{}", "shard_uri": shard, "member": name, "offset": offsets[name],
                "bytes": len(data),
                "frames": 16, "fps": 8.0, "width": 64, "height": 48,
            })  # fmt: skip
            rows["annotations"].append({
                "clip_id": clip, "motion_score": 1.0 + index, "motion_unit": "px/0.5s@h128", "caption_image": caption,
                "caption_image_model": "sidecar", "annotators": json.dumps({"motion": "farneback@1"}),
            })  # fmt: skip
            rows["selection"].append({
                "clip_id": clip, "video_id": f"{prefix}video{v}", "keep": kept,
                "split": ("held_out" if v == 0 else "train") if kept else None, "reasons": [] if kept else ["motion"],
                **{f"{axis}_failed": False for axis in AXES},
                "motion_value": 1.0 + index, "motion_cut": cut, "motion_failed": not kept,
                "thresholds": json.dumps({"motion_percent": cut}),
            })  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    for kind, each in rows.items():
        write_manifest(kind, each, directory / f"{kind}.parquet")
    return {kind: directory / f"{kind}.parquet" for kind in rows}
