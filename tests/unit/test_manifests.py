import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from svdflow.common.errors import BadInputError
from svdflow.common.manifests import SCHEMAS, read_manifest, read_rows, write_manifest


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
