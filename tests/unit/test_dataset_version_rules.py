"""The rules of dataset versions that need no store: numbers, cards, and the bytes by which DVC knows a directory."""

import json
import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from svdflow.common.errors import BadInputError, StorageError
from svdflow.common.identity import file_md5, identity
from svdflow.common.manifests import SCHEMA_VERSION, read_rows, write_manifest
from svdflow.common.storage import uri_md5
from svdflow.curation.version import card as card_module
from svdflow.curation.version import claims, dvc_files
from svdflow.curation.version.card import MANIFESTS, card_bytes, make_card, next_number, read_members
from svdflow.curation.version.croissant import croissant_bytes, make_croissant
from svdflow.curation.version.git import Git
from svdflow.curation.version.provenance import person, trailers
from svdflow.curation.version.registry import VersionTag
from tests.dataset_manifests import make_manifests

MD5 = st.text("0123456789abcdef", min_size=32, max_size=32)
PATHS = st.text(st.characters(codec="utf-8", exclude_characters="/\0\\"), min_size=1, max_size=8).filter(
    lambda s: s not in (".", "..")
)


@settings(deadline=None)  # imports are in its first example
@given(
    st.dictionaries(
        st.lists(PATHS, min_size=1, max_size=3).map("/".join), st.tuples(MD5, st.integers(0, 2**40)), min_size=1
    )
)
def test_listing_is_byte_for_byte_what_dvc_writes(files):
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for path, (md5, _) in files.items():
        tree.add(tuple(path.split("/")), None, HashInfo("md5", md5))
    tree.digest()
    listing = dvc_files.make_listing(files)
    assert (listing.data, listing.digest) == (tree.as_bytes(), tree.hash_info.value)
    assert (listing.files, listing.bytes) == (len(files), sum(size for _, size in files.values()))


def test_configuration_is_read_by_dvc_and_keeps_what_others_wrote(tmp_path: Path):
    from dvc.config import Config

    mine = dvc_files.configuration(
        b"[core]\n    autostage = true\n['remote \"other\"']\n    url = /mnt/x\n", "s3://b/p", "http://127.0.0.1:1"
    )
    assert dvc_files.configuration(mine, "s3://b/p", "http://127.0.0.1:1") == mine
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_bytes(mine)
    read = Config(str(tmp_path / ".dvc"))
    assert read["remote"]["store"] == {"url": "s3://b/p", "endpointurl": "http://127.0.0.1:1"} | {
        key: value for key, value in read["remote"]["store"].items() if key not in ("url", "endpointurl")
    }
    assert read["remote"]["other"]["url"] == "/mnt/x"
    assert (
        read["core"]["autostage"] is True
        and read["core"]["analytics"] is False
        and read["core"]["check_update"] is False
    )
    assert dvc_files.configured_remote(mine) == ("s3://b/p", "http://127.0.0.1:1")
    assert dvc_files.configured_remote(dvc_files.configuration(mine, "s3://c", "")) == ("s3://c", "")


@pytest.mark.parametrize(
    ("latest", "card", "expected"),
    [
        (None, {}, (1, 0, 0)),
        ((1, 4, 2), {"manifest_schema": SCHEMA_VERSION, "members": "same"}, (1, 4, 3)),
        ((1, 4, 2), {"manifest_schema": SCHEMA_VERSION, "members": "other"}, (1, 5, 0)),
        ((1, 4, 2), {"manifest_schema": "0", "members": "same"}, (2, 0, 0)),
    ],
)
def test_next_number_says_what_changed(latest, card, expected):
    assert next_number(latest, card, "same") == expected


def test_tags_order_by_number_not_by_text():
    tags = [VersionTag.parse(f"demo@v{n}") for n in ("1.10.0", "1.9.0", "1.9.10", "1.9.2")]
    assert [str(tag) for tag in sorted(tags)] == ["demo@v1.9.0", "demo@v1.9.2", "demo@v1.9.10", "demo@v1.10.0"]
    for other in ("demo@1.0.0", "demo@v1.0", "Demo@v1.0.0", "demo@v1.0.0-rc", "v1.0.0", "demo#1@v1.0.0"):
        assert VersionTag.parse(other) is None


def test_card_counts_what_the_manifests_hold(root, tmp_path: Path):
    manifests = make_manifests(root, tmp_path, videos=3, keep=5)
    members = read_members(manifests)
    shards = {f"shards/{uri}": (uri, root.size(uri)) for uri in members.shards}
    card = make_card("demo", members, {**shards, "manifests/videos.parquet": ("m", 1)}, "1.2.3")
    clips = {row["clip_id"]: row for row in read_rows("clips", manifests["clips"])}
    kept = [row for row in read_rows("selection", manifests["selection"]) if row["keep"]]
    assert card["counts"] == {
        "videos": 3, "clips": 5, "train": 3, "held_out": 2, "frames": 80, "considered": 6, "dropped": 1,
        "dropped_by_reason": {"motion": 1}, "shards": 3,
        "seconds": sum(clips[row["clip_id"]]["end_s"] - clips[row["clip_id"]]["start_s"] for row in kept),
        "member_bytes": sum(clips[row["clip_id"]]["bytes"] for row in kept),
        "shard_bytes": sum(len(root.read(uri)) for uri in {row["shard_uri"] for row in clips.values()}),
    }  # fmt: skip
    assert card["statistics"]["motion"]["median"] == 3.0 and card["statistics"]["text"] is None
    assert card["thresholds"] == {"motion_percent": 0.2}
    assert card["provenance"]["captions"]["image"] == ["sidecar"]
    text = card_bytes(card).decode()
    assert json.loads(text) == card
    assert str(tmp_path) not in text and not re.search(r"20\d\d-\d\d", text)


def test_members_identity_follows_clips_not_captions(root, tmp_path: Path):
    first, captioned, more = (
        read_members(make_manifests(root, tmp_path / name, **changes)).identity
        for name, changes in (("a", {}), ("b", {"caption": "another", "cut": 0.3}), ("c", {"keep": 5}))
    )
    assert first == captioned != more


def _random(root, place: Path, rows: int) -> dict[str, Path]:
    """Manifests with values of every size, NaN and null."""
    rng = np.random.default_rng(0)
    manifests = make_manifests(root, place, videos=rows // 2, keep=rows - 3)
    chosen = read_rows("selection", manifests["selection"])
    for row in chosen:
        text = rng.choice(["number", "nan", "null"], p=[0.8, 0.1, 0.1])
        row["text_value"] = {"number": rng.lognormal(0, 9), "nan": np.nan, "null": None}[text]
    write_manifest("selection", chosen, manifests["selection"])
    clips = [
        {**row, "end_s": rng.uniform(1, 9), "fps": rng.uniform(8, 60)} for row in read_rows("clips", manifests["clips"])
    ]
    write_manifest("clips", clips, manifests["clips"])
    return manifests


def test_members_are_named_and_described_in_batches_as_they_would_be_as_a_whole(root, tmp_path: Path, monkeypatch):
    """The name of what versions hold is that of a list of all members; spreads are NumPy's."""
    monkeypatch.setattr(card_module, "_BATCH", 7)
    manifests = _random(root, tmp_path, 60)
    members = read_members(manifests)
    split = {row["clip_id"]: row for row in read_rows("selection", manifests["selection"]) if row["keep"]}
    kept = [row for row in read_rows("clips", manifests["clips"]) if row["clip_id"] in split]
    listed = [[r["clip_id"], split[r["clip_id"]]["split"], r["shard_uri"], r["offset"], r["bytes"]] for r in kept]
    assert members.identity == identity(members=listed) and members.clips == 57
    assert members.shards == sorted({row["shard_uri"] for row in kept})

    def spread(values: list[float]) -> dict[str, float]:
        there = np.array([value for value in values if value is not None and np.isfinite(value)])
        points = np.quantile(there, [0, 0.05, 0.5, 0.95, 1])
        return dict(zip(("min", "p5", "median", "p95", "max"), points, strict=True)) | {"mean": there.mean()}

    assert members.statistics["text"] == pytest.approx(spread([row["text_value"] for row in split.values()]), abs=1e-6)
    assert members.statistics["fps"] == pytest.approx(spread([row["fps"] for row in kept]), abs=1e-6)
    seconds = [row["end_s"] - row["start_s"] for row in kept]
    assert members.counts["seconds"] == round(sum(seconds), 3)
    assert members.statistics["clip_seconds"] == pytest.approx(spread(seconds), abs=1e-6)


def test_members_are_read_without_holding_them(root, tmp_path: Path, monkeypatch):
    """Python's own memory, that is; DuckDB has its limit."""
    monkeypatch.setattr(card_module, "_BATCH", 500)
    manifests = make_manifests(root, tmp_path, videos=1, keep=2)
    first = {kind: read_rows(kind, manifests[kind])[0] for kind in ("clips", "selection", "annotations")}
    peaks = []
    for count in (2000, 12_000):
        for kind, row in first.items():
            write_manifest(kind, [{**row, "clip_id": f"{n:032x}"} for n in range(count)], manifests[kind])
        tracemalloc.start()
        assert read_members(manifests).clips == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 10_000 < 20


def test_the_name_of_members_is_that_of_the_versions_that_there_are(root, tmp_path: Path):
    """Pinned: were it another, an unchanged dataset would get a new number."""
    assert read_members(make_manifests(root, tmp_path)).identity == "54e7c7094b1ae2f4011f54d4c4ef76a1"


def test_manifests_that_do_not_belong_together_are_refused(root, tmp_path: Path):
    small, large = (
        make_manifests(root, tmp_path / "a", videos=1, keep=2),
        make_manifests(root, tmp_path / "b", videos=3, keep=6),
    )
    with pytest.raises(BadInputError, match="keeps 4 clips that .* lacks"):
        read_members({**large, "clips": small["clips"]})
    with pytest.raises(BadInputError, match="keeps no clip"):
        read_members(make_manifests(root, tmp_path / "c", keep=0))


def test_dvc_file_names_the_listing():
    listing = dvc_files.make_listing({"a": ("0" * 32, 3)})
    out = yaml.safe_load(dvc_files.dvc_file(listing, "demo"))["outs"][0]
    assert out == {"md5": listing.digest, "size": 3, "nfiles": 1, "hash": "md5", "path": "demo"}
    assert dvc_files.listed_digest(dvc_files.dvc_file(listing, "demo")) == listing.digest


def test_lines_and_artifacts_are_added_once():
    ignore = dvc_files.with_line(b"/mine\n", "/demo")
    assert ignore == b"/mine\n/demo\n" == dvc_files.with_line(ignore, "/demo")
    artifacts = dvc_files.with_artifact(b"stages:\n  x:\n    cmd: y\n", "demo")
    assert yaml.safe_load(artifacts) == {
        "stages": {"x": {"cmd": "y"}}, "artifacts": {"demo": {"path": "demo", "type": "dataset"}},
    }  # fmt: skip


def _described(root, place: Path) -> dict:
    """A dataset as it is pulled, with its Croissant description beside it; returns the description."""
    manifests = make_manifests(root, place / "manifests", keep=5)
    members = read_members(manifests)
    files = {f"manifests/{kind}.parquet": (file_md5(path), path.stat().st_size) for kind, path in manifests.items()}
    (place / "shards").mkdir()
    for uri in members.shards:
        name = f"shards/{uri_md5(uri)}.tar"
        (place / name).write_bytes(root.read(uri))
        files[name] = (uri_md5(uri), root.size(uri))
    schemas = {kind: pq.read_schema(path) for kind, path in manifests.items()}
    described = make_croissant(make_card("demo", members, files, "1.2.3"), (1, 2, 3), files, schemas)
    (place / "croissant.json").write_bytes(croissant_bytes(described))
    return described


def test_the_croissant_description_is_valid_and_its_records_are_the_manifests_rows(root, tmp_path: Path):
    mlcroissant = pytest.importorskip("mlcroissant")
    _described(root, tmp_path)
    dataset = mlcroissant.Dataset(jsonld=str(tmp_path / "croissant.json"))
    assert not dataset.metadata.issues.errors and dataset.metadata.version == "1.2.3"
    for kind in MANIFESTS:
        key = "video_id" if kind == "videos" else "clip_id"
        rows = {row[key]: row for row in read_rows(kind, tmp_path / "manifests" / f"{kind}.parquet")}
        records = list(dataset.records(record_set=kind))
        assert len(records) == len(rows)
        for record in records:
            row = rows[record[f"{kind}/{key}"].decode()]
            for name, value in record.items():
                wanted = row[name.split("/")[1]]
                assert _plain(value) == wanted or (value is None and not wanted), name


def _plain(value):
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.decode() if isinstance(value, bytes) else value


def test_the_croissant_description_names_every_file_with_its_md5(root, tmp_path: Path):
    described = _described(root, tmp_path)
    listed = {entry["contentUrl"]: entry["md5"] for entry in described["distribution"]}
    paths = [path for folder in ("manifests", "shards") for path in (tmp_path / folder).iterdir()]
    on_disk = {path.relative_to(tmp_path).as_posix(): file_md5(path) for path in paths}
    assert listed == on_disk
    assert described["conformsTo"] == "http://mlcommons.org/croissant/1.0" and described["license"] == ["CC0"]
    assert not re.search(r"20\d\d-\d\d", json.dumps(described))


def test_a_claim_that_was_not_renewed_counts_for_nothing(root, monkeypatch):
    claim = {"what": "registering", "host": "elsewhere", "pid": 1}
    root.put_named(f"svdflow/claims/{claims.ADDING}/old.json", json.dumps(claim).encode())
    with pytest.raises(StorageError, match="process 1 on elsewhere is registering now"), claims.removing(root, "x"):
        pass
    monkeypatch.setattr(claims, "_STALE_S", -1.0)
    with claims.removing(root, "x"):
        pass
    assert [uri for uri in root.list("svdflow/claims") if "removing" in uri] == []


def test_who_registers_is_known_with_and_without_a_git_identity(tmp_path: Path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    git = Git(tmp_path)
    git("init", "--quiet")
    assert git.user() == ("svdflow", "svdflow@localhost") and re.fullmatch(r"[^@]+@[^@]+", person(git))
    (tmp_path / ".gitconfig").write_text("[user]\n name = Ada Lovelace\n email = ada@example.org\n")
    known = Git(tmp_path)
    assert person(known).startswith("Ada Lovelace <ada@example.org> (")
    commit = known.line("commit-tree", known.line("mktree"), "-m", "x")
    assert known.line("log", "-1", "--format=%an %ce", commit) == "Ada Lovelace ada@example.org"
    by, code, source = trailers(known, "run\n20260101")
    assert (by[:14], source) == ("Registered-by:", "From: run 20260101") and re.match(r"Code: svdflow \d", code)
