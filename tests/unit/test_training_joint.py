"""Joint training of images and videos: image batches come in their share and leave the temporal layers alone."""

import signal

import pytest
import torch

from svdflow.common.errors import ConfigError
from svdflow.diffusion.model_directory import read_card, save_model
from svdflow.diffusion.unet import is_temporal
from svdflow.training.train.heartbeat import Heartbeat
from svdflow.training.train.job import Job
from svdflow.training.train.model import prepare_model, start_model
from svdflow.training.train.objective import Objective
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.signals import Asked
from svdflow.training.train.trainer import Trainer
from tests.engine_runs import one_process
from tests.training_runs import make_autoencoder, make_images, make_samples, settings_for

SHARE = 0.5


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A video stage on six clips and, for half of the draws, three pictures; from an image model."""
    folder = tmp_path_factory.mktemp("joint")
    root, samples = make_samples(folder)
    images = make_images(folder / "pictures", root)
    start = settings_for(make_autoencoder(folder / "vae"), processes=1)
    save_model(start_model("image", None, start), folder / "image")
    settings = stage_settings(
        "video",
        {"frames": 2, "short_frames": [1], "height": None, "width": None, "steps": 4, "batch": 2, "processes": 1,
         "zero_stage": 0, "precision": "fp32", "lr": 1e-3, "ema": None, "held_out_levels": 1, "held_out_seeds": 1,
         "text_dropout": 0.0, "weight": 1 - SHARE, "mix": [{"samples": str(images), "weight": SHARE}]},
    )  # fmt: skip
    return Job("video", settings, samples, root.location, folder / "image", folder / "checkpoints", None,
               folder / "logs", folder / "samples", folder / "model", {"init": None, "configuration": {}})  # fmt: skip


@pytest.fixture(scope="module")
def prepared(job):
    model, train, _, plan = prepare_model(job)
    return model, train, plan, Objective(model, train, model.unet, torch.device("cpu"))


def batch_of(prepared, frames: int):
    _, train, plan, _ = prepared
    batches = (plan.micro_batch(step, 0, 0, 1) for step in range(100))
    return next(batch for batch in batches if train.buckets[batch[0].row][0] == frames)


def test_batches_are_of_images_or_of_videos_in_the_share_of_their_weight(prepared):
    _, train, plan, _ = prepared
    batches = [[train.buckets[draw.row][0] for draw in plan.micro_batch(step, 0, 0, 1)] for step in range(400)]
    assert all(len(set(batch)) == 1 for batch in batches)
    assert sum(batch[0] == 1 for batch in batches) / 400 == pytest.approx(SHARE, abs=0.05)


def test_an_image_batch_trains_the_spatial_layers_alone_and_a_video_batch_all(prepared):
    model, _, _, objective = prepared
    for frames in (1, 2):
        model.unet.zero_grad()
        objective.mean_loss(batch_of(prepared, frames)).backward()
        learned = {name for name, p in model.unet.named_parameters() if p.grad is not None and p.grad.any()}
        temporal = {n for n in learned if is_temporal(n) and not n.startswith("add_embedding.")}
        assert {n for n in learned if not is_temporal(n)}
        assert bool(temporal) == (frames == 2)


def test_an_image_s_loss_does_not_depend_on_what_the_temporal_layers_have_learned(prepared):
    model, _, _, objective = prepared
    images, videos = batch_of(prepared, 1), batch_of(prepared, 2)
    with torch.no_grad():
        before = objective.losses(images), objective.losses(videos)
        temporal = [p for n, p in model.unet.named_parameters() if is_temporal(n) and not n.startswith("add_embedding")]
        kept = [p.clone() for p in temporal]
        for parameter in temporal:
            parameter += 0.05
        after = objective.losses(images), objective.losses(videos)
        for parameter, value in zip(temporal, kept, strict=True):
            parameter.copy_(value)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_a_joint_run_hands_on_a_video_model_told_by_its_videos(job, tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with one_process():
            result = Trainer(job, Asked(), Heartbeat(tmp_path, 0)).run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    card = read_card(job.out)
    assert result["steps"] == 4 and card["kind"] == "text_to_video"
    assert card["configuration"]["frames"] == 2  # not that of the pictures, nor their made-up rate
    assert card["conditioning"]["fps"] != 7.0


def test_a_video_stage_of_single_frames_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"train_video.frames: .*put 1 into train_video.short_frames"):
        stage_settings("video", {"frames": 1})
    assert stage_settings("image", {"frames": 1}).frames == 1
