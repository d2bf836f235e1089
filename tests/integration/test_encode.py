"""Real footage to samples: what is stored is what the encoders give for the clip's own frames, once."""

import numpy as np
import pytest

from svdflow.common.errors import BadInputError
from svdflow.common.frames import fit_frame
from svdflow.common.lossless_frames import pack_frames
from svdflow.common.manifests import AXES, read_rows, write_manifest
from svdflow.common.sample_tensors import read_picture
from svdflow.common.shards import ShardReader
from svdflow.common.video import encode_mp4, probe, read_frames
from svdflow.curation.validate.settings import ValidateSettings
from svdflow.curation.validate.validate import Written, validate_manifests
from svdflow.diffusion.autoencoder import encode_frames, encode_moments, load_autoencoder, to_unit_range
from svdflow.diffusion.conditioning import text_context
from svdflow.training.encode.encode import encode_clips
from svdflow.training.encode.images import encode_images
from svdflow.training.encode.orbits import encode_orbits
from svdflow.training.encode.settings import EncodeSettings

SETTINGS = EncodeSettings(frames=4, height=64, width=64, fps=8, max_frames=24, half=False)


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


def true_frames(path, indices):
    return np.stack([fit_frame(frame, 64, 64) for frame in read_frames(path, indices)])


def test_every_frame_of_a_clip_is_encoded_from_its_own_pixels(clips, root, media, tmp_path):
    out = tmp_path / "samples.parquet"
    report = encode_clips(*clips.values(), out, root, SETTINGS)
    summary = report.summary["encode"]
    assert (summary["samples"], summary["shards"], report.done, report.reused) == (1, 1, 2, 0)
    assert summary["skipped_by_reason"] == {"too_short": 1, "unreadable": 1}
    hold_against_expectations(out, tmp_path)
    (row,) = read_rows("samples", out)
    assert (row["clip_id"], row["height"], row["width"], row["motion_score"], row["split"]) == (
        "real", 64, 64, 3.5, "train"
    )  # fmt: skip
    assert row["captions"] == ["a man in a car", "a man in a car", "a man talks"]
    info = probe(media / "carphone_pristine.mp4")
    assert (row["sequence_frames"], row["frames"], row["stride"]) == (24, 4, 4)
    assert row["sequence_fps"] == pytest.approx(info.fps) and row["fps"] == pytest.approx(info.fps / 4)
    assert row["start_s"] == pytest.approx((info.frames - 24) // 2 / info.fps)  # the clip's middle
    width = 64 * info.width / info.height
    assert row["crop"] == pytest.approx([(width - 64) / 2 / width, 0, (width - 64) / 2 / width, 0], abs=0.01)
    assert summary["cut_in_time"] == summary["cropped"] == 1

    reader, prefix = ShardReader.open(root, row["shard_uri"]), row["tensor_prefix"]
    first = round(row["start_s"] * info.fps)
    expected = true_frames(media / "carphone_pristine.mp4", list(range(first, first + 24)))
    vae = load_autoencoder()
    np.testing.assert_allclose(reader.read(prefix, "mean"), encode_frames(vae, expected).numpy(), rtol=1e-4, atol=1e-4)
    std = encode_moments(vae, to_unit_range(expected))[1].numpy() * vae.config.scaling_factor
    np.testing.assert_allclose(np.exp(0.5 * reader.read(prefix, "logvar")), std, rtol=1e-3, atol=1e-6)
    text = ShardReader.open(root, row["text_uri"]).read(row["text_prefix"], "text")
    np.testing.assert_allclose(text[2], text_context(["a man talks"])[0].numpy(), rtol=1e-4, atol=1e-4)
    embeddings = reader.read(prefix, "images")
    assert embeddings.shape == (24, text.shape[-1]) and not np.array_equal(embeddings[0], embeddings[9])
    assert row["starts"] == [0, 3, 6, 9, 12, 15, 18, 21]
    for start in row["starts"]:
        np.testing.assert_array_equal(read_picture(reader, row, start), expected[start])


def test_another_window_encodes_nothing_and_another_caption_no_frame(clips, root, tmp_path):
    out = tmp_path / "samples.parquet"
    first = encode_clips(*clips.values(), out, root, SETTINGS)
    (row,), content, writes = read_rows("samples", out), out.read_bytes(), root.writes
    again = encode_clips(*clips.values(), out, root, SETTINGS)
    assert (again.done, again.reused, root.writes, out.read_bytes()) == (0, 2, writes, content)
    assert again.summary == first.summary
    for changed in ({"frames": 3}, {"fps": 12.0}, {"frames": 7, "fps": 25.0}, {"samples_per_shard": 1}):
        other = encode_clips(*clips.values(), out, root, SETTINGS.model_copy(update=changed))
        assert (other.done, root.writes) == (0, writes), changed
    assert encode_clips(*clips.values(), out, root, SETTINGS.model_copy(update={"height": 32})).done == 2

    notes = read_rows("annotations", clips["annotations"])
    write_manifest(
        "annotations", [note | {"caption_video": "a driver"} for note in notes], tmp_path / "other notes.parquet"
    )
    writes = root.writes
    inputs = (clips["clips"], tmp_path / "other notes.parquet", clips["selection"])
    told_anew = encode_clips(*inputs, out, root, SETTINGS)
    (changed,) = read_rows("samples", out)
    assert (told_anew.done, root.writes) == (1, writes + 2)  # a shard and its record
    assert (changed["shard_uri"], changed["sample_id"]) == (row["shard_uri"], row["sample_id"])
    assert changed["text_prefix"] != row["text_prefix"]


def test_a_clip_that_ends_before_its_claim_keeps_what_it_has(clips, root, tmp_path):
    rows = [
        row | {"frames": row["frames"] + (4 if row["clip_id"] == "short" else 0)}
        for row in read_rows("clips", clips["clips"])
    ]
    write_manifest("clips", rows, clips["clips"])
    for frames, reasons in ((5, {"unreadable": 1}), (6, {"unreadable": 1, "ends_early": 1})):
        settings = SETTINGS.model_copy(update={"frames": frames, "fps": 25.0})
        report = encode_clips(*clips.values(), tmp_path / "samples.parquet", root, settings)
        assert report.summary["encode"]["skipped_by_reason"] == reasons
    assert report.done == 0


def test_crops_and_flips_are_samples_of_their_own_and_only_new_ones_are_encoded(clips, root, media, tmp_path):
    out = tmp_path / "samples.parquet"
    plain = SETTINGS.model_copy(update={"max_frames": 8, "sizes": ((64, 64), (32, 96)), "frames": 6, "fps": 25.0})
    assert encode_clips(*clips.values(), out, root, plain).summary["encode"]["samples"] == 1
    (before,) = read_rows("samples", out)
    varied = plain.model_copy(update={"crops": ("centre", "end"), "flips": True})
    report = encode_clips(*clips.values(), out, root, varied)
    rows = read_rows("samples", out)
    told = report.summary["encode"]
    assert (told["samples"], told["flipped"], told["buckets"], told["cropped"], report.done) == (4, 2, 1, 4, 2)
    assert before["sample_id"] in {row["sample_id"] for row in rows} and len({row["sample_id"] for row in rows}) == 4
    hold_against_expectations(out, tmp_path)
    info = probe(media / "carphone_pristine.mp4")
    first = read_frames(media / "carphone_pristine.mp4", [round(rows[0]["start_s"] * info.fps)])[0]
    for row in rows:
        place = 1.0 if row["crop"][2] == 0 else 0.5
        picture = read_picture(ShardReader.open(root, row["shard_uri"]), row, 0)
        np.testing.assert_array_equal(picture, fit_frame(first, 64, 64, place, row["flipped"]))
    assert {row["shard_uri"] == before["shard_uri"] for row in rows} == {True, False}


def test_pictures_become_samples_of_one_frame_and_bad_ones_are_counted(root, tmp_path):
    from PIL import Image

    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    (folder / "deep").mkdir(parents=True)
    wide, tall = (rng.integers(0, 255, shape, dtype=np.uint8) for shape in ((40, 80, 3), (90, 50, 3)))
    Image.fromarray(wide).save(folder / "wide.png")
    Image.fromarray(wide).save(folder / "wide again.png")
    Image.fromarray(tall).save(folder / "deep" / "tall.webp", lossless=True)
    (folder / "wide.txt").write_text("a  wide\npicture")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "notes.md").write_text("nothing")
    settings = EncodeSettings(sizes=((32, 64), (64, 32)), half=False)
    report = encode_images(folder, tmp_path / "samples.parquet", root, settings)
    assert report.summary["encode_images"]["skipped_by_reason"] == {"unreadable": 1}
    hold_against_expectations(tmp_path / "samples.parquet", tmp_path)
    rows = {row["height"]: row for row in read_rows("samples", tmp_path / "samples.parquet")}
    assert {(r["frames"], r["sequence_frames"], r["split"], r["motion_score"]) for r in rows.values()} == {
        (1, 1, "train", None)
    }
    assert rows[32]["captions"] == ["a wide picture"] * 3 and rows[64]["captions"] == ["", "", ""]
    reader = ShardReader.open(root, rows[64]["shard_uri"])
    np.testing.assert_array_equal(read_picture(reader, rows[64], 0), fit_frame(tall, 64, 32))
    assert encode_images(folder, tmp_path / "samples.parquet", root, settings).done == 0
    with pytest.raises(BadInputError, match="holds no picture"):
        encode_images(tmp_path / "data root", tmp_path / "x.parquet", root, settings)


def test_an_orbit_becomes_one_sample_with_its_elevation(root, tmp_path):
    views = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    uri = root.put_bytes(pack_frames("o1", views))
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
    assert (sample["starts"], sample["first_frame"], sample["stride"], sample["sequence_frames"]) == ([0], 0, 1, 4)
    np.testing.assert_array_equal(read_picture(reader, sample, 0), fit_frame(views[0], 64, 64))
    expected = np.stack([fit_frame(view, 64, 64) for view in views[::2]])
    np.testing.assert_allclose(
        reader.read(sample["tensor_prefix"], "mean"),
        encode_frames(load_autoencoder(), expected).numpy(),
        rtol=1e-4,
        atol=1e-4,
    )
