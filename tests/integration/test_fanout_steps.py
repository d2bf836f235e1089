"""Steps whose units are worked on in pods: the same manifests, byte for byte, as with processes of one machine.

While they run, their own process may open no video and no picture, and start no process of its own for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from svdflow.common import fanout
from svdflow.common.cluster.api import Cluster
from svdflow.common.errors import ConfigError
from svdflow.common.manifests import AXES, read_rows, write_manifest
from svdflow.common.report import StepReport
from svdflow.common.storage import DataRoot
from svdflow.common.video import encode_mp4
from svdflow.curation.annotate.annotate import annotate_clips
from svdflow.curation.annotate.settings import AnnotateSettings
from svdflow.curation.filter.filter import filter_clips
from svdflow.curation.filter.settings import FilterSettings
from svdflow.curation.split.split import split_videos
from svdflow.evaluation.held_out import load_clips
from svdflow.export.input_images import choose_images
from svdflow.ingest.ingest import IngestSettings, ingest_videos
from svdflow.multiview.measure import rendered_views
from svdflow.multiview.render import render_orbits
from svdflow.multiview.settings import RenderSettings
from svdflow.training.encode.encode import encode_clips
from svdflow.training.encode.images import encode_images
from svdflow.training.encode.settings import EncodeSettings
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_controllers import Controllers
from tests.fakes.kube_kubelet import as_process
from tests.fakes.kube_rules import JOBS
from tests.split_footage import FPS, LOOSE, shots

# one annotator of each sort: measured where a clip is decoded, and by a model over several
FEW = {"workers": 1} | dict.fromkeys(
    ("text", "aesthetic", "caption_image", "caption_video", "caption_summary", "similarity")
)

DECODERS = (  # what opens media, or is a process that does
    "PIL.Image.open",
    "cv2.imdecode",
    "cv2.imread",
    "cv2.VideoCapture",
    "svdflow.curation.annotate.annotate.ModelProcess",
)


@contextmanager
def pods(folder: Path, monkeypatch: pytest.MonkeyPatch, units: int) -> Iterator[KubeAPI]:
    """Steps send their units to a cluster meanwhile, whose pods are processes of this machine."""
    settings = {"image": "a:1", "claim": "work", "claim_path": str(folder), "units": units, "cpu": 2}
    opened: list[str] = []
    with KubeAPI() as api, Controllers(api.store, as_process), monkeypatch.context() as patch:
        for place in DECODERS:
            patch.setattr(place, _refused(place, opened))
        patch.setattr("av.open", _writing_alone(av.open, opened))
        patch.setattr("svdflow.common.fanout._Worker", _bringing_alone(opened))
        patch.setenv("SVDFLOW_FANOUT", json.dumps(settings))
        patch.setenv("KFP_POD_NAME", "of-no-run")
        patch.setattr("svdflow.common.fanout_jobs.connect", lambda *_: Cluster(api.configuration, "svdflow"))
        yield api
    assert not opened, f"decoded in the step's own process: {opened}"


def _refused(place: str, opened: list[str]) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        opened.append(place)
        raise AssertionError(f"{place} in a step that has pods for it")

    return refuse


def _writing_alone(really: Callable[..., Any], opened: list[str]) -> Callable[..., Any]:
    def open_container(file: Any, mode: str = "r", **how: Any) -> Any:
        return really(file, mode, **how) if mode == "w" else _refused("av.open", opened)()

    return open_container


def _bringing_alone(opened: list[str]) -> type:
    """Processes that bring bytes and decode none of them."""

    class Bringing(fanout._Worker):
        def start(self, index: int, attempt: int, units: Sequence[Any]) -> None:
            if not getattr(units[index], "probe_later", False):
                _refused(f"a process with {units[index]}", opened)()
            super().start(index, attempt, units)

    return Bringing


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


def pictures_of(report: StepReport) -> list[str]:
    return [item["caption"] for part in report.sections if part["kind"] == "images" for item in part["items"]]


def test_annotate_and_filter_write_the_same_manifests_models_included_and_show_the_same_clips(tmp_path, monkeypatch):
    from clip_sets import clip_set

    from svdflow.common.config import load_settings
    from svdflow.ingest.footage import make_scene

    settings = load_settings(AnnotateSettings, "annotate", "local").model_copy(update=FEW)
    scenes = [make_scene(n, 12, 96, 160, camera="pan_left").frames for n in range(3)]

    places = {name: DataRoot.open(tmp_path / name / "data") for name in ("here", "there")}
    given = {name: clip_set(root, tmp_path / name, scenes) for name, root in places.items()}

    def run(place: Path) -> Any:
        root, clips = places[place.name], given[place.name]
        notes, selection = place / "annotations.parquet", place / "selection.parquet"
        annotated = annotate_clips(clips.videos, clips.clips, notes, root, settings)
        asked = FilterSettings(shown=2, text_percent=0, text_max_area=None, aesthetic_percent=0, similarity_percent=0)
        filtered = filter_clips(clips.videos, clips.clips, notes, selection, root, asked)
        assert len(pictures_of(annotated)) == 3 and pictures_of(filtered)
        return notes.read_bytes(), selection.read_bytes(), pictures_of(annotated), sorted(pictures_of(filtered))

    here = run(tmp_path / "here")
    with pods(tmp_path, monkeypatch, units=3) as api:
        assert run(tmp_path / "there") == here
        assert jobs(api) == [("annotate", 1), ("pictures", 1), ("pictures", 1)]


def test_clips_are_encoded_compared_and_sent_without_being_decoded_in_the_step(tmp_path, monkeypatch):
    from clip_sets import clip_set

    rng = np.random.default_rng(0)
    scenes = [np.kron(rng.integers(0, 255, (9, 4, 6, 3), np.uint8), np.ones((1, 8, 8, 1), np.uint8)) for _ in "abc"]
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.fromarray(scenes[0][0]).save(photographs / "a.png")
    (photographs / "b.jpg").write_bytes(b"\xff\xd8 no picture")
    settings = EncodeSettings(frames=4, height=32, width=32, fps=6, samples_per_shard=8)

    places = {name: DataRoot.open(tmp_path / name / "data") for name in ("here", "there")}
    sets = {name: clip_set(root, tmp_path / name, scenes) for name, root in places.items()}

    def run(place: Path) -> Any:
        root, given = places[place.name], sets[place.name]
        rows = read_rows("clips", given.clips)
        broken = {**rows[0], "clip_id": "broken", "shard_uri": root.put_bytes(b"no video" * 999), "offset": 0}
        write_manifest("clips", [*rows, broken], given.clips)
        chosen = {"keep": True, "split": "held_out", "reasons": [], "thresholds": "{}"}
        chosen |= {f"{axis}_failed": False for axis in AXES}
        ids = [(row["clip_id"], row["video_id"]) for row in (*rows, broken)]
        write_manifest(
            "selection",
            [{**chosen, "clip_id": clip, "video_id": video} for clip, video in ids],
            place / "selection.parquet",
        )
        notes = [{"clip_id": clip, "caption_image": f"clip {n}", "annotators": "{}"} for n, (clip, _) in enumerate(ids)]
        write_manifest("annotations", notes, place / "annotations.parquet")
        inputs = (given.clips, place / "annotations.parquet", place / "selection.parquet")
        encoded = encode_clips(*inputs, place / "samples.parquet", root, settings)
        assert encoded.summary["encode"]["skipped_by_reason"] == {"unreadable": 1}
        assert encode_clips(*inputs, place / "samples.parquet", root, settings).done == 0
        images = encode_images(photographs, place / "images.parquet", root, settings)
        assert images.summary["encode_images"]["skipped_by_reason"] == {"unreadable": 1}
        loaded, refused = load_clips(read_rows("samples", place / "samples.parquet"), given.clips, root)
        again, _ = load_clips(read_rows("samples", place / "samples.parquet"), given.clips, root)
        assert len(loaded) == 3 and not refused and len(again) == 3
        sent = choose_images(given.clips, place / "selection.parquet", root, 2, (32, 48))
        pixels = [clip.frames_FHWC.tobytes() for clip in loaded] + [image.rgb.tobytes() for image in sent]
        manifests = [(place / f"{kind}.parquet").read_bytes() for kind in ("samples", "images")]
        return manifests, pixels, sorted(pictures_of(encoded)), encoded.counts, images.counts

    here = run(tmp_path / "here")
    with pods(tmp_path, monkeypatch, units=9) as api:
        assert run(tmp_path / "there") == here
        assert jobs(api) == [("encode", 1), ("encode", 1), ("serve", 1), ("sizes", 1), ("truth", 1)]


def test_objects_of_others_are_rendered_and_their_views_unpacked_without_being_opened_in_the_step(
    tmp_path, monkeypatch
):
    folder = tmp_path / "objects"
    folder.mkdir()
    faces = "3 2 6/3 6 7/2 1 5/2 5 6/0 4 5/0 5 1/0 3 7/0 7 4/4 7 6/4 6 5/0 1 2/0 2 3"  # of a box, seen from outside
    for name, top in (("low.obj", 1), ("high.obj", 2)):
        lines = [
            "mtllib red.mtl",
            *(f"v {x} {y} {z}" for y in (-1, top) for x, z in ((-1, -1), (1, -1), (1, 1), (-1, 1))),
        ]
        lines += [
            "usemtl red",
            *("f " + " ".join(str(int(corner) + 1) for corner in face.split()) for face in faces.split("/")),
        ]
        (folder / name).write_text("\n".join(lines))
    (folder / "red.mtl").write_text("newmtl red\nKa 1 0 0\nKd 1 0 0\n")
    (folder / "nan.obj").write_text("v 0 0 0\nv nan nan nan\nv 1 1 0\nf 1 2 3\n")
    settings = RenderSettings(views=2, size_px=32, supersampling=1)

    def run(place: Path) -> Any:
        root = DataRoot.open(place / "data")
        report = render_orbits(str(folder), place / "orbits.parquet", root, settings)
        views = [views.tobytes() for views in rendered_views(read_rows("orbits", place / "orbits.parquet"), root)]
        return (place / "orbits.parquet").read_bytes(), views, report.counts, len(pictures_of(report))

    here = run(tmp_path / "here")
    assert here[2]["set aside"] == 1 and here[3] == 2
    with pods(tmp_path, monkeypatch, units=3) as api:
        assert run(tmp_path / "there") == here
        assert jobs(api) == [("pictures", 1), ("render", 1), ("views", 1)]
    monkeypatch.setenv("SVDFLOW_FANOUT", "{image: 'a:1', claim: work, claim_path: /elsewhere}")
    with pytest.raises(ConfigError, match="do not see this folder"):
        render_orbits(str(folder), tmp_path / "none.parquet", DataRoot.open(tmp_path / "other"), settings)
