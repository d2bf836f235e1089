"""The stage of frame interpolation: what a step gives the network, and where a run starts and ends."""

import dataclasses
import math
import signal

import numpy as np
import pytest
import torch

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.manifests import read_rows
from svdflow.common.shards import ShardReader
from svdflow.diffusion.interpolating import interpolate
from svdflow.diffusion.model_directory import VideoModel, load_model, save_model
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.unet import build_video_unet
from svdflow.training.train.buckets import check_samples
from svdflow.training.train.data import Gathering, SampleSource
from svdflow.training.train.draws import Plan, draw_latents, frame_noise, noise
from svdflow.training.train.heartbeat import Heartbeat
from svdflow.training.train.job import Job
from svdflow.training.train.model import start_model
from svdflow.training.train.objective import Objective
from svdflow.training.train.samples import write_grid, write_samples
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.signals import Asked
from svdflow.training.train.trainer import Trainer
from tests.engine_runs import one_process
from tests.training_runs import UNET, make_autoencoder, make_samples, make_sequences

CALIBRATION = {"scores": [0.0, 5.0], "buckets": [10.0, 210.0], "unit": "px"}  # a score of s is the bucket 10 + 40 s


def settings_for(**values):
    base = {"batch": 4, "processes": 1, "height": None, "width": None, "fps": [24.0], "precision": "fp32"}
    return stage_settings("interpolation", base | values)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    return *make_sequences(folder), make_autoencoder(folder / "vae")


def source_of(data, settings, training=True):
    root, samples, _ = data
    return SampleSource(root, read_rows("samples", samples)[:4], Gathering.of("interpolation", settings, training))


class Spy:
    """Stands in for the network: remembers what it is given, and answers with something that is not zero."""

    def __call__(self, x, label, encoder_hidden_states, added_time_ids, return_dict):
        self.x, self.label, self.context, self.vector = x, label, encoder_hidden_states, added_time_ids
        self.answer = torch.tanh(x[:, :, :4])
        return (self.answer,)


def spied(source, draws):
    model = VideoModel(
        "interpolation", build_video_unet(UNetSettings(**UNET), "interpolation"), torch.nn.Identity(),
        card={"motion_calibration": CALIBRATION},
    )  # fmt: skip
    spy = Spy()
    return spy, Objective(model, source, spy, torch.device("cpu")).losses(draws)


def test_every_sample_of_a_batch_is_noised_conditioned_and_weighed_by_the_definitions(data):
    settings = settings_for(image_dropout=0.0)
    source = source_of(data, settings)
    plan = Plan(settings, 4)
    draws = [plan.draw(i) for i in range(4)]
    spy, losses = spied(source, draws)
    assert len({(d.row, d.sigma, d.augment_sigma) for d in draws}) == 4
    for place, draw in enumerate(draws):
        row, sigma = source.rows[draw.row], draw.sigma
        shard = ShardReader.open(source.root, row["shard_uri"])
        stored = {name: shard.read(row["tensor_prefix"], name) for name in ("mean", "logvar", "images")}
        stride = round(row["sequence_fps"] / 24.0)
        first = source.window(draw).first
        taken = [first + stride * frame for frame in range(5)]
        x0 = torch.from_numpy(draw_latents(draw, *(stored[n][taken].astype(np.float32) for n in ("mean", "logvar"))))
        noisy = x0 + sigma * torch.from_numpy(noise(draw, x0.shape))
        x = spy.x[place]
        assert x.shape == (5, 9, 8, 8)
        torch.testing.assert_close(x[:, :4], noisy / math.sqrt(sigma**2 + 1), rtol=1e-4, atol=1e-5)
        on_ends = torch.from_numpy(frame_noise(draw, (2, *x0.shape[1:])))
        torch.testing.assert_close(x[[0, 4], 4:8], x0[[0, 4]] + draw.augment_sigma * on_ends, rtol=1e-5, atol=1e-6)
        assert not x[1:4, 4:].any() and (x[[0, 4], 8] == 1).all()
        assert float(spy.label[place]) == pytest.approx(0.25 * math.log(sigma), abs=1e-5)
        np.testing.assert_array_equal(spy.context[place].numpy(), stored["images"][[taken[0], taken[-1]]])
        fps_id, bucket, strength = spy.vector[place].tolist()
        assert fps_id == pytest.approx(row["sequence_fps"] / stride - 1)
        assert bucket == round(10 + 40 * row["motion_score"]) and strength == pytest.approx(draw.augment_sigma)
        # the loss is on all five frames
        denoised = noisy / (sigma**2 + 1) - sigma / math.sqrt(sigma**2 + 1) * spy.answer[place]
        weighted = (1 + sigma**2) / sigma**2 * float((denoised - x0).square().mean())
        assert float(losses[place]) == pytest.approx(weighted, rel=1e-3)


def test_dropped_frames_leave_neither_latents_nor_mask_and_dropped_embeddings_are_zeros(data):
    source = source_of(data, settings_for())
    draw = Plan(settings_for(), 4).draw(0)
    for frame in (False, True):
        for embedding in (False, True):
            spy, _ = spied(source, [dataclasses.replace(draw, drop_frame=frame, drop_embedding=embedding)])
            assert bool(spy.x[0, :, 4:].any()) != frame and bool(spy.context.any()) != embedding
            assert float(spy.vector[0, 2]) == pytest.approx(draw.augment_sigma), "scalars stay"
    rate = settings_for(image_dropout=0.1)
    drawn = [Plan(rate, 4).draw(i) for i in range(3000)]
    shares = [np.mean([(d.drop_frame, d.drop_embedding) == each for d in drawn]) for each in
              ((False, True), (True, True), (True, False))]  # fmt: skip
    assert shares == pytest.approx([0.1] * 3, abs=0.02)


def test_windows_start_at_any_frame_and_come_at_the_rate_that_is_asked_for(data):
    settings = settings_for()
    source = source_of(data, settings)
    windows = [source.window(Plan(settings, 4).draw(i)) for i in range(300)]
    assert {w.frames for w in windows} == {5} and len({w.first for w in windows}) > 4
    assert stage_settings("interpolation", {}).fps == (28.0,)


def test_what_interpolation_cannot_be_learned_from_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="train_interpolation.frames: .*windows of 5 frames"):
        settings_for(frames=None)
    with pytest.raises(ConfigError, match="train_interpolation.short_frames: .*windows of 5 frames"):
        settings_for(short_frames=[1])
    with pytest.raises(ConfigError, match="train_interpolation.noise_schedule"):
        settings_for(noise_schedule="discrete")
    _, old = make_samples(tmp_path)
    rows = [row | {"frames": 5} for row in read_rows("samples", old)]
    with pytest.raises(BadInputError, match="embedding of its first frame alone; encode the clips again"):
        check_samples(rows, "interpolation", settings_for(), old)


@pytest.fixture(scope="module")
def start(data, tmp_path_factory):
    """A text-to-video model."""
    from svdflow.diffusion.autoencoder import load_autoencoder

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start") / "text to video"
    unet = build_video_unet(UNetSettings(**UNET), "text_to_video")
    save_model(VideoModel("text_to_video", unet, load_autoencoder(data[2])), folder)
    return folder


def test_a_stage_starts_from_a_text_to_video_model_or_from_one_of_its_own_kind(data, start, tmp_path):
    grown = start_model("interpolation", start, settings_for(), (64, 96))
    assert grown.kind == "interpolation" and grown.text_encoder is None and grown.image_encoder is not None
    assert tuple(grown.unet.middle_latent.shape) == (4, 8, 12) and grown.unet.middle_latent.requires_grad
    told = settings_for(height=32, width=64)
    assert tuple(start_model("interpolation", start, told, (64, 96)).unet.middle_latent.shape) == (4, 4, 8)
    assert tuple(start_model("interpolation", start, settings_for()).unet.middle_latent.shape) == (4, 8, 8)
    with torch.no_grad():
        grown.unet.middle_latent.add_(1.0)
    save_model(grown, tmp_path / "own")
    again = start_model("interpolation", tmp_path / "own", settings_for(), (32, 32))
    assert torch.equal(again.unet.middle_latent, grown.unet.middle_latent)
    with pytest.raises(BadInputError, match="cannot start stage image_to_video, which takes text_to_video or image_to"):
        start_model("image_to_video", tmp_path / "own", stage_settings("image_to_video", {}))


def test_samples_on_the_way_show_what_was_given_what_was_made_and_what_is_true(data, start, tmp_path):
    model = start_model("interpolation", start, settings_for(), (64, 64))
    model.unet.eval()
    settings = settings_for(sample_count=3, sample_steps=2)
    source = source_of(data, settings, training=False)
    calls = []
    for rank in range(2):

        def net(*args, rank=rank, **kwargs):
            calls.append(rank)
            return model.unet(*args, **kwargs)

        with torch.no_grad():
            write_samples(tmp_path, model, net, torch.device("cpu"), source, settings, rank, 2)
    assert calls.count(0) == calls.count(1)
    rows = np.load(tmp_path / "sample_1.npy")
    assert rows.shape == (8, 64, 64, 3) and not np.array_equal(rows[2:5], rows[5:])
    assert write_grid(tmp_path).shape == (3 * 64, 8 * 64, 3)
    assert len(list(tmp_path.glob("sample_*.mp4"))) == 3


def test_a_run_hands_on_a_model_that_interpolates(data, start, tmp_path):
    root, samples, _ = data
    settings = settings_for(steps=3, batch=2, zero_stage=1, lr=1e-2, ema=0.9, held_out_levels=1, held_out_seeds=1)
    job = Job("interpolation", settings, samples, root.location, start, tmp_path / "checkpoints", None,
              tmp_path / "logs", tmp_path / "samples", tmp_path / "model",
              {"init": None, "configuration": {}})  # fmt: skip
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with one_process():
            result = Trainer(job, Asked(), Heartbeat(tmp_path, 0)).run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert result["after"]["mean"] != result["before"]["mean"]
    model = load_model(tmp_path / "model")
    assert model.kind == "interpolation" and model.unet.middle_latent.any()
    assert model.card["motion_calibration"] and model.card["conditioning"]["fps"] == pytest.approx(24.0)
    assert model.card["configuration"]["frames"] == 5
    rng = np.random.default_rng(0)
    made = interpolate(model, rng.integers(0, 255, (3, 64, 64, 3), dtype=np.uint8), fps=6, steps=1)
    assert made.shape == (9, 64, 64, 3)
