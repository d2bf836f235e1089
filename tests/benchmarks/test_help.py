"""How soon a command explains itself, in time of the processor."""

import resource
import subprocess
import sys

import pytest


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "--list"]], ids=" ".join)
def test_help_answers_in_under_half_a_second(arguments):
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([f"{sys.prefix}/bin/svdflow", *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    best = min(seconds() for _ in range(10))
    print(f"\nsvdflow {' '.join(arguments)}: {best:.2f} s of one processor")
    assert best < 0.5
