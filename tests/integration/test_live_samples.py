"""Training with and without the cache sees the same tensors, and a clip that cannot be used is found beforehand."""

from pathlib import Path

import numpy as np
import pytest

from svdflow.common.errors import BadInputError
from svdflow.common.lossless_frames import pack_frames
from svdflow.common.manifests import AXES, read_rows, write_manifest
from svdflow.common.sample_tensors import first_picture
from svdflow.common.video import encode_mp4
from svdflow.curation.validate.settings import ValidateSettings
from svdflow.curation.validate.validate import Written, validate_manifests
from svdflow.diffusion.autoencoder import load_autoencoder
from svdflow.diffusion.conditioning import LOCAL_TEXT_ENCODER, build_feature_extractor, build_image_encoder
from svdflow.diffusion.model_directory import VideoModel
from svdflow.training.encode.encode import encode_clips
from svdflow.training.encode.orbits import encode_orbits
from svdflow.training.encode.settings import EncodeSettings
from svdflow.training.train.data import Gathering, SampleSource
from svdflow.training.train.draws import Plan
from svdflow.training.train.live import LiveSource
from svdflow.training.train.settings import stage_settings
from tests.integration.clip_sets import clip_set
from tests.other_device import DEVICE, SecondDevice

SETTINGS = EncodeSettings(
    frames=4, fps=6, max_fps=12, max_frames=14, sizes=((48, 48), (32, 64)), crops=("centre", "end"), flips=True,
    starts_per_clip=4, half=False,
)  # fmt: skip


@pytest.fixture
def manifests(root, media, tmp_path):
    """Real footage, a generated clip of another aspect, and one that is no video."""
    rng = np.random.default_rng(0)
    noise = np.kron(rng.integers(0, 255, (30, 6, 8, 3), dtype=np.uint8), np.ones((1, 8, 8, 1), np.uint8))
    made = clip_set(root, tmp_path, [(media / "carphone_pristine.mp4").read_bytes(), encode_mp4(noise, 25), noise[:20]])
    rows = read_rows("clips", made.clips)
    broken = made.ids[2]
    rows = [row | {"offset": 0, "bytes": 100} if row["clip_id"] == broken else row for row in rows]
    write_manifest("clips", rows, made.clips)
    selection = [
        {"clip_id": clip, "video_id": clip, "keep": True, "split": "train", "reasons": [], "thresholds": "{}"}
        | {f"{axis}_failed": False for axis in AXES}
        for clip in made.ids
    ]
    notes = [
        {"clip_id": clip, "caption_image": f"clip {n}", "caption_summary": "a summary", "annotators": "{}"}
        for n, clip in enumerate(made.ids)
    ]
    write_manifest("selection", selection, tmp_path / "selection.parquet")
    write_manifest("annotations", notes, tmp_path / "annotations.parquet")
    return made.clips, tmp_path / "annotations.parquet", tmp_path / "selection.parquet"


def sources(root, manifests, tmp_path) -> dict[str, tuple[SampleSource, Path]]:
    vae, encoder = load_autoencoder(), build_image_encoder(384)
    model = VideoModel("image_to_video", None, vae, encoder, build_feature_extractor(), LOCAL_TEXT_ENCODER)
    made = {}
    for name, cache in (("cached", True), ("live", False)):
        out = tmp_path / f"{name}.parquet"
        report = encode_clips(*manifests, out, root, SETTINGS.model_copy(update={"cache": cache}))
        assert report.summary["encode"]["skipped_by_reason"] == {"unreadable": 1}
        validate_manifests({"samples": out}, Written(tmp_path / "page", tmp_path / "failing"), ValidateSettings())
        rows = sorted(read_rows("samples", out), key=lambda r: (r["clip_id"], r["crop"], r["flipped"]))
        gathering = Gathering((5,), (12.0, 6.0), sampled=True)
        made[name] = (
            LiveSource(root, rows, gathering, None, model) if name == "live" else SampleSource(root, rows, gathering),
            out,
        )
    return made


def test_the_tensors_without_the_cache_are_those_of_the_cache(root, manifests, tmp_path):
    made = sources(root, manifests, tmp_path)
    (cached, _), (live, path) = made["cached"], made["live"]
    assert len(cached.rows) == len(live.rows) == 8
    for one, other in zip(cached.rows, live.rows, strict=True):
        assert {name for name in one if one[name] != other[name]} <= {
            "sample_id", "tensor_prefix", "layout", "shard_uri", "text_uri", "text_prefix", "clip_shard", "clip_offset",
            "clip_bytes",
        }  # fmt: skip
    plan = Plan(stage_settings("image_to_video", {"batch": 8, "processes": 1, "frames": 5}), len(live.rows))
    for draw in plan.micro_batch(0, 0, 0, 1)[:5]:
        assert live.window(draw) == cached.window(draw) and live.fps(draw) == cached.fps(draw)
        np.testing.assert_array_equal(live.picture(draw), cached.picture(draw))
        for name in ("latents", "image", "text"):
            np.testing.assert_allclose(
                getattr(live, name)(draw), getattr(cached, name)(draw), rtol=1e-3, atol=1e-3, err_msg=name
            )
        np.testing.assert_allclose(live.latents(draw, True), cached.latents(draw, True), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(live.end_images(draw), cached.end_images(draw), rtol=1e-3, atol=1e-3)
        # as the trainer reads ahead, and encodes in the step
        for kind in ("image", "text_to_video", "image_to_video", "interpolation"):
            read = live.read(draw, kind)
            assert read.latents is None and read.context is None and read.frames is not None
            given, wanted = live.encode(draw, read, kind), cached.read(draw, kind)
            assert cached.encode(draw, wanted, kind) is wanted and wanted.frames is None
            np.testing.assert_allclose(given.latents, wanted.latents, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(given.context, wanted.context, rtol=1e-3, atol=1e-3)
            assert (given.picture is None) == (wanted.picture is None) == (kind != "image_to_video")
            if given.picture is not None:
                np.testing.assert_array_equal(given.picture, wanted.picture)
    with SecondDevice():  # as on a GPU: the trainer moves the autoencoder there, and the image encoder follows it
        live.model.vae.to(DEVICE)
        given = live.encode(draw, live.read(draw, "interpolation"), "interpolation")
        assert live.model.image_encoder.device == DEVICE
    np.testing.assert_allclose(given.latents, wanted.latents, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(given.context, wanted.context, rtol=1e-3, atol=1e-3)
    assert live.latent_channels == cached.latent_channels
    for one, other in zip(cached.rows, live.rows, strict=True):
        np.testing.assert_array_equal(first_picture(root, one), first_picture(root, other))
    writes = root.writes
    again = encode_clips(*manifests, path, root, SETTINGS.model_copy(update={"cache": False}))
    assert (again.done, root.writes) == (0, writes)


def test_orbits_are_always_encoded(root, tmp_path):
    row = {
        "orbit_id": "o", "object_id": "cup", "source": "generated", "split": "train", "elevation_deg": 1.0, "frames": 4,
        "height": 32, "width": 32,
        "shard_uri": root.put_bytes(pack_frames("o", np.zeros((4, 32, 32, 3), np.uint8))),
    }  # fmt: skip
    write_manifest("orbits", [row], tmp_path / "orbits.parquet")
    with pytest.raises(BadInputError, match="encode_orbits.cache is false, and orbits are always encoded"):
        encode_orbits(tmp_path / "orbits.parquet", tmp_path / "out", root, EncodeSettings(cache=False))
