"""Lists of videos: what is read and carried along, what a list may not name, and that no secret is written down."""

import csv
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdflow.common.errors import BadInputError
from svdflow.ingest.licences import refusal
from svdflow.ingest.lists import read_list
from svdflow.ingest.sources import ListSettings, Source, find_sources, with_unique_names
from svdflow.ingest.uris import same_place, scheme_of, split_s3, text_without_secrets, without_secrets

OPEN = ListSettings()


def write_csv(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def sources(tmp_path: Path, *uris: str, settings: ListSettings = OPEN) -> list[Source]:
    return find_sources(str(write_csv(tmp_path / "list.csv", [{"uri": uri} for uri in uris])), settings)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_list_is_read_and_its_other_columns_are_carried_along(tmp_path, kind):
    rows = [
        {
            "uri": "a b.mp4",
            "licence": "CC0-1.0",
            "name": "first",
            "description": 'says "hi", twice',
            "views": 7,
            "from": "Ü",
        },
        {"uri": "https://example.org/v/b.mp4", "licence": "", "name": "", "description": "", "views": 8, "from": ""},
    ]
    path = tmp_path / f"list.{kind}"
    write_csv(path, rows) if kind == "csv" else pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = find_sources(str(path), OPEN)
    assert (first.name, first.uri, first.place) == ("first", "a b.mp4", str(tmp_path / "a b.mp4"))
    assert (first.licence, first.description) == ("CC0-1.0", 'says "hi", twice')
    views = 7 if kind == "parquet" else "7"
    assert json.loads(first.metadata) == {"views": views, "from": "Ü"}
    assert (second.name, second.uri) == ("https://example.org/v/b.mp4",) * 2
    assert (second.licence, second.description) == (None, None)


def test_cells_of_any_type_are_carried_as_json(tmp_path):
    table = pa.table(
        {
            "uri": ["a.mp4", None],
            "license": ["MIT", None],
            "tags": [["x", "y"], None],
            "box": [{"left": 1.5}, None],
            "score": [float("nan"), 2.0],
            "when": pa.array([0, None], pa.timestamp("s")),
            "raw": [b"\x01\xff", None],
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    first, second = find_sources(str(tmp_path / "list.parquet"), OPEN)
    assert json.loads(first.metadata) == {
        "tags": ["x", "y"], "box": {"left": 1.5}, "score": None, "when": "1970-01-01 00:00:00", "raw": "01ff",
    }  # fmt: skip
    assert first.licence == "MIT"
    assert (second.name, second.fault) == ("row 2", "no uri: the row names no place")


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.csv", b"url,licence\nx,y\n", "has no column uri, only url, licence"),
        ("a.csv", b"", "has no column uri"),
        ("a.csv", b"uri,licence\na,b,c\n", "line 2 has more fields than the header"),
        ("a.csv", b"uri\n\xff\xfe\n", "cannot be read as CSV in UTF-8"),
        ("a.csv", b'uri\n"open\n', "cannot be read as CSV"),
        ("a.csv", b"uri\n" + b"a" * 200_000, "cannot be read as CSV"),
        ("a.csv", b"uri,URI\na,b\n", "has the column 'uri' twice"),
        ("a.parquet", b"PAR1 not at all", "cannot be read as Parquet"),
        ("a.parquet", b"", "cannot be read as Parquet"),
        ("a.txt", b"uri\n", "nothing to read videos from; name a folder"),
    ],
)
def test_a_broken_list_is_one_clear_line(tmp_path, name, data, why):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInputError, match=why) as told:
        find_sources(str(tmp_path / name), OPEN)
    assert "\n" not in str(told.value)


def test_a_list_has_a_greatest_length(tmp_path):
    with pytest.raises(BadInputError, match="more than 2 rows"):
        sources(tmp_path, "a", "b", "c", settings=ListSettings(max_rows=2))


def test_a_spreadsheets_byte_order_mark_and_capitals_are_understood(tmp_path):
    (tmp_path / "a.csv").write_bytes("﻿URI,Licence\r\na.mp4,MIT\r\n".encode())
    (only,) = find_sources(str(tmp_path / "a.csv"), OPEN)
    assert (only.uri, only.licence) == ("a.mp4", "MIT")


def test_local_paths_lie_below_the_lists_own_folder(tmp_path):
    here = tmp_path / "lists"
    (here / "in").mkdir(parents=True)
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (here / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (here / "dir").symlink_to(tmp_path)
    inside = [
        "in/a.mp4",
        "./b.mp4",
        "in/../c.mp4",
        str(here / "d.mp4"),
        f"file://{here}/e%20e.mp4",
        f"file:{here}/f.mp4",
    ]
    outside = [
        "../secret.mp4",
        str(tmp_path / "secret.mp4"),
        f"file://{tmp_path}/secret.mp4",
        "link.mp4",
        "dir/secret.mp4",
        "/etc/passwd",
        "in/../../secret.mp4",
    ]
    found = sources(here, *inside, *outside)
    assert [s.fault for s in found[: len(inside)]] == [None] * len(inside)
    assert [Path(s.place).name for s in found[: len(inside)]] == [
        "a.mp4",
        "b.mp4",
        "c.mp4",
        "d.mp4",
        "e e.mp4",
        "f.mp4",
    ]
    assert [s.uri for s in found[:5]] == ["in/a.mp4", "b.mp4", "c.mp4", "d.mp4", "e e.mp4"]  # of no machine
    assert {s.fault.split(":")[0] for s in found[len(inside) :]} == {"refused"}
    assert {s.place for s in found[len(inside) :]} == {""}
    allowed = sources(here, *outside, settings=ListSettings(local_anywhere=True))
    assert [s.fault for s in allowed] == [None] * len(outside)
    assert allowed[0].place == str(tmp_path / "secret.mp4")


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("", "no uri"),
        ("ftp://example.org/a.mp4", "unsupported"),
        ("data://text,x", "unsupported"),
        ("file://other.example.org/a.mp4", "unsupported"),
        ("http:///a.mp4", "unreadable"),
        ("http://[::1/a.mp4", "unreadable"),
        ("s3://KEY:SECRET@bucket/a.mp4", "unreadable"),
        ("s3://Bucket_/a.mp4", "unreadable"),
        ("s3://bucket", "unreadable"),
        ("s3://other/a.mp4", "refused"),
        ("a\0b.mp4", "unreadable"),
    ],
)
def test_a_row_that_cannot_be_followed_says_why(tmp_path, uri, fault):
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"uri": [uri]}), path)
    (only,) = find_sources(str(path), ListSettings(buckets=("mine",)))
    assert only.fault.split(":")[0] == fault and only.place == ""
    assert "SECRET" not in repr(only)


def test_a_list_in_s3_names_objects_beside_it(tmp_path):
    path = write_csv(
        tmp_path / "list", [{"uri": uri} for uri in ("a.mp4", "in/b.mp4", "../c.mp4", "../../other/d.mp4", "/e.mp4")]
    )
    found = list(read_list(path, "s3://bucket/lists/list.csv", OPEN))
    assert [s.place for s in found] == ["s3://bucket/lists/a.mp4", "s3://bucket/lists/in/b.mp4", "", "", ""]
    assert [s.fault is None for s in found] == [True, True, False, False, False]


def test_names_are_made_unique(tmp_path):
    found = sources(tmp_path, "https://h.org/watch?v=1", "https://h.org/watch?v=2", "https://h.org/watch?v=3")
    assert [s.name for s in found] == [f"https://h.org/watch{n}" for n in ("", " (2)", " (3)")]
    kept = sources(tmp_path, "https://h.org/watch?v=1&sig=s", settings=ListSettings(kept_query=("v",)))
    assert kept[0].uri == "https://h.org/watch?v=1"


@given(st.lists(st.sampled_from(["a", "b", "a (2)", "a (3)"]), max_size=12))
def test_unique_names_keep_their_order_and_are_unique(names):
    made = with_unique_names([Source(name, name, name) for name in names])
    assert len({s.name for s in made}) == len(names)
    assert [s.uri for s in made] == names
    assert all(s.name.startswith(s.uri) for s in made)


# secrets


SECRET = "s3cr3tS1gnature"


@pytest.mark.parametrize(
    ("uri", "recorded"),
    [
        (f"https://user:{SECRET}@h.org/a.mp4", "https://h.org/a.mp4"),
        (f"https://{SECRET}@h.org:8443/a.mp4", "https://h.org:8443/a.mp4"),
        (f"https://h.org/a.mp4?X-Amz-Signature={SECRET}&v=1#t={SECRET}", "https://h.org/a.mp4"),
        (f"HTTPS://u:{SECRET}@h.org/a.mp4", "https://h.org/a.mp4"),
        (f"s3://KEY:{SECRET}@bucket/a?b.mp4", "s3://bucket/a?b.mp4"),
        (f"http://u:{SECRET}@[::1/a?{SECRET}", "http://[::1"),
        ("a?b#c.mp4", "a?b#c.mp4"),
    ],
)
def test_what_lets_in_is_not_recorded(uri, recorded):
    assert without_secrets(uri) == recorded
    text = text_without_secrets(f'see "{uri}", {uri} and <{uri}>')
    assert SECRET not in text and recorded in text


def test_no_column_of_a_list_carries_a_secret_along(tmp_path):
    url = f"https://u:{SECRET}@h.org/a.mp4?token={SECRET}"
    row = {
        "uri": url,
        "name": url,
        "description": f"from {url}",
        "licence": "MIT",
        "page": url,
        "more": json.dumps([url]),
    }
    (only,) = find_sources(str(write_csv(tmp_path / "list.csv", [row])), OPEN)
    assert only.place == url and SECRET not in repr(only)
    assert SECRET not in json.dumps([only.name, only.uri, only.description, only.metadata])


def test_a_renewed_signature_names_the_same_place():
    first = "https://u:p@h.org/a.mp4?v=7&X-Amz-Signature=1&X-Amz-Date=2&Expires=3"
    second = "https://h.org/a.mp4?v=7&X-Amz-Signature=4&X-Amz-Date=5&Expires=6"
    assert same_place(first) == same_place(second) != same_place(second.replace("v=7", "v=8"))


def test_schemes_and_buckets():
    assert [scheme_of(u) for u in ("a.mp4", "C:/a", "http://x", "S3://b/k", "file:/a", "a b://c")] == [
        "",
        "",
        "http",
        "s3",
        "file",
        "",
    ]
    assert split_s3("s3://bucket/a/b c?d.mp4") == ("bucket", "a/b c?d.mp4")
    assert split_s3("s3://bucket") == ("bucket", "") and split_s3("s3:///key") is None


# licences


@pytest.mark.parametrize(
    ("licence", "allowed", "refused", "usable"),
    [
        (None, (), (), True),
        ("anything", (), (), True),
        (None, ("CC0-1.0",), (), False),
        ("cc0-1.0 ", ("CC0-1.0",), (), True),
        ("CC-BY-4.0", ("CC0-1.0", "cc-by-*"), (), True),
        ("CC-BY-NC-4.0", ("CC-BY-*",), ("*-NC-*",), False),
        ("CC-BY-4.0", ("CC-BY-*",), ("*-NC-*",), True),
        ("CC-BY-NC-4.0", (), ("cc-by-nc-4.0",), False),
        (None, (), ("CC-BY-NC-4.0",), True),
        ("MIT", ("CC0-1.0",), (), False),
    ],
)
def test_licences_are_allowed_and_refused_by_name(licence, allowed, refused, usable):
    why = refusal(licence, allowed, refused)
    assert (why is None) == usable


@pytest.mark.parametrize(
    ("location", "buckets", "allowed"),
    [
        ("/lists/list.csv", (), []),
        ("s3://own/list.csv", (), ["own"]),
        ("s3://own/list.csv", ("other",), ["own", "other"]),
        ("/lists/list.csv", ("other",), ["other"]),
        ("/lists/list.csv", ("*",), ["own", "other", "third"]),
    ],
)
def test_a_list_names_objects_of_its_own_bucket_and_of_those_it_may(tmp_path, location, buckets, allowed):
    path = write_csv(tmp_path / "list.csv", [{"uri": f"s3://{bucket}/a.mp4"} for bucket in ("own", "other", "third")])
    found = list(read_list(path, location, ListSettings(buckets=buckets)))
    assert [source.place[5:].partition("/")[0] for source in found if not source.fault] == allowed
    assert all("lists.buckets" in source.fault for source in found if source.fault)


def test_names_that_repeat_are_numbered_in_no_time_and_as_ever():
    repeated = [Source("a", "a", "a"), Source("a (2)", "a (2)", "a"), *[Source("a", "a", "a")] * 3]
    assert [s.name for s in with_unique_names(repeated)] == ["a", "a (2)", "a (3)", "a (4)", "a (5)"]
    started = time.process_time()
    names = {s.name for s in with_unique_names([Source("a", "a", "a")] * 30_000)}
    assert len(names) == 30_000 and f"a ({30_000})" in names
    assert time.process_time() - started < 5  # by trying every number for each it would be minutes


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_spreadsheets_other_delimiters_and_empty_columns_are_understood(tmp_path, delimiter):
    rows = [["URI", "Licence", "note", "", ""], ["a.mp4", "MIT", "4,5", "", ""]]
    (tmp_path / "a.csv").write_text("\ufeff" + "\n".join(delimiter.join(row) for row in rows), encoding="utf-8")
    (only,) = find_sources(str(tmp_path / "a.csv"), OPEN)
    assert (only.uri, only.licence, json.loads(only.metadata)) == ("a.mp4", "MIT", {"note": "4,5"})


def test_texts_that_a_parquet_writer_did_not_mark_as_such_are_read(tmp_path):
    pq.write_table(pa.table({"uri": [b"a.mp4"], "licence": [b"CC0-1.0"]}), tmp_path / "a.parquet")
    (only,) = find_sources(str(tmp_path / "a.parquet"), OPEN)
    assert (only.uri, only.licence) == ("a.mp4", "CC0-1.0")


def test_a_time_beyond_the_calendar_is_one_clear_line(tmp_path):
    table = pa.table({"uri": ["a.mp4"], "when": pa.array([10**15], pa.timestamp("s"))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(BadInputError, match="cannot be read as Parquet"):
        find_sources(str(tmp_path / "a.parquet"), OPEN)


def test_half_a_surrogate_pair_in_a_sidecar_does_not_cost_the_run(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "a.json").write_text('{"description": "a smile \\ud83d", "licence": "MIT"}')
    (only,) = find_sources(str(tmp_path), OPEN)
    assert only.licence == "MIT" and only.description.startswith("a smile ")
    assert only.description.encode()  # so that a manifest can hold it
