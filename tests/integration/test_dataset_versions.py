"""Dataset versions with real git, real DVC and a real S3 server: what is registered comes back with plain tools."""

import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from svdflow.common.errors import BadInputError, StorageError
from svdflow.common.identity import file_md5
from svdflow.common.manifests import read_rows
from svdflow.common.object_store import EmbeddedStore
from svdflow.common.storage import DataRoot
from svdflow.common.storage_s3 import S3Root
from svdflow.curation.version.datasets import list_datasets, pull_dataset, show_dataset
from svdflow.curation.version.register import register_dataset
from svdflow.curation.version.settings import VersionSettings
from tests.dataset_bench import Bench, killed_and_run_again, register_and_die
from tests.dataset_manifests import make_manifests


def _dvc(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _files(directory: Path) -> dict[str, str]:
    return {p.relative_to(directory).as_posix(): file_md5(p) for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_plain_git_and_dvc_bring_every_version_back(bench, tmp_path):
    first = bench.register().summary["dataset"]
    second = bench.register(keep=6, caption="another").summary["dataset"]
    assert (first["tag"], first["clips"], first["shards"]) == ("demo@v1.0.0", 4, 2)
    assert (second["tag"], second["clips"], second["shards"]) == ("demo@v1.1.0", 6, 3)
    # one new shard, two changed manifests (clips and videos are the same), card, Croissant description and listing
    assert (second["objects_written"], second["objects_found"]) == (1 + 2 + 3, 2 + 2)

    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(bench.registry), str(clone)], check=True)
    _dvc("pull", "--quiet", cwd=clone)
    newest = _files(clone / "demo")
    manifests = [f"manifests/{kind}.parquet" for kind in ("annotations", "clips", "selection", "videos")]
    shards = [name for name in newest if name.startswith("shards/")]
    assert sorted(newest) == ["croissant.json", "dataset.json", *manifests, *shards]
    assert all(name == f"shards/{newest[name]}.tar" for name in shards)
    for row in read_rows(
        "clips", clone / "demo" / "manifests" / "clips.parquet"
    ):  # the offsets are those of the pulled shard
        shard = clone / "demo" / "shards" / f"{row['shard_uri'][10:].replace('/', '')}.tar"
        assert shard.read_bytes()[row["offset"] : row["offset"] + row["bytes"]] == bench.root.read_range(
            row["shard_uri"], row["offset"], row["bytes"]
        )
    card = json.loads((clone / "demo" / "dataset.json").read_text())
    assert card == json.loads((clone / "cards" / "demo.json").read_text()) and card["counts"]["clips"] == 6

    changed = json.loads(_dvc("diff", "--json", "demo@v1.0.0", "demo@v1.1.0", cwd=clone))
    added = {f"demo/{name}" for name in set(newest) - set(bench.listed("demo@v1.0.0"))}
    assert {entry["path"] for entry in changed["added"]} == added and len(added) == 1
    subprocess.run(["git", "checkout", "--quiet", "demo@v1.0.0"], cwd=clone, check=True)
    _dvc("pull", "--quiet", cwd=clone)
    assert len(_files(clone / "demo")) == 8 and _files(clone / "demo") == bench.listed("demo@v1.0.0")
    listed = _dvc("list", "--dvc-only", "-R", str(bench.registry), "demo", "--rev", "demo@v1.1.0", cwd=tmp_path).split()
    assert sorted(listed) == sorted(newest)
    assert bench.git("status", "--porcelain") == "" and bench.git("log", "-1", "--format=%an <%ae> %cn <%ce>") == \
        "svdflow <svdflow@localhost> svdflow <svdflow@localhost>"  # fmt: skip
    assert not (Path(os.environ["HOME"]) / ".gitconfig").exists()


def test_equal_content_finds_its_version(bench):
    bench.register()
    bench.register(keep=5)
    again = bench.register()
    dataset = again.summary["dataset"]
    assert (again.done, again.reused, dataset["tag"]) == (0, 1, "demo@v1.0.0")
    assert (dataset["objects_written"], dataset["objects_found"]) == (0, 2 + 4 + 3)
    assert dataset["revision"] == bench.git("rev-parse", "demo@v1.0.0^{commit}")
    assert bench.register(caption="other").summary["dataset"]["tag"] == "demo@v1.2.0"
    assert len(bench.git("tag").splitlines()) == 3  # compared with the newest, which keeps other clips


def test_a_version_heals_what_the_store_lost(bench):
    bench.register()
    remote = S3Root(bench.settings.remote)
    before = sorted(remote.list("files"))
    for uri in before:
        remote._client.remove_object(remote.bucket, remote._key(uri))
    report = bench.register()
    assert report.reused == 1 and report.summary["dataset"]["objects_written"] == len(before) == 9
    assert sorted(remote.list("files")) == before


def test_a_data_root_on_s3_is_the_remote_and_nothing_is_copied(bench, monkeypatch):
    root = DataRoot.open(bench.settings.remote)
    bench.settings = VersionSettings(name="demo")
    make_manifests(root, bench.directory / "m")
    monkeypatch.setattr(
        S3Root,
        "_write_file",
        lambda self, uri, path: pytest.fail(f"copied {path}") if path.suffix != ".parquet" else put(self, uri, path),
    )
    report = bench.register(root=root)
    assert report.summary["dataset"]["remote"] == root.location and report.summary["dataset"]["objects_found"] == 2


put = S3Root._write_file


def test_versions_are_listed_shown_and_pulled(bench, tmp_path, monkeypatch):
    bench.register()
    bench.register(caption="another", cut=0.3)
    versions = list_datasets(bench.registry)
    assert [(v.tag, v.clips, v.train, v.held_out, v.shards, v.latest) for v in versions] == [
        ("demo@v1.0.0", 4, 2, 2, 2, False), ("demo@v1.0.1", 4, 2, 2, 2, True),
    ]  # fmt: skip
    assert list_datasets(bench.registry, "nothing") == []
    for short, tag in (
        ("demo", "demo@v1.0.1"),
        ("demo@v1", "demo@v1.0.1"),
        ("demo@v1.0", "demo@v1.0.1"),
        ("demo@v1.0.0", "demo@v1.0.0"),
    ):
        assert show_dataset(bench.registry, short)["tag"] == tag
    for absent in ("demo@v2", "demo@v1.0.2", "other", "demo@v", ""):
        with pytest.raises(BadInputError, match="demo@v1.0.0, demo@v1.0.1"):
            show_dataset(bench.registry, absent)
    with pytest.raises(BadInputError, match="no dataset registry"):
        list_datasets(tmp_path / "nothing")

    monkeypatch.chdir(tmp_path)
    pulled = pull_dataset(Path("bench/registry"), "demo@v1.0.0", Path("pulled"), tmp_path / "store")
    assert pulled == tmp_path / "pulled" / "demo"
    assert _files(pulled) == bench.listed("demo@v1.0.0")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    with pytest.raises(BadInputError, match="name another destination"):
        pull_dataset(bench.registry, "demo", taken, tmp_path / "store")
    assert (taken / "mine").read_text() == "mine"


@pytest.mark.slow
def test_the_embedded_store_is_started_for_a_registration_and_for_a_pull(tmp_path, store, monkeypatch):
    for name in (
        "SVDFLOW_S3_ENDPOINT",
        "SVDFLOW_S3_BUCKET",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    ):
        monkeypatch.delenv(name)
    bench = Bench(tmp_path / "local")
    bench.settings = VersionSettings(name="demo")
    bench.register()
    directory = bench.directory / "store"
    assert (directory / "dependents").read_text() == f"{bench.registry}\n"
    secret = json.loads((directory / "credentials.json").read_text())["secret_key"]
    assert secret not in bench.git("log", "-p", "--all") and "127.0.0.1" in bench.git("show", "main:.dvc/config")
    pulled = pull_dataset(bench.registry, "demo@v1", tmp_path / "pulled", directory)
    assert len(_files(pulled)) == 8
    # what was pulled needs no store any more, and an incomplete pull is made whole
    (pulled / "dataset.json").unlink()
    assert (
        pull_dataset(bench.registry, "demo", tmp_path / "pulled", directory) == pulled
        and (pulled / "dataset.json").is_file()
    )
    assert EmbeddedStore(directory).ports_file.is_file()


@pytest.mark.slow
def test_a_kill_at_any_point_leaves_a_version_whole_or_not_there(tmp_path, store):
    """Before a write to the store or a git command the process is killed; the next run must end as if it had not been.

    A few points; all of them are in tests/benchmarks/test_register_kills.py.
    """
    undisturbed = Bench(tmp_path / "undisturbed")
    undisturbed.register(keep=2)
    steps = register_and_die(undisturbed, at=10_000)
    assert steps > 20
    for point in sorted({*range(1, steps, steps // 4), steps - 4, steps - 3, steps - 2, steps - 1, steps}):
        killed_and_run_again(tmp_path / f"kill{point}", point, undisturbed)


def test_locks_of_killed_git_processes_are_removed(bench):
    bench.register(keep=2)
    long_ago = time.time() - 60
    for name in ("index.lock", "refs/heads/main.lock"):
        (bench.registry / ".git" / name).touch()
        os.utime(bench.registry / ".git" / name, (long_ago, long_ago))
    assert bench.register(keep=4).summary["dataset"]["tag"] == "demo@v1.1.0"
    assert bench.git("status", "--porcelain") == ""


def test_local_edits_in_the_registry_are_kept_in_the_stash(bench):
    bench.register(keep=2)
    (bench.registry / "dvc.yaml").write_text("mine: true\n")
    (bench.registry / "notes.txt").write_text("untracked")
    bench.register(keep=4)
    assert (
        "mine: true" in bench.git("stash", "show", "-p") and (bench.registry / "notes.txt").read_text() == "untracked"
    )
    bench.git("checkout", "--quiet", "demo@v1.0.0")  # a user looks at an old version: it stays checked out
    bench.register(keep=5)
    assert bench.git("describe", "--tags", "--exact-match") == "demo@v1.0.0"
    assert bench.git("describe", "--tags", "main") == "demo@v1.2.0"


def test_registrations_at_once_from_two_machines_all_get_a_version_of_their_own(bench, tmp_path):
    origin = tmp_path / "registry.git"
    bench.settings = VersionSettings(name="demo", remote=bench.settings.remote, origin=str(origin))
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                bench.register(registry=tmp_path / f"machine{number % 2}", keep=2 + number)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    tags = bench.git("tag", cwd=origin).split()
    assert tags == ["demo@v1.0.0", "demo@v1.1.0", "demo@v1.2.0", "demo@v1.3.0"]
    cards = [json.loads(bench.git("show", f"{tag}:cards/demo.json", cwd=origin)) for tag in tags]
    assert sorted(card["counts"]["clips"] for card in cards) == [2, 3, 4, 5]
    assert (
        bench.git("rev-list", "--count", "main", cwd=origin)
        == "4"
        == bench.git("rev-list", "--count", "main", "--first-parent", cwd=origin)
    )
    third = bench.register(registry=tmp_path / "machine2", keep=3)  # a new machine knows what the others registered
    assert third.reused == 1


def test_versions_from_before_there_was_an_origin_are_pushed_and_a_fork_is_refused(bench, tmp_path):
    bench.register(keep=2)
    bench.settings = bench.settings.model_copy(update={"origin": str(tmp_path / "origin.git")})
    bench.register(keep=4)
    assert bench.git("tag", cwd=tmp_path / "origin.git").split() == ["demo@v1.0.0", "demo@v1.1.0"]
    with_origin, bench.settings = bench.settings, bench.settings.model_copy(update={"origin": ""})
    bench.register(registry=tmp_path / "lonely", keep=5)
    bench.settings = with_origin
    with pytest.raises(StorageError) as caught:
        bench.register(registry=tmp_path / "lonely", keep=5)
    assert "\n" not in str(caught.value) and str(tmp_path / "lonely") in str(caught.value)


def test_bad_inputs_are_named(bench, tmp_path):
    manifests = make_manifests(bench.root, tmp_path / "m")
    elsewhere = DataRoot.open(tmp_path / "another root")
    with pytest.raises(
        BadInputError, match=r"another root: 2 of 2 shards are not in the data root, such as files/md5/"
    ):
        register_dataset(
            *manifests.values(), tmp_path / "o.json", elsewhere, bench.registry, tmp_path / "s", bench.settings
        )
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    with pytest.raises(BadInputError, match="no git repository"):
        register_dataset(*manifests.values(), tmp_path / "o.json", bench.root, taken, tmp_path / "s", bench.settings)
    with pytest.raises(BadInputError, match="no place for a registry"):
        register_dataset(
            *manifests.values(), tmp_path / "o.json", bench.root, taken / "file", tmp_path / "s", bench.settings
        )
    assert not (tmp_path / "o.json").exists()
