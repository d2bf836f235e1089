"""Steps whose units are worked on in pods: the same manifests, byte for byte, as with processes of one machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from svdflow.common.cluster.api import Cluster
from svdflow.common.storage import DataRoot
from svdflow.common.video import encode_mp4
from svdflow.curation.annotate.annotate import annotate_clips
from svdflow.curation.annotate.settings import AnnotateSettings
from svdflow.curation.split.split import split_videos
from svdflow.ingest.ingest import IngestSettings, ingest_videos
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_controllers import Controllers
from tests.fakes.kube_kubelet import as_process
from tests.fakes.kube_rules import JOBS
from tests.split_footage import FPS, LOOSE, shots

# one annotator of each sort: measured where a clip is decoded, and by a model over several
FEW = {"workers": 1} | dict.fromkeys(
    ("text", "aesthetic", "caption_image", "caption_video", "caption_summary", "similarity")
)


@contextmanager
def pods(folder: Path, monkeypatch: pytest.MonkeyPatch, units: int) -> Iterator[KubeAPI]:
    """Steps send their units to a cluster meanwhile, whose pods are processes of this machine."""
    settings = {"image": "a:1", "claim": "work", "claim_path": str(folder), "units": units, "cpu": 2}
    with KubeAPI() as api, Controllers(api.store, as_process), monkeypatch.context() as patch:
        patch.setenv("SVDFLOW_FANOUT", json.dumps(settings))
        patch.setenv("KFP_POD_NAME", "of-no-run")
        patch.setattr("svdflow.common.fanout_jobs.connect", lambda *_: Cluster(api.configuration, "svdflow"))
        yield api


def jobs(api: KubeAPI) -> list[tuple[str, int]]:
    """What was asked of the cluster: kind of work, and pods."""
    made = [(job["metadata"]["name"].split("-")[0], job["spec"]["completions"]) for job in api.store.objects(JOBS)]
    assert len(api.asked("POST")) == len(made)
    return sorted(made)


def test_ingest_and_split_write_the_same_manifests(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    for name, lengths in (("a.mp4", [14, 12]), ("b.mp4", [16])):
        (source / name).write_bytes(encode_mp4(shots(lengths)[0], FPS))
    (source / "again.mp4").write_bytes((source / "a.mp4").read_bytes())
    (source / "none.mp4").write_bytes(b"no video" * 999)

    def run(place: Path) -> tuple[list[bytes], Any]:
        root, place = DataRoot.open(place / "data"), place
        ingested = ingest_videos(str(source), place / "videos.parquet", root, IngestSettings(licence="CC0"))
        split_videos(place / "videos.parquet", place / "clips.parquet", root, LOOSE)
        objects = sorted(uri for uri in root.list("files"))
        return [(place / f"{kind}.parquet").read_bytes() for kind in ("videos", "clips")], (ingested.counts, objects)

    here = run(tmp_path / "here")
    with pods(tmp_path, monkeypatch, units=2) as api:
        there = run(tmp_path / "there")
        assert jobs(api) == [("probe", 2), ("split", 1)]
    assert here == there


def test_annotate_writes_the_same_manifest_models_included(tmp_path, monkeypatch):
    from clip_sets import clip_set

    from svdflow.common.config import load_settings
    from svdflow.ingest.footage import make_scene

    settings = load_settings(AnnotateSettings, "annotate", "local").model_copy(update=FEW)
    scenes = [make_scene(n, 12, 96, 160, camera="pan_left").frames for n in range(3)]

    def run(place: Path) -> bytes:
        place.mkdir()
        root = DataRoot.open(place / "data")
        clips = clip_set(root, place, scenes)
        annotate_clips(clips.videos, clips.clips, place / "annotations.parquet", root, settings)
        return (place / "annotations.parquet").read_bytes()

    here = run(tmp_path / "here")
    with pods(tmp_path, monkeypatch, units=3) as api:
        assert run(tmp_path / "there") == here
        assert jobs(api) == [("annotate", 1)]
