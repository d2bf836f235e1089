"""Sound rows of every manifest, for tests to break."""

import json
from typing import Any

from svdflow.common.identity import identity
from svdflow.common.manifests import AXES

SHARD = "files/md5/ab/" + "0" * 30
Rows = list[dict[str, Any]]


def source(name: str) -> dict[str, Any]:
    """One place that a video's bytes came from."""
    return {"name": name, "uri": name, "licence": "CC0-1.0", "metadata": None}


def videos(count: int = 6) -> Rows:
    """Usable videos of 20 s, and one that was set aside."""
    rows = [
        {
            "video_id": identity(video=n) * 2,
            "uri": SHARD,
            "name": f"v{n:02d}.mp4",
            "sources": [source(f"v{n:02d}.mp4"), *([source("z/copy.mp4")] if n == 1 else [])],
            "bytes": 50_000 + n,
            "container": "mp4",
            "codec": "h264",
            "duration_s": 20.0,
            "fps": 24.0,
            "width": 640,
            "height": 360,
            "frames": 480,
            "rotation": 0,
            "variable_fps": False,
            "pixel_aspect": 1.0,
            "interlaced": False,
            "color_transfer": "bt709",
            "letterbox": [0, 40, 0, 40] if n == 2 else [0, 0, 0, 0],
            "audio": n % 2 == 0,
            "licence": "CC0-1.0",
            "source": "generated" if n % 2 else "footage",
            "description": None,
            "status": "ok",
            "error": None,
        }
        for n in range(count)
    ]
    bad = {
        **rows[0],
        "video_id": identity(video="bad") * 2,
        "name": "broken.mp4",
        "sources": [source("broken.mp4")],
        "uri": "",
        "bytes": 0,
        "status": "set_aside",
        "error": "is empty",
    }
    probed = ("container", "codec", "duration_s", "fps", "width", "height", "frames", "rotation", "variable_fps")
    for column in (*probed, "pixel_aspect", "interlaced", "color_transfer", "letterbox", "audio"):
        bad[column] = None
    return [*rows, bad]


def clips(per_video: int = 4, count: int = 6) -> Rows:
    """Clips of 4 s, a second apart, in one shard."""
    rows: Rows = []
    for n in range(count):
        for c in range(per_video):
            start = c * 5.0
            rows.append(
                {
                    "clip_id": identity(video=n, clip=c),
                    "video_id": identity(video=n) * 2,
                    "start_s": start,
                    "end_s": start + 4,
                    "first_frame": int(start * 24),
                    "last_frame": int(start * 24) + 95,
                    "cut_evidence": json.dumps({"opened": "cut"}),
                    "shard_uri": SHARD,
                    "member": f"{n}-{c}.mp4",
                    "offset": 512 + 10_240 * len(rows),
                    "bytes": 9_000,
                    "frames": 96,
                    "fps": 24.0,
                    "width": 640,
                    "height": 360,
                }
            )
    return rows


def annotations(of: Rows | None = None) -> Rows:
    """One row per clip, every figure sound and different."""
    rows = []
    for n, clip in enumerate(of or clips()):
        motion = 0.5 + n * 0.37
        rows.append(
            {
                "clip_id": clip["clip_id"],
                "motion_score": motion,
                "motion_unit": "px/0.5s@short128",
                "flow_uri": SHARD,
                "camera_motion": [motion * 0.5, -motion * 0.2, 0.1],
                "text_area": [0.001 * n, 0.002 * n, 0.0],
                "aesthetic": [4 + 0.05 * n, 4.2, 4.1],
                "watermark": [0.01 * n, 0.02, 0.01],
                "nsfw": [0.001 * n, 0.002, 0.001],
                "similarity_image": [0.2 + 0.01 * n, 0.25, 0.3],
                "similarity_video": [0.1, 0.2, 0.15],
                "similarity_summary": [0.2, 0.22, 0.21],
                "embedding_uri": None,
                "annotators": "{}",
                **{f"caption_{c}": f"a thing moves {n}" for c in ("image", "video", "summary")},
                **{f"caption_{c}_model": "m@1" for c in ("image", "video", "summary")},
            }
        )
    return rows


def selection(of: Rows | None = None) -> Rows:
    """The first clip of each video is dropped for its motion; one video is held out."""
    of = of or clips()
    held = of[-1]["video_id"]
    rows = []
    for n, clip in enumerate(of):
        drop = n % 4 == 0
        row = {
            "clip_id": clip["clip_id"],
            "video_id": clip["video_id"],
            "keep": not drop,
            "reasons": ["motion"] if drop else [],
            "split": None if drop else "held_out" if clip["video_id"] == held else "train",
            "thresholds": "{}",
            "group": f"{held[:8]}" if clip["video_id"] == held and n % 4 in (2, 3) else None,
        }
        for axis in AXES:
            row |= {f"{axis}_value": 0.5, f"{axis}_cut": None, f"{axis}_failed": False}
        row |= {"motion_value": 0.5 if drop else 2.0, "motion_cut": 1.0, "motion_failed": drop}
        row |= {"duplicate_value": 0.0, "duplicate_cut": None}
        rows.append(row)
    return rows


def samples(of: Rows | None = None) -> Rows:
    """One sample per kept clip."""
    return [
        {
            "sample_id": f"{identity(sample=row['clip_id'])}-00",
            "clip_id": row["clip_id"],
            "split": row["split"],
            "shard_uri": SHARD,
            "tensor_prefix": row["clip_id"],
            "frames": 8,
            "height": 128,
            "width": 128,
            "fps": 12.0,
            "layout": "frames",
            "first_frame": 3,
            "stride": 2,
            "sequence_frames": 40,
            "sequence_fps": 24.0,
            "start_s": 0.0,
            "starts": [0, 3, 30],
            "motion_score": 2.0,
            "elevation_deg": None,
            "captions": ["a", "b", "c"],
        }
        for row in (of or selection())
        if row["keep"]
    ]


def orbits() -> Rows:
    """Two orbits of each of four objects."""
    return [
        {
            "orbit_id": identity(orbit=n),
            "object_id": identity(object=n // 2),
            "source": "generated",
            "split": "held_out" if n < 2 else "train",
            "elevation_deg": 10.0 * (n % 2),
            "frames": 21,
            "height": 64,
            "width": 64,
            "shard_uri": SHARD,
        }
        for n in range(8)
    ]


SOUND = {
    "videos": videos,
    "clips": clips,
    "annotations": annotations,
    "selection": selection,
    "samples": samples,
    "orbits": orbits,
}
