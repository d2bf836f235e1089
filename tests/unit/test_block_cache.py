"""The cache of remote blocks: the right bytes, fetched once, within its limit, whoever else uses or breaks it."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdflow.common.block_cache import BlockCache
from svdflow.common.errors import ConfigError
from tests.waiting import wait_for

BLOCK = 1000
OBJECT = np.random.default_rng(0).bytes(10_500)


def fetch_of(data, asked=None):
    def fetch(offset, length):
        if asked is not None:
            asked.append((offset, length))
        return data[offset : offset + length]

    return fetch


def size(directory):
    return sum(path.stat().st_size for path in directory.glob("??/*"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return BlockCache(tmp_path_factory.mktemp("blocks"), 5 * BLOCK, BLOCK)


@given(offset=st.integers(0, 12_000), length=st.integers(0, 12_000))
def test_what_is_read_is_what_the_object_holds(shared, offset, length):
    assert shared.read("object", offset, length, fetch_of(OBJECT)) == OBJECT[offset : offset + length]


def test_blocks_are_fetched_once_and_found_by_the_next_process(tmp_path):
    asked = []
    cache = BlockCache(tmp_path, 100 * BLOCK, BLOCK)
    assert cache.read("object", 1500, 1000, fetch_of(OBJECT, asked)) == OBJECT[1500:2500]
    assert asked == [(1000, BLOCK), (2000, BLOCK)] and cache.fetched_bytes == 2 * BLOCK
    another = BlockCache(tmp_path, 100 * BLOCK, BLOCK)
    assert another.read("object", 1000, 2000, fetch_of(OBJECT, asked)) == OBJECT[1000:3000]
    assert another.fetched_bytes == 0 and len(asked) == 2
    assert another.read("other", 1000, 10, fetch_of(b"x" * 3000)) == b"x" * 10


def test_the_directory_stays_within_its_limit_and_what_is_used_stays(tmp_path):
    cache, asked = BlockCache(tmp_path, 6 * (BLOCK + 4), BLOCK), []
    for number in range(60):
        cache.read("object", 0, 10, fetch_of(OBJECT, asked))
        cache.read(f"other {number}", 0, 10, fetch_of(OBJECT))
        assert size(tmp_path) <= 7 * (BLOCK + 4)
        time.sleep(0.01)  # time stamps of blocks must differ: a tick of the kernel's clock may take so long
    assert len(asked) == 1, "the block in use was evicted"


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[:-7], lambda d: b"\0" * len(d), lambda d: d[:3]])
def test_a_damaged_block_is_fetched_again(tmp_path, damage):
    cache = BlockCache(tmp_path, 100 * BLOCK, BLOCK)
    cache.read("object", 0, 10, fetch_of(OBJECT))
    (block,) = tmp_path.glob("??/*")
    block.write_bytes(damage(block.read_bytes()))
    assert cache.read("object", 0, 900, fetch_of(OBJECT)) == OBJECT[:900]
    assert cache.fetched_bytes == 2 * BLOCK


def test_what_a_killed_process_left_half_written_is_removed_in_time(tmp_path):
    cache = BlockCache(tmp_path, 4 * BLOCK, BLOCK)
    (tmp_path / "aa").mkdir()
    old, young = tmp_path / "aa" / "b.partial-1", tmp_path / "aa" / "b.partial-2"
    for path in (old, young):
        path.write_bytes(b"half a block")
    os.utime(old, (time.time() - 3600,) * 2)
    cache.read("object", 0, 10, fetch_of(OBJECT))
    assert not old.exists() and young.exists()


def _use(directory, seed, over):
    rng = np.random.default_rng(seed)
    cache = BlockCache(directory, 8 * BLOCK, BLOCK)
    while not over.exists():
        offset, length = int(rng.integers(0, 10_000)), int(rng.integers(1, 3000))
        assert cache.read("object", offset, length, fetch_of(OBJECT)) == OBJECT[offset : offset + length]


def test_processes_that_share_a_directory_and_are_killed_see_whole_blocks_within_the_limit(tmp_path):
    context, blocks, over = multiprocessing.get_context("fork"), tmp_path / "blocks", tmp_path / "over"
    processes = [context.Process(target=_use, args=(blocks, seed, over)) for seed in range(3)]
    seen = []

    def look():
        try:
            seen.append(size(blocks))
        except FileNotFoundError:  # evicted while it was looked at
            pass
        return len(seen)

    for process in processes:
        process.start()
    try:
        assert wait_for(lambda: look() and max(seen) > 7 * BLOCK, 120), "they have filled it"
        processes[0].kill()
        processes[0].join()
        looks = len(seen) + 100
        while look() < looks:
            continue
    finally:
        over.touch()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0]
    assert max(seen) <= (8 + 3 + 3) * (BLOCK + 4)


def test_a_limit_below_one_block_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not hold a block"):
        BlockCache(tmp_path, 10, BLOCK)


@pytest.mark.parametrize("moment", ["write_bytes", "replace"])
def test_whoever_empties_the_directory_while_a_block_is_written_costs_a_fetch_and_no_error(
    tmp_path, monkeypatch, moment
):
    cache, done = BlockCache(tmp_path, 100 * BLOCK, BLOCK), getattr(Path, moment)

    def emptied(path, other):
        shutil.rmtree(path.parent)
        return done(path, other)

    with monkeypatch.context() as patched:
        patched.setattr(Path, moment, emptied)
        assert cache.read("object", 100, 10, fetch_of(OBJECT)) == OBJECT[100:110]
    assert cache.read("object", 100, 10, fetch_of(OBJECT)) == OBJECT[100:110]
    assert cache.fetched_bytes == 2 * BLOCK and size(tmp_path) == BLOCK + 4
