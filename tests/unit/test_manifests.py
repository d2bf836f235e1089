import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from manifest_rows import SOUND

from svdflow.common import manifest_spool, manifests
from svdflow.common.errors import BadInputError
from svdflow.common.identity import identity
from svdflow.common.manifest_spool import ManifestSpool
from svdflow.common.manifests import (
    SCHEMA_VERSION,
    SCHEMA_VERSIONS,
    SCHEMAS,
    current_file,
    read_blocks,
    read_manifest,
    read_rows,
    write_manifest,
)
from svdflow.curation.version.card import MANIFESTS


def clip(number: int, **changes):
    row = {
        "clip_id": f"{number:032x}", "video_id": "v", "start_s": 0.0, "end_s": 1.0, "first_frame": 0, "last_frame": 24,
        "cut_evidence": "{}", "shard_uri": "files/md5/aa/bb", "member": "m.mp4", "offset": 512, "bytes": 10,
        "frames": 25, "fps": 25.0, "width": 64, "height": 48,
    }  # fmt: skip
    return row | changes


def test_rows_come_back_as_written_and_in_canonical_order(tmp_path):
    rows = [clip(n) for n in range(20)]
    write_manifest("clips", random.Random(0).sample(rows, 20), tmp_path / "clips.parquet")
    assert read_rows("clips", tmp_path / "clips.parquet") == rows


def test_equal_content_gives_equal_bytes_in_any_order_of_rows(tmp_path):
    rows = [clip(n) for n in range(50)]
    write_manifest("clips", rows, tmp_path / "a")
    write_manifest("clips", rows[::-1], tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (clip(1, colour="red"), "colour"),
        (clip(1, frames="many"), "clips manifest"),
        (clip(1, video_id=None), "video_id"),
    ],
)
def test_a_row_against_the_schema_is_refused_and_nothing_is_left(tmp_path, row, said):
    with pytest.raises(BadInputError, match=said):
        write_manifest("clips", [row], tmp_path / "clips.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_such_manifest_is_refused_with_its_name(tmp_path):
    with pytest.raises(BadInputError, match=r"absent\.parquet"):
        read_manifest("clips", tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("not parquet at all")
    with pytest.raises(BadInputError, match=r"text\.parquet"):
        read_manifest("clips", tmp_path / "text.parquet")
    pq.write_table(pa.table({"clip_id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(BadInputError, match="columns differ"):
        read_manifest("clips", tmp_path / "other.parquet")


@pytest.mark.parametrize("kind", SCHEMAS)
def test_an_empty_manifest_keeps_its_schema(tmp_path, kind):
    write_manifest(kind, [], tmp_path / "m")
    assert read_manifest(kind, tmp_path / "m").schema.names == SCHEMAS[kind].names


OLD = Path(__file__).parent.parent / "data" / "manifests" / "schema-1"  # written by the code of schema 1


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_manifest_of_schema_1_is_read_with_the_values_it_has(kind):
    table = pq.read_table(OLD / f"{kind}.parquet")
    old = {name: table[name].to_pylist() for name in table.schema.names}
    new = read_manifest(kind, OLD / f"{kind}.parquet")
    assert new.schema == SCHEMAS[kind]
    if kind != "videos":  # whose rows are joined
        assert {name: new[name].to_pylist() for name in old} == old
    for name in set(new.schema.names) - set(old) - {"sources"}:
        assert set(map(str, new[name].to_pylist())) <= {"None", "False"}, name


def test_videos_of_schema_1_become_one_row_a_content_with_all_their_places():
    rows = {row["name"]: row for row in read_rows("videos", OLD / "videos.parquet")}
    assert sorted(rows) == ["broken.mp4", "locked-a.mp4", "locked-b.mp4", "v00.mp4", "v01.mp4", "v02.mp4"]
    twice = rows["v00.mp4"]
    assert (twice["status"], twice["error"], twice["licence"]) == ("ok", None, "CC0-1.0")
    assert twice["sources"] == [
        {"name": "v00.mp4", "uri": "v00.mp4", "licence": "CC0-1.0", "metadata": None},
        {"name": "zz/again.mp4", "uri": "zz/again.mp4", "licence": "CC-BY-4.0", "metadata": None},
    ]
    assert all(len(row["sources"]) == 1 for name, row in rows.items() if name != "v00.mp4")


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_manifest_of_schema_2_is_read_with_the_values_it_has(kind):
    table = pq.read_table(OLD.with_name("schema-2") / f"{kind}.parquet")
    old = {name: table[name].to_pylist() for name in table.schema.names}
    new = read_manifest(kind, OLD.with_name("schema-2") / f"{kind}.parquet")
    assert new.schema == SCHEMAS[kind] and len(new) == len(table) > 0
    assert {name: new[name].to_pylist() for name in old} == old
    for name in set(new.schema.names) - set(old):
        assert set(new[name].to_pylist()) == {None}, name


def test_samples_of_schema_3_are_read_with_the_values_they_have_and_nothing_made_up():
    path = OLD.with_name("schema-3") / "samples.parquet"
    table, new = pq.read_table(path), read_manifest("samples", path)
    assert new.schema == SCHEMAS["samples"] and len(new) == len(table) > 0
    assert {name: new[name].to_pylist() for name in table.schema.names} == table.to_pydict()
    added = set(new.schema.names) - set(table.schema.names)
    assert added == {"source_id", "group", "group_sources", "motion_unit"}
    assert all(new[name].null_count == len(new) for name in added)


def test_samples_are_of_no_dataset_version_so_that_their_schema_moves_alone():
    assert {SCHEMA_VERSIONS[kind] for kind in MANIFESTS} == {SCHEMA_VERSION} and "samples" not in MANIFESTS


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_migrated_file_is_written_once_and_a_present_one_is_read_as_it_is(tmp_path, kind):
    copy = current_file(kind, OLD / f"{kind}.parquet", tmp_path)
    assert copy.parent == tmp_path and current_file(kind, copy, tmp_path / "elsewhere") == copy
    assert pq.read_schema(copy).metadata[b"svdflow.schema_version"] == SCHEMA_VERSIONS[kind].encode()
    assert sorted(map(str, read_rows(kind, copy))) == sorted(map(str, read_rows(kind, OLD / f"{kind}.parquet")))


@pytest.mark.parametrize(("version", "said"), [("99", "knows schemas up to"), ("0", "no way"), ("x", "knows schemas")])
def test_a_manifest_of_a_schema_that_is_not_known_is_refused(tmp_path, version, said):
    table = write_manifest("clips", [clip(1)], tmp_path / "clips.parquet")
    pq.write_table(table.replace_schema_metadata({"svdflow.schema_version": version}), tmp_path / "clips.parquet")
    with pytest.raises(BadInputError, match=rf"clips.parquet: clips manifest of schema {version}.*{said}"):
        read_manifest("clips", tmp_path / "clips.parquet")


def test_a_manifest_that_lies_about_its_schema_is_refused(tmp_path):
    table = pa.table({"clip_id": ["a"]}).replace_schema_metadata({"svdflow.schema_version": "1"})
    pq.write_table(table, tmp_path / "selection.parquet")
    with pytest.raises(BadInputError, match="not of its own schema 1: .*there is no column split"):
        read_manifest("selection", tmp_path / "selection.parquet")


# rows in any order


@pytest.mark.parametrize("kind", ["videos", "clips"])
@pytest.mark.parametrize(("run", "group"), [(1000, 1 << 20), (7, 1 << 20), (64, 300), (250, 100)])
def test_rows_in_any_order_give_the_bytes_of_the_whole(tmp_path, monkeypatch, kind, run, group):
    """However few rows are held in memory, and wherever row groups end."""
    for module in (manifests, manifest_spool):
        monkeypatch.setattr(module, "ROW_GROUP", group)
    key = manifests.KEYS[kind]
    rows = [{**row, key: identity(n=n, of=row[key])} for n in range(40) for row in SOUND[kind]()]
    write_manifest(kind, rows, tmp_path / "whole.parquet")
    random.Random(run).shuffle(rows)
    with ManifestSpool(kind, tmp_path, run) as spool:
        for row in rows:
            spool.add(row)
        spool.write(tmp_path / "spooled.parquet")
        assert spool.rows == len(rows)
    assert (tmp_path / "spooled.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spooled.parquet", "whole.parquet"]


def test_no_rows_give_the_empty_manifest(tmp_path):
    write_manifest("clips", [], tmp_path / "whole.parquet")
    with ManifestSpool("clips", tmp_path) as spool:
        spool.write(tmp_path / "spooled.parquet")
    assert (tmp_path / "spooled.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_blocks_of_a_manifest_are_its_rows_and_hold_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "BLOCK", 10)
    write_manifest("clips", SOUND["clips"](), tmp_path / "clips.parquet")
    blocks = list(read_blocks("clips", tmp_path / "clips.parquet", ["fps", "clip_id"]))
    assert [len(block) for block in blocks] == [10, 10, 4]
    rows = read_rows("clips", tmp_path / "clips.parquet")
    told = [row for block in blocks for row in block.to_pylist()]
    assert told == [{"fps": row["fps"], "clip_id": row["clip_id"]} for row in rows]
    for wrong in ("missing.parquet", "other.parquet"):
        with pytest.raises(BadInputError):
            write_manifest("videos", [], tmp_path / "other.parquet")
            next(read_blocks("clips", tmp_path / wrong, ["clip_id"]))
