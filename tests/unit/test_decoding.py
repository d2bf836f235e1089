"""Where media are decoded: by which modules, in which pods, and what becomes of what pods give back."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from svdflow.common.decoding import ClipFrame, ClipPlace, clip_frame, decode_each, pictures, pods_that_decode
from svdflow.common.errors import BadInputError, ConfigError, ServiceError, StorageError
from svdflow.common.fanout import Outcome
from svdflow.common.fanout_plan import adapters
from svdflow.common.pixels import Pixels
from svdflow.common.report import images, small_jpeg
from svdflow.common.storage import DataRoot
from svdflow.common.video import encode_mp4
from svdflow.pipelines.cluster.environment import environment_names, load_environment
from svdflow.training.encode.encoding import Encoded, EncodeWork, _encode_in_pods, encode_alone
from svdflow.training.encode.settings import EncodeSettings
from svdflow.training.encode.sources import ClipSource, OrbitSource, PictureSource, Sequence
from svdflow.training.encode.units import Unit
from svdflow.training.encode.variants import PLAIN

COMPONENTS = Path(__file__).resolve().parents[2] / "components"

IN_PODS = {  # of a fan-out, where SVDFLOW_FANOUT is set; tests/integration/test_fanout_steps.py runs these steps
    "common/decoding.py", "common/sample_tensors.py", "common/video.py", "curation/annotate/look.py",
    "curation/split/clip_check.py", "curation/split/clip_writer.py", "curation/split/clipping.py",
    "curation/split/scan.py", "curation/split/split.py", "evaluation/held_out.py", "ingest/examine.py",
    "training/encode/sources.py",
}  # fmt: skip
BY_HAND = {  # no step calls these
    "diffusion/train_autoencoder.py", "evaluation/study/create.py", "evaluation/ucf101/videos.py", "export/generate.py",
    "export/interpolate.py",
}  # fmt: skip
OWN_PICTURES = {"common/lossless_frames.py"}  # of own videos and generated objects; of others' objects in pods
STEPS = (
    "ingest", "split", "annotate", "filter", "encode", "encode_images", "encode_mix", "encode_orbits", "evaluate",
    "serve", "render", "measure_multiview", "measure_interpolation",
)  # fmt: skip


def decoders(path: Path) -> Iterator[str]:
    """What a module calls or imports that opens media."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-1] == "video":
            yield from {"open_video", "decode", "read_frames", "probe"} & {alias.name for alias in node.names}
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            for_writing = len(node.args) > 1 and ast.unparse(node.args[1]) == "'w'"
            if (
                called in ("av.open", "Image.open", "cv2.imread", "cv2.imdecode", "cv2.VideoCapture")
                and not for_writing
            ):
                yield called


def test_no_module_decodes_media_of_which_it_is_not_known_where_it_does():
    found = {path.relative_to(COMPONENTS).as_posix() for path in COMPONENTS.rglob("*.py") if any(decoders(path))}
    assert found == IN_PODS | BY_HAND | OWN_PICTURES


@pytest.mark.parametrize("environment", environment_names())
@pytest.mark.parametrize("step", STEPS)
def test_every_step_that_decodes_has_pods_for_it_in_every_shipped_environment(environment, step):
    told = load_environment(environment).resources(step, step).env
    assert yaml.safe_load(told["SVDFLOW_FANOUT"])["image"]


def test_pods_that_decode_have_no_gpu_nor_what_belongs_to_one_and_reports_do_not_wait_for_hours(monkeypatch):
    given: dict[str, Any] = {"image": "a:1", "gpus": 1, "queue": "research", "node_selector": {"svdflow/gpu": "a100"}}
    monkeypatch.setenv("SVDFLOW_FANOUT", json.dumps(given | {"labels": {"team": "x"}, "claim": "work", "cpu": 8}))
    settings = pods_that_decode()
    assert (settings.gpus, settings.queue, settings.node_selector, settings.cpu) == (0, "fan-out", {}, 2)
    assert (settings.image, settings.labels, settings.claim) == ("a:1", {"team": "x"}, "work")
    assert settings.quota_wait_s == 43_200
    assert pods_that_decode(needed=False).quota_wait_s <= 900 and pods_that_decode(needed=False).deadline_s <= 900
    monkeypatch.setenv("SVDFLOW_FANOUT", json.dumps({"queue": "other", "node_selector": {"a": "b"}, "cpu": 3}))
    settings = pods_that_decode()
    assert (settings.queue, settings.node_selector, settings.cpu) == ("other", {"a": "b"}, 3)


def test_without_a_cluster_it_is_done_at_once_and_a_clip_that_cannot_be_used_says_why(root):
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3), np.uint8)
    good, bad = root.put_bytes(b"xx" + encode_mp4(frames, 6)), root.put_bytes(b"no video" * 99)
    size = root.size(good) - 2
    wanted = [
        ClipFrame(ClipPlace(root.location, bad, 0, 99), 0),
        ClipFrame(ClipPlace(root.location, good, 2, size), 1, (16, 24)),
        ClipFrame(ClipPlace(root.location, good, 2, size), 7),
    ]
    outcomes = decode_each(clip_frame, wanted, root, "pictures")
    assert [outcome.ok for outcome in outcomes] == [False, True, False]
    assert "no readable video" in (outcomes[0].error or "") and "has no frame 7" in (outcomes[2].error or "")
    ((place, picture),) = pictures(outcomes)
    assert place == 1 and picture.shape == (16, 24, 3)
    gone = [ClipFrame(ClipPlace(root.location, good[:-2] + "00", 0, 9), 0)]
    with pytest.raises(StorageError):
        decode_each(clip_frame, gone, root, "pictures")
    assert not decode_each(clip_frame, gone, root, "pictures", needed=False)[0].ok


def test_a_report_does_without_pictures_where_no_cluster_answers_and_a_truth_does_not(root, monkeypatch, capsys):
    def away(*_: Any) -> Any:
        raise ServiceError("the API server does not answer")

    monkeypatch.setenv("SVDFLOW_FANOUT", "{image: 'a:1'}")
    monkeypatch.setattr("svdflow.common.fanout_jobs.connect", away)
    wanted = [ClipFrame(ClipPlace(root.location, "files/a", 0, 9), 0)]
    (outcome,) = decode_each(clip_frame, wanted, root, "pictures", needed=False)
    assert outcome.error == "the API server does not answer" and not list(pictures([outcome]))
    assert "no pictures for the report" in capsys.readouterr().err
    with pytest.raises(ServiceError):
        decode_each(clip_frame, wanted, root, "truth")
    assert decode_each(clip_frame, [], root, "truth") == []


def test_pixels_come_back_as_they_were_and_others_are_refused():
    picture = np.random.default_rng(0).integers(0, 255, (3, 5, 3), np.uint8)
    _, value = adapters(clip_frame)
    (back,) = value.validate_json(value.dump_json((Pixels.of(picture),)))
    np.testing.assert_array_equal(back.array(), picture)
    for wrong in (Pixels(3, 5, b"short"), Pixels(-3, -5, bytes(45)), Pixels(0, 0, b"")):
        with pytest.raises(BadInputError):
            wrong.array()
        assert not list(pictures([Outcome(None, wrong, None, 0.0)]))


def test_a_page_takes_up_small_jpegs_unopened_and_nothing_else():
    jpeg = b"\xff\xd8\xff not really"
    assert small_jpeg(jpeg) == jpeg
    assert small_jpeg(b"\x89PNG") is None and small_jpeg(b"<svg onload=x>") is None
    assert small_jpeg(jpeg + bytes(1 << 20)) is None
    (item,) = images("title", [(jpeg, "caption")])["items"]
    assert item["src"].startswith("data:image/jpeg;base64,/9j/")


SETTINGS = EncodeSettings(frames=1, height=32, width=32)


def work(name: str, root: str = "/r", source: Any = None, **encoders: str) -> EncodeWork:
    sequence = Sequence(1, 7.0, 0.5, 1)
    unit = Unit(
        name, sequence, (32, 32), [PLAIN], {"max_fps": None}, 1, (1, 1), ["a", "b", "c"], {"split": "train"},
        source or ClipSource("files/a", 3, 9, sequence), {"clip_shard": "files/a"},
    )  # fmt: skip
    return EncodeWork(root, SETTINGS, encoders, unit, [(PLAIN, f"key-{name}")], None, False, True)


@pytest.mark.parametrize(
    "source",
    [
        ClipSource("files/a", 3, 9, Sequence(2, 7.0, 0.1, 2)),
        OrbitSource("files/a", "o", 8, 2),
        PictureSource("/p/a.png"),
    ],
)
def test_what_a_pod_reads_of_a_unit_is_what_the_step_wrote(source):
    unit, _ = adapters(encode_alone)
    sent = work("a", source=source, text="id")
    assert unit.validate_json(unit.dump_json((sent,))) == (sent,)


class Answers:
    """An executor whose pods lose some units."""

    def __init__(self, root: DataRoot, lost: set[str], silent: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self.root, self.lost, self.silent = root, lost, silent

    def run(self, function: Any, units: Any, workers: Any, limits: Any) -> Iterator[Outcome[Any, Any]]:
        for unit in units:
            name = unit.unit.unit_id
            if name in self.lost:
                yield Outcome(unit, None, "its pod was lost", 0.0)
                continue
            if name not in self.silent:
                self.root.record("encode", f"key-{name}", {"skipped": None})
            yield Outcome(unit, Encoded(), None, 0.0)


def test_units_that_pods_lost_are_set_aside_with_the_reason_unless_all_are(root):
    works = [work(name) for name in "abc"]
    made = _encode_in_pods(works, root, Answers(root, {"b"}, {"c"}), "clips")
    assert set(made.results) == {"key-a"} and set(made.lost) == {"b", "c"}
    assert made.lost["b"] == "its pod was lost" and "recorded nothing" in made.lost["c"]
    with pytest.raises(ServiceError, match="none of 3 clips could be encoded, first: its pod was lost"):
        _encode_in_pods(works, root, Answers(root, set("abc")), "clips")


def test_a_pod_with_other_encoders_than_the_steps_encodes_nothing(root):
    with pytest.raises(ConfigError, match="others than the step's"):
        encode_alone(work("a", root.location, autoencoder="of another image"))
    assert not list(root.list("results"))
