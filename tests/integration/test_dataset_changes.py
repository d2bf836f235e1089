"""Versions compared, rolled back, exported and tidied up, with real git, DVC and S3."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from svdflow.common.errors import BadInputError, StorageError
from svdflow.common.identity import file_md5
from svdflow.common.manifests import SCHEMA_VERSION, read_rows, write_manifest
from svdflow.common.storage import DataRoot, object_uri
from svdflow.curation.filter.sides import read_record, write_record
from svdflow.curation.validate.drift import find_previous, keep_as_previous
from svdflow.curation.version import claims
from svdflow.curation.version.collect import collect
from svdflow.curation.version.compare import compare_versions
from svdflow.curation.version.export import export_version
from svdflow.curation.version.forget import DENIED
from svdflow.curation.version.registry import Registry
from svdflow.curation.version.rollback import roll_back
from tests.dataset_manifests import make_manifests

DAY = 86_400


# diff


def test_a_diff_tells_which_clips_came_and_went_and_why(bench):
    bench.register(keep=3)
    manifests = make_manifests(bench.root, bench.directory / "second", keep=6)
    rows = read_rows("selection", manifests["selection"])
    # clip000 fails two axes now; clip021 was not known before: its row is missing from the first version
    rows[0] |= {"keep": False, "split": None, "reasons": ["text", "aesthetic"]}
    rows[1] |= {"split": "train"}  # it was held out
    write_manifest("selection", rows, manifests["selection"])
    bench.register_these(manifests)
    diff = compare_versions(bench.versions(), bench.tag("demo@v1.0.0"), bench.tag("demo@v1.1.0"), bench.remote)
    assert (diff.kept, diff.added, diff.dropped) == (2, {"motion": 3}, {"aesthetic+text": 1})
    assert diff.examples == {
        "added": {"motion": ["clip011", "clip020", "clip021"]}, "dropped": {"aesthetic+text": ["clip000"]},
    }  # fmt: skip
    assert diff.splits == {"held_out → train": 1}
    (motion,) = diff.axes
    values = {"old": np.array([1.0, 2, 3]), "new": np.array([2.0, 3, 4, 5, 6])}
    for side, kept in values.items():
        told = getattr(motion, side)
        assert (told["clips"], told["mean"]) == (len(kept), kept.mean())
        assert [told[q] for q in ("p5", "p25", "median", "p75", "p95")] == pytest.approx(
            np.quantile(kept, [0.05, 0.25, 0.5, 0.75, 0.95])
        )
    assert (motion.old_cut, motion.new_cut) == (0.2, 0.2)
    assert diff.fields["counts.clips"] == (3, 5) and "counts.considered" not in diff.fields


def test_a_diff_counts_clips_that_the_other_version_never_saw(bench):
    bench.register(videos=2, keep=4)
    bench.register(videos=3, keep=6)
    there, back = bench.tag("demo@v1.0.0"), bench.tag("demo@v1.1.0")
    diff = compare_versions(bench.versions(), there, back, bench.remote)
    assert (diff.kept, diff.added, diff.dropped) == (4, {"not considered": 2}, {})
    diff = compare_versions(bench.versions(), back, there, bench.remote)
    assert (diff.kept, diff.added, diff.dropped) == (4, {}, {"not considered": 2})


def test_manifests_of_schema_1_are_registered_in_the_present_one_and_compared_with_old_versions(bench, monkeypatch):
    files = Path(__file__).parent.parent / "data" / "manifests" / "schema-1"
    manifests = {kind: files / f"{kind}.parquet" for kind in ("videos", "clips", "annotations", "selection")}
    for row in read_rows("clips", manifests["clips"]):
        bench.root.put_named(row["shard_uri"], b"a shard")
    with monkeypatch.context() as patched:  # as the code of schema 1 did
        patched.setattr("svdflow.curation.version.register.current_file", lambda kind, path, folder: path)
        bench.register_these(manifests)
    bench.register_these(manifests)
    for tag, schema in (("demo@v1.0.0", b"1"), ("demo@v1.0.1", SCHEMA_VERSION.encode())):
        for kind in manifests:
            stored = bench.remote.fetch(object_uri(bench.listed(tag)[f"manifests/{kind}.parquet"]))
            assert pq.read_schema(stored).metadata[b"svdflow.schema_version"] == schema
    diff = compare_versions(bench.versions(), bench.tag("demo@v1.0.0"), bench.tag("demo@v1.0.1"), bench.remote)
    assert (diff.kept, diff.added, diff.dropped) == (9, {}, {})


# rollback


@pytest.mark.slow
def test_a_rollback_makes_an_old_version_the_newest_and_rewrites_nothing(bench, tmp_path):
    bench.register(keep=2)
    bench.register(keep=4)
    before = bench.git("for-each-ref", "--format=%(refname) %(objectname)", "refs/tags").splitlines()
    new = roll_back(bench.versions(), bench.tag("demo@v1.0.0"), bench.remote, "by hand")
    assert str(new) == "demo@v1.2.0"
    after = bench.git("for-each-ref", "--format=%(refname) %(objectname)", "refs/tags").splitlines()
    assert set(before) < set(after) and len(after) == 3
    assert bench.git("rev-parse", "main") == bench.git("rev-parse", "demo@v1.2.0^{commit}")
    assert bench.git("merge-base", "demo@v1.1.0", "main") == bench.git("rev-parse", "demo@v1.1.0^{commit}")
    old, rolled = bench.listed("demo@v1.0.0"), bench.listed("demo@v1.2.0")
    assert {path for path in old if old[path] != rolled[path]} == {"croissant.json"}  # it tells the number
    assert "Rolls-back-to: demo@v1.0.0" in bench.git("tag", "-l", "--format=%(contents)", "demo@v1.2.0")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(bench.registry), str(clone)], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "pull", "--quiet"], cwd=clone, check=True, capture_output=True)
    pulled = {p.relative_to(clone / "demo").as_posix(): file_md5(p) for p in (clone / "demo").rglob("*") if p.is_file()}
    assert pulled == rolled
    assert roll_back(bench.versions(), bench.tag("demo@v1.0.0"), bench.remote) == new  # it is the newest already
    assert len(bench.git("tag").splitlines()) == 3


def test_a_version_whose_files_are_gone_is_not_rolled_back_to(bench):
    bench.register(keep=2)
    bench.register(keep=4)
    bench.remote.remove(object_uri(bench.listed("demo@v1.0.0")["manifests/selection.parquet"]))
    with pytest.raises(StorageError, match=r"lacks 1 of the .* files of demo@v1.0.0, such as manifests/selection"):
        roll_back(bench.versions(), bench.tag("demo@v1.0.0"), bench.remote)
    assert len(bench.git("tag").splitlines()) == 2


# export


def _exported(place: Path) -> dict[str, bytes]:
    """Clip to bytes, by plain tarfile, in every shard of an export."""
    found = {}
    for shard in sorted((place / "shards").iterdir()):
        with tarfile.open(shard) as tar:
            names = tar.getnames()
            assert [Path(name).stem for name in names[::2]] == [Path(name).stem for name in names[1::2]]
            assert {Path(name).suffix for name in names[1::2]} == {".json"}
            for name in names[::2]:
                assert Path(name).suffix == (".mov" if "clip01" in name else ".mp4"), "as in the version's own shard"
                member = tar.extractfile(name)
                assert member is not None
                found[Path(name).stem] = member.read()
    return found


def test_an_export_holds_the_kept_clips_and_nothing_else(bench, tmp_path):
    bench.register(keep=3)
    place = tmp_path / "out"
    out = export_version(bench.versions(), bench.tag("demo@v1.0.0"), bench.remote, DataRoot.open(place), shard_mb=0.001)
    assert (out.clips, out.written, out.found) == (3, 3, 0)
    assert sorted(p.name for p in (place / "shards").iterdir()) == [
        "held_out-000000.tar", "held_out-000001.tar", "train-000000.tar",
    ]  # fmt: skip
    assert _exported(place) == {f"clip{v:02d}{c}": bytes([v, c]) * (500 + 100 * c) for v, c in ((0, 0), (0, 1), (1, 0))}
    checked = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=place, capture_output=True, check=False)
    assert checked.returncode == 0
    listed = {line.split("  ")[1] for line in (place / "SHA256SUMS").read_text().splitlines()}
    files = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
    assert files - listed == {"SHA256SUMS"} | {name for name in files if name.startswith(".export/")}
    root = DataRoot.open(place)
    for row in read_rows("clips", place / "manifests/clips.parquet"):  # usable as a data root as it is
        assert root.read_range(row["shard_uri"], row["offset"], row["bytes"]) == _exported(place)[row["clip_id"]]
        assert row["member"] == row["clip_id"] + (".mov" if row["video_id"] == "video1" else ".mp4")
    assert {row["video_id"] for row in read_rows("videos", place / "manifests/videos.parquet")} == {"video0", "video1"}
    assert all(row["keep"] for row in read_rows("selection", place / "manifests/selection.parquet"))
    for written in (place / "manifests").iterdir():  # in canonical form
        write_manifest(written.stem, read_rows(written.stem, written), tmp_path / "again.parquet")
        assert written.read_bytes() == (tmp_path / "again.parquet").read_bytes()


def test_an_export_that_was_killed_goes_on_after_the_last_shard(bench, tmp_path):
    bench.register(keep=6)
    versions, tag = bench.versions(), bench.tag("demo@v1.0.0")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    export_version(versions, tag, bench.remote, DataRoot.open(whole), shard_mb=0.001)
    child = os.fork()
    if child == 0:
        try:
            root = DataRoot.open(cut)
            write, left = root._write_file, [2]

            def dying(uri: str, path: Path) -> None:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                write(uri, path)

            root._write_file = dying  # type: ignore[method-assign]
            export_version(versions, tag, bench.remote, root, shard_mb=0.001)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list((cut / "shards").iterdir())) == 2 and not (cut / "SHA256SUMS").exists()
    out = export_version(versions, tag, bench.remote, DataRoot.open(cut), shard_mb=0.001)
    assert (out.written, out.found) == (4, 2)
    assert (cut / "SHA256SUMS").read_text() == (whole / "SHA256SUMS").read_text()
    assert export_version(versions, tag, bench.remote, DataRoot.open(cut), shard_mb=0.001).written == 0
    with pytest.raises(BadInputError, match="holds an export of demo@v1.0.0"):
        export_version(versions, tag, bench.remote, DataRoot.open(cut), shard_mb=1)


def test_an_export_goes_to_s3_too_and_takes_one_split(bench):
    bench.register(keep=5)
    target = DataRoot.open(bench.settings.remote + "-export")
    out = export_version(bench.versions(), bench.tag("demo@v1.0.0"), bench.remote, target, ["train"])
    assert (out.clips, list(target.list("shards"))) == (3, ["shards/train-000000.tar"])


def test_an_export_of_a_shard_that_is_not_what_the_manifest_says_is_refused(bench, tmp_path):
    manifests = make_manifests(bench.root, tmp_path / "m", keep=2)
    rows = read_rows("clips", manifests["clips"])
    rows[0]["offset"] += 512
    write_manifest("clips", rows, manifests["clips"])
    bench.register_these(manifests)
    with pytest.raises(StorageError, match=r"there is no member 000.mp4 of 1000 bytes at 1024"):
        export_version(bench.versions(), bench.tag("demo@v1.0.0"), bench.remote, DataRoot.open(tmp_path / "out"))


# gc


def _objects(place: DataRoot) -> set[str]:
    return set(place.list("files"))


def test_what_no_version_needs_goes_after_its_grace_and_nothing_else(bench):
    bench.register(keep=2)
    bench.register(keep=6)
    stray = bench.remote.put_bytes(b"of a registration that was killed")
    old = bench.listed("demo@v1.1.0")
    later = lambda: time.time() + 15 * DAY  # noqa: E731

    (account,) = collect([bench.versions()], bench.remote, None)
    assert account.entries == [] and set(account.kept) == {"held by a version", "within the grace period"}
    (account,) = collect([bench.versions()], bench.remote, None, now=later)
    assert [entry.uri for entry in account.entries] == [stray] and not account.removed
    assert bench.remote.exists(stray)  # it only told
    (account,) = collect([bench.versions()], bench.remote, None, remove=True, now=later)
    assert account.removed and account.bytes == len(b"of a registration that was killed")
    assert not bench.remote.exists(stray)
    for tag in ("demo@v1.0.0", "demo@v1.1.0"):
        assert all(bench.remote.exists(object_uri(md5)) for md5 in bench.listed(tag).values())

    bench.git("tag", "-d", "demo@v1.0.0")  # the way to give a version up
    (account,) = collect([bench.versions()], bench.remote, None, remove=True, now=later)
    assert len(account.entries) == 4  # listing, card, Croissant description and selection of its own
    assert all(bench.remote.exists(object_uri(md5)) for md5 in old.values())


def test_a_registration_under_way_stops_the_removal_and_waits_for_one(bench):
    bench.register(keep=2)
    stray = bench.remote.put_bytes(b"found by the registration under way")
    later = lambda: time.time() + 15 * DAY  # noqa: E731
    with claims.adding(bench.remote, "registering demo"):
        with pytest.raises(StorageError, match="is registering demo now; run again"):
            collect([bench.versions()], bench.remote, None, remove=True, now=later)
    assert bench.remote.exists(stray)
    with claims.removing(bench.remote, "removing"):
        child = os.fork()
        if child == 0:
            try:
                bench.register(keep=6)
                os._exit(0)
            finally:
                os._exit(1)
        time.sleep(1.5)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        assert bench.git("tag") == "demo@v1.0.0"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bench.git("tag").split() == ["demo@v1.0.0", "demo@v1.1.0"]
    assert list(bench.remote.list("svdflow/claims")) == []


def test_a_run_of_another_work_directory_keeps_the_data_root_as_it_is(bench):
    """It may have found a record that is old enough to go."""
    bench.register(keep=2)
    bench.root.record("train", "a" * 32, {})
    stray = bench.remote.put_bytes(b"left over")
    options = {"results": True, "remove": True, "now": lambda: time.time() + 15 * DAY}
    with claims.adding(bench.root, "running svd in /elsewhere"):
        with pytest.raises(StorageError, match="is running svd in /elsewhere now; run again"):
            collect([bench.versions()], bench.remote, bench.root, **options)
        assert bench.root.find("train", "a" * 32) == {} and bench.remote.exists(stray)
    collect([bench.versions()], bench.remote, bench.root, **options)
    assert bench.root.find("train", "a" * 32) is None
    assert list(bench.root.list("svdflow/claims")) == list(bench.remote.list("svdflow/claims")) == []


def test_the_claim_of_a_killed_registration_does_not_bar_the_way(bench):
    bench.register(keep=2)
    child = os.fork()
    if child == 0:
        with claims.adding(bench.remote, "registering"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(bench.remote.list("svdflow/claims"))) == 1
    collect([bench.versions()], bench.remote, None, remove=True)


def test_another_registry_on_the_same_store_must_be_named(bench, tmp_path):
    bench.register(keep=2)
    bench.register(registry=tmp_path / "other", keep=6)
    later = lambda: time.time() + 15 * DAY  # noqa: E731
    with pytest.raises(BadInputError, match=rf"{tmp_path}/other.*--also"):
        collect([bench.versions()], bench.remote, None, remove=True, now=later)
    both = [bench.versions(), Registry.existing(tmp_path / "other")]
    assert collect(both, bench.remote, None, remove=True, now=later)[0].entries == []


def test_a_lost_listing_stops_everything(bench):
    bench.register(keep=2)
    dvc = bench.git("show", "demo@v1.0.0:demo.dvc")
    listing = next(line.split()[-1] for line in dvc.splitlines() if ".dir" in line)
    bench.remote.remove(object_uri(listing))
    with pytest.raises(StorageError, match="does not hold demo@v1.0.0"):
        collect([bench.versions()], bench.remote, None, now=lambda: time.time() + 15 * DAY)


def test_what_cannot_be_computed_again_is_no_cached_result(bench):
    """What was taken down, on which side a video is, and what the last version was like: each written by its owner."""
    bench.register(keep=2)
    root = bench.root
    root.record(DENIED, "f" * 64, {"reason": "asked for by its owner"})
    write_record(root, "seed", 0.1, {"video1": "held_out"})
    keep_as_previous(root, "demo", "selection", "content", {"axes": {}, "made_by": {}})
    root.record("train", "a" * 32, {})
    later = lambda: time.time() + 15 * DAY  # noqa: E731
    collect([bench.versions()], bench.remote, root, grace_days=0, results=True, remove=True, now=later)
    assert root.find("train", "a" * 32) is None
    assert root.find(DENIED, "f" * 64) == {"reason": "asked for by its owner"}
    assert read_record(root, "seed", 0.1) == {"video1": "held_out"}
    assert find_previous(root, "demo", "selection", "another content") is not None


def test_a_data_root_keeps_what_its_results_name(bench):
    bench.register(keep=2)
    root = bench.root
    named, listed = root.put_bytes(b"named"), root.put_bytes(b"in a tree")
    tree = root.put_bytes(json.dumps([{"md5": listed[10:].replace("/", ""), "relpath": "x"}]).encode(), ".dir")
    root.record("train", "a" * 32, {"tree": tree, "thumbnail": named})
    stray = root.put_bytes(b"stray")
    later = lambda: time.time() + 15 * DAY  # noqa: E731
    _, account = collect([bench.versions()], bench.remote, root, remove=True, now=later)
    in_version = {object_uri(md5) for md5 in bench.listed("demo@v1.0.0").values()}
    assert not root.exists(stray) and {named, listed, tree} <= _objects(root)
    assert _objects(root) - {named, listed, tree} <= in_version
    _, account = collect([bench.versions()], bench.remote, root, results=True, remove=True, now=later)
    assert root.find("train", "a" * 32) is None and not {named, listed, tree} & _objects(root)
    assert _objects(root) <= in_version


def test_what_a_lost_fan_out_has_written_down_goes_when_nobody_can_wait_for_it(bench):
    bench.register(keep=2)
    lost, fresh = ([f"fanout/{name}/{file}" for file in ("plan.json", "units")] for name in ("lost-1", "fresh-1"))
    for uri in (*lost, *fresh):
        bench.root.put_named(uri, json.dumps({"keep_s": 3 * DAY}).encode())
    for uri in lost:
        os.utime(bench.root.fetch(uri), (0, time.time() - 5 * DAY))
    _, account = collect([bench.versions()], bench.remote, bench.root, remove=True)
    assert account.entries == [], "within the grace period"
    _, account = collect([bench.versions()], bench.remote, bench.root, grace_days=0.5, remove=True)
    assert sorted(entry.uri for entry in account.entries if entry.uri.startswith("fanout/")) == lost
    assert sorted(bench.root.list("fanout")) == sorted(fresh), "younger than its plan lets it wait"
