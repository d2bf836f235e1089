"""`svdflow convert`: a model in another form makes the same frames, and is not taken for one whose motion is known."""

import numpy as np
import pytest
from typer.testing import CliRunner

from svdflow.common.errors import BadInputError
from svdflow.diffusion.import_model import open_model
from svdflow.diffusion.model_directory import read_card
from svdflow.diffusion.sampling import generate
from svdflow.pipelines.cli import app
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.start import check_start
from tests.released_models import svd_pipeline


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A released directory."""
    directory = tmp_path_factory.mktemp("released") / "svd"
    svd_pipeline().save_pretrained(directory)
    return directory


def convert(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def frames_of(place) -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    return generate(open_model(place), image, frames=2, steps=1, seed=1)


def test_from_a_directory_to_a_single_file_and_back_the_frames_stay_the_same(released, tmp_path):
    for source, out in ((released, "svd.safetensors"), (tmp_path / "svd.safetensors", "again")):
        done = convert(source, tmp_path / out)
        assert done.exit_code == 0 and done.stdout.strip() == f"model: {tmp_path / out}", done.exception
    whole = (tmp_path / "svd.safetensors").stat().st_size
    assert np.array_equal(frames_of(released), frames_of(tmp_path / "svd.safetensors"))
    assert np.array_equal(frames_of(released), frames_of(tmp_path / "again"))
    assert convert(released, tmp_path / "half.safetensors", "--half").exit_code == 0
    assert (tmp_path / "half.safetensors").stat().st_size < 0.55 * whole
    assert not list(tmp_path.glob("*.partial"))


def test_a_model_of_others_stays_one_in_every_form_and_is_not_trained_on_with_its_motion_unknown(released, tmp_path):
    """None of these forms has a map, and none is given one unasked."""
    own = {"processes": 1, "batch": 1}
    refit = stage_settings("image_to_video", own | {"refit_motion": True})
    convert(released, tmp_path / "ours")
    convert(released, tmp_path / "svd.safetensors")
    convert(tmp_path / "svd.safetensors", tmp_path / "back")
    for start in (released, tmp_path / "ours", tmp_path / "back"):
        with pytest.raises(BadInputError, match="what its motion buckets stand for is not known"):
            check_start("image_to_video", start, stage_settings("image_to_video", own))
        check_start("image_to_video", start, refit)
    assert "imported" in read_card(tmp_path / "back") and "motion_calibration" not in read_card(tmp_path / "back")


def test_a_single_file_as_a_start_is_refused_with_what_makes_a_directory_of_it(released, tmp_path):
    convert(released, tmp_path / "svd.safetensors")
    command = ["train", "image_to_video", "-w", str(tmp_path / "w"), "--init", str(tmp_path / "svd.safetensors")]
    refused = CliRunner().invoke(app, command).exception
    assert isinstance(refused, BadInputError)
    assert f"is a single file; `svdflow convert {tmp_path / 'svd.safetensors'} DIRECTORY`" in str(refused)


def test_what_cannot_be_is_refused_by_name_and_writes_nothing(released, tmp_path):
    for arguments, says in (
        ([released, released], "is there already"),
        ([released, tmp_path / "out", "--half"], "only a single file takes 16 bits"),
        ([released, tmp_path / "out", "--frames", 25], "only a single file has to be told"),
        ([tmp_path / "absent", tmp_path / "out"], "there is no such model here"),
    ):
        refused = convert(*arguments).exception
        assert isinstance(refused, BadInputError) and says in str(refused)
    assert list(tmp_path.iterdir()) == []
