"""Training reads samples out of an object store through a bounded local cache: the same tensors, few bytes, once."""

import numpy as np
import pytest

from svdflow.common.block_cache import BlockCache
from svdflow.common.sample_tensors import pack_picture, picture_name
from svdflow.common.shards import write_shard
from svdflow.common.storage import DataRoot
from svdflow.common.storage_s3 import S3Root
from svdflow.training.train.data import Gathering, SampleSource
from svdflow.training.train.draws import Plan
from svdflow.training.train.settings import stage_settings

CLIPS, FRAMES = 6, 40


@pytest.fixture
def stored(object_store, tmp_path, monkeypatch):
    """One shard of six sequences, in a directory and in an object store."""
    monkeypatch.setenv("SVDFLOW_CACHE_DIR", str(tmp_path / "local"))
    rng, samples, rows = np.random.default_rng(0), {}, []
    for number in range(CLIPS):
        picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        samples[f"c{number}"] = {
            "mean": rng.standard_normal((FRAMES, 4, 32, 32)).astype(np.float16),
            "logvar": rng.standard_normal((FRAMES, 4, 32, 32)).astype(np.float16),
            "images": rng.standard_normal((FRAMES, 16)).astype(np.float32),
            "text": rng.standard_normal((3, 5, 16)).astype(np.float16),
            picture_name(0): pack_picture(picture),
        }
    write_shard(tmp_path / "shard", samples)
    if not object_store.minio().bucket_exists("streaming"):
        object_store.minio().make_bucket("streaming")
    roots = DataRoot.open(tmp_path / "root"), S3Root("s3://streaming/data", object_store)
    uris = {root.put_file(tmp_path / "shard") for root in roots}
    for number in range(CLIPS):
        rows.append(
            {
                "sample_id": f"c{number}", "layout": "frames", "shard_uri": next(iter(uris)),
                "tensor_prefix": f"c{number}", "frames": 4, "height": 64, "width": 64, "fps": 8.0, "first_frame": 0,
                "stride": 1, "sequence_frames": FRAMES, "sequence_fps": 8.0, "starts": [0], "motion_score": 1.0,
            }
        )  # fmt: skip
    return *roots, rows, (tmp_path / "shard").stat().st_size


def test_samples_from_an_object_store_are_those_of_a_directory_and_are_fetched_once(stored):
    local, remote, rows, shard_bytes = stored
    gathering = Gathering((4,), (8.0, 4.0), sampled=True)
    cache = BlockCache(remote.scratch("blocks"), 3 * shard_bytes, 1 << 14)
    here, there = SampleSource(local, rows, gathering), SampleSource(remote, rows, gathering, cache)
    plan = Plan(stage_settings("video", {"batch": 6, "processes": 1}), CLIPS)
    draws = plan.micro_batch(0, 0, 0, 1)
    for draw in draws:
        for read in (SampleSource.latents, SampleSource.text, SampleSource.image, SampleSource.picture):
            np.testing.assert_array_equal(read(there, draw), read(here, draw))
    assert 0 < cache.fetched_bytes < shard_bytes / 2, "windows are read, not shards"

    another = BlockCache(remote.scratch("blocks"), 3 * shard_bytes, 1 << 14)
    again = SampleSource(remote, rows, gathering, another)
    np.testing.assert_array_equal(again.latents(draws[0]), here.latents(draws[0]))
    assert another.fetched_bytes == 0


def test_a_cache_smaller_than_the_data_stays_within_its_limit(stored, tmp_path):
    local, remote, rows, shard_bytes = stored
    cache = BlockCache(tmp_path / "small", shard_bytes // 4, 1 << 14)
    there, here = SampleSource(remote, rows, Gathering((20,)), cache), SampleSource(local, rows, Gathering((20,)))
    plan = Plan(stage_settings("image", {"batch": 6, "processes": 1}), CLIPS)
    for step in range(4):
        for draw in plan.micro_batch(step, 0, 0, 1):
            np.testing.assert_array_equal(there.latents(draw), here.latents(draw))
            held = sum(path.stat().st_size for path in (tmp_path / "small").glob("??/*"))
            assert held <= shard_bytes // 4 + (1 << 14) + 4
