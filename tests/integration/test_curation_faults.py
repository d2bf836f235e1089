"""The whole pipeline `curation` under faults: its manifests are those of an undisturbed run, byte for byte."""

import random
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from svdflow.common.identity import file_md5
from svdflow.common.manifests import read_rows
from svdflow.common.storage import uri_md5
from tests import curation_runs
from tests.footage_sets import write_good_videos
from tests.integration.flaky_door import FlakyDoor
from tests.waiting import wait_for

KILLS = 3
AWAY_S = 30.0


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good footage")
    write_good_videos(folder, count=3)
    (folder / "bad.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, source) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    curation_runs.finish(workdir, source)
    return workdir


@pytest.mark.slow
def test_a_run_killed_at_random_points_ends_in_the_same_manifests(tmp_path, source, undisturbed):
    workdir, draw = tmp_path / "killed", random.Random(time.time_ns())
    total = len(curation_runs.events(undisturbed))
    for part in range(KILLS):  # one point in each part of the run: each kill leaves less to do
        point, delay_s = draw.randint(part * total // KILLS, (part + 1) * total // KILLS - 1), draw.uniform(0, 1.5)
        print(f"kill {part + 1}: {delay_s:.2f} s after event {point} of {total}")
        process = curation_runs.start(workdir, source)
        if curation_runs.wait_until(process, workdir, lambda seen, point=point: len(seen) > point):
            time.sleep(delay_s)
        if process.poll() is None:
            curation_runs.kill_everything(process, workdir)
    curation_runs.finish(workdir, source)
    assert curation_runs.manifests(workdir) == curation_runs.manifests(undisturbed)
    for uri in {row["shard_uri"] for row in read_rows("clips", workdir / "manifests" / "clips.parquet")}:
        assert file_md5(workdir / "data" / uri) == uri_md5(uri)


@pytest.mark.slow
def test_a_store_that_goes_away_for_half_a_minute_is_ridden_out(tmp_path, source, undisturbed, object_store):
    with FlakyDoor(urlsplit(object_store.endpoint_url).port) as door:
        environment = object_store.environment() | {
            "SVDFLOW_S3_ENDPOINT": f"http://127.0.0.1:{door.port}",
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{door.port}",
            "SVDFLOW_DATA_ROOT": f"s3://{object_store.bucket}/curation",
            "SVDFLOW_CACHE_DIR": str(tmp_path / "cache"),
        }
        process = curation_runs.start(tmp_path / "run", source, **environment)
        annotating = lambda seen: any(e["step"] == "annotate" and e.get("what") for e in seen)  # noqa: E731
        assert curation_runs.wait_until(process, tmp_path / "run", annotating), process.stderr.read()
        door.shut()
        log = next((tmp_path / "run" / "logs").glob("*.log"))
        told = "the object store does not answer; waiting"
        assert wait_for(lambda: process.poll() is not None or told in log.read_text(), 600), "it asks for nothing"
        time.sleep(AWAY_S)
        assert process.poll() is None, "the run ended while the store was away"
        door.open()
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err[-3000:]
    assert curation_runs.manifests(tmp_path / "run") == curation_runs.manifests(undisturbed)
