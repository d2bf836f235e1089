"""A video is taken down: its bytes leave the store and every version, and what others need stays."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from svdflow.common.block_cache import BlockCache
from svdflow.common.errors import BadInputError
from svdflow.common.identity import file_md5, identity
from svdflow.common.manifests import read_manifest, read_rows, write_manifest
from svdflow.common.object_store import EmbeddedStore
from svdflow.common.storage import DataRoot, object_uri
from svdflow.common.storage_s3 import S3Root
from svdflow.curation.version.datasets import pull_dataset, show_dataset
from svdflow.curation.version.forget import forget_video, stage_of
from svdflow.curation.version.registry import Registry
from svdflow.curation.version.settings import VersionSettings
from svdflow.curation.version.subject import Subject
from svdflow.curation.version.traces import forget_scratch
from svdflow.training.train.tensorboard_log import TensorBoardLog
from tests.dataset_bench import Bench, in_one_shard, run_and_die
from tests.dataset_manifests import make_manifests

GONE, STAYS = "video1", "video2"


def secret(video: int, clip: int) -> bytes:
    """The bytes that ``make_manifests`` gives to a clip. Those of (1, 1) and (2, c) are in no other."""
    return bytes([video, clip]) * (500 + 100 * clip)


def _blobs(place: S3Root | DataRoot) -> dict[str, bytes]:
    return {uri: place.read(uri) for uri in place.list("files")}


def _forget(bench: Bench, video: str = GONE, **options):
    (receipt,) = forget_video([bench.versions()], video, bench.remote, bench.root, **options)
    return receipt


@pytest.fixture
def shared(bench):
    """Two versions whose clips of three videos lie in one shard."""
    manifests = make_manifests(bench.root, bench.directory / "m", keep=6)
    shard = in_one_shard(bench.root, manifests)
    bench.register_these(manifests)
    rows = read_rows("annotations", manifests["annotations"])
    for row in rows:
        row["caption_image"] = f"a ball of {row['clip_id']} bounces"
    write_manifest("annotations", rows, manifests["annotations"])
    bench.register_these(manifests)
    return bench, manifests, shard


def test_its_bytes_leave_every_version_and_the_others_stay_whole(shared):
    bench, manifests, shard = shared
    before = {tag: bench.git("rev-parse", f"{tag}^{{commit}}") for tag in bench.git("tag").split()}
    assert any(secret(1, 1) in data for data in _blobs(bench.remote).values())
    receipt = _forget(bench, reason="the owner asked for it")

    for place in (bench.remote, bench.root):
        blobs = _blobs(place)
        assert not any(secret(1, 1) in data for data in blobs.values())
        assert shard not in blobs
    assert list(before) == bench.git("tag").split()
    for tag in before:
        listed = bench.listed(tag)
        tables = {
            kind: read_manifest(kind, bench.remote.fetch(object_uri(listed[f"manifests/{kind}.parquet"])))
            for kind in ("videos", "clips", "annotations", "selection")
        }
        assert GONE not in tables["videos"]["video_id"].to_pylist()
        assert not [clip for clip in tables["annotations"]["clip_id"].to_pylist() if clip.startswith("clip01")]
        clips = tables["clips"].to_pylist()
        assert [row["clip_id"] for row in clips] == ["clip000", "clip001", "clip020", "clip021"]
        for row in clips:
            data = bench.remote.read_range(row["shard_uri"], row["offset"], row["bytes"])
            assert data == secret(int(row["clip_id"][4:6]), int(row["clip_id"][6]))
        assert all(bench.remote.exists(object_uri(md5)) for md5 in listed.values())
        card = json.loads(bench.git("show", f"{tag}:cards/demo.json"))
        assert (card["counts"]["clips"], card["counts"]["videos"]) == (4, 2)
        assert bench.git("rev-parse", f"{tag}^{{commit}}^") == before[tag]  # nothing of the history is lost
        assert receipt.versions[tag] == {"before": before[tag], "after": bench.git("rev-parse", f"{tag}^{{commit}}"),
                                         "clips": 2}  # fmt: skip
    assert bench.git("show", "main:demo.dvc") == bench.git("show", "demo@v1.0.1:demo.dvc")
    assert bench.git("status", "--porcelain") == ""

    committed = bench.git("show", f"main:forgotten/{GONE}.json")
    told = json.loads(committed)
    assert (told["video_id"], told["reason"], told["by"][-1:] != "") == (GONE, "the owner asked for it", True)
    assert told["objects_rewritten"] == {shard: receipt.objects_rewritten[shard]} and told["objects_rewritten"][shard]
    assert shard in told["objects_removed"][bench.root.location] and told["forgotten_at"].endswith("+00:00")
    assert "bounces" not in committed and "1.mp4" not in committed


@pytest.mark.slow
def test_plain_dvc_and_our_own_pull_bring_the_old_tag_without_it(shared, tmp_path):
    bench, _, _ = shared
    ours = tmp_path / "ours"
    pull_dataset(bench.registry, "demo@v1.0.0", ours, tmp_path / "no store")
    _forget(bench)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "-b", "demo@v1.0.0", str(bench.registry), str(clone)], check=True,
                   capture_output=True)  # fmt: skip
    subprocess.run([sys.executable, "-m", "dvc", "pull", "--quiet"], cwd=clone, check=True, capture_output=True)
    pull_dataset(bench.registry, "demo@v1.0.0", ours, tmp_path / "no store")  # a clone from before follows the tag
    for place in (clone / "demo", ours / "demo"):
        files = {p.relative_to(place).as_posix(): file_md5(p) for p in place.rglob("*") if p.is_file()}
        assert files == bench.listed("demo@v1.0.0")
    shown = show_dataset(bench.registry, "demo@v1.0.0")
    assert shown["counts"]["clips"] == 4 and shown["registered"]["Forgotten"].startswith(GONE)


def test_a_shard_of_its_own_goes_and_versions_without_it_are_not_touched(bench):
    bench.register(videos=1, keep=2)
    untouched = bench.git("rev-parse", "demo@v1.0.0")
    bench.register(keep=6)
    before = set(bench.remote.list("files"))
    receipt = _forget(bench, STAYS)
    assert bench.git("rev-parse", "demo@v1.0.0") == untouched and list(receipt.versions) == ["demo@v1.1.0"]
    assert set(receipt.objects_rewritten.values()) == {""}
    assert not any(secret(2, 0) in data for data in _blobs(bench.remote).values())
    assert {object_uri(md5) for md5 in bench.listed("demo@v1.0.0").values()} <= before & set(bench.remote.list("files"))
    assert sorted(json.loads(bench.git("show", "demo@v1.1.0:cards/demo.json"))["counts"].items())[0] == ("clips", 4)


def test_a_version_of_nothing_but_it_becomes_empty(bench):
    bench.register(videos=1, keep=2)
    _forget(bench, "video0")
    card = json.loads(bench.git("show", "demo@v1.0.0:cards/demo.json"))
    assert card["counts"]["clips"] == 0 and not any(p.startswith("shards/") for p in bench.listed("demo@v1.0.0"))


def test_it_cannot_be_registered_again_until_it_is_taken_out(bench):
    bench.register(keep=6)
    _forget(bench)
    before = set(bench.remote.list("files"))
    with pytest.raises(BadInputError, match=rf"such as {GONE} \(1.mp4; forgotten 20.*forgotten/{GONE}.json.*remove"):
        bench.register(keep=6, caption="another")
    assert set(bench.remote.list("files")) == before  # refused before a byte was stored
    assert bench.root.find("forgotten", GONE) == {"reason": ""}  # by this an ingest knows
    assert bench.register(videos=1, keep=2).summary["dataset"]["tag"] == "demo@v1.1.0"


def test_what_the_data_root_has_of_it_goes_and_what_it_has_of_others_stays(shared, tmp_path):
    bench, manifests, shard = shared
    page_of_others = b"what another record needs as well"
    root = bench.root
    clips = {row["clip_id"]: row for row in read_rows("clips", manifests["clips"])}
    embeddings = {c: root.put_bytes(save({"image": np.full((3, 4), n, "float16")})) for n, c in enumerate(clips)}
    notes = [
        {**row, "embedding_uri": embeddings[row["clip_id"]]}
        for row in read_rows("annotations", manifests["annotations"])
    ]
    write_manifest("annotations", notes, manifests["annotations"])
    bench.register_these(manifests)

    def key(*parts: object) -> str:
        return identity(parts=[str(part) for part in parts])

    thumbnails = {clip: root.put_bytes(b"jpeg of " + clip.encode()) for clip in clips}
    for video in ("video0", GONE, STAYS):
        own = [{**row, "thumbnail": thumbnails[clip]} for clip, row in clips.items() if row["video_id"] == video]
        root.record("split", key("split", video), {"clips": own, "error": None})
    for clip, row in clips.items():  # the three kinds of the annotate step
        place = identity(shard=row["shard_uri"], offset=row["offset"], bytes=row["bytes"])
        content = hashlib.sha256(secret(int(clip[4:6]), int(clip[6]))).hexdigest()
        root.record("clip_content", place, {"sha256": content})
        root.record("annotate", f"{content[:32]}-{key('motion')}", {"motion_score": 1.5})
        root.record("annotate", f"{content[:32]}-{key('embed')}", {"embedding_uri": embeddings[clip]})
        root.record("annotate_clip", f"{place}-{key('all')}", {"motion_score": 1.5, "embedding_uri": embeddings[clip]})
    root.record("filter_sides", key("sides"), {"sides": {GONE: "train", STAYS: "held_out"}})
    page = root.put_bytes(b"<img> of any clip")
    shows = ("validate", "evaluate", "measure_interpolation", "evaluation_video")  # clips, and do not say which
    for kind in shows:
        root.record(kind, key(kind), {"page": page})

    def folder(**files):
        """A stored folder, of which this machine has a copy."""
        (path := tmp_path / identity(names=sorted(files))).mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)
        root.fetch_tree(uri := root.put_tree(path))
        return uri

    frames = b"true frames of any clip"
    generated, samples, logs = folder(truth=frames), folder(grid=frames, shared=page_of_others), folder(events=frames)
    root.record("evaluate", key("with videos"), {"outputs": {"generated": generated}})
    root.record("other", key("other"), {"tree": folder(kept=page_of_others)})

    def trained(stage, **dataset):
        model = root.put_bytes(json.dumps({"stage": stage, "dataset": dataset}).encode())
        listing = [{"md5": model[10:].replace("/", ""), "relpath": "svdflow.json"}]
        tree = root.put_bytes(json.dumps(listing).encode(), ".dir")
        root.record("train", key("train", stage), {"tree": tree, "samples": samples, "logs": logs, "result": stage})
        return tree

    tree = trained("image", tag="demo@v1.0.1", revision=bench.versions().revision("demo@v1.0.1"))
    receipt = _forget(bench)
    mine, others = ([clip for clip in clips if clip.startswith("clip01") is own] for own in (True, False))
    assert not any(root.exists(uris[clip]) for uris in (embeddings, thumbnails) for clip in mine)
    assert all(root.exists(uris[clip]) for uris in (embeddings, thumbnails) for clip in others)
    assert root.find("split", key("split", GONE)) is None
    for clip in mine:
        content = hashlib.sha256(secret(1, int(clip[6]))).hexdigest()
        assert not [uri for uri in root.list("results") if content[:32] in uri]
    new = receipt.objects_rewritten[shard]
    for row in root.find("split", key("split", STAYS))["clips"]:  # follows its clips into the new shard
        assert row["shard_uri"] == new
        assert root.read_range(new, row["offset"], row["bytes"]) == secret(2, int(row["clip_id"][6]))
    content = hashlib.sha256(secret(2, 0)).hexdigest()
    assert root.find("annotate", f"{content[:32]}-{key('motion')}") == {"motion_score": 1.5}
    assert root.find("filter_sides", key("sides"))["sides"][STAYS] == "held_out"
    assert not any(root.find(kind, key(kind)) for kind in shows) and not root.exists(page)
    assert root.find("train", key("train", "image")) == {"tree": tree, "result": "image"}
    left = {path.read_bytes() for path in root.scratch("trees").rglob("*") if path.is_file()} | {*_blobs(root).values()}
    assert frames not in left and page_of_others in left
    assert receipt.models == [tree] and stage_of(root, tree) == "image"
    trained("video", tag="demo@v1.0.1", revision=receipt.versions["demo@v1.0.1"]["after"])
    assert _forget(bench).models == [tree], "the other was trained on the version without the video"
    assert not [uri for uri in root.list("results") if b"clip010" in root.read(uri)]


@pytest.mark.parametrize("place", ["directory", "store"])
def test_what_unfinished_trainings_show_goes_and_they_write_on(bench, place):
    """Its frames are seen in samples and logs, its bytes in cached blocks of shards; none says whose it is."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = bench.root if place == "directory" else bench.remote
    run = root.scratch("training", "run")
    samples, logs, checkpoint = (run / name for name in ("samples/step_00000002", "tensorboard", "checkpoints/step_1"))
    for folder in (samples, checkpoint):
        folder.mkdir(parents=True)
        (folder / "sample_0.mp4").write_bytes(secret(1, 1))
    log = TensorBoardLog(logs, 0)
    log.scalars(1, {"loss": 1.0})
    log.picture(1, "samples", np.full((8, 8, 3), 7, np.uint8))
    log._writer.flush()
    cache = BlockCache(root.scratch("blocks"), 1 << 20, 1000)
    assert cache.read("shard", 0, 500, lambda at, n: secret(1, 1)[at : at + n]) == secret(1, 1)[:500]

    if place == "directory":
        bench.register(keep=6)
        _forget(bench)
    else:
        forget_scratch(Subject(GONE), set(), root)
    left = [path for path in root.scratch().rglob("*") if path.is_file() and path.name != "lock"]
    assert left == [checkpoint / "sample_0.mp4"]
    assert cache.read("shard", 0, 500, lambda at, n: secret(2, 1)[at : at + n]) == secret(2, 1)[:500]
    log.scalars(2, {"loss": 0.5})
    log.close()
    shown = EventAccumulator(str(logs))
    shown.Reload()
    assert [point.step for point in shown.Scalars("loss")] == [2] and not shown.Tags()["images"]
    (samples / "sample_1.mp4").touch()


def test_the_work_directory_is_gone_through(shared, tmp_path):
    bench, manifests, _ = shared
    work = tmp_path / "work"
    for kind, path in manifests.items():
        (work / "manifests").mkdir(parents=True, exist_ok=True)
        (work / "manifests" / f"{kind}.parquet").write_bytes(path.read_bytes())
    (work / "steps" / "run").mkdir(parents=True)
    (work / "steps" / "run" / "split.json").write_text('{"pictures": ["1.mp4 0.00–2.00 s"]}')
    (work / "steps" / "run" / "train.json").write_text('{"loss": 1}')
    (work / "artifacts" / "run").mkdir(parents=True)
    (work / "artifacts" / "run" / "annotations").write_bytes(manifests["annotations"].read_bytes())
    (work / "report.html").write_text("clip010")
    (work / "validation_selection.html").write_text("<td>clip010</td>")
    (work / "validation.html").write_text("<td>nothing failed</td>")
    (work / "validation_failing_rows.jsonl").write_text(json.dumps({"row": {"video_id": GONE, "name": "1.mp4"}}))
    (work / "steps" / "run" / "filter.json").write_text('{"sections": [{"src": "data:image/jpeg;base64,AAAA"}]}')
    for folder in ("generated/held_out", "artifacts/run/evaluate/generated"):
        (work / folder).mkdir(parents=True)
        (work / folder / f"{identity(sample=1)}-00-truth.mp4").write_bytes(b"frames of a clip, who knows of which")
    for name, alike in (("samples", [GONE, STAYS]), ("others", ["video0", STAYS])):  # named as a near-duplicate's video
        row = {
            "sample_id": f"{identity(sample=1)}-00", "clip_id": "clip020", "split": "train", "source_id": STAYS,
            "group": "clip020", "group_sources": alike, "tensor_prefix": "a", "frames": 8, "height": 64, "width": 64,
            "fps": 8.0, "captions": [],
        }  # fmt: skip
        write_manifest("samples", [row], work / "artifacts" / "run" / name)
    receipt = _forget(bench, workdir=work)
    assert {p.relative_to(work).as_posix() for p in work.rglob("*") if p.is_file()} == {
        "steps/run/train.json", "artifacts/run/others", "validation.html",
        *(f"manifests/{kind}.parquet" for kind in manifests),
    }  # fmt: skip
    assert len(read_rows("clips", work / "manifests/clips.parquet")) == 4
    assert "report.html" in receipt.workdir_files and "steps/run/train.json" not in receipt.workdir_files
    assert f"generated/held_out/{identity(sample=1)}-00-truth.mp4" in receipt.workdir_files


def test_who_gives_a_name_or_half_an_id_is_told_the_id(bench):
    bench.register(keep=6)
    with pytest.raises(BadInputError, match=rf"did you mean {GONE} \(1.mp4\)"):
        _forget(bench, "1.mp4")
    with pytest.raises(BadInputError, match=r"did you mean video0 \(0.mp4\) or video1 \(1.mp4\) or video2"):
        _forget(bench, "video")
    with pytest.raises(BadInputError, match=r"knows a video 'nothing'; the column video_id"):
        _forget(bench, "nothing")
    assert len(bench.git("log", "--oneline").splitlines()) == 1


def test_a_takedown_reaches_the_origin_and_other_machines(bench, tmp_path):
    origin = tmp_path / "origin.git"
    bench.settings = bench.settings.model_copy(update={"origin": str(origin)})
    bench.register(keep=6)
    bench.register(keep=6, registry=tmp_path / "second")
    registry = bench.versions()
    registry.origin = str(origin)
    forget_video([registry], GONE, bench.remote, bench.root)
    assert bench.git("rev-parse", "demo@v1.0.0", cwd=origin) == bench.git("rev-parse", "demo@v1.0.0")
    with pytest.raises(BadInputError, match="taken down"):
        bench.register(keep=6, registry=tmp_path / "second")
    assert bench.git("rev-parse", "demo@v1.0.0", cwd=tmp_path / "second") == bench.git("rev-parse", "demo@v1.0.0")


def test_registries_that_share_a_store_take_it_down_together(bench, tmp_path):
    manifests = make_manifests(bench.root, bench.directory / "m", keep=6)
    in_one_shard(bench.root, manifests)
    bench.register_these(manifests)
    bench.register_these(manifests, registry=tmp_path / "other")
    with pytest.raises(BadInputError, match=rf"{tmp_path}/other.*--also"):
        _forget(bench)
    both = [bench.versions(), Registry.existing(tmp_path / "other")]
    receipts = forget_video(both, GONE, bench.remote, bench.root)
    assert [receipt.versions["demo@v1.0.0"]["clips"] for receipt in receipts] == [2, 2]
    assert not any(secret(1, 1) in data for data in _blobs(bench.remote).values())
    for registry in (bench.registry, tmp_path / "other"):
        bench.registry = registry
        clips = bench.remote.fetch(object_uri(bench.listed("demo@v1.0.0")["manifests/clips.parquet"]))
        for row in read_rows("clips", clips):
            data = bench.remote.read_range(row["shard_uri"], row["offset"], row["bytes"])
            assert data == secret(int(row["clip_id"][4:6]), int(row["clip_id"][6]))


@pytest.mark.slow
def test_a_takedown_that_is_killed_is_finished_by_the_same_command(tmp_path, store):
    def made(name: str) -> Bench:
        bench = Bench(tmp_path / name)
        manifests = make_manifests(bench.root, bench.directory / "m", keep=6)
        in_one_shard(bench.root, manifests)
        bench.register_these(manifests)
        bench.register(videos=1, keep=2)
        return bench

    def state(bench: Bench) -> tuple:
        return bench.trees(), sorted(bench.remote.list("files")), sorted(bench.root.list("files"))

    whole = made("whole")
    steps = _forget_and_die(whole, at=10_000)
    assert steps > 30
    for at in sorted({*range(2, steps, steps // 6), steps - 4, steps - 1}):
        bench = made(f"kill{at}")
        _forget_and_die(bench, at)
        _forget(bench)
        assert state(bench) == state(whole), at
        assert not any(secret(1, 1) in data for data in _blobs(bench.remote).values())


def _forget_and_die(bench: Bench, at: int) -> int:
    return run_and_die(lambda: _forget(bench), at)


@pytest.mark.slow
def test_no_byte_is_left_on_the_disk_of_the_embedded_store(tmp_path, store, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SVDFLOW_S3", "AWS_"))]:
        monkeypatch.delenv(name)
    marks = [os.urandom(64) for _ in range(2)]
    bench = Bench(tmp_path / "local")
    directory = bench.directory / "store"
    manifests = make_manifests(bench.root, bench.directory / "m", keep=6)
    rows = read_rows("clips", manifests["clips"])
    for row, mark in zip((rows[2], rows[4]), marks, strict=True):  # bytes that do not compress, in two videos
        place = bench.root._path(row["shard_uri"])  # type: ignore[attr-defined]
        data = bytearray(place.read_bytes())
        data[row["offset"] : row["offset"] + 64] = mark
        new = bench.root.put_bytes(bytes(data))
        for each in rows:
            each["shard_uri"] = new if each["video_id"] == row["video_id"] else each["shard_uri"]
        place.unlink()
    write_manifest("clips", rows, manifests["clips"])
    shard = in_one_shard(bench.root, manifests)
    for row in rows:
        bench.root.remove(row["shard_uri"])
    bench.settings = VersionSettings(name="demo")
    bench.register_these(manifests)

    def on_disk(mark: bytes) -> list[str]:
        return [p.name for p in directory.rglob("*") if p.is_file() and mark in p.read_bytes()]

    assert on_disk(marks[0]) and on_disk(marks[1])
    embedded = EmbeddedStore(directory)
    with embedded as endpoint:
        remote = S3Root("s3://svdflow/datasets", endpoint)
        forget_video([bench.versions()], GONE, remote, bench.root)
        embedded.compact()
        assert not remote.exists(shard)
    assert not on_disk(marks[0]) and on_disk(marks[1])
    inside = [p for p in Path(bench.root.location).rglob("*") if p.is_file() and marks[0] in p.read_bytes()]
    assert inside == []
