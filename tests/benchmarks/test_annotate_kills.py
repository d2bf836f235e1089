"""Annotate, killed before and after every commit in turn: the rerun ends in the bytes of an undisturbed run.

pytest -s tests/benchmarks/test_annotate_kills.py
"""

from pathlib import Path

from tests.killed_annotate import annotate, commits, killed_and_run_again, prepare


def test_every_commit_of_an_annotation(tmp_path: Path) -> None:
    calm = prepare(tmp_path / "calm")
    assert annotate(calm)
    last, manifest = commits(calm), (calm / "annotations.parquet").read_bytes()
    for moment in range(1, last + 1):
        for side in ("before", "after"):
            killed_and_run_again(tmp_path / f"{side}{moment}", moment, side, manifest, last)
    print(f"killed before and after each of {last} commits: every rerun gave the undisturbed manifest")
