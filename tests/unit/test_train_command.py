"""`svdflow train`: what it tells, how quickly, and what it hands to the pipeline."""

import json
import re
import resource
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.curation.version import checkout
from svdflow.curation.version.registry import VersionTag
from svdflow.pipelines import stage_runs
from svdflow.pipelines.cli import app
from svdflow.pipelines.stage_runs import resolve_stage
from svdflow.training.train.presets import all_presets, load_preset

HEAVY = ("torch", "diffusers", "deepspeed", "kfp", "pyarrow", "duckdb", "great_expectations")


def told(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["train", *arguments], env={"COLUMNS": "300"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["train", *arguments])
    assert isinstance(done.exception, (ConfigError, BadInputError)), done.output
    return str(done.exception)


def test_help_names_every_stage_with_what_it_is():
    text = " ".join(told("--help").split())
    for preset in all_presets():
        assert preset.name in text and preset.title[:30] in text
        own = " ".join(told(preset.name, "--help").split())
        assert preset.title in own and f"train_{preset.kind}" in own and "--dry-run" in own
        assert preset.after is None or f"It starts from {preset.after}" in own


@pytest.mark.parametrize("arguments", [["--help"], ["image_to_video", "--help"], ["--list"]], ids=" ".join)
def test_help_and_the_list_answer_at_once_and_load_nothing_heavy(arguments):
    code = (
        "import sys; from svdflow.pipelines.cli import app\n"
        f"sys.argv = ['svdflow', 'train', *{arguments!r}]\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        f"print('LOADED', sorted(set(sys.modules) & set({HEAVY!r})))"
    )

    def seconds(code: str) -> float:  # of the processor: how busy the machine is does not count
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "LOADED []", done.stdout[-500:] + done.stderr
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Nor how fast it is: this much is what any command with its help in colours and settings in YAML loads.
    light = "import pydantic, rich.console, rich.markdown, rich.table, typer, yaml\nprint('LOADED []')"
    pairs = [(seconds(code), seconds(light)) for _ in range(3)]
    assert min(own for own, _ in pairs) < 4 * max(yardstick for _, yardstick in pairs)


def test_the_list_has_the_numbers_of_every_stage_and_marks_what_is_ours():
    lines = {line.split()[0]: line for line in told("--list").splitlines() if line.strip()}
    assert re.sub(r"\s+", " ", lines["image_to_video_25"]).strip() == (
        "image_to_video_25 I2V-25 image_to_video image_to_video_base 25 576x1024 50000 768 3e-05 1 1.6 0.9999 SVD D.4"
    )
    assert " 1536* " in lines["image"] and " 0.0001* " in lines["image"]  # batch and learning rate: not stated
    assert " 1536 " in lines["video_low"] and " 1~ " in lines["video_low"]  # stated; P_std implied
    assert " 1* " in lines["multi_view"] and " 1.6* " in lines["multi_view"]
    assert "ours: the paper does not say" in told("--list")


def test_samples_are_encoded_at_the_size_that_the_stage_asks_for():
    _, overrides = resolve_stage(load_preset("image_to_video_25"), "paper", [], None)
    assert overrides == {
        "train_image_to_video.preset": "image_to_video_25",
        "encode.frames": 25,
        "encode.height": 576,
        "encode.width": 1024,
    }
    for profile, size in (
        ("paper", {"encode.height": 576, "encode.width": 1024}),
        ("test", {"encode.max_fps": 28.0, "encode.fps": 28.0}),
    ):
        settings, overrides = resolve_stage(load_preset("interpolation"), profile, [], None)
        assert overrides == {"encode.frames": 5} | size and settings.fps == (28.0,)
    settings, overrides = resolve_stage(load_preset("image_to_video_25"), "test", [], None)
    assert settings.frames is None and overrides == {"train_image_to_video.preset": "image_to_video_25"}
    with pytest.raises(
        ConfigError, match=r"encode.height: the stage video asks for 320, not 64; set train_video.height"
    ):
        resolve_stage(load_preset("video"), "paper", [("encode.height", 64)], None)
    _, overrides = resolve_stage(load_preset("image_noise"), "paper", [("encode.frames", 14)], None)
    assert overrides["encode.frames"] == 14  # single frames are drawn out of any sample


def test_samples_are_encoded_as_fast_as_the_windows_that_the_stage_asks_for():
    _, overrides = resolve_stage(load_preset("interpolation"), "local", [], None)
    sample = tuple(overrides[f"encode.{name}"] for name in ("max_fps", "fps", "frames"))
    assert sample == (28.0, 28.0, 5)  # the profile encodes 8 a second
    _, overrides = resolve_stage(load_preset("interpolation"), "local", [("encode.max_fps", 12)], None)
    assert (overrides["encode.max_fps"], overrides["encode.fps"]) == (12, 28.0)
    assert "encode.max_fps" not in resolve_stage(load_preset("video"), "local", [], None)[1]
    assert "encode.max_fps" not in resolve_stage(load_preset("interpolation"), "paper", [], None)[1]  # no limit there


def test_samples_are_encoded_by_the_encoders_of_the_model_that_is_started_from(tmp_path):
    for part in ("vae", "image_encoder", "unet", "tokenizer", "text_encoder"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    _, overrides = resolve_stage(load_preset("image_to_video"), "test", [], tmp_path)
    assert overrides["encode.autoencoder"] == str(tmp_path / "vae")
    assert overrides["encode.image_encoder"] == str(tmp_path / "image_encoder")
    assert overrides["encode.text_encoder"] == str(tmp_path)
    _, overrides = resolve_stage(load_preset("image_to_video"), "test", [("encode.autoencoder", "mine")], tmp_path)
    assert overrides["encode.autoencoder"] == "mine"


def test_a_start_that_does_not_fit_is_refused(tmp_path):
    workdir = ["-w", str(tmp_path / "w")]
    assert "--init: the stage image_to_video starts from a model of image_to_video_base" in refused(
        "image_to_video", *workdir
    )
    assert "is no model directory" in refused("image_to_video", *workdir, "--init", str(tmp_path))
    (tmp_path / "svdflow.json").write_text(json.dumps({"kind": "image"}))
    assert "a model of kind image cannot start the stage image_to_video, which takes image_to_video or text" in refused(
        "image_to_video", *workdir, "--init", str(tmp_path)
    )
    assert "which takes interpolation or text_to_video" in refused("interpolation", *workdir, "--init", str(tmp_path))
    assert "there is no dataset registry here" in refused("video", *workdir, "--init", str(tmp_path))
    assert "trains on rendered orbits" in refused("multi_view", *workdir, "--init", str(tmp_path))
    assert not (tmp_path / "w").exists()


def test_settings_that_are_wrong_are_refused_with_the_field(tmp_path):
    workdir = ["-w", str(tmp_path / "w"), "--profile", "paper"]
    assert "train_image.stpes" in refused("image", *workdir, "--set", "train_image.stpes=3")
    assert "train_image.batch: a batch of 1001 does not split over 8 processes" in refused(
        "image", *workdir, "--set", "train_image.batch=1001"
    )
    assert "no such profile" in refused("image", "--profile", "nope") or "neither a shipped one" in refused(
        "image", "--profile", "nope"
    )


def test_settings_are_looked_at_before_a_start_is_fetched(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(stage_runs, "resolve_model", lambda name, *_: asked.append(name) or tmp_path)
    for more in ([], ["--dry-run"]):
        for setting, says in (
            ("train_image_to_video.stpes=3", "train_image_to_video.stpes"),
            ("train_img.steps=3", "train_img: no such step"),
            ("train_video.steps=3", "train_video.steps: is of another stage; the settings of image_to_video are"),
            ("encode.hieght=64", "encode.hieght"),
        ):
            command = ["image_to_video", "-w", str(tmp_path / "w"), "--init", "org/model", "--set", setting]
            assert says in refused(*command, *more)
    assert asked == [] and not (tmp_path / "w").exists()


class Statistics:
    """Stands in for a registry: its card is all that is asked for."""

    def __init__(self, monkeypatch, seconds: float, slowest: float, fastest: float) -> None:
        statistics = {"clip_seconds": {"max": seconds}, "fps": {"min": slowest, "max": fastest}}
        monkeypatch.setattr(checkout, "read_card", lambda *_: {"statistics": statistics})


def test_frames_that_no_clip_has_are_refused_and_what_one_might_have_is_not(monkeypatch):
    tag = VersionTag("demo", (1, 0, 0))

    def require(frames: int, fps: float) -> None:
        checkout.require_long_clips(None, tag, frames, fps)  # type: ignore[arg-type]

    Statistics(monkeypatch, 2.0, 12, 12)
    require(24, 12)
    with pytest.raises(BadInputError, match=r"encode.frames: no clip of demo@v1.0.0 holds 26 frames at 12 a second"):
        require(26, 12)
    require(9, 4)  # every third frame
    with pytest.raises(BadInputError, match="the longest has 2.00 s"):
        require(10, 4)
    Statistics(monkeypatch, 2.0, 10, 30)  # a clip of 10 fps gives 20 frames at 7 fps: every frame of it
    require(20, 7)
    with pytest.raises(BadInputError):
        require(40, 7)
