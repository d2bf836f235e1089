"""The shipped stages against the paper's own table, and how their files are read."""

import pytest
import yaml

from svdflow.common.errors import ConfigError
from svdflow.training.train import presets
from svdflow.training.train.presets import all_presets, kind_of, load_preset, stage_overrides
from svdflow.training.train.settings import StageSettings, load_stage_settings, stage_settings

# Stable Video Diffusion, appendix D.2 to D.6, copied by hand; None: no figure in the paper.
# row: kind, starts from, frames, height, width, iterations, batch, learning rate, P_mean, P_std, EMA, text dropout
PAPER = {
    "I-a": ("image", None, None, 512, 512, 1_000, None, None, -1.2, 1.0, None, None),
    "I-b": ("image", "I-a", None, 256, 384, 30_000, None, None, -1.2, 1.0, None, None),
    "II-a": ("video", "I-b", 14, 256, 384, 150_000, 1536, 1e-4, -1.2, 1.0, None, 0.15),
    "ablation": ("video", None, 8, 256, 256, 40_000, 256, 1e-4, None, None, None, 0.10),  # E.2.1
    "II-b": ("video", "II-a", 14, 320, 576, 100_000, 768, 1e-4, 0.0, 1.0, None, 0.15),
    "III-T2V": ("video", "II-b", 14, 576, 1024, 50_000, 768, 3e-5, 0.5, 1.4, 0.9999, None),
    "I2V-base": ("image_to_video", "II-b", 14, 320, 576, 50_000, 768, 3e-5, 0.7, 1.6, None, None),
    "I2V-14": ("image_to_video", "I2V-base", 14, 576, 1024, 50_000, 768, 3e-5, 1.0, 1.6, 0.9999, None),
    "I2V-25": ("image_to_video", "I2V-base", 25, 576, 1024, 50_000, 768, 3e-5, 1.0, 1.6, 0.9999, None),
    "LoRA": ("image_to_video", "I2V-14", None, None, None, 5_000, None, None, None, None, None, None),  # rank 16
    "interp": ("interpolation", "III-T2V", 5, 576, 1024, 10_000, 256, 1e-4, 1.0, 1.2, 0.9999, None),  # 4.4, D.5
    "dec": ("decoder", "I2V-14", None, None, None, None, None, None, None, None, None, None),  # AYL 3.1.1
    "MV": ("multi_view", "I2V-25", 21, 576, 576, 12_000, 16, 1e-5, None, None, None, None),
}
FIELDS = ("frames", "height", "width", "steps", "batch", "lr", "p_mean", "p_std", "ema", "text_dropout")
IMPLIED = {("II-a", "p_std"), ("II-b", "p_std"), ("III-T2V", "frames")}
PRESETS = {preset.row: preset for preset in all_presets()}


def test_every_row_of_the_paper_that_is_of_a_kind_that_can_be_trained_is_there_and_no_other():
    assert list(PRESETS) and set(PRESETS) == set(PAPER)


@pytest.mark.parametrize("row", PAPER)
def test_the_resolved_settings_have_the_papers_numbers_and_what_it_lacks_is_marked_as_ours(row):
    kind, after, *numbers = PAPER[row]
    preset = PRESETS[row]
    settings = stage_settings(kind, {"preset": preset.name})
    assert preset.kind == kind and (load_preset(preset.after).row if preset.after else None) == after
    for field, number in zip(FIELDS, numbers, strict=True):
        if number is not None:
            assert getattr(settings, field) == number, field
            assert field not in preset.ours, field
        elif field in preset.values and preset.values[field] is not None and (kind, field) != ("image", "frames"):
            assert field in preset.ours, f"{field}={preset.values[field]} is in no table of the paper"
    assert {(row, field) for field in preset.implied} == {each for each in IMPLIED if each[0] == row}
    assert settings.trainable == ("time_embedding" if row == "I-a" else "all")
    assert settings.caption_weights == (0.5, 0.25, 0.25)
    if kind in ("image_to_video", "multi_view", "interpolation"):
        assert (settings.augment_mean, settings.augment_std) == (-3.0, 0.5)
        assert "image_dropout" in preset.ours


def test_a_stage_comes_after_the_one_that_it_starts_from():
    names = [preset.name for preset in all_presets()]
    for preset in all_presets():
        assert preset.after is None or names.index(preset.after) < names.index(preset.name)


def test_the_camera_motion_adapter_has_the_papers_rank_and_place():
    lora = stage_settings("image_to_video", {"preset": "camera_motion"}).lora
    assert (lora.rank, lora.layers, lora.scale) == (16, "temporal", 1.0)


def test_what_a_file_says_about_itself_is_no_setting_and_all_else_must_be_one(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "STAGES", tmp_path)
    about = {"title": "t", "kind": "video", "row": "X", "source": "ours"}

    def write(name: str, values: dict) -> None:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))

    write("good", {"about": {**about, "ours": {"batch": "why"}}, "batch": 8})
    assert stage_settings("video", {"preset": "good"}) == StageSettings(batch=8, preset="good")
    write("unknown", {"about": about, "bacth": 8})
    with pytest.raises(ConfigError, match="train_video.bacth"):
        stage_settings("video", {"preset": "unknown"})
    write("odd", {"about": {**about, "origin": "x"}})
    with pytest.raises(ConfigError, match="about.origin"):
        load_preset("odd")
    write("bare", {"batch": 8})
    with pytest.raises(ConfigError, match="about.kind is missing"):
        load_preset("bare")
    write("marks", {"about": {**about, "ours": {"lr": "why"}}})
    with pytest.raises(ConfigError, match="marks lr, which the stage does not set"):
        load_preset("marks")


def test_a_profile_lies_on_top_of_any_stage_of_its_kind():
    overrides = stage_overrides("image_to_video_base", {"train_image_to_video.lr": 1e-3})
    settings = load_stage_settings("image_to_video", "test", overrides)
    assert (settings.steps, settings.batch, settings.height, settings.processes) == (4, 2, None, 2)  # the profile's
    assert (settings.p_mean, settings.p_std) == (0.7, 1.6)  # the stage's
    assert settings.lr == 1e-3 and settings.preset == "image_to_video_base"
    assert load_stage_settings("image_to_video", "paper", overrides).height == 320


def test_a_stage_of_another_kind_is_refused_in_a_section():
    with pytest.raises(ConfigError, match=r"train_image.preset: video_low trains a model of kind video, not image"):
        stage_settings("image", {"preset": "video_low"})
    assert kind_of("video_low") == kind_of("video") == "video"
    with pytest.raises(ConfigError, match="there is no stage file 'vidoe_low'"):
        kind_of("vidoe_low")
