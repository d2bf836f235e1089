"""The rules of dataset versions that need no store: numbers, cards, and the bytes by which DVC knows a directory."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from svdflow.common.errors import BadInputError
from svdflow.common.manifests import SCHEMA_VERSION, read_rows
from svdflow.curation.version import dvc_files
from svdflow.curation.version.card import card_bytes, make_card, next_number, read_members
from svdflow.curation.version.registry import VersionTag
from tests.dataset_manifests import make_manifests

MD5 = st.text("0123456789abcdef", min_size=32, max_size=32)
PATHS = st.text(st.characters(codec="utf-8", exclude_characters="/\0\\"), min_size=1, max_size=8).filter(
    lambda s: s not in (".", "..")
)


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
    shards = {uri: (uri, root.size(uri)) for uri in members.shards}
    card = make_card("demo", members, shards, "c", "1.2.3")
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
