"""Memory of annotate (out of its cache) and of register over large manifests, and how it grows (run by hand).

pytest -s tests/benchmarks/test_dataset_memory.py

Each run is a process of its own; the figure is the peak over its process tree. It needs about 3 GB of disk and, on two
cores, a quarter of an hour. DATASET_MEMORY_SHARE=0.1 takes a tenth of the clips, for a quick look.
"""

import json
import os
from pathlib import Path

import duckdb
import pytest

from svdflow.common.config import load_settings
from svdflow.common.manifests import AXES
from svdflow.common.storage import DataRoot
from svdflow.curation.annotate.annotator import load
from svdflow.curation.annotate.results import ClipResult, ClipWork, Results
from svdflow.curation.annotate.settings import AnnotateSettings
from tests.benchmarks.process_memory import run_measured
from tests.benchmarks.test_filter_scale import typed, uniform
from tests.dataset_bench import store  # noqa: F401

SHARE = float(os.environ.get("DATASET_MEMORY_SHARE", 1))
ANNOTATED, REGISTERED = ([int(SHARE * n) for n in sizes] for sizes in ((50_000, 200_000), (200_000, 1_000_000)))
PER_VIDEO, PER_SHARD = 11, 1000
CAPTION = "a man in a red coat walks along a wet street at night while cars pass behind him and a dog looks on"

ANNOTATE = """
import sys
from pathlib import Path
from svdflow.common.config import load_settings
from svdflow.common.storage import DataRoot
from svdflow.curation.annotate.annotate import annotate_clips
from svdflow.curation.annotate.settings import AnnotateSettings
folder = Path(sys.argv[1])
settings = load_settings(AnnotateSettings, "annotate", "local")
report = annotate_clips(folder / "videos.parquet", folder / "clips.parquet", folder / "annotations.parquet",
                        DataRoot.open(folder / "root"), settings)
assert report.done == 0 and report.counts["clips annotated"] == int(sys.argv[2]), report.counts
"""
REGISTER = """
import sys
from pathlib import Path
from svdflow.common.storage import DataRoot
from svdflow.curation.version.register import register_dataset
from svdflow.curation.version.settings import VersionSettings
folder = Path(sys.argv[1])
manifests = [folder / f"{kind}.parquet" for kind in ("videos", "clips", "annotations", "selection")]
settings = VersionSettings(name="large", remote=f"s3://svdflow/{folder.name}")
report = register_dataset(*manifests, folder / "dataset.json", DataRoot.open(folder / "root"), folder / "registry",
                          folder / "store", settings)
assert report.counts["clips"] == int(sys.argv[2]), report.counts
"""


def make(folder: Path, rows: int) -> DataRoot:
    """Manifests of ``rows`` clips, all of them kept, with shards that hold a few bytes."""
    folder.mkdir(parents=True)
    root = DataRoot.open(folder / "root")
    shards = [root.put_bytes(f"shard {n}".encode()) for n in range(-(-rows // PER_SHARD))]
    start, clip, video = f"(i % {PER_VIDEO}) * 12", "md5(i::VARCHAR)", f"sha256((i // {PER_VIDEO})::VARCHAR)"
    columns = {
        "clips": {
            "clip_id": clip, "video_id": video, "start_s": start, "end_s": f"{start} + 4 + 7 * {uniform(2)}",
            "first_frame": f"24 * {start}", "last_frame": f"24 * {start} + 99", "cut_evidence": "'{}'",
            "shard_uri": f"(SELECT shards[1 + i // {PER_SHARD}] FROM known)", "member": "i || '.mp4'",
            "offset": f"(i % {PER_SHARD}) * 10240", "bytes": "9000", "frames": "100 + i % 50", "fps": "24",
            "width": "640", "height": "360",
        },
        "annotations": {
            "clip_id": clip, "motion_score": uniform(1), "motion_unit": "'px/0.5s@short128'", "annotators": "'{}'",
            **{f"caption_{kind}": f"'{CAPTION}'" for kind in ("image", "video", "summary")},
            **{f"caption_{kind}_model": "'m@1'" for kind in ("image", "video", "summary")},
        },
        "selection": {
            "clip_id": clip, "video_id": video, "keep": "true", "thresholds": "'{}'",
            "split": "CASE WHEN i % 20 = 0 THEN 'held_out' ELSE 'train' END", "reasons": "[]::VARCHAR[]",
            **{f"{axis}_value": uniform(n) for n, axis in enumerate(AXES, 3)},
            **{f"{axis}_failed": "false" for axis in AXES},
        },
        "videos": {
            "video_id": "sha256(i::VARCHAR)", "uri": "''", "name": "'videos/' || i || '.mp4'", "bytes": "1",
            "source": "'footage'", "status": "'ok'",
        },
    }  # fmt: skip
    with duckdb.connect() as connection:
        connection.execute("SET memory_limit = '2GB'; SET threads = 2; SET enable_progress_bar = false")
        connection.execute("CREATE TABLE known AS SELECT $1::VARCHAR[] AS shards", [shards])
        for kind, chosen in columns.items():
            count, key = (-(-rows // PER_VIDEO), "video_id") if kind == "videos" else (rows, "clip_id")
            select = f"SELECT {typed(kind, chosen)} FROM range({count}) r(i) ORDER BY {key}"
            connection.execute(f"COPY ({select}) TO '{folder / kind}.parquet' (FORMAT parquet, COMPRESSION zstd)")
    return root


def keep_results(folder: Path, root: DataRoot) -> None:
    """As if all clips had been annotated: the record of each, with objects that they share."""
    settings = load_settings(AnnotateSettings, "annotate", "local")
    kept, uri = Results(root, load(settings)), root.put_bytes(b"embeddings")
    three = [0.123456789, 0.23456789, 0.3456789]
    columns = {
        "motion_score": 1.23456789, "motion_unit": "px/0.5s@short128", "camera_motion": three, "text_area": three,
        "aesthetic": three, "embedding_uri": uri, "flow_uri": uri,
        **{f"caption_{kind}": CAPTION for kind in ("image", "video", "summary")},
        **{f"caption_{kind}_model": "model@1" for kind in ("image", "video", "summary")},
        **{f"similarity_{kind}": three for kind in ("image", "video", "summary")},
    }  # fmt: skip
    with duckdb.connect() as connection:
        reader = connection.sql(
            f"""SELECT clip_id, shard_uri, "offset", bytes FROM '{folder / "clips.parquet"}'"""
        ).to_arrow_reader(10_000)
        for batch in reader:
            for clip in batch.to_pylist():
                kept.close(ClipWork(root.location, settings, clip, None), ClipResult(columns))


def told(what: str, rows: int, figures: tuple[float, float, float]) -> float:
    seconds, resident, private = figures
    print(f"\n{what} {rows:,} clips: {seconds:.0f} s, peak {resident:.2f} GiB resident, {private:.2f} GiB private")
    return private


def test_annotate_out_of_its_cache(tmp_path: Path) -> None:
    peaks = []
    for rows in ANNOTATED:
        folder = tmp_path / str(rows)
        keep_results(folder, make(folder, rows))
        peaks.append(told("annotate finds", rows, run_measured(ANNOTATE, folder, str(rows))))
    more = (peaks[1] - peaks[0]) * 2**30 / (ANNOTATED[1] - ANNOTATED[0])
    print(f"{more:.0f} bytes more for every clip, up to a row group of the manifest")
    assert peaks[1] < 1.5


@pytest.mark.usefixtures("store")
def test_register(tmp_path: Path) -> None:
    peaks = []
    for rows in REGISTERED:
        make(tmp_path / str(rows), rows)
        peaks.append(told("register", rows, run_measured(REGISTER, tmp_path / str(rows), str(rows))))
        about = json.loads((tmp_path / str(rows) / "dataset.json").read_text())
        print(f"{about['tag']}: {about['counts']['clips']:,} clips in {about['shards']:,} shards")
    print(f"{(peaks[1] - peaks[0]) * 2**30 / (REGISTERED[1] - REGISTERED[0]):.0f} bytes more for every clip")
    assert peaks[1] < 1.5
