"""The images, really built and run: minutes and gigabytes, so not part of the tests.

    containers/debian-base && make setup && .venv/bin/python -m pytest -s tests/benchmarks/test_images.py

Needs docker or podman, and a base: SVDFLOW_BASE_IMAGE, or what ``containers/debian-base`` makes. The figures printed
are those of containers/README.md. SVDFLOW_BENCH_IMAGES=there takes the images that `make images` has made before.
"""

import json
import os
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
BASE = os.environ.get("SVDFLOW_BASE_IMAGE", "localhost/svdflow-base:bookworm")
LOCKED_DOWN = ["--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--user=1000:1000"]
DATASET = {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}


@pytest.fixture(scope="module")
def builder() -> str:
    for name in ("docker", "podman"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("neither docker nor podman is here; buildah alone runs no image with a read-only root")
    if subprocess.run([name, "image", "inspect", BASE], capture_output=True).returncode:
        pytest.skip(f"the base image {BASE} is not here: run containers/debian-base, or set SVDFLOW_BASE_IMAGE")
    return name


@pytest.fixture(scope="module")
def built(builder: str) -> dict[str, dict]:
    """The pipeline and the curation image, as `make images` builds them; what it wrote of each."""
    if os.environ.get("SVDFLOW_BENCH_IMAGES") == "there":
        return {}
    given = {**os.environ, "IMAGES": "pipeline curation", "BASE_IMAGE": BASE, "BUILDER": builder}
    started = time.monotonic()
    done = subprocess.run(["make", "images"], cwd=REPOSITORY, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in ("pipeline", "curation"):
        assert f"self-check of svdflow/{name} passed" in done.stdout
    assert done.stdout.count("root file system: read-only; user 1000") == 2
    told = {each["name"]: each for each in json.loads((REPOSITORY / "build/images/images.json").read_text())}
    for each in told.values():
        print(f"\nsvdflow/{each['name']}: {each['size']}, {each['digest']}")
    print(f"built in {time.monotonic() - started:.0f} s, what the cache held left out")
    return told


def run(builder: str, image: str, options: list[str], command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [builder, "run", *LOCKED_DOWN, *options, f"svdflow/{image}:{VERSION}", *command],
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip


def test_the_pipeline_image_compiles_what_is_committed(builder, built):
    command = "svdflow compile curation --out /tmp/curation.yaml >/dev/null && cat /tmp/curation.yaml"
    done = run(builder, "pipeline", [], ["sh", "-c", command])
    assert done.returncode == 0, done.stderr
    assert done.stdout == (REPOSITORY / "pipelines/compiled/curation.yaml").read_text()


def test_the_bill_of_materials_is_that_of_the_image(builder, built):
    for name, tool in (("pipeline", "kfp"), ("curation", "torch")):
        bill = json.loads((REPOSITORY / f"build/images/{name}.cdx.json").read_text())
        listed = {each["purl"].partition("@")[0] for each in bill["components"]}
        assert {f"pkg:pypi/{tool}", "pkg:pypi/svdflow", "pkg:deb/debian/git"} <= listed
        assert not {f"pkg:deb/debian/{each}" for each in ("gcc", "g++", "make", "dpkg-dev")} & listed


def test_curation_runs_in_its_image_on_a_real_video(builder, built, media, tmp_path):
    """Ingest, split and annotate by the compiled pipeline's own commands, artifacts where a backend mounts them."""
    for folder in ("footage", "work", "s3"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder).chmod(0o777)
    for file in media.glob("bikes.*"):
        shutil.copy(file, tmp_path / "footage")
    spec = next(iter(yaml.safe_load_all((REPOSITORY / "pipelines/compiled/curation.yaml").read_text())))
    mounts = [f"--volume={tmp_path}/{name}:/{name}:rw" for name in ("work", "s3")]
    mounts.append(f"--volume={tmp_path}/footage:/footage:ro")
    common = {"workdir": "/work/run", "run_id": "in-an-image", "profile": "local", "overrides": {}}

    def step(name: str, inputs: list[str], output: str, parameters: dict[str, object]) -> Path:
        def artifact(each: str) -> dict:
            return {"artifacts": [{"name": each, "uri": f"s3://bucket/run/{each}", "type": DATASET, "metadata": {}}]}

        executor_input = {
            "inputs": {"parameterValues": common | parameters, "artifacts": {each: artifact(each) for each in inputs}},
            "outputs": {"artifacts": {output: artifact(output)}, "outputFile": "/tmp/kfp/outputs/output_metadata.json"},
        }
        container = spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
        assert container["image"] == f"svdflow/curation:{VERSION}"
        arguments = [each.replace("{{$}}", json.dumps(executor_input)) for each in container["args"]]
        started = time.monotonic()
        done = run(builder, "curation", mounts, [*container["command"], *arguments])
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        print(f"\n{name}: {time.monotonic() - started:.1f} s, the container's start included")
        report = json.loads((tmp_path / f"work/run/steps/in-an-image/{name}.json").read_text())
        assert report["error"] in ("", None)
        return tmp_path / "s3/bucket/run" / output

    videos = pq.read_table(
        step("ingest", [], "videos", {"source": "/footage", "overrides": {"ingest.generated_clips": 0}})
    )
    assert videos.num_rows == 1 and videos["codec"][0].as_py() == "h264" and videos["error"][0].as_py() in ("", None)
    clips = pq.read_table(step("split", ["videos"], "clips", {})).to_pylist()
    assert clips and all(clip["frames"] > 1 for clip in clips)
    annotations = pq.read_table(step("annotate", ["videos", "clips"], "annotations", {})).to_pylist()
    assert {each["clip_id"] for each in annotations} == {clip["clip_id"] for clip in clips}
    assert all(each["motion_score"] is not None for each in annotations)
    print(f"{len(clips)} clips of {videos['duration_s'][0].as_py():.1f} s of video")


def test_a_changed_image_is_found_out_by_its_self_check(builder, built, tmp_path):
    """The check inside fails when a package is not what was locked, and when there is no place to write."""
    lock = tmp_path / "requirements.lock"
    lock.write_text("numpy==0.0.1\n")
    done = run(builder, "pipeline", [f"--volume={lock}:/opt/svdflow/requirements.lock:ro"], ["svdflow-self-check"])
    assert done.returncode == 1 and "locked is 0.0.1" in done.stdout
    command = [each for each in LOCKED_DOWN if not each.startswith("--tmpfs")]
    extra = ["--read-only-tmpfs=false"] if builder == "podman" else []
    done = subprocess.run(
        [builder, "run", *command, *extra, f"svdflow/pipeline:{VERSION}", "svdflow-self-check"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1 and "mount something there" in done.stdout + done.stderr
