"""A data root, a registry and a store of their own, for tests of dataset versions."""

import io
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from svdflow.common.manifests import read_rows, write_manifest
from svdflow.common.object_store import StoreEndpoint
from svdflow.common.storage import DataRoot, object_uri
from svdflow.common.storage_s3 import S3Root
from svdflow.curation.version.dvc_files import listed_digest
from svdflow.curation.version.git import Git
from svdflow.curation.version.register import register_dataset
from svdflow.curation.version.registry import Registry, VersionTag
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
        return self.register_these(manifests, root, registry)

    def register_these(
        self, manifests: dict[str, Path], root: DataRoot | None = None, registry: Path | None = None, source: str = ""
    ):
        root = root or self.root
        out = self.directory / "dataset.json"
        report = register_dataset(
            *manifests.values(), out, root, registry or self.registry, self.directory / "store", self.settings,
            source,
        )  # fmt: skip
        assert json.loads(out.read_text())["tag"] == report.summary["dataset"]["tag"]
        return report

    def listed(self, tag: str) -> dict[str, str]:
        """Path to md5 of what a version holds, read without the code under test."""
        listing = S3Root(self.settings.remote).read(
            object_uri(listed_digest(self.git("show", f"{tag}:demo.dvc").encode()))
        )
        return {entry["relpath"]: entry["md5"] for entry in json.loads(listing)}

    def trees(self) -> dict[str, list[str]]:
        """Tag to the files that its commit holds, with their content, but for where the store is."""
        return {
            tag: [line for line in self.git("ls-tree", "-r", tag).splitlines() if not line.endswith(".dvc/config")]
            for tag in self.git("tag").split()
        }

    @property
    def remote(self) -> S3Root:
        return S3Root(self.settings.remote)

    def versions(self) -> Registry:
        return Registry.existing(self.registry)

    def tag(self, tag: str) -> VersionTag:
        parsed = VersionTag.parse(tag)
        assert parsed
        return parsed

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=cwd or self.registry, check=True, capture_output=True, text=True
        ).stdout.strip()


@pytest.fixture
def bench(tmp_path, store) -> Bench:
    return Bench(tmp_path / "bench")


def in_one_shard(root: DataRoot, manifests: dict[str, Path]) -> str:
    """Pack the clips of all videos into one shard, and have the clips manifest say so; returns the shard."""
    rows = read_rows("clips", manifests["clips"])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for row in rows:
            info = tarfile.TarInfo(row["member"])
            info.size = row["bytes"]
            tar.addfile(info, io.BytesIO(root.read_range(row["shard_uri"], row["offset"], row["bytes"])))
    shard = root.put_bytes(buffer.getvalue())
    offsets = {info.name: info.offset_data for info in tarfile.open(fileobj=io.BytesIO(buffer.getvalue()))}
    moved = [{**row, "shard_uri": shard, "offset": offsets[row["member"]]} for row in rows]
    write_manifest("clips", moved, manifests["clips"])
    return shard


def killed_and_run_again(place: Path, at: int, undisturbed: Bench) -> None:
    """Register, killed before step ``at``: whatever is tagged is whole, and a rerun ends like an undisturbed one."""
    bench = Bench(place)
    bench.register(keep=2)
    register_and_die(bench, at)
    for tag in bench.git("tag").splitlines():
        assert all(bench.remote.exists(object_uri(md5)) for md5 in bench.listed(tag).values()), (at, tag)
    report = bench.register(keep=5)
    made = bench.git("rev-parse", "demo@v1.1.0^{commit}")
    assert bench.git("rev-parse", "main") == made == report.summary["dataset"]["revision"], at
    assert bench.trees() == undisturbed.trees(), at
    assert sorted(bench.remote.list("files")) == sorted(undisturbed.remote.list("files")), at
    assert bench.git("status", "--porcelain") == "" and bench.git("stash", "list") == "", at


def register_and_die(bench: Bench, at: int) -> int:
    """Register a second version in a child that is killed before its step ``at``."""
    return run_and_die(lambda: bench.register(keep=5), at)


def run_and_die(work: Callable[[], object], at: int) -> int:
    """Work in a child that is killed before its step ``at``, a write to a store, a removal or a git command.

    Returns:
        How many steps there were; 0 when it was killed.
    """
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

            for owner, names in ((S3Root, ("_write_file", "_write_bytes", "remove")), (Git, ("__call__",))):
                for name in names:
                    setattr(owner, name, counted(getattr(owner, name)))
            work()
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
