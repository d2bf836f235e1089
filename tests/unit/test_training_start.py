"""What a stage may start from is settled by configuration files, before any process is started."""

import json

import pytest

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.training.train.settings import load_stage_settings, stage_settings
from svdflow.training.train.start import check_motion_unit, check_start
from tests.training_runs import UNET, make_autoencoder


def test_the_papers_sizes_with_the_shipped_autoencoder_are_refused_and_said_how_to_start():
    settings = load_stage_settings("image", "paper", {"train_image.preset": "image_noise"})
    with pytest.raises(
        ConfigError, match="train_image.autoencoder: shipped has 8 latent channels.*would take 4"
    ) as why:
        check_start("image", None, settings)
    assert "train_image.base" in str(why.value) and "\n" not in str(why.value)
    for overrides in ({"train_image.unet": {"latent_channels": 8}}, {"train_image.base": "sd21"}):
        check_start("image", None, load_stage_settings("image", "paper", overrides))
    check_start("image", None, load_stage_settings("image", "local"))


def test_another_autoencoder_is_asked_for_its_channels(tmp_path):
    settings = {"autoencoder": str(make_autoencoder(tmp_path / "vae"))}
    check_start("image", None, stage_settings("image", {**settings, "unet": UNET}))
    with pytest.raises(ConfigError, match="has 4 latent channels, and the U-Net would take 8"):
        check_start("image", None, stage_settings("image", {**settings, "unet": UNET | {"latent_channels": 8}}))
    with pytest.raises(BadInputError, match="absent/config.json: missing"):
        check_start("image", None, stage_settings("image", {"autoencoder": str(tmp_path / "absent")}))
    with pytest.raises(ConfigError, match="train_image.unet.widths"):
        check_start("image", None, stage_settings("image", {**settings, "unet": {"widths": 3}}))


def test_scores_in_another_unit_than_the_map_of_the_start_are_refused(tmp_path):
    card = {"motion_calibration": {"scores": [1.0], "buckets": [9.0], "unit": "px/0.5s@short128"}}
    (tmp_path / "svdflow.json").write_text(json.dumps(card))
    own, refit = (stage_settings("video", {"refit_motion": again}) for again in (False, True))
    for unit in ("px/0.5s@short128", ""):
        check_motion_unit("video", tmp_path, own, unit)
    check_motion_unit("video", tmp_path, refit, "px/0.5s@short256")
    with pytest.raises(BadInputError, match=r"in px/0.5s@short256, and .* maps scores in px/0.5s@short128"):
        check_motion_unit("video", tmp_path, own, "px/0.5s@short256")
