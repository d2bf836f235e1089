"""The images, really built and run: minutes and gigabytes, so not part of the tests.

    containers/debian-base && containers/triton-base
    make setup && .venv/bin/python -m pytest -s tests/benchmarks/test_images.py

Needs docker or podman, and bases: SVDFLOW_BASE_IMAGE and SVDFLOW_TRITON_BASE_IMAGE, or what these two scripts make. The
figures printed are those of containers/README.md. SVDFLOW_BENCH_IMAGES=there takes the images that `make images` has
made before.

The steps of the pipeline `svd` run on real videos with the very commands that are compiled, each in its image: as
user 1000, with a read-only root, without a network or a capability, artifacts mounted where a backend mounts them.
"""

import json
import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
BASES = {
    "BASE_IMAGE": os.environ.get("SVDFLOW_BASE_IMAGE", "localhost/svdflow-base:bookworm"),
    "TRITON_BASE_IMAGE": os.environ.get("SVDFLOW_TRITON_BASE_IMAGE", "localhost/svdflow-triton-base:bookworm"),
}
IMAGES = ("pipeline", "curation", "training", "evaluation", "triton")
LOCKED_DOWN = ["--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--user=1000:1000"]
TOLD = REPOSITORY / "build/images"
TAKEN = os.environ.get("SVDFLOW_BENCH_IMAGES") == "there"  # images as they are, none is built

# Starts the server as the deployment does, sends it a picture twice, and tells what came back.
SERVE = """
import json, signal, subprocess, sys, time
import numpy as np
from svdflow.export.client import VideoClient
server = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
client, deadline = VideoClient("127.0.0.1:8001"), time.monotonic() + 300
while not client.ready():
    assert server.poll() is None and time.monotonic() < deadline, "the server is not ready"
    time.sleep(0.5)
image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
first, second, other = (client.generate(image, seed=seed) for seed in (1, 1, 2))
told = {"shape": first.shape, "same": bool((first == second).all()), "other": bool((first != other).any())}
server.send_signal(signal.SIGTERM)
print(json.dumps(told | {"ended": server.wait(60)}))
"""


@pytest.fixture(scope="module")
def builder() -> str:
    for name in ("docker", "podman"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("neither docker nor podman is here; buildah alone runs no image with a read-only root")
    if not TAKEN and not there(name, BASES["BASE_IMAGE"]):
        pytest.skip(
            f"the base image {BASES['BASE_IMAGE']} is not here: run containers/debian-base, or set SVDFLOW_BASE_IMAGE"
        )
    return name


def there(builder: str, image: str) -> bool:
    return subprocess.run([builder, "image", "inspect", image], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def built(builder: str) -> list[str]:
    """The images, as `make images` builds them: all that there is a base for."""
    if TAKEN:
        return [name for name in IMAGES if there(builder, f"svdflow/{name}:{VERSION}")]
    names = [name for name in IMAGES if name != "triton" or there(builder, BASES["TRITON_BASE_IMAGE"])]
    given = {**os.environ, **BASES, "IMAGES": " ".join(names), "BUILDER": builder}
    started = time.monotonic()
    done = subprocess.run(["make", "images"], cwd=REPOSITORY, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in names:
        assert f"self-check of svdflow/{name} passed" in done.stdout
    assert done.stdout.count("root file system: read-only; user 1000") == len(names)
    told = {each["name"]: each for each in json.loads((TOLD / "images.json").read_text())}
    assert list(told) == names
    for each in told.values():
        print(f"\nsvdflow/{each['name']}: {each['size']}, {each['digest']}", end="")
    print(f"\nbuilt and checked in {time.monotonic() - started:.0f} s, what the cache held left out")
    return names


@pytest.fixture
def image(request: pytest.FixtureRequest, built: list[str]) -> str:
    """One of the images; skips when it was not built."""
    if request.param not in built:
        pytest.skip(f"svdflow/{request.param} was not built: there is no base for it (containers/triton-base)")
    return request.param


@dataclass
class Steps:
    """Runs steps of the compiled pipeline `svd` in their images, each once; artifacts are named ``step/output``."""

    builder: str
    place: Path
    spec: Mapping[str, dict] = field(
        default_factory=lambda: next(iter(yaml.safe_load_all((REPOSITORY / "pipelines/compiled/svd.yaml").read_text())))
    )

    @property
    def mounts(self) -> list[str]:
        """Artifacts, the work directory and the footage."""
        written = [f"--volume={self.place}/{name}:/{name}:rw" for name in ("work", "s3")]
        return [*written, f"--volume={self.place}/footage:/footage:ro"]

    def path(self, artifact: str) -> Path:
        """An artifact, as this machine sees it."""
        return self.place / "s3/bucket/run" / artifact

    def report(self, step: str) -> dict:
        """What a step that ran says of itself."""
        return json.loads((self.place / f"work/run/steps/in-images/{step}.json").read_text())

    def run(
        self, step: str, task: str = "", inputs: Mapping[str, str] | None = None, **parameters: object
    ) -> dict[str, object]:
        """Run a step unless it has run; gives the summary of its report.

        Args:
            step: as its report is named.
            task: as the compiled pipeline names its component, when that is another name.
            inputs: name of an input to an artifact.
            parameters: beside those that all steps take.
        """
        if (self.place / f"work/run/steps/in-images/{step}.json").is_file():
            return self.report(step)["summary"]
        component = self.spec["components"][f"comp-{task or step}"]
        container = self.spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        image = container["image"].removeprefix("svdflow/").removesuffix(f":{VERSION}")
        assert image in IMAGES

        def artifact(kind: dict, name: str, where: str) -> dict:
            uri = f"s3://bucket/run/{where}"
            return {"artifacts": [{"name": name, "uri": uri, "type": kind[name]["artifactType"], "metadata": {}}]}

        taken = component.get("inputDefinitions", {}).get("artifacts", {})
        made = component.get("outputDefinitions", {}).get("artifacts", {})
        common = {"workdir": "/work/run", "run_id": "in-images", "profile": "test", "overrides": {}}
        executor_input = {
            "inputs": {
                "parameterValues": common | parameters,
                "artifacts": {name: artifact(taken, name, where) for name, where in (inputs or {}).items()},
            },
            "outputs": {
                "artifacts": {name: artifact(made, name, f"{step}/{name}") for name in made},
                "outputFile": "/tmp/kfp/outputs/output_metadata.json",
            },
        }
        arguments = [each.replace("{{$}}", json.dumps(executor_input)) for each in container["args"]]
        started = time.monotonic()
        done = run(self.builder, image, [*self.mounts, "--env=OMP_NUM_THREADS=1"], [*container["command"], *arguments])
        assert done.returncode == 0, f"{step}: {done.stderr[-3000:]}"
        print(f"\n{step} in svdflow/{image}: {time.monotonic() - started:.1f} s", end="")
        report = self.report(step)
        assert report["error"] in ("", None)
        return report["summary"]


def run(builder: str, image: str, options: list[str], command: list[str]) -> subprocess.CompletedProcess[str]:
    if TAKEN and not there(builder, f"svdflow/{image}:{VERSION}"):
        pytest.skip(f"svdflow/{image}:{VERSION} is not here, and SVDFLOW_BENCH_IMAGES=there takes what is there")
    return subprocess.run(
        [builder, "run", *LOCKED_DOWN, *options, f"svdflow/{image}:{VERSION}", *command],
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip


CLIPS = {"videos": "ingest/videos", "clips": "split/clips"}
CURATED = {"clips": "split/clips", "annotations": "annotate/annotations", "selection": "filter/selection"}


@pytest.fixture(scope="module")
def steps(builder: str, built: list[str], media: Path, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """Two real videos to begin with; nothing has run, unless SVDFLOW_BENCH_RUNS names a folder where it has."""
    kept = os.environ.get("SVDFLOW_BENCH_RUNS")
    place = Path(kept).resolve() / "images" if kept else tmp_path_factory.mktemp("images")
    for folder in ("footage", "work", "s3"):
        (place / folder).mkdir(parents=True, exist_ok=True)
        (place / folder).chmod(0o777)
    place.chmod(0o755)
    for name in ("bikes.mp4", "carphone_pristine.mp4"):
        shutil.copy(media / name, place / "footage")
    return Steps(builder, place)


@pytest.fixture(scope="module")
def curated(steps: Steps) -> Steps:
    """With clips of the videos and of generated ones that were kept (registering them needs an object store)."""
    steps.run("ingest", source="/footage")
    steps.run("split", inputs={"videos": "ingest/videos"})
    steps.run("annotate", inputs=CLIPS)
    steps.run("filter", "filter-clips", CLIPS | {"annotations": "annotate/annotations"})
    return steps


@pytest.fixture(scope="module")
def trained(curated: Steps) -> Steps:
    """With a model that was trained in three stages."""
    curated.run("encode", inputs=CURATED)
    inputs = {"samples": "encode/samples"}
    for task, stage in (("train", "image"), ("train-2", "video"), ("train-3", "image_to_video")):
        curated.run(f"train_{stage}", task, inputs, stage=stage)
        inputs |= {"init": f"train_{stage}/model"}
    return curated


@pytest.fixture(scope="module")
def passed(trained: Steps) -> Steps:
    """With a model that was evaluated and passed the gate."""
    trained.run("evaluate", inputs=CURATED | {"model": "train_image_to_video/model", "samples": "encode/samples"})
    trained.run("gate", inputs={"metrics": "evaluate/metrics"})
    return trained


def test_the_pipeline_image_compiles_what_is_committed(builder, built):
    command = "svdflow compile curation --out /tmp/curation.yaml >/dev/null && cat /tmp/curation.yaml"
    done = run(builder, "pipeline", [], ["sh", "-c", command])
    assert done.returncode == 0, done.stderr
    assert done.stdout == (REPOSITORY / "pipelines/compiled/curation.yaml").read_text()


@pytest.mark.parametrize(
    ("image", "holds"),
    [
        ("pipeline", {"pypi/kfp", "deb/debian/git"}),
        ("curation", {"pypi/torch", "pypi/great-expectations", "deb/debian/git"}),
        ("training", {"pypi/torch", "pypi/deepspeed", "pypi/vtk", "deb/debian/libegl1"}),
        ("evaluation", {"pypi/torch", "pypi/diffusers"}),
        ("triton", {"pypi/torch", "pypi/tritonclient"}),
    ],
    indirect=["image"],
)
def test_the_bill_of_materials_is_that_of_the_image(image, holds):
    path = TOLD / f"{image}.cdx.json"
    if TAKEN and not path.is_file():
        pytest.skip(f"{path} is not here: svdflow/{image} was built elsewhere")
    bill = json.loads(path.read_text())
    listed = [each["purl"].partition("@")[0].removeprefix("pkg:") for each in bill["components"]]
    assert holds | {"pypi/svdflow"} <= set(listed)
    assert not {f"deb/debian/{each}" for each in ("gcc", "g++", "make", "dpkg-dev")} & set(listed)
    kinds = [sum(each.startswith(kind) for each in listed) for kind in ("pypi/", "deb/")]
    print(f"\nsvdflow/{image}: {kinds[0]} distributions, {kinds[1]} Debian packages")


@pytest.mark.parametrize("image", IMAGES, indirect=True)
def test_no_file_in_an_image_can_be_written_or_raises_rights(builder, image):
    """No set-uid program of our own layers, and nothing below the installed packages belongs to the image's user."""
    find = "find /opt/svdflow \\( -perm /6000 -o -uid 1000 -o -perm -o+w ! -type l \\) -print -quit"
    done = run(builder, image, [], ["sh", "-c", find])
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_curation_runs_in_its_image_on_a_real_video(curated):
    videos = {each["name"]: each for each in pq.read_table(curated.path("ingest/videos")).to_pylist()}
    video = videos["bikes.mp4"]
    assert video["codec"] == "h264" and video["error"] in ("", None)
    clips = pq.read_table(curated.path("split/clips")).to_pylist()
    real = [clip for clip in clips if clip["video_id"] == video["video_id"]]
    assert real and all(clip["frames"] > 1 for clip in clips)
    annotations = pq.read_table(curated.path("annotate/annotations")).to_pylist()
    assert {each["clip_id"] for each in annotations} == {clip["clip_id"] for clip in clips}
    assert all(each["motion_score"] is not None for each in annotations)
    kept = [each for each in pq.read_table(curated.path("filter/selection")).to_pylist() if each["keep"]]
    assert {"train", "held_out"} == {each["split"] for each in kept}
    print(f"\n{len(real)} clips of {video['duration_s']:.1f} s of video")


def test_deepspeed_trains_in_the_training_image_in_two_processes(trained):
    for stage in ("image", "video", "image_to_video"):
        told = trained.report(f"train_{stage}")["summary"]["training"][stage]
        assert (told["world_size"], told["zero_stage"]) == (2, 2) and told["steps"] >= 4
        assert told["held_out_loss_after"] != told["held_out_loss_before"]
        assert list(trained.path(f"train_{stage}/model/unet").glob("*.safetensors"))


def test_the_training_image_loads_the_operator_that_was_compiled_with_it(builder, built):
    """There is no compiler to make it with."""
    code = (
        "import shutil, deepspeed\n"
        "from deepspeed.ops.op_builder import ShareMemCommBuilder as B\n"
        "print(B().load(verbose=False).__file__, shutil.which('g++'))"
    )
    done = run(builder, "training", ["--env=DS_ACCELERATOR=cpu"], ["python3", "-c", code])
    assert done.returncode == 0, done.stderr[-3000:]
    file, compiler = done.stdout.split()[-2:]
    assert file.startswith("/opt/svdflow/") and compiler == "None"


def test_the_training_image_renders_without_a_display(steps):
    told = steps.run("render", objects="")["multiview"]
    assert told["orbits"] >= 3 and told["set_aside"] == 0
    orbits = pq.read_table(steps.path("render/orbits")).to_pylist()
    assert {orbit["split"] for orbit in orbits} == {"train", "held_out"}


def test_the_evaluation_image_measures_the_model_and_the_gate_lets_it_on(passed):
    told = passed.report("evaluate")["summary"]["evaluation"]
    assert told["samples"] == 2 and told["set_aside"] == 0
    assert json.loads(passed.path("gate/verdict").read_text())["gate"]["passed"] is True


def test_the_evaluation_image_measures_a_multi_view_model(trained):
    trained.run("render", objects="")
    trained.run("encode_orbits", "encode-orbits", {"orbits": "render/orbits"})
    init = "train_image_to_video/model"
    views = {"samples": "encode_orbits/samples", "init": init}
    trained.run("train_multi_view", "train-4", views, stage="multi_view")
    inputs = {"model": "train_multi_view/model", "before": init, "orbits": "render/orbits"}
    assert trained.run("measure_multiview", "measure-multiview", inputs)


@pytest.mark.parametrize("image", ["triton"], indirect=True)
def test_the_triton_image_exports_a_model_and_its_server_answers(builder, image, passed):
    """Export, the serving check, and the server as the deployment starts it, its models read-only."""
    model = {"model": "train_image_to_video/model", "metrics": "gate/verdict"}
    passed.run("export", inputs=model)
    serve = {"repository": "export/repository", "clips": "split/clips", "selection": "filter/selection"}
    told = passed.run("serve", inputs=serve)["serving"]
    assert told["equal_to_in_process"] is True and told["seeds_differ"] is True
    print(f"\nTriton {told['version']}, {told['latency_s']:.2f} s a request", end="")

    deployment = yaml.safe_load((REPOSITORY / "infra/components/triton/server/deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    options = [f"--volume={passed.path('export/repository')}:/models:ro", "--env=OMP_NUM_THREADS=1"]
    command = [*container["command"], *container["args"]]
    done = run(builder, image, options, ["python3", "-c", SERVE, *command])
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["same"] and answer["other"] and answer["ended"] == 0
    assert answer["shape"] == [told["frames"], told["height"], told["width"], 3]


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
