"""Limits of a Kubeflow Pipelines backend: every pipeline keeps within them, and each breach is found."""

import json
import subprocess
from pathlib import Path

import pytest
from kfp import dsl, kubernetes
from kfp.compiler import Compiler

from svdflow.common.errors import ConfigError
from svdflow.pipelines import PIPELINES
from svdflow.pipelines.limits import IR_BYTES, argument_faults, documents, faults, leaf_tasks, require_limits
from svdflow.pipelines.registry import compiled_path

REPOSITORY = Path(__file__).resolve().parents[2]


@dsl.component(base_image="svdflow/pipeline:0.1.0", install_kfp_package=False)
def work(text: str = "") -> str:
    return text


@dsl.component(base_image="svdflow/pipeline:0.1.0", install_kfp_package=False)
def use(data: dsl.Input[dsl.Dataset]):
    print(data.path)


def compiled(tmp_path: Path, body, name: str = "sample", **parameters) -> str:
    """The IR of a pipeline whose tasks ``body`` makes."""

    @dsl.pipeline(name=name)
    def pipeline():
        body()

    Compiler().compile(pipeline, str(tmp_path / "ir.yaml"))
    return (tmp_path / "ir.yaml").read_text()


def task(**arguments) -> dsl.PipelineTask:
    return work(**arguments).set_caching_options(False)


def placed(**arguments) -> dsl.PipelineTask:
    """A task with all that a stamped one has."""
    made = task(**arguments).set_retry(1)
    kubernetes.set_timeout(made, 60)
    return kubernetes.set_security_context(made, run_as_user=1000, run_as_non_root=True)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_committed_pipeline_keeps_within_them(name):
    text = compiled_path(name).read_text()
    assert faults(text) == []
    assert len(text.encode()) < IR_BYTES
    spec, platform = documents(text)
    assert platform == {}, "what is committed knows no environment"
    assert sum(1 for _ in leaf_tasks(spec)) == len({key for key, _, _ in leaf_tasks(spec)})


@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_committed_holds_no_revision_and_no_digest(name):
    text = compiled_path(name).read_text()
    assert "sha256:" not in text
    done = subprocess.run(["git", "log", "--format=%H", "-50"], cwd=REPOSITORY, capture_output=True, text=True)
    assert not [commit for commit in done.stdout.split() if commit[:7] in text]


def nested_loop():
    with dsl.ParallelFor(["a", "b"], parallelism=2) as outer:
        with dsl.ParallelFor(["c", "d"], parallelism=2):
            task(text=outer)


def loop_without_parallelism():
    with dsl.ParallelFor(["a", "b"]) as item:
        task(text=item)


def long_loop():
    with dsl.ParallelFor([str(n) for n in range(101)], parallelism=4) as item:
        task(text=item)


def importer_in_a_loop():
    with dsl.ParallelFor(["s3://a", "s3://b"], parallelism=1) as uri:
        brought = dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset)
        use(data=brought.output).set_caching_options(False)


def importer_under_a_condition():
    asked = task(text="x")
    with dsl.If(asked.output == "x"):
        brought = dsl.importer(artifact_uri="s3://a", artifact_class=dsl.Dataset)
        use(data=brought.output).set_caching_options(False)


def mappings_under_an_exit_handler():
    with dsl.ExitHandler(task(text="end")):
        with dsl.ParallelFor([{"a": "1"}, {"a": "2"}], parallelism=1) as item:
            task(text=item.a)


def cached():
    work(text="x")


def many_tasks():
    for _ in range(29):
        task()


def two_secrets():
    made = placed()
    kubernetes.use_secret_as_volume(made, "keys", "/one")
    kubernetes.use_secret_as_volume(made, "keys", "/two")


def malformed_size():
    kubernetes.empty_dir_mount(placed(), "scratch", "/scratch", size_limit="5K")  # Kubernetes writes k


def malformed_volume():
    kubernetes.add_ephemeral_volume(placed(), "scratch", "/scratch", ["ReadWriteOnce"], "5 GB")


def queue_label():
    kubernetes.add_pod_label(placed(), "kueue.x-k8s.io/queue-name", "research")


def root():
    kubernetes.set_timeout(task().set_retry(1), 60)


def without_a_time_out():
    kubernetes.set_security_context(task().set_retry(1), run_as_user=1000, run_as_non_root=True)


def without_retries():
    made = kubernetes.set_security_context(task(), run_as_user=1000, run_as_non_root=True)
    kubernetes.set_timeout(made, 60)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (nested_loop, "a loop in a loop"),
        (loop_without_parallelism, "without parallelism"),
        (long_loop, "101 iterations"),
        (importer_in_a_loop, "importer in a loop"),
        (importer_under_a_condition, "importer under a condition"),
        (mappings_under_an_exit_handler, "mis-scoped"),
        (cached, "cache is on"),
        (many_tasks, "29 tasks"),
        (two_secrets, "one secret twice"),
        (malformed_size, "'5K' makes the driver panic"),
        (malformed_volume, "'5 GB' makes the driver panic"),
        (queue_label, "queue label"),
        (root, "may run as root"),
        (without_a_time_out, "no time-out"),
        (without_retries, "how often it is retried"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_breach_is_found_and_no_other(body, says, tmp_path):
    found = faults(compiled(tmp_path, body))
    assert found and all(says in fault for fault in found)


@pytest.mark.parametrize("body", [task, placed], ids=["plain", "placed"])
def test_a_pipeline_within_the_limits_has_no_fault(body, tmp_path):
    assert faults(compiled(tmp_path, body)) == []


def test_names_are_refused_that_the_backend_or_kfp_confuses(tmp_path):
    assert "has the pipeline's name" in faults(compiled(tmp_path, task, name="work"))[0]
    text = compiled(tmp_path, task)
    for bad in ("Upper", "under_score", "x" * 129):
        assert "a pipeline's name has" in faults(text.replace("name: sample", f"name: {bad}"))[0]


def test_a_component_that_does_not_fit_an_argument_is_found(tmp_path):
    text = compiled(tmp_path, task)
    assert "bytes of JSON" in faults(text.replace("image: svdflow/pipeline:0.1.0", f"image: {'x' * 128 * 1024}"))[0]


def test_an_ir_that_is_too_large_is_refused(tmp_path):
    text = compiled(tmp_path, task) + "#" * IR_BYTES
    with pytest.raises(ConfigError, match=r"sample.yaml: the IR has \d+ bytes"):
        require_limits(text, "sample.yaml")


def test_parameters_of_ten_thousand_bytes_fit_and_one_more_does_not():
    frame = len(json.dumps({"overrides": ""}))
    assert argument_faults({"overrides": "x" * (10_000 - frame)}) == []
    assert "10001 bytes" in argument_faults({"overrides": "x" * (10_001 - frame)})[0]
