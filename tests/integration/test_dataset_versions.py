"""Dataset versions with real git, real DVC and a real S3 server: what is registered comes back with plain tools."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from svdflow.common.errors import BadInputError, StorageError
from svdflow.common.identity import file_md5
from svdflow.common.manifests import read_rows
from svdflow.common.object_store import EmbeddedStore, StoreEndpoint
from svdflow.common.storage import DataRoot, object_uri
from svdflow.common.storage_s3 import S3Root
from svdflow.curation.version.datasets import diff_datasets, list_datasets, pull_dataset, show_dataset
from svdflow.curation.version.dvc_files import listed_digest
from svdflow.curation.version.git import Git
from svdflow.curation.version.register import register_dataset
from svdflow.curation.version.settings import VersionSettings
from tests.dataset_manifests import make_manifests


@pytest.fixture
def store(object_store: StoreEndpoint, tmp_path, monkeypatch) -> StoreEndpoint:
    """The environment names the store, and nobody has configured git."""
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(home / "site"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    return object_store


class Bench:
    """A data root, a registry and a prefix of their own."""

    def __init__(self, directory: Path, bucket: str = "svdflow") -> None:
        self.directory = directory
        self.root = DataRoot.open(directory / "data")
        self.registry = directory / "registry"
        self.settings = VersionSettings(name="demo", remote=f"s3://{bucket}/{directory.name}-{os.urandom(4).hex()}")

    def register(self, root: DataRoot | None = None, registry: Path | None = None, **changes):
        root = root or self.root
        manifests = make_manifests(root, self.directory / f"manifests-{os.urandom(4).hex()}", **changes)
        out = self.directory / "dataset.json"
        report = register_dataset(
            *manifests.values(), out, root, registry or self.registry, self.directory / "store", self.settings
        )
        assert json.loads(out.read_text())["tag"] == report.summary["dataset"]["tag"]
        return report

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=cwd or self.registry, check=True, capture_output=True, text=True
        ).stdout.strip()


@pytest.fixture
def bench(tmp_path, store) -> Bench:
    return Bench(tmp_path / "bench")


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
    # one new shard, three changed manifests (clips and videos are the same), card and listing
    assert (second["objects_written"], second["objects_found"]) == (1 + 2 + 2, 2 + 2)

    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(bench.registry), str(clone)], check=True)
    _dvc("pull", "--quiet", cwd=clone)
    newest = _files(clone / "demo")
    manifests = [f"manifests/{kind}.parquet" for kind in ("annotations", "clips", "selection", "videos")]
    assert sorted(newest) == ["dataset.json", *manifests, *[name for name in newest if name.startswith("shards/")]]
    assert all(name == f"shards/{md5}.tar" for name, md5 in newest.items() if name.startswith("shards/"))
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
    added = {f"demo/{name}" for name in set(newest) - set(_listed(bench, "demo@v1.0.0"))}
    assert {entry["path"] for entry in changed["added"]} == added and len(added) == 1
    subprocess.run(["git", "checkout", "--quiet", "demo@v1.0.0"], cwd=clone, check=True)
    _dvc("pull", "--quiet", cwd=clone)
    assert len(_files(clone / "demo")) == 7 and _files(clone / "demo") == _listed(bench, "demo@v1.0.0")
    listed = _dvc("list", "--dvc-only", "-R", str(bench.registry), "demo", "--rev", "demo@v1.1.0", cwd=tmp_path).split()
    assert sorted(listed) == sorted(newest)
    assert bench.git("status", "--porcelain") == "" and bench.git("log", "-1", "--format=%an <%ae> %cn <%ce>") == \
        "svdflow <svdflow@localhost> svdflow <svdflow@localhost>"  # fmt: skip
    assert not (Path(os.environ["HOME"]) / ".gitconfig").exists()


def _listed(bench: Bench, tag: str) -> dict[str, str]:
    remote = S3Root(bench.settings.remote)
    listing = remote.read(object_uri(listed_digest(bench.git("show", f"{tag}:demo.dvc").encode())))
    return {entry["relpath"]: entry["md5"] for entry in json.loads(listing)}


def test_equal_content_finds_its_version(bench):
    bench.register()
    bench.register(keep=5)
    again = bench.register()
    dataset = again.summary["dataset"]
    assert (again.done, again.reused, dataset["tag"]) == (0, 1, "demo@v1.0.0")
    assert (dataset["objects_written"], dataset["objects_found"]) == (0, 2 + 4 + 2)
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
    assert report.reused == 1 and report.summary["dataset"]["objects_written"] == len(before) == 8
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


def test_the_command_line_functions_list_show_compare_and_pull(bench, tmp_path, monkeypatch):
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
    assert diff_datasets(bench.registry, "demo@v1.0.0", "demo")["thresholds.motion_percent"] == (0.2, 0.3)
    for absent in ("demo@v2", "demo@v1.0.2", "other", "demo@v", ""):
        with pytest.raises(BadInputError, match="demo@v1.0.0, demo@v1.0.1"):
            show_dataset(bench.registry, absent)
    with pytest.raises(BadInputError, match="no dataset registry"):
        list_datasets(tmp_path / "nothing")

    monkeypatch.chdir(tmp_path)
    pulled = pull_dataset(Path("bench/registry"), "demo@v1.0.0", Path("pulled"), tmp_path / "store")
    assert pulled == tmp_path / "pulled" / "demo"
    assert _files(pulled) == _listed(bench, "demo@v1.0.0")
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
    assert len(_files(pulled)) == 7
    # what was pulled needs no store any more, and an incomplete pull is made whole
    (pulled / "dataset.json").unlink()
    assert (
        pull_dataset(bench.registry, "demo", tmp_path / "pulled", directory) == pulled
        and (pulled / "dataset.json").is_file()
    )
    assert EmbeddedStore(directory).ports_file.is_file()


@pytest.mark.slow
def test_a_kill_at_any_point_leaves_a_version_whole_or_not_there(tmp_path, store):
    """Before a write to the store or a git command the process is killed; the next run must end right."""
    bench = Bench(tmp_path / "counted")
    bench.register(keep=2)
    steps = _register_and_die(bench, at=10_000)
    assert steps > 20
    for point in sorted({*range(1, steps, steps // 6), steps - 3, steps - 2, steps - 1, steps}):
        bench = Bench(tmp_path / f"kill{point}")
        bench.register(keep=2)
        _register_and_die(bench, at=point)
        remote = S3Root(bench.settings.remote)
        for tag in bench.git("tag").splitlines():  # whatever is tagged is whole
            assert all(remote.exists(object_uri(md5)) for md5 in _listed(bench, tag).values())
        report = bench.register(keep=5)
        assert report.summary["dataset"]["tag"] == "demo@v1.1.0"
        assert bench.git("tag").split() == ["demo@v1.0.0", "demo@v1.1.0"]
        made = bench.git("rev-parse", "demo@v1.1.0^{commit}")
        assert bench.git("rev-parse", "main") == made == report.summary["dataset"]["revision"]
        assert bench.git("status", "--porcelain") == "" and bench.git("stash", "list") == ""
        assert len(_listed(bench, "demo@v1.1.0")) == 3 + 5


def _register_and_die(bench: Bench, at: int) -> int:
    """Register in a child that is killed before its step ``at``; how many steps there were when it was not."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            done = 0

            def counted(function):
                def call(*args, **kwargs):
                    nonlocal done
                    done += 1
                    if done == at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*args, **kwargs)

                return call

            S3Root._write_file = counted(S3Root._write_file)
            S3Root._write_bytes = counted(S3Root._write_bytes)
            Git.__call__ = counted(Git.__call__)
            bench.register(keep=5)
            os.write(write, str(done).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(read) as pipe:
        steps = pipe.read()
    assert status == (0 if steps else -signal.SIGKILL)
    return int(steps or 0)


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
