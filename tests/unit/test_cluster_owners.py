"""Jobs with several owners: each run that wants a job keeps it, and the last to leave takes it along."""

import pytest

from svdflow.common.cluster.errors import NotThere
from svdflow.common.cluster.kinds import JOBS, TRAINJOBS, WORKFLOWS
from svdflow.common.cluster.names import job_name
from svdflow.common.cluster.owners import adopt, is_stopped, owners, release, release_all, this_workflow
from svdflow.common.errors import ConfigError
from tests.cluster_objects import NS, pod, train_job, workflow
from tests.fakes import kube_rules


def test_each_run_is_an_owner_and_the_last_to_leave_takes_the_job_along(api, cluster):
    one, two = workflow(api, "one"), workflow(api, "two")
    job = cluster.create(TRAINJOBS, train_job("t", one.reference()))
    job = adopt(cluster, TRAINJOBS, job, two)
    assert adopt(cluster, TRAINJOBS, job, two) == job
    assert [o["name"] for o in owners(job)] == ["one", "two"]
    assert not any(o.get("controller") or o.get("blockOwnerDeletion") for o in owners(job))
    assert release(cluster, TRAINJOBS, job, one) == "kept"
    assert [o["name"] for o in owners(cluster.get(TRAINJOBS, "t"))] == ["two"]
    assert release(cluster, TRAINJOBS, job, two) == "deleted", "what was read before has changed: it is read anew"
    assert release(cluster, TRAINJOBS, job, two) in ("gone", "deleted")
    assert api.store.objects(kube_rules.TRAINJOBS) == []


def test_a_run_that_adopts_while_another_leaves_keeps_the_job(api, cluster, monkeypatch):
    one, two = workflow(api, "one"), workflow(api, "two")
    job = cluster.create(TRAINJOBS, train_job("t", one.reference()))
    delete = cluster.delete

    def after_adoption(kind, obj, exactly=False):
        monkeypatch.setattr(cluster, "delete", delete)
        adopt(cluster, TRAINJOBS, cluster.get(TRAINJOBS, "t"), two)
        delete(kind, obj, exactly)

    monkeypatch.setattr(cluster, "delete", after_adoption)
    assert release(cluster, TRAINJOBS, job, one) == "kept"
    assert [o["name"] for o in owners(cluster.get(TRAINJOBS, "t"))] == ["two"]


def test_deleting_a_workflow_leaves_the_job_to_the_other(api, cluster):
    one, two = workflow(api, "one"), workflow(api, "two")
    adopt(cluster, TRAINJOBS, cluster.create(TRAINJOBS, train_job("t", one.reference())), two)
    api.store.delete(kube_rules.WORKFLOWS, NS, "one")
    assert [o["name"] for o in owners(cluster.get(TRAINJOBS, "t"))] == ["two"]
    api.store.delete(kube_rules.WORKFLOWS, NS, "two")
    with pytest.raises(NotThere):
        cluster.get(TRAINJOBS, "t")


def test_stopping_a_run_leaves_all_its_jobs(api, cluster):
    one, two = workflow(api, "one"), workflow(api, "two")
    for name, references in (("mine", [one]), ("both", [one, two]), ("other", [two])):
        cluster.create(TRAINJOBS, train_job(name, *(w.reference() for w in references)))
    spec = {"completionMode": "Indexed", "completions": 1, "parallelism": 1}
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "m", "image": "i:1"}]}}
    meta = train_job("fan", one.reference())["metadata"]
    cluster.create(JOBS, {"metadata": meta, "spec": {**spec, "template": template}})
    assert release_all(cluster, "one") == {"TrainJob mine": "deleted", "TrainJob both": "kept", "Job fan": "deleted"}
    assert {j["metadata"]["name"] for j in cluster.list(TRAINJOBS)} == {"both", "other"}


def test_the_workflow_of_a_step_is_its_pods_owner(api, cluster, monkeypatch):
    one = workflow(api, "one")
    step = pod("run-abc-step-1")
    step["metadata"]["ownerReferences"] = [{**one.reference(), "controller": True}]
    api.store.create(kube_rules.PODS, NS, step)
    monkeypatch.setenv("KFP_POD_NAME", "run-abc-step-1")
    assert this_workflow(cluster) == one
    monkeypatch.setenv("KFP_POD_NAME", "none")
    assert this_workflow(cluster) is None
    assert not is_stopped(cluster, one)
    cluster.patch(WORKFLOWS, "one", {"spec": {"activeDeadlineSeconds": 0}})
    assert is_stopped(cluster, one), "as Kubeflow Pipelines stops a run"
    cluster.patch(WORKFLOWS, "one", {"spec": {"activeDeadlineSeconds": None, "shutdown": "Terminate"}})
    assert is_stopped(cluster, one), "as Argo stops a workflow"
    api.store.delete(kube_rules.WORKFLOWS, NS, "one")
    assert is_stopped(cluster, one)


def test_names_hold_what_children_add_to_them():
    key = "0123456789abcdef0123456789abcdef"
    name = job_name("train-image_to_video", key, 12)
    assert name == "train-image-to-video-0123456789abcdef-12"
    longest = job_name("train-image_to-video", key, 9999)
    for child in ("node-0-127-abcde", "launcher-0-0-abcde"):
        assert len(f"{longest}-{child}") <= 63
    with pytest.raises(ConfigError, match="no name for a job"):
        job_name("Train", key)
