"""Real footage to samples: what is stored is what the encoders give for the clip's own frames, once."""

import numpy as np
import pytest

from svdflow.common.frames import fit_frame
from svdflow.common.manifests import AXES, read_rows, write_manifest
from svdflow.common.orbit_views import pack_views
from svdflow.common.shards import ShardReader
from svdflow.common.video import encode_mp4, probe, read_frames
from svdflow.curation.validate.settings import ValidateSettings
from svdflow.curation.validate.validate import Written, validate_manifests
from svdflow.diffusion.autoencoder import encode_frames, load_autoencoder
from svdflow.diffusion.conditioning import text_context
from svdflow.training.encode.encode import encode_clips
from svdflow.training.encode.orbits import encode_orbits
from svdflow.training.encode.settings import EncodeSettings

SETTINGS = EncodeSettings(frames=4, height=64, width=64, fps=8, windows_per_clip=2, half=False)


@pytest.fixture
def clips(root, media, tmp_path):
    """Manifests of one real clip, one that is too short, one that is no video and one that was dropped."""
    short = encode_mp4(np.zeros((5, 64, 64, 3), np.uint8), 25)
    blobs = {
        "real": (media / "carphone_pristine.mp4").read_bytes(),
        "short": short,
        "broken": b"no video at all" * 99,
        "dropped": short,
    }
    rows, notes, selection = [], [], []
    for name, data in blobs.items():
        info = probe(data) if name != "broken" else probe(short)
        frames = 100 if name == "broken" else info.frames
        uri = root.put_bytes(b"before" + data + b"behind")
        rows.append(
            {
                "clip_id": name,
                "video_id": name,
                "start_s": 0.0,
                "end_s": 1.0,
                "first_frame": 0,
                "last_frame": frames - 1,
                "cut_evidence": "{}",
                "shard_uri": uri,
                "member": name,
                "offset": 6,
                "bytes": len(data),
                "frames": frames,
                "fps": info.fps,
                "width": info.width,
                "height": info.height,
            }
        )
        notes.append(
            {
                "clip_id": name,
                "motion_score": 3.5,
                "caption_image": "a man in a car",
                "caption_video": None,
                "caption_summary": "a man talks",
                "annotators": "{}",
            }
        )
        selection.append(
            {
                "clip_id": name,
                "video_id": name,
                "keep": name != "dropped",
                "split": "train",
                "reasons": [],
                "thresholds": "{}",
                **{f"{axis}_failed": False for axis in AXES},
            }
        )
    paths = {kind: tmp_path / f"{kind}.parquet" for kind in ("clips", "annotations", "selection")}
    for (kind, path), values in zip(paths.items(), (rows, notes, selection), strict=True):
        write_manifest(kind, values, path)
    return paths


def hold_against_expectations(samples, folder):
    out = Written(folder / "page.html", folder / "failing.jsonl")
    validate_manifests({"samples": samples}, out, ValidateSettings())  # raises when one is broken


def test_a_clip_is_encoded_once_and_from_its_own_frames(clips, root, media, tmp_path):
    out = tmp_path / "samples.parquet"
    report = encode_clips(*clips.values(), out, root, SETTINGS)
    summary = report.summary["encode"]
    assert (summary["samples"], summary["shards"], report.done, report.reused) == (2, 1, 3, 0)
    assert summary["skipped_by_reason"] == {"too_short": 1, "unreadable": 1}
    hold_against_expectations(out, tmp_path)
    rows = read_rows("samples", out)
    assert {(r["clip_id"], r["frames"], r["height"], r["width"], r["motion_score"], r["split"]) for r in rows} == {
        ("real", 4, 64, 64, 3.5, "train")
    }
    assert rows[0]["captions"] == ["a man in a car", "a man in a car", "a man talks"]

    info = probe(media / "carphone_pristine.mp4")
    assert rows[0]["fps"] == pytest.approx(info.fps / 4)
    reader = ShardReader.open(root, rows[0]["shard_uri"])
    prefix = rows[0]["tensor_prefix"]
    span = read_frames(media / "carphone_pristine.mp4", [0, 4, 8, 12])  # the first window starts with the clip
    expected = np.stack([fit_frame(frame, 64, 64) for frame in span])
    np.testing.assert_array_equal(reader.read(prefix, "frame"), expected[0])
    np.testing.assert_allclose(
        reader.read(prefix, "latents"), encode_frames(load_autoencoder(), expected).numpy(), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        reader.read(prefix, "text")[2], text_context(["a man talks"])[0].numpy(), rtol=1e-4, atol=1e-4
    )
    first, second = (reader.read(row["tensor_prefix"], "image") for row in rows)
    assert first.shape == reader.read(prefix, "text").shape[-1:] and not np.array_equal(first, second)

    content, writes = out.read_bytes(), root.writes
    again = encode_clips(*clips.values(), out, root, SETTINGS)
    assert (again.done, again.reused, root.writes, out.read_bytes()) == (0, 3, writes, content)
    assert again.summary == report.summary
    other = encode_clips(*clips.values(), out, root, SETTINGS.model_copy(update={"frames": 3}))
    assert other.done == 3


def test_an_orbit_becomes_one_sample_with_its_elevation(root, tmp_path):
    views = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    uri = root.put_bytes(pack_views("o1", views))
    row = {
        "object_id": "cup",
        "source": "generated",
        "split": "train",
        "elevation_deg": 12.5,
        "frames": 8,
        "height": 32,
        "width": 32,
    }
    write_manifest(
        "orbits",
        [
            {**row, "orbit_id": "o1", "shard_uri": uri},
            {**row, "orbit_id": "o2", "shard_uri": root.put_bytes(b"no tar")},
        ],
        tmp_path / "orbits.parquet",
    )
    report = encode_orbits(tmp_path / "orbits.parquet", tmp_path / "samples.parquet", root, SETTINGS)
    assert report.summary["encode_orbits"]["skipped_by_reason"] == {"unreadable": 1}
    hold_against_expectations(tmp_path / "samples.parquet", tmp_path)
    (sample,) = read_rows("samples", tmp_path / "samples.parquet")
    assert (sample["elevation_deg"], sample["captions"], sample["frames"], sample["clip_id"]) == (12.5, [], 4, "o1")
    reader = ShardReader.open(root, sample["shard_uri"])
    np.testing.assert_array_equal(reader.read(sample["tensor_prefix"], "frame"), fit_frame(views[0], 64, 64))
    expected = np.stack([fit_frame(view, 64, 64) for view in views[::2]])
    np.testing.assert_allclose(
        reader.read(sample["tensor_prefix"], "latents"),
        encode_frames(load_autoencoder(), expected).numpy(),
        rtol=1e-4,
        atol=1e-4,
    )
