"""The fake of the Kubeflow Pipelines API speaks the protocol: the kfp SDK's own client works with it unchanged."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import kfp
import kfp_server_api
import pytest

from svdflow.pipelines.registry import compiled_path
from tests.fakes.kfp_api import FakePipelines


@pytest.fixture
def fake() -> Iterator[FakePipelines]:
    with FakePipelines(token="let me in") as server:
        yield server


@pytest.fixture
def client(fake: FakePipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> kfp.Client:
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    warnings.simplefilter("ignore", FutureWarning)
    return kfp.Client(host=fake.url, namespace="svdflow", existing_token="let me in")


@pytest.fixture
def package(tmp_path: Path) -> str:
    path = tmp_path / "curation.yaml"
    path.write_text(compiled_path("curation").read_text())
    return str(path)


def started(client: kfp.Client, package: str) -> str:
    experiment = client.create_experiment("nightly", namespace="svdflow")
    pipeline = client.upload_pipeline(package, "curation", namespace="svdflow")
    version = client.upload_pipeline_version(package, "curation-1", pipeline_id=pipeline.pipeline_id)
    run = client.run_pipeline(
        experiment.experiment_id,
        "first",
        params={"workdir": "/work/runs/curation"},
        pipeline_id=pipeline.pipeline_id,
        version_id=version.pipeline_version_id,
        service_account="pipeline-runner",
    )
    return run.run_id


def test_the_sdk_uploads_finds_and_lists(client, package):
    pipeline = client.upload_pipeline(package, "curation", description="raw footage", namespace="svdflow")
    assert client.get_pipeline_id("curation") == pipeline.pipeline_id
    assert client.get_pipeline(pipeline.pipeline_id).description == "raw footage"
    version = client.upload_pipeline_version(package, "curation-2", pipeline_name="curation", description="second")
    listed = client.list_pipeline_versions(pipeline.pipeline_id, sort_by="created_at desc").pipeline_versions
    assert [each.display_name for each in listed] == ["curation-2", "curation"]
    found = client.get_pipeline_version(pipeline.pipeline_id, version.pipeline_version_id)
    assert found.pipeline_spec["pipelineInfo"]["name"] == "curation" and found.created_at.year == 2030


def test_the_sdk_is_told_what_exists_and_what_does_not(client, package):
    client.upload_pipeline(package, "curation", namespace="svdflow")
    with pytest.raises(kfp_server_api.ApiException) as twice:
        client.upload_pipeline(package, "curation", namespace="svdflow")
    assert twice.value.status == 409
    with pytest.raises(kfp_server_api.ApiException) as absent:
        client.get_run("no-such-run")
    assert absent.value.status == 404


def test_the_sdk_runs_waits_for_and_ends_runs(client, package, fake):
    run_id = started(client, package)
    fake.script(run_id, lambda: fake.at(run_id, "ingest", "RUNNING"), lambda: fake.end(run_id, "SUCCEEDED"))
    ended = client.wait_for_run_completion(run_id, timeout=600, sleep_duration=0.01)
    assert ended.state == "SUCCEEDED" and ended.service_account == "pipeline-runner"
    names = {detail.display_name for detail in ended.run_details.task_details}
    assert {"ingest", "ingest-driver", "executor", "executor(0)"} <= names
    other = started_again(client, fake)
    client.terminate_run(other)
    assert client.get_run(other).state == "CANCELING"
    assert client.get_run(other).state == "CANCELED"


def started_again(client: kfp.Client, fake: FakePipelines) -> str:
    first = next(iter(fake.runs.values())).body
    reference = first["pipeline_version_reference"]
    run = client.run_pipeline(
        first["experiment_id"],
        "second",
        params={"workdir": "/work/runs/curation"},
        pipeline_id=reference["pipeline_id"],
        version_id=reference["pipeline_version_id"],
    )
    return run.run_id


def test_the_sdk_pages_through_runs(client, package, fake):
    started(client, package)
    for _ in range(4):
        started_again(client, fake)
    first = client.list_runs(page_size=3, sort_by="created_at desc", namespace="svdflow")
    second = client.list_runs(
        page_size=3, page_token=first.next_page_token, sort_by="created_at desc", namespace="svdflow"
    )
    assert [run.display_name for run in (*first.runs, *second.runs)] == ["second"] * 4 + ["first"]
    assert first.total_size == 5 and not second.next_page_token
    assert client.list_runs(namespace="elsewhere").runs is None


def test_the_sdk_makes_pauses_and_removes_schedules(client, package, fake):
    started(client, package)
    reference = next(iter(fake.runs.values())).body["pipeline_version_reference"]
    experiment = next(iter(fake.experiments))
    made = client.create_recurring_run(
        experiment,
        "nightly",
        cron_expression="0 0 2 * * *",
        max_concurrency=1,
        no_catchup=True,
        params={"workdir": "/work/runs/curation"},
        pipeline_id=reference["pipeline_id"],
        version_id=reference["pipeline_version_id"],
    )
    assert client.get_recurring_run(made.recurring_run_id).status == "ENABLED"
    client.disable_recurring_run(made.recurring_run_id)
    assert client.get_recurring_run(made.recurring_run_id).status == "DISABLED"
    client.enable_recurring_run(made.recurring_run_id)
    assert len(client.list_recurring_runs().recurring_runs) == 1
    client.delete_recurring_run(made.recurring_run_id)
    assert client.list_recurring_runs().recurring_runs is None
    with pytest.raises(kfp_server_api.ApiException) as refused:
        client.create_recurring_run(
            experiment,
            "too many",
            interval_second=60,
            max_concurrency=11,
            params={"workdir": "/work/runs/curation"},
            pipeline_id=reference["pipeline_id"],
            version_id=reference["pipeline_version_id"],
        )
    assert refused.value.status == 400


def test_the_sdk_without_the_token_is_kept_out(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    stranger = kfp.Client(host=fake.url, namespace="svdflow", existing_token="guess")
    with pytest.raises(kfp_server_api.ApiException) as refused:
        stranger.list_runs()
    assert refused.value.status == 401
    fake.forbidden.add("GET /apis/v2beta1/runs$")
    fake.token = "guess"
    with pytest.raises(kfp_server_api.ApiException) as forbidden:
        stranger.list_runs()
    assert forbidden.value.status == 403
