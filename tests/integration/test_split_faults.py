"""Kill -9 while the split step commits: the run after it ends with an undisturbed one's manifest, byte for byte."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.killed_split import finished, start
from tests.split_footage import encode, shots, write_videos


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    """The footage, the manifest that a run makes of it that nobody disturbs, and how many commits that took."""
    base = tmp_path_factory.mktemp("undisturbed")
    files = {f"{n}.mp4": encode(shots([20 + n, 15], n)[0], g="6") for n in range(2)}
    write_videos(base, files)
    assert finished(base, start(base)) == 0
    return files, (base / "clips.parquet").read_bytes(), (base / "commits").stat().st_size


def objects(base: Path) -> set[str]:
    return {path.name for path in (base / "data" / "files").rglob("*") if path.is_file()}


@pytest.mark.parametrize("side", ["before", "after"])
def test_killed_at_any_commit_the_next_run_ends_as_if_nothing_had_been(undisturbed, tmp_path, side):
    """Thumbnails, shards, results and the manifest itself; of many moments the first ones, one between, the last."""
    files, manifest, commits = undisturbed
    assert commits >= 2 * 4 + 1
    for number, moment in enumerate((1, commits // 2, commits - 1, commits)):
        base = tmp_path / str(number)
        base.mkdir()
        write_videos(base, files)
        assert finished(base, start(base, moment, side)) == -signal.SIGKILL
        if not (moment == commits and side == "after"):
            assert not (base / "clips.parquet").exists(), "a manifest is there only when it is whole"
        assert finished(base, start(base)) == 0
        assert (base / "clips.parquet").read_bytes() == manifest
        assert not list((base / "data" / "scratch" / "split").iterdir()), "what the killed run left is swept away"


def test_killed_at_random_moments_again_and_again_it_still_ends_the_same(undisturbed, tmp_path):
    files, manifest, _ = undisturbed
    write_videos(tmp_path, files)
    rng = random.Random(7)
    for _ in range(3):
        process = start(tmp_path)
        time.sleep(rng.uniform(0.2, 4.0))
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate(timeout=600)
    assert finished(tmp_path, start(tmp_path)) == 0
    assert (tmp_path / "clips.parquet").read_bytes() == manifest
