"""A registered version comes back as what training reads: manifests, and shards in a data root of one's own."""

import json
from pathlib import Path

import pytest

from svdflow.common.errors import BadInputError, StorageError
from svdflow.common.identity import file_md5
from svdflow.common.manifests import read_rows
from svdflow.common.storage import DataRoot
from svdflow.curation.version.card import MANIFESTS
from svdflow.curation.version.checkout import check_out_version, find_version
from svdflow.curation.version.forget import forget_video
from svdflow.curation.version.settings import VersionSettings
from tests.dataset_bench import Bench


def take(bench: Bench, root: DataRoot, place: Path, version: str = "", **settings):
    manifests = {kind: place / f"{kind}.parquet" for kind in MANIFESTS}
    report = check_out_version(
        version, manifests, place / "dataset.json", root, bench.registry, bench.directory / "store",
        VersionSettings(**settings),
    )  # fmt: skip
    return report, manifests, json.loads((place / "dataset.json").read_text())


def test_the_version_that_is_asked_for_comes_with_its_bytes_and_only_what_is_lacking_is_transferred(bench, tmp_path):
    bench.register(keep=2)
    bench.register(keep=5)
    own = DataRoot.open(tmp_path / "own")
    report, manifests, dataset = take(bench, own, tmp_path / "old", "demo@v1.0.0")
    assert dataset["tag"] == "demo@v1.0.0" and dataset["revision"] == bench.git("rev-parse", "demo@v1.0.0^{commit}")
    assert (report.done, report.reused) == (1, 0) and report.summary["dataset"]["tag"] == "demo@v1.0.0"
    listed = bench.listed("demo@v1.0.0")
    assert {file_md5(path) for path in manifests.values()} == {
        listed[f"manifests/{kind}.parquet"] for kind in MANIFESTS
    }
    kept = [row["clip_id"] for row in read_rows("selection", manifests["selection"]) if row["keep"]]
    assert len(kept) == 2
    for row in read_rows("clips", manifests["clips"]):
        if row["clip_id"] in kept:
            here = own.read_range(row["shard_uri"], row["offset"], row["bytes"])
            assert here == bench.root.read_range(row["shard_uri"], row["offset"], row["bytes"])

    before = own.writes
    report, _, dataset = take(bench, own, tmp_path / "new")  # the newest
    assert dataset["tag"] == "demo@v1.1.0" and report.summary["dataset"]["clips"] == 5
    known = set(bench.listed("demo@v1.0.0").values())
    fresh = [name for name, md5 in bench.listed("demo@v1.1.0").items()
             if md5 not in known and name.startswith(("shards/", "manifests/"))]  # fmt: skip
    assert own.writes - before == len(fresh) + 1  # and the record


def test_what_was_checked_out_is_found_without_the_store_and_a_lost_object_is_brought_again(
    bench, tmp_path, monkeypatch
):
    bench.register()
    own = DataRoot.open(tmp_path / "own")
    first, manifests, dataset = take(bench, own, tmp_path / "a")
    with monkeypatch.context() as without:
        without.setenv("SVDFLOW_S3_ENDPOINT", "http://127.0.0.1:9")
        without.setenv("SVDFLOW_S3_PATIENCE_S", "0")
        again, others, same = take(bench, own, tmp_path / "b")
        assert (again.done, again.reused) == (0, 1) and same == dataset
        assert [path.read_bytes() for path in others.values()] == [path.read_bytes() for path in manifests.values()]
        with pytest.raises(StorageError):
            take(bench, DataRoot.open(tmp_path / "another"), tmp_path / "c")
    shard = read_rows("clips", manifests["clips"])[0]["shard_uri"]
    own.remove(shard)
    mended, *_ = take(bench, own, tmp_path / "d")
    assert mended.done == 1 and own.exists(shard)


def test_after_a_takedown_neither_the_version_nor_the_record_of_a_checkout_holds_the_video(bench, tmp_path):
    bench.register()
    take(bench, bench.root, tmp_path / "before")  # into the very data root that the takedown goes through
    assert list(bench.root.list("results/checkout"))
    forget_video([bench.versions()], "video1", bench.remote, bench.root, tmp_path / "workdir", "asked for")
    assert not list(bench.root.list("results/checkout"))
    _, manifests, dataset = take(bench, bench.root, tmp_path / "after", "demo@v1.0.0")
    assert {row["video_id"] for row in read_rows("videos", manifests["videos"])} == {"video0", "video2"}
    assert dataset["revision"] == bench.git("rev-parse", "demo@v1.0.0^{commit}")


def test_a_registry_follows_its_origin_first_and_one_that_is_not_there_is_refused(bench, tmp_path):
    bench.settings = bench.settings.model_copy(update={"origin": str(tmp_path / "origin.git")})
    bench.register(keep=2)
    bench.register(registry=tmp_path / "elsewhere", keep=5)  # on another machine
    _, _, dataset = take(bench, bench.root, tmp_path / "out", origin=bench.settings.origin)
    assert dataset["tag"] == "demo@v1.1.0"
    with pytest.raises(BadInputError, match="there is no dataset version 'nope'; there are: demo@v1.0.0"):
        find_version(bench.versions(), "nope")
    bench.registry = tmp_path / "nothing"
    with pytest.raises(BadInputError, match="there is no dataset registry here"):
        take(bench, bench.root, tmp_path / "out")
