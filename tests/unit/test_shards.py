"""Safetensors shards: what is written comes back, alone, by range, and damage is seen."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from svdflow.common.errors import BadInputError
from svdflow.common.shards import ShardReader, write_shard

ARRAYS = st.one_of(
    *[
        hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), elements=elements)
        for dtype, elements in (
            (np.float32, st.floats(-1e3, 1e3, width=32)),
            (np.float16, st.floats(-1e3, 1e3, width=16)),
            (np.uint8, st.integers(0, 255)),
            (np.int64, st.integers(-9, 9)),
        )
    ]
)
SAMPLES = st.dictionaries(
    st.text("abc-_019", min_size=1, max_size=4),
    st.dictionaries(st.sampled_from(["latents", "text", "a.b"]), ARRAYS, min_size=1),
    min_size=1,
    max_size=4,
)


@given(SAMPLES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_reader_gives_back_what_the_safetensors_library_reads(tmp_path, samples):
    path = tmp_path / "shard.safetensors"
    write_shard(path, samples)
    reference = load_file(path)
    reader = ShardReader.open_file(path)
    assert reader.prefixes == sorted(samples)
    for prefix, tensors in samples.items():
        assert reader.names(prefix) == sorted(tensors)
        for name, array in tensors.items():
            read = reader.read(prefix, name)
            assert read.dtype == reference[f"{prefix}.{name}"].dtype
            np.testing.assert_array_equal(read, reference[f"{prefix}.{name}"])
            np.testing.assert_array_equal(reader.read_rows(prefix, name, len(array) - 1, 1), array[-1:])


def test_reading_one_row_touches_only_its_bytes(tmp_path):
    frames = np.arange(100 * 50, dtype=np.float32).reshape(100, 50)
    write_shard(tmp_path / "s", {"clip": {"latents": frames, "other": np.zeros(10_000, np.uint8)}})
    data = (tmp_path / "s").read_bytes()
    asked = []

    def read_range(offset, length):
        asked.append(length)
        return data[offset : offset + length]

    reader = ShardReader("remote shard", read_range)
    header = sum(asked)
    np.testing.assert_array_equal(reader.read_rows("clip", "latents", 40, 2), frames[40:42])
    assert sum(asked) - header == 2 * 50 * 4


def test_equal_samples_give_equal_bytes_whatever_their_order(tmp_path):
    one, two = {"x": np.ones(3)}, {"x": np.zeros(2), "y": np.ones((2, 2), np.uint8)}
    write_shard(tmp_path / "a", {"p": one, "q": two})
    write_shard(tmp_path / "b", {"q": dict(reversed(two.items())), "p": one})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [lambda d: b"", lambda d: d[:6], lambda d: b"\xff" * 16 + d, lambda d: d[:8] + b"[1]" + d[11:], lambda d: d[:-5]],
)
def test_a_damaged_shard_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "shard"
    write_shard(path, {"clip": {"latents": np.ones((4, 4), np.float32)}})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInputError, match="shard"):
        ShardReader.open_file(path).read("clip", "latents")


def test_a_missing_tensor_names_shard_and_tensor(tmp_path):
    write_shard(tmp_path / "s", {"clip": {"latents": np.ones(1)}})
    with pytest.raises(BadInputError, match=r"clip\.text"):
        ShardReader.open_file(tmp_path / "s").read("clip", "text")
    with pytest.raises(BadInputError, match="dot"):
        write_shard(tmp_path / "t", {"a.b": {"x": np.ones(1)}})
