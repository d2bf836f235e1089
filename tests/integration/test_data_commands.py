"""`svdflow data …` as a data owner types it, on an embedded store."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from svdflow.common.errors import BadInputError, StorageError, ValidationFailed
from svdflow.common.manifests import read_rows, write_manifest
from svdflow.common.object_store import EmbeddedStore
from svdflow.common.storage import DataRoot
from svdflow.curation.version import claims
from svdflow.evaluation.study.create import create_study
from svdflow.evaluation.study.settings import StudySettings
from svdflow.evaluation.study.study import open_study, save_study
from svdflow.pipelines.cli import app
from svdflow.pipelines.local.run import _locked
from tests.dataset_bench import in_one_shard
from tests.dataset_manifests import make_manifests
from tests.study_votes import a_video

pytestmark = pytest.mark.slow

# what the small manifests of these tests are not like real ones in
MADE_UP = [
    "video id is a sha256",
    "a usable video has all its figures",
    "clip id is an identity",
    "clips of a video do not overlap",
    "an axis fails on the wrong side of its cut alone",
]


@pytest.fixture
def work(tmp_path, store, monkeypatch):
    """A work directory after a run, its embedded store held open, as by another process."""
    for name in [name for name in os.environ if name.startswith(("SVDFLOW_S3", "AWS_"))]:
        monkeypatch.delenv(name)
    work = tmp_path / "run"
    root = DataRoot.open(work / "data")
    make_manifests(root, work / "manifests", keep=4)
    settings = {"version": {"name": "demo"}, "validate": {"only_warn": MADE_UP}}
    (work / "settings.yaml").write_text(json.dumps(settings))
    with EmbeddedStore(work / "store"):
        yield work


def data(work: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["data", *arguments, "-w", str(work)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def a_study_of_its_videos(work: Path, folder: Path) -> Path:
    """Somewhere else; of one of its two items nothing tells what it was made from."""
    sets = {name: work / "generated" / name for name in ("ours", "theirs")}
    for number, place in enumerate(sets.values()):
        for item in ("a", "b"):
            a_video(place / f"{item}.mp4", 30 * number + 5 * (item == "a"))
    made = create_study(folder, sets, StudySettings())
    of_video1 = replace(made.items[0], sources=("video1",))
    save_study(replace(made, items=(of_video1, made.items[1])), folder)
    return folder


def test_the_whole_round(work, tmp_path):
    assert "demo@v1.0.0 is new: 4 clips in 2 shards" in data(work, "register", "--note", "the first cut")
    assert "demo@v1.0.0 has this content already" in data(work, "register")
    more = make_manifests(DataRoot.open(work / "data"), tmp_path / "more", keep=6)
    in_one_shard(DataRoot.open(work / "data"), more)
    assert "demo@v1.1.0 is new" in data(work, "register", "--manifests", str(tmp_path / "more"))
    listed = data(work, "list").splitlines()
    assert [line.split()[:4] for line in listed[1:]] == [["demo@v1.0.0", "4", "2", "2"], ["demo@v1.1.0", "6", "4", "2"]]
    assert data(work, "list", "demo").splitlines() == listed
    with pytest.raises(BadInputError, match=r"no dataset version 'deno'; there are: demo@v1\.0\.0, demo@v1\.1\.0"):
        data(work, "list", "deno")
    shown = data(work, "show", "demo@v1.0.0")
    assert "From: the first cut" in shown and "Registered-by: " in shown and "Code: svdflow 0." in shown
    assert json.loads(data(work, "show", "demo", "--croissant"))["version"] == "1.1.0"

    told = data(work, "diff", "demo@v1.0.0", "demo")
    assert told.startswith("demo@v1.0.0 → demo@v1.1.0: 4 clips in both, 2 added, 0 dropped")
    assert "dropped from the old one for motion" in told and "clip020 clip021" in told
    shift = next(line for line in told.splitlines() if " shift " in line)
    assert shift.split()[:3] == ["shift", "+1", "+0.1"]  # the mean of 1 to 4 against that of 1 to 6; the 5th percentile
    assert json.loads(data(work, "diff", "demo@v1.0.0", "demo", "--json"))["added"] == {"motion": 2}

    assert data(work, "rollback", "demo@v1.0.0") == "demo@v1.2.0 has the content of demo@v1.0.0\n"
    out = tmp_path / "out"
    assert "4 clips of demo@v1.2.0 in 2 shards" in data(work, "export", "demo", str(out))
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=out, check=False).returncode == 0

    study = a_study_of_its_videos(work, tmp_path / "study")
    with pytest.raises(BadInputError, match="cannot be undone; run it again with --yes"):
        data(work, "forget", "video1")
    elsewhere = claims.adding(DataRoot.open(work / "data"), "running svd in /elsewhere")
    with elsewhere, pytest.raises(StorageError, match="is running svd in /elsewhere now"):
        data(work, "forget", "video1", "--yes")
    told = data(work, "forget", "video1", "--yes", "--reason", "asked for")
    assert "video1 left 3 versions" in told and "forgotten/video1.json" in told
    assert f"{study}: 1 of the 2 videos compared left it" in told
    assert "of 1 it is not known what they were made from: b" in told
    assert [item.name for item in open_study(study).items] == ["", "b"]
    assert [line.split()[1] for line in data(work, "list").splitlines()[1:]] == ["2", "4", "2"]

    root = DataRoot.open(work / "data")
    stray = root.put_bytes(b"stray")
    told = data(work, "gc", "--grace-days", "0")
    assert stray in told and "nothing was removed; run it again with --remove" in told and root.exists(stray)
    with _locked(work):
        assert stray not in data(work, "gc", "--grace-days", "0", "--remove") and root.exists(stray)
    data(work, "gc", "--grace-days", "0", "--remove")
    assert not root.exists(stray)
    pulled = data(work, "pull", "demo@v1.1.0", str(tmp_path / "pulled"))
    assert pulled.startswith(f"{tmp_path}/pulled/demo: 1 shards")


def test_what_breaks_a_hard_expectation_is_not_registered(work, tmp_path):
    """Content that no run has validated: a selection by hand whose video is on both sides."""
    rows = read_rows("selection", work / "manifests" / "selection.parquet")
    kept = [row for row in rows if row["keep"]]
    assert kept[2]["video_id"] == kept[3]["video_id"] and kept[2]["split"] == "train"
    kept[2]["split"] = "held_out"
    write_manifest("selection", rows, tmp_path / "mine.parquet")
    with pytest.raises(
        ValidationFailed, match=r"^not registered: 1 hard .* selection: no video is in both splits \(1 row"
    ):
        data(work, "register", "--selection", str(tmp_path / "mine.parquet"))
    assert not (work / "registry").exists()
    (failing,) = (work / "validation_register_failing_rows.jsonl").read_text().splitlines()[-1:]
    assert "no video is in both splits" in (work / "validation_register.html").read_text() and json.loads(failing)
    told = data(work, "register")
    assert "demo@v1.0.0 is new" in told and "soft expectations are broken, which does not stop it" in told


def test_every_command_explains_itself():
    for command in ("register", "list", "show", "diff", "pull", "rollback", "export", "forget", "gc", "store"):
        told = subprocess.run(
            [sys.executable, "-m", "svdflow.pipelines.cli", "data", command, "--help"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "--workdir" in told and len(told.splitlines()) > 8


def test_the_store_is_served_to_other_clients_with_the_keys_it_names(work, monkeypatch):
    import boto3

    data(work, "register")
    command = [sys.executable, "-m", "svdflow.pipelines.cli", "data", "store", "-w", str(work)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        told = [serving.stdout.readline() for _ in range(3)]
        url = re.search(r"http://127\.0\.0\.1:\d+", told[0])[0]
        (assignment,) = shlex.split(told[1])[1:]
        name, keys = assignment.split("=", 1)
        monkeypatch.setenv(name, keys)
        assert Path(keys).stat().st_mode & 0o777 == 0o600
        listed = boto3.client("s3", endpoint_url=url).list_objects_v2(Bucket="svdflow", Prefix="datasets/")
        assert any(entry["Key"].endswith(".dir") for entry in listed["Contents"])
        serving.send_signal(signal.SIGINT)
        assert serving.wait(120) == 0
