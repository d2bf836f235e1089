"""Environments: what a task gets on a cluster, from the file to the IR that is sent."""

import re
import subprocess
import sys

import pytest
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from typer.testing import CliRunner

from svdflow.common.errors import ConfigError
from svdflow.curation.version.provenance import own_version
from svdflow.pipelines import PIPELINES
from svdflow.pipelines.cli import app
from svdflow.pipelines.cluster import stamp as stamps
from svdflow.pipelines.cluster.environment import IMAGES, environment_names, load_environment, task_names
from svdflow.pipelines.cluster.quantities import size_bytes
from svdflow.pipelines.cluster.stamp import stamp
from svdflow.pipelines.limits import documents, executor_of, kubernetes_configs, leaf_tasks

DIGESTS = {name: f"registry.example.com/svdflow/{name}@sha256:{n:064x}" for n, name in enumerate(IMAGES)}

SMALL = """
endpoint: https://kfp.example.com
namespace: svdflow
service_account: pipeline-runner
require_digests: false
images: {pipeline: p:1, curation: c:1, training: t:1, evaluation: e:1, triton: s:1}
defaults:
  cpu: "1"
  memory: 1Gi
  timeout_s: 60
  retries: {count: 1}
"""


def written(tmp_path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def tasks_in(ir: str) -> dict[str, tuple[dict, dict, dict]]:
    """Task key to its spec, container and Kubernetes configuration."""
    spec, platform = documents(ir)
    configs = kubernetes_configs(platform)
    return {
        key: (task, executor_of(spec, component)["container"], configs[component["executorLabel"]])
        for key, task, component in leaf_tasks(spec)
    }


@pytest.mark.parametrize(
    ("pipeline", "name"),
    # compiling takes seconds, and the air-gapped one is production's with other images: one pipeline will do
    [(p, name) for p in PIPELINES for name in environment_names() if name != "airgapped" or p == "curation"],
)
def test_every_pipeline_can_be_sent_to_every_shipped_environment(pipeline, name):
    stamped = stamp(pipeline, load_environment(name, DIGESTS))  # refuses what is beyond a limit
    assert len(stamped.ir.encode()) < 512 * 1024
    for task, container, config in tasks_in(stamped.ir).values():
        assert re.fullmatch(r"registry\.example\.com/svdflow/\w+@sha256:[0-9a-f]{64}", container["image"])
        assert config["securityContext"] == {"runAsNonRoot": True, "runAsUser": "1000", "runAsGroup": "1000"}
        assert int(config["activeDeadlineSeconds"]) > 0 and "retryPolicy" in task
        assert [mount["mountPath"] for mount in config["pvcMount"]] == ["/work"]
        assert {"resourceCpuRequest", "resourceMemoryRequest", "resourceMemoryLimit"} <= set(container["resources"])
        variables = {entry["envVar"] for source in config["configMapAsEnv"] for entry in source["keyToEnv"]}
        assert {"SVDFLOW_S3_ENDPOINT", "SVDFLOW_DATA_ROOT"} <= variables


def test_the_names_in_the_shipped_environments_are_those_of_infra():
    infra = {}
    for path in ("service-accounts", "work-volume", "object-store", "namespace"):
        for document in yaml.safe_load_all(open(f"infra/base/{path}.yaml")):
            infra.setdefault(document["kind"], {})[document["metadata"]["name"]] = document
    readme = open("infra/README.md").read()
    for name in environment_names():
        environment = load_environment(name, DIGESTS)
        assert environment.namespace in infra["Namespace"]
        assert environment.service_account in infra["ServiceAccount"]
        for given in [environment.defaults, *environment.tasks.values()]:
            assert {volume.claim for volume in given.volumes.values()} <= set(infra["PersistentVolumeClaim"])
            for config, keys in given.config_maps.items():
                assert set(keys.keys) <= set(infra["ConfigMap"][config]["data"])
            for secret, keys in given.secrets.items():
                line = next(line for line in readme.splitlines() if line.startswith(f"| `{secret}` |"))
                assert all(f"`{key}`" in line for key in keys.keys)


def test_the_air_gapped_environment_runs_images_of_the_mirror_and_tells_steps_what_pods_of_jobs_are_told():
    environment = load_environment("airgapped")
    assert all(image.startswith("mirror.example.internal/svdflow/") for image in environment.images.values())
    component = yaml.safe_load(open("infra/components/package-mirror/kustomization.yaml"))
    told = {each["path"].rpartition("/")[2]: each["value"] for each in yaml.safe_load(component["patches"][0]["patch"])}
    assert told.keys() == {"PIP_INDEX_URL", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
    for given in (environment.defaults, *environment.tasks.values()):
        assert told.items() <= given.env.items()


def test_a_task_gets_what_stands_under_its_component_and_its_own_name_on_top_of_the_defaults(tmp_path):
    environment = load_environment(
        written(
            tmp_path,
            SMALL
            + """
  env: {A: default, B: default}
tasks:
  train: {memory: 8Gi, env: {B: component, C: component}}
  train_video: {timeout_s: 3600, env: {C: own, A: null}}
""",
        )
    )
    video, image = environment.resources("train", "train_video"), environment.resources("train", "train_image")
    assert (video.memory, video.timeout_s, video.env) == ("8Gi", 3600, {"B": "component", "C": "own"})
    assert (image.memory, image.timeout_s, image.env) == (
        "8Gi",
        60,
        {"A": "default", "B": "component", "C": "component"},
    )
    assert environment.resources("encode", "encode") == environment.defaults
    sent = tasks_in(stamp("svd", environment).ir)
    containers = {key: {e["name"]: e["value"] for e in container["env"]} for key, (_, container, _) in sent.items()}
    assert containers["train-2"] == video.env and containers["train"] == image.env
    assert sent["train-2"][2]["activeDeadlineSeconds"] == "3600" and sent["train"][2]["activeDeadlineSeconds"] == "60"


def test_everything_that_a_file_says_reaches_the_task(tmp_path):
    environment = load_environment(
        written(
            tmp_path,
            SMALL
            + """
tasks:
  encode:
    cpu: 500m
    cpu_limit: "2"
    memory: 8Gi
    memory_limit: 16Gi
    accelerator: {type: nvidia.com/gpu, count: 2}
    shared_memory: 4Gi
    node_selector: {svdflow/gpu: a100}
    tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoExecute, seconds: 30}]
    affinity:
      - {match: [{key: zone, values: [a, b]}]}
      - {match: [{key: svdflow/capacity, operator: NotIn, values: [spot]}], weight: 10}
    security_context: {user: 2000, group: 3000}
    env: {NCCL_DEBUG: INFO}
    fields: {POD: metadata.name}
    config_maps: {settings: {keys: {a: SETTING_A}}}
    secrets: {keys: {keys: {token: TOKEN}, optional: true}}
    volumes: {/data: {claim: footage, sub_path: raw}}
    image_pull_secrets: [pull]
    image_pull_policy: Always
    timeout_s: 7200
    retries: {count: 4, backoff_s: 30, factor: 1.5, longest_s: 600}
    labels: {team: research}
    annotations: {note: "a, b"}
""",
        )
    )
    task, container, config = tasks_in(stamp("train", environment).ir)["encode"]
    resources = container["resources"]
    assert (resources["resourceCpuRequest"], resources["resourceCpuLimit"]) == ("500m", "2")
    assert (resources["resourceMemoryRequest"], resources["resourceMemoryLimit"]) == ("8Gi", "16Gi")
    assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert resources["accelerator"]["resourceCount"] == "2"
    assert container["env"] == [{"name": "NCCL_DEBUG", "value": "INFO"}]
    assert config["emptyDirMounts"] == [
        {"volumeName": "shared-memory", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "4Gi"}
    ]
    assert config["nodeSelector"]["labels"] == {"svdflow/gpu": "a100"}
    assert config["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": "30"}
    ]
    required, preferred = config["nodeAffinity"]
    assert "weight" not in required and required["matchExpressions"][0]["values"] == ["a", "b"]
    assert preferred["weight"] == 10 and preferred["matchExpressions"][0]["operator"] == "NotIn"
    assert config["securityContext"] == {"runAsNonRoot": True, "runAsUser": "2000", "runAsGroup": "3000"}
    assert config["fieldPathAsEnv"] == [{"name": "POD", "fieldPath": "metadata.name"}]
    assert config["configMapAsEnv"][0]["keyToEnv"] == [{"configMapKey": "a", "envVar": "SETTING_A"}]
    assert config["secretAsEnv"][0]["secretName"] == "keys" and config["secretAsEnv"][0]["optional"] is True
    assert config["pvcMount"][0] | {"pvcNameParameter": None} == {
        "mountPath": "/data",
        "constant": "footage",
        "subPath": "raw",
        "pvcNameParameter": None,
    }
    assert config["imagePullSecret"][0]["secretName"] == "pull" and config["imagePullPolicy"] == "Always"
    assert config["activeDeadlineSeconds"] == "7200"
    assert task["retryPolicy"] == {
        "maxRetryCount": 4,
        "backoffDuration": "30s",
        "backoffFactor": 1.5,
        "backoffMaxDuration": "600s",
    }
    assert config["podMetadata"] == {"labels": {"team": "research"}, "annotations": {"note": "a, b"}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tasks: {trane: {}}", "tasks.trane: no pipeline has such a task"),
        ("tasks: {encode: 5}", "tasks.encode: is no mapping"),
        ("tasks: {encode: {gpus: 1}}", "tasks.encode.gpus: there is no such setting"),
        ("tasks: {encode: {memory: 5 GB}}", "tasks.encode.memory: '5 GB' is no size"),
        ("tasks: {encode: {shared_memory: 16GiB}}", "'16GiB' is no size"),
        ("tasks: {encode: {shared_memory: 1Gi}}", "shared_memory is part of the memory limit"),
        ("tasks: {encode: {memory_limit: 1Mi}}", "memory_limit is less than memory"),
        ("tasks: {encode: {cpu: many}}", "'many' is no number of processors"),
        ("tasks: {encode: {accelerator: [a, b]}}", "tasks.encode.accelerator"),
        ("tasks: {encode: {security_context: {user: 0}}}", "tasks.encode.security_context.user"),
        ("tasks: {encode: {timeout_s: 0}}", "tasks.encode.timeout_s"),
        ("tasks: {encode: {labels: {kueue.x-k8s.io/queue-name: a}}}", "belongs on the jobs"),
        ("tasks: {encode: {labels: {team: 'a b'}}}", "is no label value"),
        ("tasks: {encode: {env: {AWS_SECRET_ACCESS_KEY: x}}}", "AWS_SECRET_ACCESS_KEY: a secret does not stand in"),
        (
            "tasks: {train: {env: {SVDFLOW_TRAINJOB: '{que: research}'}}}",
            "SVDFLOW_TRAINJOB.que: there is no such setting",
        ),
        ("tasks: {train: {env: {SVDFLOW_TRAINJOB: '{labels: {team: a b}}'}}}", "SVDFLOW_TRAINJOB.labels.team"),
        ("tasks: {train: {env: {SVDFLOW_TRAINJOB: '{queue: Research}'}}}", "SVDFLOW_TRAINJOB.queue"),
        ("tasks: {split: {env: {SVDFLOW_FANOUT: '{labels: {team: %s}}'}}}" % ("x" * 64), "SVDFLOW_FANOUT.labels.team"),
        ("tasks: {train: {env: {SVDFLOW_TRAINJOB: 'research'}}}", "SVDFLOW_TRAINJOB: has to be a mapping"),
        ("tasks: {split: {env: {SVDFLOW_FANOUT: '{memory: 8GB}'}}}", "SVDFLOW_FANOUT.memory"),
        ("tasks: {encode: {env: {A: '1'}, fields: {A: metadata.name}}}", "A: set from more than one place"),
        ("tasks: {encode: {tolerations: [{operator: Exists, value: x}]}}", "takes no value"),
        ("tasks: {encode: {volumes: {work: {claim: a}}}}", "'work' is no absolute path"),
        ("namespace: Bad_Name", "namespace: 'Bad_Name' is no Kubernetes name"),
        ("endpoint: https://me:secret@kfp.example.com", "endpoint: String should match pattern"),
        ("images: {gpu: a}", "images.gpu"),
        ("colour: red", "colour: there is no such setting"),
        ("tasks: [1]", "defaults and tasks are mappings"),
    ],
)
def test_what_is_wrong_is_named(text, says, tmp_path):
    key = text.partition(":")[0]
    kept = "\n".join(line for line in SMALL.splitlines() if not line.startswith(f"{key}:"))
    with pytest.raises(ConfigError) as caught:
        load_environment(written(tmp_path, f"{kept}\n{text}\n"))
    assert "environment mine:" in str(caught.value) and says in str(caught.value)
    assert "secret@" not in str(caught.value)


def test_an_environment_of_ones_own_lies_on_a_shipped_one(tmp_path):
    mine = load_environment(written(tmp_path, "extends: dev\nendpoint: https://kfp.example.com\nnamespace: team-a\n"))
    dev = load_environment("dev")
    assert (mine.endpoint, mine.namespace) == ("https://kfp.example.com", "team-a")
    assert mine.tasks == dev.tasks and mine.images == dev.images
    path = tmp_path / "loop.yaml"
    path.write_text(f"extends: {path}\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_environment(str(path))
    with pytest.raises(ConfigError, match="neither a shipped one"):
        load_environment("elsewhere")


def test_tags_are_refused_where_digests_are_asked_for_and_only_images_that_the_pipeline_runs_are_needed():
    with pytest.raises(ConfigError) as caught:
        stamp("curation", load_environment("production"))
    assert "curation (svdflow/curation:0.1.0), pipeline (svdflow/pipeline:0.1.0)" in str(caught.value)
    assert "triton" not in str(caught.value)
    two = {name: DIGESTS[name] for name in ("pipeline", "curation")}
    assert stamp("curation", load_environment("production", two)).ir


def test_a_version_is_named_after_what_it_holds():
    production = load_environment("production", DIGESTS)
    once, again = stamp("curation", production), stamp("curation", production)
    assert once.ir == again.ir and once.version == again.version
    assert re.fullmatch(r"curation-[a-z0-9.]+-[0-9a-f]{12}", once.version) and len(once.version) <= 127
    assert once.version.endswith(once.sha256[:12])
    other = DIGESTS | {"curation": DIGESTS["training"]}
    assert stamp("curation", load_environment("production", other)).version != once.version
    assert once.revision not in once.ir
    assert once.tags["environment"] == "production" and once.tags["svdflow"] == own_version()
    assert once.revision in once.description
    assert all("." not in key for key in once.tags)


def test_the_revision_can_be_told_where_there_is_no_checkout(monkeypatch):
    monkeypatch.setenv("SVDFLOW_REVISION", "1a2b3c4")
    told = stamp("curation", load_environment("dev"))
    assert told.tags["revision"] == "1a2b3c4" and told.revision.endswith(" (1a2b3c4)")
    assert stamps.Stamped("curation", "dev", told.ir, "0.1.0").tags["revision"] == "unknown"


def test_compile_writes_what_would_be_sent(tmp_path):
    out = tmp_path / "sent.yaml"
    result = CliRunner().invoke(app, ["compile", "curation", "--env", "dev", "--out", str(out)])
    assert result.exit_code == 0 and out.read_text() == stamp("curation", load_environment("dev")).ir
    refused = CliRunner().invoke(app, ["compile", "--env", "dev"])
    assert isinstance(refused.exception, ConfigError), "the committed IR is not overwritten"


def test_every_task_of_every_pipeline_can_be_named():
    assert {"train", "train_video", "train_multi_view", "filter", "filter_clips", "report"} <= set(task_names())
    assert task_names()["filter"] == "filter_clips" and task_names()["train_video"] == "train"


def test_sizes_are_read_as_kubernetes_reads_them():
    assert (size_bytes("1"), size_bytes("2M"), size_bytes("1Ki"), size_bytes("16Gi")) == (1, 2 * 10**6, 1024, 2**34)
    for bad in ("", "0", "1K", "1k", "1.5Gi", "16GiB", "-1", "Gi", "1 Gi"):
        with pytest.raises(ValueError, match="is no size"):
            size_bytes(bad)


HEAVY = (
    "torch",
    "dvc",
    "great_expectations",
    "deepspeed",
    "diffusers",
    "transformers",
    "duckdb",
    "cv2",
    "scipy",
    "vtk",
)
ALONE = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY!r}))
from svdflow.pipelines.cluster.connect import environment_of
from svdflow.pipelines.cluster.submit import run_arguments
print(run_arguments("train", environment_of("dev", None, []), {{"stage": "image"}}, "paper", {{}})["workdir"])
"""


def test_submitting_needs_none_of_the_libraries_that_steps_need():
    """The image with the command line has none of them."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "/work/runs/train\n"), done.stderr


def test_what_is_sent_is_read_by_kfp_and_by_kfp_kubernetes_without_a_field_left_over():
    """Both parse strictly: a field that their protocols lack is an error."""
    ir = stamp("svd", load_environment("production", DIGESTS)).ir
    loaded = components.load_component_from_text(ir)
    assert loaded.pipeline_spec.pipeline_info.name == "svd"
    configs = kubernetes_configs(documents(ir)[1])
    assert len(configs) == 22
    for config in configs.values():
        parsed = json_format.ParseDict(config, KubernetesExecutorConfig())
        assert parsed.security_context.run_as_non_root and parsed.active_deadline_seconds > 0


def test_what_a_step_starts_runs_the_image_that_the_run_is_stamped_with():
    tasks = tasks_in(stamp("svd", load_environment("production", DIGESTS)).ir)
    for task, variable, image in (
        ("split", "SVDFLOW_FANOUT", "curation"),
        ("train-2", "SVDFLOW_TRAINJOB", "training"),
    ):
        (told,) = [entry["value"] for entry in tasks[task][1]["env"] if entry["name"] == variable]
        assert yaml.safe_load(told)["image"] == DIGESTS[image]


def test_a_variable_that_names_no_image_of_the_environment_is_refused(tmp_path):
    text = SMALL + "  env: {SVDFLOW_FANOUT: '{image: \"${image:films}\"}'}\n"
    with pytest.raises(ConfigError, match="images.films: there is none"):
        stamp("curation", load_environment(written(tmp_path, text)))
