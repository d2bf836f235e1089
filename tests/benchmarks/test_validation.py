"""Validation of a million clips: peak memory and time, in batches and as one whole, sound and with faults.

Run with `pytest -s tests/benchmarks/test_validation.py`; takes some minutes on two cores.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

CLIPS = 1_000_000
LIMIT_BYTES = 1 << 30

CHECK = """
import json, sys, time
from pathlib import Path
from svdflow.curation.validate.settings import ValidateSettings
from svdflow.curation.validate.validate import Written, check_manifests

directory = Path(sys.argv[1])
manifests = {kind: directory / f"{kind}.parquet" for kind in ("videos", "clips", "annotations", "selection")}
settings = ValidateSettings(**({"batch_rows": int(sys.argv[2])} if int(sys.argv[2]) else {}))
started = time.monotonic()
report = check_manifests(manifests, Written(directory / "page.html", directory / "failing.jsonl"), settings)
seconds = time.monotonic() - started
status = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss would be the parent's too, until exec
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
told = {"seconds": seconds, "peak": peak,
        **report.summary["validation"]}
print(json.dumps(told))
"""


def run(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("broken", [0.0, 0.3], ids=["sound", "three rows in ten broken"])
def test_a_million_clips_are_validated_under_one_gibibyte(tmp_path: Path, broken: float) -> None:
    run(Path(__file__).with_name("million_rows.py"), tmp_path, CLIPS, broken)
    batches, whole = (json.loads(run("-c", CHECK, tmp_path, size).splitlines()[-1]) for size in (0, CLIPS))
    rows = sum(batches["manifests"].values())
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {rows:,} rows, {broken:.0%} broken")
    for name, told in (("in batches", batches), ("one whole", whole)):
        print(f"{name}: peak {told['peak'] / 2**20:.0f} MiB, {told['seconds']:.1f} s, {told['failed']} hard broken")
    print(
        f"memory of one whole over batches {whole['peak'] / batches['peak']:.2f}, "
        f"time {whole['seconds'] / batches['seconds']:.2f}"
    )
    assert batches["peak"] < LIMIT_BYTES
    assert {k: batches[k] for k in ("failed", "broken", "warned")} == {
        k: whole[k] for k in ("failed", "broken", "warned")
    }
    assert bool(batches["failed"]) == bool(broken)
