"""`svdflow submit` and `svdflow schedule`, as commands against the API's fake."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.pipelines.cli import app
from svdflow.pipelines.cluster import stamp as stamps
from svdflow.pipelines.cluster.client import NoAnswer, Refused
from svdflow.pipelines.cluster.environment import Environment
from svdflow.pipelines.registry import compiled_path
from tests.fakes.kfp_api import FakePipelines
from tests.integration.kfp_runs import TOKEN, environment_file, submitted, svdflow

_STAMPED: dict[tuple[str, str], stamps.Stamped] = {}


@pytest.fixture
def fake() -> Iterator[FakePipelines]:
    with FakePipelines(token=TOKEN) as server:
        yield server


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes most of a command's time: equal pipelines for equal environments are compiled once here."""
    real = stamps.stamp

    def stamp(pipeline: str, environment: Environment) -> stamps.Stamped:
        key = (pipeline, environment.model_dump_json(exclude={"endpoint"}))  # the fake's port is in no IR
        if key not in _STAMPED:
            _STAMPED[key] = real(pipeline, environment)
        return _STAMPED[key]

    monkeypatch.setattr(stamps, "stamp", stamp)


@pytest.fixture
def env(tmp_path: Path, fake: FakePipelines) -> str:
    return environment_file(
        tmp_path, fake, "images: {curation: 'registry.example.com/curation@sha256:%s'}\n" % ("a" * 64)
    )


def test_submit_uploads_once_and_starts_a_run_with_checked_parameters(fake, env):
    first = submitted(env, "--set", "filter.motion_percent=25", "--workdir", "/work/runs/mine", "--name", "nightly")
    second = submitted(env)
    assert len(fake.versions) == 1 and len(fake.pipelines) == 1 and {first, second} == set(fake.runs)
    body = fake.runs[first].body
    assert body["runtime_config"]["parameters"] == {
        "workdir": "/work/runs/mine",
        "source": "s3://svdflow/raw",
        "profile": "paper",
        "overrides": {"filter.motion_percent": 25},
    }
    assert fake.runs[second].body["runtime_config"]["parameters"]["workdir"] == "/work/runs/curation"
    assert body["service_account"] == "pipeline-runner" and body["display_name"].startswith("nightly 20")
    assert fake.experiments[body["experiment_id"]]["namespace"] == "svdflow"
    version = next(iter(fake.versions.values()))
    assert version["tags"]["revision"] in body["description"] and version["name"] in body["description"]
    executors = version["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"].values()
    images = {executor["container"]["image"] for executor in executors}
    assert f"registry.example.com/curation@sha256:{'a' * 64}" in images


def test_the_token_is_in_no_upload_no_parameter_and_no_output(fake, env):
    submitted(env)
    result = svdflow("runs", "list", "--env", env)
    kept = json.dumps([list(fake.versions.values()), [run.body for run in fake.runs.values()]])
    assert TOKEN not in kept + result.output
    assert all(TOKEN not in json.dumps(query) for _, query, _ in fake.asked)
    assert all(headers["authorization"] == f"Bearer {TOKEN}" for _, _, headers in fake.asked)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["svd", "--source", "/home/me/videos"], ConfigError, "not the paths of this machine"),
        (["curation", "--source", "/work/../etc"], ConfigError, "not the paths of this machine"),
        (["curation", "--dataset", "demo@v1"], ConfigError, "takes no --dataset"),
        (["curation", "--workdir", "s3://bucket/run"], ConfigError, "lies on the work volume"),
        (["curation", "--set", "filter.nonsense=1"], ConfigError, "filter.nonsense"),
        (["curation", "--profile", "unknown"], ConfigError, "neither a shipped one"),
        (["curation", "--set", f"version.note={'x' * 10_000}"], ConfigError, "note"),
        (["train"], ConfigError, "needs --stage"),
        (["train", "--stage", "video"], ConfigError, "starts from a model"),
        (["train", "--stage", "interpolation"], ConfigError, "starts from a model"),
        (["train", "--stage", "multi_view"], ConfigError, "the pipeline svd renders"),
        (["interpolation"], ConfigError, "needs --init"),
        (["train", "--stage", "image", "--profile", "/work/p.yaml"], ConfigError, "name a file of this machine"),
        (["nonsense"], ConfigError, "no pipeline 'nonsense'"),
        (["curation", "--name", "x" * 128], ConfigError, "128 characters"),
        (["curation", "--image", "gpu=x"], ConfigError, "images are pipeline, curation"),
        (["curation", "--image", "curation"], ConfigError, "write it as curation="),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_sent(fake, env, arguments, error, says):
    result = svdflow("submit", *arguments, "--env", env)
    assert isinstance(result.exception, error) and says in str(result.exception)
    assert fake.asked == []


def test_too_many_settings_are_refused_before_anything_is_sent(fake, env, tmp_path):
    texts = [word for n in range(400) for word in ("--set", f"ingest.licences.name{n:04}=a licence with a long name")]
    result = svdflow("submit", "curation", "--env", env, *texts)
    assert isinstance(result.exception, ConfigError) and fake.asked == []


def test_a_profile_of_this_machine_travels_as_what_it_changes(fake, env, tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text("extends: local\nfilter: {motion_percent: 33}\n")
    run_id = submitted(env, "--profile", str(profile), "--set", "split.detect_width_px=96")
    parameters = fake.runs[run_id].body["runtime_config"]["parameters"]
    assert parameters["profile"] == "local"
    assert parameters["overrides"] == {"filter.motion_percent": 33, "split.detect_width_px": 96}
    profile.write_text("filter: {motion_percent: 33}\n")
    result = svdflow("submit", "curation", "--env", env, "--profile", str(profile))
    assert isinstance(result.exception, ConfigError) and "let it extend a shipped profile" in str(result.exception)
    profile.write_text("extends: local\nfilter: 5\n")
    result = svdflow("submit", "curation", "--env", env, "--profile", str(profile))
    assert isinstance(result.exception, ConfigError) and "filter is no mapping" in str(result.exception)
    assert fake.runs[submitted(env, "--profile", "/work/p.yaml")].body["runtime_config"]["parameters"]["profile"]


@pytest.mark.parametrize("pipeline", [("train", "--stage", "image_to_video"), ("interpolation",)], ids=lambda p: p[0])
def test_a_stage_is_sent_with_the_size_of_its_samples(fake, env, pipeline):
    result = svdflow("submit", *pipeline, "--env", env, "--init", "/work/models/video")
    assert result.exit_code == 0, result.exception
    parameters = next(iter(fake.runs.values())).body["runtime_config"]["parameters"]
    assert parameters["overrides"]["encode.height"] == 576 and parameters["overrides"]["encode.width"] == 1024
    assert parameters["overrides"]["encode.frames"] == (14 if pipeline[0] == "train" else 5)
    assert parameters["init"] == "/work/models/video"


def test_images_may_come_from_a_file_that_a_build_wrote(fake, env, tmp_path):
    written = tmp_path / "images.json"
    written.write_text(json.dumps({"pipeline": f"registry/pipeline@sha256:{'b' * 64}"}))
    submitted(env, "--images", str(written))
    assert "registry/pipeline@sha256:bbbb" in json.dumps(list(fake.versions.values()))
    written.write_text("- a\n")
    assert isinstance(svdflow("submit", "curation", "--env", env, "--images", str(written)).exception, ConfigError)


def test_upload_only_starts_nothing(fake, env):
    result = svdflow("submit", "curation", "--env", env, "--upload-only")
    assert result.exit_code == 0 and "uploaded" in result.output
    assert len(fake.versions) == 1 and fake.runs == {}
    assert "was there" in svdflow("submit", "curation", "--env", env, "--upload-only").output


def test_a_command_that_the_server_refuses_says_so_in_one_line(fake, env):
    fake.forbidden.add("POST /apis/v2beta1/runs$")
    result = svdflow("submit", "curation", "--env", env)
    assert isinstance(result.exception, Refused) and "(403)" in str(result.exception)
    assert "\n" not in str(result.exception)


def scheduled(env: str, *arguments: str):
    return svdflow("schedule", "create", *arguments, "--env", env, "--source", "s3://svdflow/raw")


def test_a_schedule_runs_one_at_a_time_and_makes_up_for_nothing_unless_told(fake, env):
    result = scheduled(env, "nightly", "curation", "--cron", "0 2 * * *")
    assert result.exit_code == 0, result.exception
    made = next(iter(fake.schedules.values()))
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * *"}}
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == ("1", True, "ENABLE")
    assert made["service_account"] == "pipeline-runner"
    assert made["runtime_config"]["parameters"]["source"] == "s3://svdflow/raw"
    assert made["pipeline_version_reference"]["pipeline_version_id"] in fake.versions


def test_a_schedule_by_interval_takes_all_that_it_is_told(fake, env):
    times = ("--start", "2031-01-01T00:00:00+00:00", "--end", "2032-01-01T00:00:00+00:00")
    result = scheduled(
        env, "often", "curation", "--every", "6h", "--concurrency", "3", "--catch-up", "--paused", *times
    )
    assert result.exit_code == 0, result.exception
    made = next(iter(fake.schedules.values()))
    assert made["trigger"]["periodic_schedule"] == {
        "interval_second": "21600",
        "start_time": "2031-01-01T00:00:00+00:00",
        "end_time": "2032-01-01T00:00:00+00:00",
    }
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == ("3", False, "DISABLE")


def test_schedules_are_listed_paused_resumed_and_deleted_by_name(fake, env):
    scheduled(env, "nightly", "curation", "--cron", "@daily")
    listed = svdflow("schedule", "list", "--env", env).output
    assert "nightly" in listed and "cron @daily" in listed and "enabled" in listed
    made = next(iter(fake.schedules.values()))
    assert svdflow("schedule", "pause", "nightly", "--env", env).exit_code == 0 and made["status"] == "DISABLED"
    assert "disabled" in svdflow("schedule", "list", "--env", env).output
    assert svdflow("schedule", "resume", "nightly", "--env", env).exit_code == 0 and made["status"] == "ENABLED"
    assert svdflow("schedule", "delete", made["recurring_run_id"], "--env", env).exit_code == 0
    assert fake.schedules == {}
    result = svdflow("schedule", "pause", "nightly", "--env", env)
    assert isinstance(result.exception, BadInputError) and "no schedule has this name" in str(result.exception)


def test_a_second_schedule_of_a_name_replaces_the_first_or_is_refused(fake, env):
    scheduled(env, "nightly", "curation", "--every", "1d")
    old = next(iter(fake.schedules))
    refused = scheduled(env, "nightly", "curation", "--every", "2h")
    assert isinstance(refused.exception, BadInputError) and list(fake.schedules) == [old]
    assert scheduled(env, "nightly", "curation", "--every", "2h", "--replace").exit_code == 0
    (only,) = fake.schedules.values()
    assert only["recurring_run_id"] != old and only["trigger"]["periodic_schedule"]["interval_second"] == "7200"


def test_a_replacement_that_fails_leaves_the_old_schedule_at_work(fake, env):
    scheduled(env, "nightly", "curation", "--every", "1d")
    fake.fault("POST /apis/v2beta1/recurringruns$", "400")
    result = scheduled(env, "nightly", "curation", "--every", "2h", "--replace")
    assert isinstance(result.exception, Refused)
    (only,) = fake.schedules.values()
    assert only["status"] == "ENABLED" and only["trigger"]["periodic_schedule"]["interval_second"] == "86400"


def test_a_schedule_whose_answers_are_lost_is_made_and_deleted_once(fake, env):
    fake.fault("POST /apis/v2beta1/recurringruns$", "lose")
    assert scheduled(env, "nightly", "curation", "--every", "1d").exit_code == 0
    assert len(fake.schedules) == 1
    fake.fault("DELETE", "lose")
    assert svdflow("schedule", "delete", "nightly", "--env", env).exit_code == 0 and fake.schedules == {}


def test_a_lost_creation_is_not_taken_for_done(fake, env):
    fake.fault("POST /apis/v2beta1/recurringruns$", "drop")
    result = scheduled(env, "nightly", "curation", "--every", "1d")
    assert isinstance(result.exception, NoAnswer) and fake.schedules == {}


# what the READMEs tell to type

REPOSITORY = Path(__file__).resolve().parents[2]


def commands_in(readme: str) -> list[list[str]]:
    """The words after `svdflow` of every command in a README's blocks of code; what is left open has no answer here."""
    found = []
    for line in re.findall(r"^    +(.*)$", (REPOSITORY / readme).read_text(), re.M):
        told = re.search(r"(?:^|-- |^\d+ +)svdflow ([a-z].*)$", re.sub(r"\s+#.*", "", line))
        if told and not re.search(r"[|…\[]|\b[A-Z]{3,}\b", told[1]):
            found.append(shlex.split(told[1]))
    return found


@pytest.mark.parametrize("readme", ["infra/README.md", "pipelines/README.md"])
def test_every_command_of_a_readme_is_one(readme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").touch()
    (tmp_path / "token").touch()
    found = commands_in(readme)
    assert len(found) > 3
    for words in found:
        context = get_command(app).make_context("svdflow", list(words))  # refuses an unknown command or option
        while context.command is not None and hasattr(context.command, "resolve_command"):
            _, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
            context = command.make_context(command.name, rest, parent=context)


def test_from_an_empty_cluster_to_a_served_model_takes_at_most_ten_commands_and_those_of_ours_work(fake, monkeypatch):
    committed = lambda name, env: stamps.Stamped(name, env.name, compiled_path(name).read_text(), "0")  # noqa: E731
    monkeypatch.setattr(stamps, "stamp", committed)  # that it compiles for this environment is tested elsewhere
    text = (REPOSITORY / "infra/README.md").read_text().partition("## From Kubeflow to a served model")[2]
    steps = re.findall(r"^    (\d+) +(.*)$", text.partition("\n## ")[0], re.M)
    assert 0 < len(steps) <= 10 and [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    for _, command in steps:
        if place := re.search(r"kubectl apply -k (\S+)", command):
            assert (REPOSITORY / place[1] / "kustomization.yaml").is_file()
        if told := re.search(r"-- svdflow (.*)", command):
            # as at the console: with its token, and where Kubeflow Pipelines is there
            result = svdflow(*shlex.split(told[1]), SVDFLOW_KFP_ENDPOINT=fake.url)
            assert result.exit_code == 0, (command, result.output, result.exception)
    assert len(fake.runs) == 1 and len(fake.schedules) == 1
    (run,) = fake.runs.values()
    given = run.body["runtime_config"]["parameters"]
    assert given["source"] == "s3://svdflow/raw"
    (published,) = yaml.safe_load((REPOSITORY / "infra/jobs/publish-release/kustomization.yaml").read_text())[
        "configMapGenerator"
    ]
    told = dict(each.split("=") for each in published["literals"])
    assert given["workdir"] == f"/work/{told['RUN']}", "what is published is what the run has made"
    releases = (REPOSITORY / "infra/overlays/dev/releases.yaml").read_text()
    assert set(re.findall(r'svdflow/release: "(.*?)"', releases)) == {told["RELEASE"]}, "and what is served"
