"""Fan-out over pods, following what a real API server with real Job and Kueue controllers showed of Indexed Jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from svdflow.common.cluster.api import Cluster
from svdflow.common.errors import ConfigError, ServiceError
from svdflow.common.fanout import Limits, Outcome
from svdflow.common.fanout_jobs import IndexedJobs
from svdflow.common.fanout_manifest import PLAN_NOTE, FanoutSettings
from svdflow.common.fanout_plan import read_plan
from svdflow.common.fanout_worker import run_index
from svdflow.common.storage import DataRoot
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_replay import replaying
from tests.fanout_work import Task, square, squares_together

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "transcripts"
pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"{RECORDINGS} with the recordings is not there")


class Followed:
    """A fan-out of one unit a pod that is told the recorded states of another Job."""

    def __init__(self, folder: Path, recording: str, job: str, indexes: int, done: set[int], **settings: Any) -> None:
        self.root = DataRoot.open(folder / "data")
        self.outcomes: list[Outcome] = []
        self._recording, self._job, self._done = recording, job, done
        self._tasks = [Task(number, "a", str(folder)) for number in range(indexes)]
        given = {"image": "a:1", "claim": "work", "claim_path": str(folder), "units": 1, "memory": "256Mi"} | settings
        self._settings = FanoutSettings(**given)

    def run(self) -> dict[int, str | None]:
        """Units to why they failed."""
        root, done = self.root, self._done

        class WithPods(Cluster):
            """What the pods do that the recording shows as completed, before it shows that."""

            def create(self, kind: Any, obj: dict[str, Any]) -> dict[str, Any]:
                plan = read_plan(root, obj["metadata"]["annotations"][PLAN_NOTE])
                assert plan is not None and plan.indexes == obj["spec"]["completions"]
                for index in done:
                    run_index(root, plan, index)
                return super().create(kind, obj)

        with KubeAPI() as api:
            executor = IndexedJobs(
                root, "recorded", "key", self._settings, squares_together,
                lambda: WithPods(api.configuration, "svdflow", patience_s=120), look_s=0.05,
            )  # fmt: skip
            with replaying(api.store, RECORDINGS / f"indexed_job_{self._recording}.jsonl", self._job, "Job", speed=30):
                for outcome in executor.run(square, self._tasks, None, Limits(300)):
                    assert not outcome.ok or outcome.value.square == outcome.unit.number**2
                    self.outcomes.append(outcome)
        return {outcome.unit.number: outcome.error for outcome in self.outcomes}


@pytest.fixture(autouse=True)
def let_in(monkeypatch):
    monkeypatch.setenv("SVDFLOW_FANOUT_PACKAGES", "tests")


def test_all_complete(tmp_path):
    assert Followed(tmp_path, "complete", "encode", 6, set(range(6))).run() == dict.fromkeys(range(6))


def test_a_failed_index_comes_back_as_set_aside_although_the_job_itself_failed(tmp_path):
    found = Followed(tmp_path, "partial", "caption", 6, {0, 1, 2, 4, 5}, max_failed_percent=34).run()
    assert found == {**dict.fromkeys(range(6)), 3: "its pod ended with status 1"}


def test_a_pod_out_of_memory_is_told_so(tmp_path):
    found = Followed(tmp_path, "oomkilled", "oom", 3, {0, 2}).run()
    assert found == {0: None, 1: "its pod took more than its 256Mi of memory (OOMKilled)", 2: None}


def test_an_evicted_pod_is_no_failure_and_one_that_fails_its_index_is(tmp_path):
    found = Followed(tmp_path, "pod_failure_policy", "split", 6, {0, 1, 3, 4, 5}).run()
    assert found == {**dict.fromkeys(range(6)), 2: "its pod ended with status 42"}


def test_more_failed_indexes_than_allowed_fail_the_step(tmp_path):
    followed = Followed(tmp_path, "max_failed", "filter", 6, {0}, max_failed_percent=34)
    with pytest.raises(ServiceError, match="exceeded the specified maximal number of failed indexes; its pod ended"):
        followed.run()
    assert [outcome.unit.number for outcome in followed.outcomes if outcome.ok] == [0]


def test_a_pod_that_says_that_no_pod_can_do_it_fails_the_step(tmp_path):
    with pytest.raises(ConfigError, match="exit code 43 matching FailJob rule"):
        Followed(tmp_path, "failjob", "annotate", 6, {0}).run()


def test_a_deadline_sets_aside_what_is_not_done(tmp_path):
    found = Followed(tmp_path, "deadline", "slow", 2, set(), max_failed_percent=100).run()
    assert found == dict.fromkeys(range(2), "the fan-out's deadline was over")


def test_a_wait_for_quota_is_told_in_the_queue_s_words_and_goes_by(tmp_path, capsys):
    found = Followed(tmp_path, "quota_wait", "wave-2", 6, set(range(6))).run()
    assert found == dict.fromkeys(range(6))
    assert "waits in queue fan-out: couldn't assign flavors" in capsys.readouterr().err
