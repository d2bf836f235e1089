"""A disk that runs full in the middle of a run: one line, nothing lost, and the next run goes on."""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kfp import compiler, dsl

from svdflow.common.manifests import read_rows
from tests.holding import Point, holding
from tests.waiting import wait_for

MB = 1000**2
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")


@pytest.fixture
def small_disk(tmp_path) -> Path:
    place = tmp_path / "small disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def source(tmp_path, media) -> Path:
    folder = tmp_path / "footage"
    folder.mkdir()
    shutil.copy(media / "bikes.mp4", folder / "bikes.mp4")
    return folder


@pytest.fixture
def curation(tmp_path) -> Path:
    """The first three steps of the pipeline svd, the real ones, as a pipeline."""
    from svdflow.curation.annotate.component import annotate
    from svdflow.curation.split.component import split
    from svdflow.ingest.component import ingest
    from svdflow.report.component import report

    @dsl.pipeline(name="curate")
    def curate(workdir: str, source: str = "", profile: str = "test", overrides: dict = {}):  # noqa: B006
        common = {
            "workdir": workdir,
            "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            "profile": profile,
            "overrides": overrides,
        }
        with dsl.ExitHandler(report(**common)):
            videos = ingest(source=source, **common).outputs["videos"]
            clips = split(videos=videos, **common).outputs["clips"]
            annotate(videos=videos, clips=clips, **common)

    compiler.Compiler().compile(curate, str(tmp_path / "curate.yaml"))
    return tmp_path / "curate.yaml"


def start(ir: Path, workdir: Path, source: Path, **environment: str) -> subprocess.Popen:
    script = (
        "import sys; from pathlib import Path; from svdflow.pipelines.local.run import run_pipeline\n"
        "r = run_pipeline('curate', Path(sys.argv[2]), 'test', {}, {'source': sys.argv[3]}, ir=Path(sys.argv[1]))\n"
        "print('\\n'.join(r.errors)); sys.exit(r.status)"
    )
    arguments = [sys.executable, "-c", script, str(ir), str(workdir), str(source)]
    environment = os.environ | environment
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def fill(path: Path) -> None:
    """Take all the space that is left."""
    with open(path, "wb", buffering=0) as stream:
        for piece in (8 * MB, 4096, 1):
            try:
                while True:
                    stream.write(b"\0" * piece)
            except OSError as error:
                assert error.errno == errno.ENOSPC


def damaged_objects(data: Path) -> list[str]:
    """Objects of the data root whose bytes are not what their names say."""
    names = (path for path in (data / "files" / "md5").rglob("*") if re.fullmatch(r"[0-9a-f]{30}(\.dir)?", path.name))
    return [
        str(path)
        for path in names
        if hashlib.md5(path.read_bytes()).hexdigest() != path.parent.name + path.name.removesuffix(".dir")
    ]


def test_a_disk_that_fills_in_mid_run_gives_one_line_loses_nothing_and_the_next_run_goes_on(
    small_disk, curation, source, tmp_path
):
    workdir = small_disk / "run"
    kept = workdir / "data" / "results" / "annotate"
    hold = holding(tmp_path / "hold", Point(r"/results/annotate/.*\.json$", after=3))
    process = start(curation, workdir, source, **hold.environment)
    assert wait_for(lambda: process.poll() is not None or len(list(kept.rglob("*.json"))) >= 3, 600)
    assert process.poll() is None, process.communicate()
    fill(small_disk / "filler")
    hold.go_on.touch()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert out.count("\n") == 1 and "annotate" in out and "full" in out and "run again" in out, out
    assert "Traceback" not in err
    assert damaged_objects(workdir / "data") == []
    before = {path: path.stat().st_mtime_ns for path in (workdir / "data").rglob("*") if path.is_file()}
    assert len([path for path in before if path.is_relative_to(kept)]) >= 3

    (small_disk / "filler").unlink()
    process = start(curation, workdir, source)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, (out, err[-2000:])
    assert {path: path.stat().st_mtime_ns for path in before if path.suffix == ".json"} == {
        path: written for path, written in before.items() if path.suffix == ".json"
    }, "work that was recorded was done again"
    whole = tmp_path / "undisturbed"
    process = start(curation, whole, source)
    assert process.wait(1200) == 0
    for kind in ("videos", "clips", "annotations"):
        manifests = [place / "manifests" / f"{kind}.parquet" for place in (workdir, whole)]
        assert read_rows(kind, manifests[0]), kind
        assert manifests[0].read_bytes() == manifests[1].read_bytes(), kind
