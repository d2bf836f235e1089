"""The Triton model repository that a promoted model is exported to, without a server."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from svdflow.common.errors import BadInputError, GateRefused, StorageError
from svdflow.common.identity import file_sha256, tree_sha256
from svdflow.export import repository as repository_module
from svdflow.export.model_config import exported_models, read_parameters
from svdflow.export.repository import export_repository, repository_digest
from svdflow.export.request import check_interpolation, check_key_frames, video_request
from svdflow.export.settings import ExportSettings

SETTINGS = ExportSettings()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    for name in ("unet", "vae", "image_encoder"):
        (directory / name).mkdir(parents=True)
        (directory / name / "weights.safetensors").write_bytes(name.encode() * 100)
    card = {"kind": "image_to_video", "format": 1, "configuration": {"frames": 8, "height": 96, "width": 128}}
    (directory / "svdflow.json").write_text(json.dumps(card))
    return directory


@pytest.fixture
def metrics(tmp_path: Path, model: Path) -> Path:
    return write_metrics(tmp_path / "metrics.json", model={"sha256": tree_sha256(model)}, gate={"passed": True})


def write_metrics(path: Path, **content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def files(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_the_repository_holds_the_model_unchanged_with_its_card_and_metrics(model, metrics, tmp_path):
    out = tmp_path / "repository"
    report = export_repository(model, metrics, out, SETTINGS)
    assert tree_sha256(out / "image_to_video/1/model") == tree_sha256(model) == report.summary["export"]["weights"]
    assert (out / "image_to_video/1/metrics.json").read_bytes() == metrics.read_bytes()
    assert (out / "image_to_video/1/svdflow.json").read_bytes() == (model / "svdflow.json").read_bytes()
    compile((out / "image_to_video/1/model.py").read_text(), "model.py", "exec")


def test_the_configuration_is_one_that_triton_parses_and_says_what_was_set(model, metrics, tmp_path):
    settings = ExportSettings(
        placement="gpu", gpus=[0, 2], instances=3, max_queue=5, queue_timeout_s=1.5, steps=30, guidance=(1.5, 2.75)
    )
    export_repository(model, metrics, tmp_path / "out", settings)
    config = text_format.Parse((tmp_path / "out/image_to_video/config.pbtxt").read_text(), pb.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("image_to_video", "python", 0)
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (pb.ModelInstanceGroup.KIND_GPU, 3, [0, 2])
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds, policy.timeout_action) == (
        5,
        1_500_000,
        pb.ModelQueuePolicy.REJECT,
    )
    assert {i.name: (i.data_type, list(i.dims), i.optional) for i in config.input} == {
        "IMAGE": (pb.TYPE_UINT8, [-1, -1, 3], False),
        "SEED": (pb.TYPE_INT64, [1], True),
        "FPS": (pb.TYPE_INT32, [1], True),
        "MOTION_BUCKET": (pb.TYPE_INT32, [1], True),
        "NOISE_AUG": (pb.TYPE_FP32, [1], True),
        "STEPS": (pb.TYPE_INT32, [1], True),
        "GUIDANCE": (pb.TYPE_FP32, [2], True),
    }
    parameters = read_parameters(tmp_path / "out")
    assert (parameters["frames"], parameters["height"], parameters["width"]) == (8, 96, 128)
    assert (parameters["default_steps"], parameters["default_guidance"]) == (30, [1.5, 2.75])
    (warm_up,) = config.model_warmup
    assert list(warm_up.inputs["IMAGE"].dims) == [96, 128, 3]
    file = tmp_path / "out/image_to_video/warmup" / warm_up.inputs["STEPS"].input_data_file
    assert np.frombuffer(file.read_bytes(), np.int32).tolist() == [1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"gate": {"passed": False, "reasons": ["PSNR 7 dB"]}}, "PSNR 7 dB"),
        ({"gate": {"passed": "yes"}}, "refused"),
        ({"gate": None, "psnr": 1.0}, "refused"),
        ({"model": {"sha256": "0" * 64}}, "another model"),
        ({"psnr": 30.0}, "no verdict"),
        ({}, "no measurement"),
    ],
)
def test_a_model_that_the_gate_did_not_pass_leaves_nothing_behind(model, tmp_path, content, reason):
    with pytest.raises(GateRefused, match=reason):
        export_repository(model, write_metrics(tmp_path / "m.json", **content), tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_model_without_metrics_is_refused(model, tmp_path):
    with pytest.raises(GateRefused, match="no metrics"):
        export_repository(model, tmp_path / "none.json", tmp_path / "out", SETTINGS)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(GateRefused, match="cannot be read"):
        export_repository(model, tmp_path / "broken.json", tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_served_version_as_it_was(model, metrics, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export_repository(model, metrics, out, SETTINGS)
    before = files(out)
    (model / "vae" / "more.safetensors").write_bytes(b"changed")
    write_metrics(metrics, gate={"passed": True})
    calls = []

    def link_until_full(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(repository_module, "link_or_copy", link_until_full)
    with pytest.raises(StorageError, match="No space left on device"):
        export_repository(model, metrics, out, SETTINGS)
    assert files(out) == before
    assert sorted(p.name for p in (out / "image_to_video").iterdir()) == ["1", "config.pbtxt", "warmup"]


def test_a_killed_export_leaves_no_part_of_a_model_that_a_server_would_load(model, metrics, tmp_path, monkeypatch):
    """The process ends at every file that it links, and before the configuration."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    export_repository(model, metrics, whole, SETTINGS)
    for after in range(len([path for path in model.rglob("*") if path.is_file()]) + 1):
        if (child := os.fork()) == 0:
            left = iter(range(after))

            def link(source: Path, target: Path, left=left) -> None:
                shutil.copyfile(source, target) if next(left, None) is not None else os._exit(9)

            monkeypatch.setattr(repository_module, "link_or_copy", link)
            monkeypatch.setattr(repository_module, "model_config_text", lambda *_: os._exit(9))
            export_repository(model, metrics, out, SETTINGS)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert list(out.iterdir()) == [], after
    export_repository(model, metrics, out, SETTINGS)
    assert files(out) == files(whole) and sorted(p.name for p in tmp_path.glob(".*")) == []


def test_a_repository_tells_the_digest_of_every_file_that_is_served(model, metrics, between, tmp_path):
    out = tmp_path / "out"
    export_repository(model, metrics, out, SETTINGS)
    first = json.loads((out / "contents.json").read_text())["files"]
    (out / "image_to_video/1/__pycache__").mkdir()
    (out / "image_to_video/1/__pycache__/model.pyc").write_bytes(b"a server's")
    export_repository(between["interpolation"], between["interpolation_metrics"], out, SETTINGS)
    both = json.loads((out / "contents.json").read_text())["files"]
    there = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert both.keys() == there.keys() - {"contents.json"} > first.keys()
    assert both == {name: hashlib.sha256(there[name].read_bytes()).hexdigest() for name in both}
    assert first.items() <= both.items()


def test_equal_content_is_found_and_other_content_becomes_the_next_version(model, metrics, tmp_path):
    out = tmp_path / "out"
    first = export_repository(model, metrics, out, SETTINGS)
    before = files(out)
    again = export_repository(model, metrics, out, SETTINGS)
    assert (first.done, first.reused, again.done, again.reused) == (1, 0, 0, 1)
    assert files(out) == before
    write_metrics(metrics, model={"sha256": tree_sha256(model)}, gate={"passed": True}, psnr=20)
    assert export_repository(model, metrics, out, SETTINGS).summary["export"]["version"] == 2
    with pytest.raises(BadInputError, match="version 1 holds another model"):
        export_repository(model, metrics, out, ExportSettings(version=1))


def test_bytecode_that_a_server_leaves_does_not_change_a_repositorys_identity(model, metrics, tmp_path):
    out = tmp_path / "out"
    export_repository(model, metrics, out, SETTINGS)
    before = repository_digest(out)
    (out / "image_to_video/1/__pycache__").mkdir()
    (out / "image_to_video/1/__pycache__/model.cpython-311.pyc").write_bytes(b"x")
    assert repository_digest(out) == before
    (out / "image_to_video/1/model/unet/weights.safetensors").unlink()
    assert repository_digest(out) != before


def test_only_an_image_to_video_model_of_known_size_can_be_exported(model, metrics, tmp_path):
    write_metrics(metrics, gate={"passed": True})
    (model / "svdflow.json").write_text(json.dumps({"kind": "multi_view", "configuration": {}}))
    with pytest.raises(BadInputError, match="multi_view"):
        export_repository(model, metrics, tmp_path / "out", SETTINGS)
    (model / "svdflow.json").write_text(json.dumps({"kind": "image_to_video", "configuration": {"frames": 8}}))
    with pytest.raises(BadInputError, match="export.height"):
        export_repository(model, metrics, tmp_path / "out", SETTINGS)
    export_repository(model, metrics, tmp_path / "out", ExportSettings(height=64, width=64))
    with pytest.raises(BadInputError, match="no model directory"):
        export_repository(tmp_path / "nowhere", metrics, tmp_path / "out", SETTINGS)


@pytest.fixture
def between(tmp_path: Path) -> dict[str, Path]:
    """An interpolation model, and its own metrics."""
    directory = tmp_path / "between"
    (directory / "unet").mkdir(parents=True)
    (directory / "unet" / "weights.safetensors").write_bytes(b"between")
    card = {"kind": "interpolation", "format": 1, "configuration": {"frames": 5, "height": 64, "width": 96}}
    (directory / "svdflow.json").write_text(json.dumps(card))
    measured = {"model": {"sha256": tree_sha256(directory)}, "gate": {"passed": True}}
    return {"interpolation": directory, "interpolation_metrics": write_metrics(tmp_path / "between.json", **measured)}


def beside(between: dict[str, Path], **more: object) -> ExportSettings:
    return ExportSettings(**{name: str(path) for name, path in between.items()}, **more)  # type: ignore[arg-type]


def test_an_interpolation_model_is_a_model_of_its_own_in_the_same_repository(model, metrics, between, tmp_path):
    settings = beside(between, frames=25, interpolation_guidance=(1.0, 2.0), max_key_frames=39)
    report = export_repository(model, metrics, tmp_path / "out", settings)
    assert exported_models(tmp_path / "out") == ("image_to_video", "interpolation")
    served = tmp_path / "out/interpolation"
    assert tree_sha256(served / "1/model") == tree_sha256(between["interpolation"])
    assert (served / "1/model.py").read_bytes() == (tmp_path / "out/image_to_video/1/model.py").read_bytes()
    config = text_format.Parse((served / "config.pbtxt").read_text(), pb.ModelConfig())
    assert config.name == "interpolation"
    assert {i.name: (i.data_type, list(i.dims), i.optional) for i in config.input} == {
        "KEY_FRAMES": (pb.TYPE_UINT8, [-1, -1, -1, 3], False),
        "SEED": (pb.TYPE_INT64, [1], True),
        "FPS": (pb.TYPE_FP32, [1], True),
        "MOTION_BUCKET": (pb.TYPE_INT32, [1], True),
        "NOISE_AUG": (pb.TYPE_FP32, [1], True),
        "STEPS": (pb.TYPE_INT32, [1], True),
        "GUIDANCE": (pb.TYPE_FP32, [2], True),
    }
    (warm_up,) = config.model_warmup
    assert list(warm_up.inputs["KEY_FRAMES"].dims) == [2, 64, 96, 3]
    told = read_parameters(tmp_path / "out", "interpolation")
    assert (told["frames"], told["height"], told["width"], told["max_key_frames"]) == (5, 64, 96, 39)
    assert told["default_guidance"] == [1.0, 2.0] and read_parameters(tmp_path / "out")["frames"] == 25
    assert report.summary["export"]["interpolation"]["version"] == report.summary["export"]["version"] == 1
    assert (report.done, export_repository(model, metrics, tmp_path / "out", settings).reused) == (2, 2)
    alone = export_repository(between["interpolation"], between["interpolation_metrics"], tmp_path / "b", SETTINGS)
    assert exported_models(tmp_path / "b") == ("interpolation",) and alone.summary["export"]["frames"] == 5


def is_served(repository: Path) -> None:
    """What the server would do with the release's own video: hold the request against the bounds."""
    made, told = read_parameters(repository), read_parameters(repository, "interpolation")
    check_key_frames((made["frames"], made["height"], made["width"], 3), "uint8", told)
    check_interpolation(made["frames"], video_request({}, told), told)


@pytest.mark.parametrize(
    ("asked", "raised"),
    [
        ({"frames": 25, "steps": 33}, {}),  # 792 evaluations
        ({"frames": 25, "steps": 34}, {"max_evaluations": 816}),
        ({"frames": 25, "interpolation_guidance": (1.0, 1.5)}, {"max_evaluations": 1200}),
        ({"frames": 25, "steps": 34, "max_evaluations": 5000}, {}),
        ({"frames": 65, "steps": 1}, {"max_key_frames": 65}),
        ({"frames": 3, "max_video_pixels": 9}, {"max_video_pixels": 3 * 96 * 128}),
        ({"frames": 3, "max_image_pixels": 9}, {"max_image_pixels": 96 * 128}),
    ],
)
def test_a_release_takes_its_own_videos_whatever_the_bounds_are_set_to(
    model, metrics, between, tmp_path, asked, raised
):
    settings = beside(between, **asked)
    report = export_repository(model, metrics, tmp_path / "out", settings)
    is_served(tmp_path / "out")
    told = read_parameters(tmp_path / "out", "interpolation")
    bounds = {name: getattr(settings, name) for name in told if name.startswith("max_")}
    assert {name: told[name] for name in bounds if told[name] != bounds[name]} == raised
    rows = [section["rows"] for section in report.sections if "raised" in section["title"]]
    assert rows == ([[[name, bounds[name], value] for name, value in raised.items()]] if raised else [])


def test_bounds_follow_the_model_that_is_exported_last(model, metrics, between, tmp_path):
    """Each by an export of its own, in either order."""
    interpolation = between["interpolation"], between["interpolation_metrics"]
    long = ExportSettings(frames=25, steps=40)
    export_repository(*interpolation, tmp_path / "a", long)
    assert read_parameters(tmp_path / "a", "interpolation")["max_evaluations"] == 800
    export_repository(model, metrics, tmp_path / "a", long)
    export_repository(model, metrics, tmp_path / "b", long)
    export_repository(*interpolation, tmp_path / "b", long)
    for out in (tmp_path / "a", tmp_path / "b"):
        is_served(out)
        assert read_parameters(out, "interpolation")["max_evaluations"] == 960
        told = json.loads((out / "contents.json").read_text())["files"]
        assert told["interpolation/config.pbtxt"] == file_sha256(out / "interpolation/config.pbtxt")
    alone = ExportSettings(steps=50, max_evaluations=20)
    export_repository(*interpolation, tmp_path / "c", alone)
    told = read_parameters(tmp_path / "c", "interpolation")
    assert told["max_evaluations"] == 50
    check_interpolation(2, video_request({}, told), told)


def test_an_interpolation_model_needs_a_verdict_of_its_own(model, metrics, between, tmp_path):
    with pytest.raises(ValueError, match="interpolation needs interpolation_metrics"):
        ExportSettings(interpolation="somewhere")
    write_metrics(between["interpolation_metrics"], model={"sha256": tree_sha256(model)}, gate={"passed": True})
    with pytest.raises(GateRefused, match="another model"):
        export_repository(model, metrics, tmp_path / "out", beside(between))
    write_metrics(between["interpolation_metrics"], gate={"passed": True})
    other = beside(between | {"interpolation": model})
    with pytest.raises(BadInputError, match="export.interpolation: .* of kind image_to_video"):
        export_repository(model, metrics, tmp_path / "out", other)
    assert not (tmp_path / "out").exists(), "not even the model that is in order"
