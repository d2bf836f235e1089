"""What a step of training gives the network, against the definitions: every sample has its own, and all of them."""

import math
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from svdflow.common.manifests import read_rows, write_manifest
from svdflow.common.shards import ShardReader
from svdflow.diffusion.autoencoder import load_autoencoder
from svdflow.diffusion.model_directory import VideoModel, read_card, save_model
from svdflow.diffusion.motion import MotionCalibration
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.unet import build_video_unet
from svdflow.training.train.data import SampleSource
from svdflow.training.train.draws import Plan, frame_noise, noise
from svdflow.training.train.heartbeat import Heartbeat
from svdflow.training.train.job import Job
from svdflow.training.train.model import start_model
from svdflow.training.train.objective import UNKNOWN_MOTION, Objective
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.signals import Asked
from svdflow.training.train.trainer import Trainer
from tests.engine_runs import one_process
from tests.training_runs import UNET, make_autoencoder, make_samples, settings_for

CALIBRATION = {"scores": [0.0, 5.0], "buckets": [10.0, 210.0], "unit": "px"}  # a score of s is the bucket 10 + 40 s


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    root, samples = make_samples(folder)
    return root, samples, make_autoencoder(folder / "vae")


class Spy:
    """Stands in for the network: remembers what it is given, and answers with something that is not zero."""

    def __call__(self, x, label, encoder_hidden_states, added_time_ids=None, return_dict=True, **_):
        self.x, self.label, self.context, self.vector = x, label, encoder_hidden_states, added_time_ids
        self.answer = torch.tanh(x[:, :, :4])
        return (self.answer,)


def given(data, stage, rows=None, card=None, **values):
    """The network's inputs for one batch, with the draws, rows and losses of its samples."""
    root, samples, vae = data
    kind = {"video": "text_to_video"}.get(stage, stage)
    source = SampleSource(root, rows or read_rows("samples", samples)[:4])
    settings = stage_settings(
        stage, {"batch": 4, "processes": 1, "frames": None, "height": None, "width": None} | values
    )
    unet = build_video_unet(UNetSettings(**UNET), kind)
    model = VideoModel(
        kind, unet, load_autoencoder(vae), card={"motion_calibration": CALIBRATION} if card is None else card
    )
    spy = Spy()
    plan = Plan(settings, len(source.rows))
    draws = [plan.draw(i) for i in range(4)]
    losses = Objective(model, source, spy, torch.device("cpu")).losses(draws)
    return spy, draws, source, losses, model


def stored(source, row, name):
    return ShardReader.open(source.root, row["shard_uri"]).read(row["tensor_prefix"], name)


def test_every_sample_of_a_batch_has_its_own_noise_strength_rate_motion_and_picture(data):
    """The common script takes the first sample's strength for all, and one rate and one motion for all clips."""
    spy, draws, source, losses, model = given(data, "image_to_video", p_mean=0.7, p_std=1.6, image_dropout=0.0)
    assert len({d.sigma for d in draws}) == len({d.augment_sigma for d in draws}) == len({d.row for d in draws}) == 4
    for place, draw in enumerate(draws):
        row, sigma = source.rows[draw.row], draw.sigma
        x0 = torch.from_numpy(stored(source, row, "latents").astype(np.float32))
        noisy = x0 + sigma * torch.from_numpy(noise(draw, x0.shape))
        x = spy.x[place]
        torch.testing.assert_close(x[:, :4], noisy / math.sqrt(sigma**2 + 1), rtol=1e-4, atol=1e-5)
        assert float(spy.label[place]) == pytest.approx(0.25 * math.log(sigma), abs=1e-5)
        # the conditioning frame: noise of its own strength on pixels, the posterior's mode, not scaled, for every frame
        pixels = torch.from_numpy(stored(source, row, "frame")).permute(2, 0, 1).float() / 127.5 - 1
        pixels = pixels + draw.augment_sigma * torch.from_numpy(frame_noise(draw, pixels.shape))
        with torch.no_grad():
            mode = model.vae.encode(pixels[None]).latent_dist.mean[0]
        torch.testing.assert_close(x[:, 4:], mode.expand(len(x), -1, -1, -1), rtol=1e-4, atol=1e-5)
        # the embedding is of the clean frame, as it was stored
        np.testing.assert_array_equal(spy.context[place, 0].numpy(), stored(source, row, "image"))
        fps_id, bucket, strength = spy.vector[place].tolist()
        assert (fps_id, bucket) == (row["fps"] - 1, round(10 + 40 * row["motion_score"]))
        assert strength == pytest.approx(draw.augment_sigma)
        denoised = noisy / (sigma**2 + 1) - sigma / math.sqrt(sigma**2 + 1) * spy.answer[place]
        weighted = (1 + sigma**2) / sigma**2 * float((denoised - x0).square().mean())
        assert float(losses[place]) == pytest.approx(weighted, rel=1e-3)
    assert len({tuple(v[:2]) for v in spy.vector.tolist()}) == 4, "rates and motions differ in these samples"


def test_text_to_video_is_told_the_drawn_caption_the_rate_and_the_motion_and_dropped_captions_are_zeros(data):
    for dropout in (0.0, 1.0):
        spy, draws, source, _, _ = given(data, "video", text_dropout=dropout)
        assert len({draw.caption for draw in draws}) > 1
        for place, draw in enumerate(draws):
            row = source.rows[draw.row]
            caption = stored(source, row, "text")[draw.caption].astype(np.float32)
            np.testing.assert_array_equal(spy.context[place].numpy(), caption * (1 - dropout))
            assert spy.vector[place].tolist() == [row["fps"] - 1, round(10 + 40 * row["motion_score"])]
            assert spy.x.shape[2] == 4


def test_motion_that_is_not_known_is_told_as_the_released_models_default(data):
    rows = read_rows("samples", data[1])[:4]
    scores = (None, math.nan, 1.0, 5.0)
    rows = [row | {"motion_score": score} for row, score in zip(rows, scores, strict=True)]
    spy, draws, _, _, _ = given(data, "video", rows)
    told = {draw.row: int(spy.vector[place, 1]) for place, draw in enumerate(draws)}
    assert told == {0: UNKNOWN_MOTION, 1: UNKNOWN_MOTION, 2: 50, 3: 210}
    spy, _, _, _, _ = given(data, "video", rows, card={"stage": "video"})
    assert set(spy.vector[:, 1].tolist()) == {UNKNOWN_MOTION}


# the map along a chain


@pytest.fixture
def chain(data, tmp_path):
    """Runs stages of no steps, one from another, on samples whose motion scores are multiplied."""
    root, samples, vae = data
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}

    def run(name, stage, init, times=1.0, **values):
        folder = tmp_path / name
        folder.mkdir()
        rows = [row | {"motion_score": times * row["motion_score"]} for row in read_rows("samples", samples)]
        write_manifest("samples", rows, folder / "samples.parquet")
        size = {"frames": None, "height": None, "width": None, "batch": 2, "processes": 1, "zero_stage": 0, "ema": None}
        run = {"steps": 0, "precision": "fp32", "held_out_samples": 0}
        settings = stage_settings(stage, size | run | values)
        job = Job(stage, settings, folder / "samples.parquet", root.location, tmp_path / init,
                  folder / "checkpoints", None, folder / "logs", folder / "made", folder / "model",
                  {"init": None, "configuration": {}})  # fmt: skip
        trainer = Trainer(job, Asked(), Heartbeat(folder, 0))
        trainer.run()
        return read_card(folder / "model")["motion_calibration"], trainer.objective

    start = settings_for(vae, processes=1)
    save_model(start_model("image", None, start), tmp_path / "start")
    with one_process():
        yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_map_is_fitted_on_the_first_video_stages_training_clips_and_inherited_from_then_on(chain, data, tmp_path):
    assert chain("image", "image", "start")[0] is None, "single frames have no motion"
    training = [row["motion_score"] for row in read_rows("samples", data[1]) if row["split"] == "train"]
    fitted = MotionCalibration.fit(training)
    first, _ = chain("video", "video", "image/model")
    assert MotionCalibration.from_dict(first) == fitted
    # clips that move ten times as much: their scores keep the meaning that the model has learned
    for name, stage, init in (("again", "video", "video/model"), ("moving", "image_to_video", "again/model")):
        inherited, objective = chain(name, stage, init, times=10.0)
        assert inherited == first and objective.calibration == fitted
    refitted, objective = chain("anew", "image_to_video", "moving/model", times=10.0, refit_motion=True)
    assert MotionCalibration.from_dict(refitted) == MotionCalibration.fit([10 * score for score in training])
    assert objective.calibration == MotionCalibration.from_dict(refitted)
    weights = [
        load_file(tmp_path / name / "model/unet/diffusion_pytorch_model.safetensors") for name in ("anew", "moving")
    ]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
