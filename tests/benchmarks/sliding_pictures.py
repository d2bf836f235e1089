"""Clips with known motion: clouds that slide over the screen, each at a speed of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from svdflow.common.manifests import write_manifest
from svdflow.common.shards import write_shard
from svdflow.common.storage import DataRoot
from svdflow.diffusion.calibration import motion_score
from svdflow.ingest.textures import COLOURS, noise
from svdflow.training.encode.encoders import Encoders
from svdflow.training.encode.settings import EncodeSettings

SIZE_PX, FRAMES, FPS = 64, 6, 8.0
FASTEST_PX = 4.0  # per frame
_LUMA = (0.299, 0.587, 0.114)


def sliding_clip(number: int, speed_px: float) -> tuple[np.ndarray, str]:
    """A clip uint8 [F, H, W, 3] and its caption; a function of its arguments alone.

    Clouds in one colour slide to the right. All have the same contrast, which measured flow depends on.
    """
    import cv2

    rng = np.random.default_rng(number)
    colour = str(rng.choice(list(COLOURS)))
    room = int(np.ceil(FASTEST_PX * (FRAMES - 1))) + 1
    shade = noise(SIZE_PX, SIZE_PX + room, rng.uniform(6, 10), 2, rng)
    shade = (shade - shade.min()) / np.ptp(shade)
    tint = np.subtract(COLOURS[colour], np.dot(COLOURS[colour], _LUMA))  # colour without brightness
    picture = np.clip(50 + 150 * shade[..., None] + 0.5 * tint, 0, 255).astype(np.float32)
    frames = []
    for frame in range(FRAMES):
        shift = np.float32([[1, 0, frame * speed_px - room], [0, 1, 0]])
        frames.append(cv2.warpAffine(picture, shift, (SIZE_PX, SIZE_PX), flags=cv2.INTER_LINEAR))
    return np.stack(frames).round().clip(0, 255).astype(np.uint8), f"{colour} clouds slide to the right"


def held_out_or_train(number: int, train: int, held_out: int) -> tuple[np.ndarray, str]:
    """The clip of a number, training clips first; the speeds of either side are spread evenly."""
    part, of = (number, train) if number < train else (number - train, held_out)
    return sliding_clip(number, FASTEST_PX * (part + 0.5) / of)


def measured_motion(frames_FHWC: np.ndarray) -> float:
    """The annotator's score, but between neighbouring frames: these clips last for hardly two of its pairs."""
    return motion_score(frames_FHWC, FPS, flow_fps=FPS)


def write_samples(folder: Path, train: int, held_out: int) -> tuple[DataRoot, list[dict]]:
    """Encode clips whose speeds are spread evenly; gives the data root and the rows of the samples manifest."""
    encoders, root = Encoders(EncodeSettings()), DataRoot.open(folder / "root")
    tensors, rows = {}, []
    for number in range(train + held_out):
        frames_FHWC, caption = held_out_or_train(number, train, held_out)
        name = f"slide{number:04d}"
        tensors[name] = {
            "latents": encoders.moments(frames_FHWC)[0].astype(np.float16),
            "text": encoders.texts([caption] * 3).astype(np.float16),
            "image": encoders.images(frames_FHWC[:1])[0].astype(np.float32),
            "frame": frames_FHWC[0],
        }
        rows.append({
            "sample_id": name, "clip_id": name, "split": "train" if number < train else "held_out",
            "tensor_prefix": name, "frames": FRAMES, "height": SIZE_PX, "width": SIZE_PX, "fps": FPS,
            "motion_score": measured_motion(frames_FHWC), "captions": [caption] * 3,
        })  # fmt: skip
    write_shard(folder / "shard", tensors)
    uri = root.put_file(folder / "shard")
    for row in rows:
        row["shard_uri"] = uri
    return root, rows


def write_sequences(folder: Path, train: int, held_out: int) -> tuple[DataRoot, list[dict]]:
    """The same clips as sequences of encoded frames, out of which training takes windows."""
    encoders, root = Encoders(EncodeSettings()), DataRoot.open(folder / "root")
    tensors, rows = {}, []
    for number in range(train + held_out):
        frames_FHWC, caption = held_out_or_train(number, train, held_out)
        mean, logvar = encoders.moments(frames_FHWC)
        name = f"slide{number:04d}"
        tensors[name] = {
            "mean": mean.astype(np.float16), "logvar": logvar.astype(np.float16), "images": encoders.images(frames_FHWC)
        }  # fmt: skip
        rows.append({
            "sample_id": name, "clip_id": name, "split": "train" if number < train else "held_out", "layout": "frames",
            "tensor_prefix": name, "frames": FRAMES, "height": SIZE_PX, "width": SIZE_PX, "fps": FPS, "first_frame": 0,
            "stride": 1, "sequence_frames": FRAMES, "sequence_fps": FPS, "start_s": 0.0, "starts": [0],
            "motion_score": measured_motion(frames_FHWC), "captions": [caption] * 3,
        })  # fmt: skip
    write_shard(folder / "shard", tensors)
    uri = root.put_file(folder / "shard")
    return root, [row | {"shard_uri": uri} for row in rows]


def with_shuffled_scores(rows: Sequence[dict], seed: int) -> list[dict]:
    """The same samples, each with the motion score of another of its side."""
    rng, out = np.random.default_rng(seed), [dict(row) for row in rows]
    for split in {row["split"] for row in rows}:
        side = [index for index, row in enumerate(rows) if row["split"] == split]
        for index, other in zip(side, rng.permutation(side), strict=True):
            out[index]["motion_score"] = rows[other]["motion_score"]
    return out


def manifest(rows: Sequence[dict], path: Path) -> Path:
    """Write a samples manifest."""
    write_manifest("samples", list(rows), path)
    return path
