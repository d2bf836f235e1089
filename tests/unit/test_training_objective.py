"""The stage chain without DeepSpeed: each kind takes its conditions; its loss is the EDM loss on the right tensors."""

import numpy as np
import pytest
import torch

from svdflow.common.errors import BadInputError
from svdflow.common.shards import write_shard
from svdflow.common.storage import DataRoot
from svdflow.diffusion.model_directory import VideoModel, save_model
from svdflow.training.train.buckets import check_samples
from svdflow.training.train.data import SampleSource
from svdflow.training.train.draws import Plan, noise
from svdflow.training.train.model import start_model
from svdflow.training.train.objective import Objective
from svdflow.training.train.settings import stage_settings

UNET = {
    "latent_channels": 4,
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "attention_heads": [2, 2],
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 8,
    "num_frames": 3,
    "sample_size": 8,
}
STAGES = ("image", "video", "image_to_video", "multi_view")


def settings_for(stage, **values):
    return stage_settings(
        stage, {"batch": 3, "processes": 1, "frames": None, "height": None, "width": None, "unet": UNET} | values
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    root, rng = DataRoot.open(folder / "root"), np.random.default_rng(0)
    write_shard(
        folder / "shard",
        {
            f"s{i}": {
                "latents": rng.standard_normal((3, 4, 8, 8)).astype(np.float32),
                "text": rng.standard_normal((3, 5, 16)).astype(np.float32),
                "image": rng.standard_normal(16).astype(np.float32),
                "frame": rng.integers(0, 255, (64, 64, 3), dtype=np.uint8),
            }
            for i in range(3)
        },
    )
    uri = root.put_file(folder / "shard")
    rows = [
        {
            "shard_uri": uri,
            "tensor_prefix": f"s{i}",
            "frames": 3,
            "height": 64,
            "width": 64,
            "fps": 8.0,
            "motion_score": 1.0 * i,
            "elevation_deg": 10.0 * i,
        }
        for i in range(3)
    ]
    return SampleSource(root, rows)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A model of every stage before its first step, each grown from the one before, on disk and in memory."""
    from diffusers import AutoencoderKLTemporalDecoder

    folder = tmp_path_factory.mktemp("chain")
    torch.manual_seed(0)
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4
    )
    vae.save_pretrained(folder / "vae")
    models: dict[str, VideoModel] = {}
    before = None
    for stage in STAGES:
        models[stage] = start_model(stage, before, settings_for(stage, autoencoder=str(folder / "vae")))
        before = folder / stage
        save_model(models[stage], before)
    return models, folder


@pytest.mark.parametrize("stage", STAGES)
def test_losses_do_not_depend_on_who_shares_the_micro_batch(chain, source, stage):
    model = chain[0][stage]
    objective = Objective(model, source, model.unet, torch.device("cpu"))
    draws = [Plan(settings_for(stage), 3).draw(i) for i in range(3)]
    with torch.no_grad():
        together = objective.losses(draws)
        alone = torch.cat([objective.losses([draw]) for draw in draws])
    assert together.shape == (3,) and torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_new_in_a_stage_learns_from_the_first_step(chain, source, stage):
    model = chain[0][stage]
    model.unet.zero_grad()
    settings = settings_for(stage, text_dropout=0, image_dropout=0)
    objective = Objective(model, source, model.unet, torch.device("cpu"))
    objective.mean_loss([Plan(settings, 3).draw(i) for i in range(3)]).backward()
    gradient = model.unet.conv_in.weight.grad.flatten(2).abs().sum((0, 2))
    assert (gradient > 0).all() and len(gradient) == (4 if stage in ("image", "video") else 8)
    if stage != "image":
        assert model.unet.add_embedding.linear_2.weight.grad.abs().sum() > 0


def test_a_network_of_zeros_has_the_loss_of_the_closed_form(chain, source):
    model = chain[0]["video"]
    objective = Objective(model, source, lambda x, *_, **__: (torch.zeros_like(x),), torch.device("cpu"))
    draws = [Plan(settings_for("video"), 3).draw(i) for i in range(3)]
    network, output = objective.blind_losses(draws)
    torch.testing.assert_close(objective.losses(draws), network)
    for place, draw in enumerate(draws):
        x0 = source.tensor(draw.row, "latents").astype(np.float64)
        x = x0 + draw.sigma * noise(draw, x0.shape)
        weight = (1 + draw.sigma**2) / draw.sigma**2
        assert float(network[place]) == pytest.approx(weight * np.mean((x / (1 + draw.sigma**2) - x0) ** 2), rel=1e-4)
        assert float(output[place]) == pytest.approx(weight * np.mean(x0**2), rel=1e-5)


def test_a_grown_model_computes_what_the_one_before_did(chain, source):
    models, _ = chain
    draws = [Plan(settings_for("video"), 3).draw(i) for i in range(3)]
    device = torch.device("cpu")
    with torch.no_grad():
        i2v = Objective(models["image_to_video"], source, models["image_to_video"].unet, device).losses(draws)
        multi = Objective(models["multi_view"], source, models["multi_view"].unet, device).losses(draws)
    torch.testing.assert_close(i2v, multi, rtol=1e-5, atol=1e-6)  # the new weights for elevation are zero


def test_held_out_draws_of_several_buckets_have_the_losses_they_have_alone(chain, source):
    model = chain[0]["video"]
    short = SampleSource(source.root, [row | {"frames": 3 - i} for i, row in enumerate(source.rows)])
    calls = []

    def count(x, *arguments, **named):
        calls.append(len(x))
        return model.unet(x, *arguments, **named)

    objective = Objective(model, short, count, torch.device("cpu"))
    draws = [Plan(settings_for("video"), 3).draw(i) for i in range(3)]
    with torch.no_grad():
        together = objective.losses(draws)
        assert calls == [1, 1, 1], "every process calls the model equally often, whatever draws it has"
        alone = torch.cat([objective.losses([draw]) for draw in draws])
        blind = objective.blind_losses(draws)
    torch.testing.assert_close(together, alone)
    assert [len(part) for part in blind] == [3, 3]


def test_a_dropped_frame_and_embedding_are_zeros_and_the_scalars_stay(chain, source):
    import dataclasses

    model, seen = chain[0]["multi_view"], {}

    def spy(x, t, encoder_hidden_states, added_time_ids, return_dict):
        seen.update(x=x, context=encoder_hidden_states, vector=added_time_ids)
        return (torch.zeros_like(x[:, :, :4]),)

    objective = Objective(model, source, spy, torch.device("cpu"))
    draw = Plan(settings_for("multi_view"), 3).draw(0)
    objective.losses([dataclasses.replace(draw, row=2, drop_frame=True, drop_embedding=True)])
    assert not seen["x"][:, :, 4:].any() and not seen["context"].any()
    assert seen["vector"][0, 0] == 7.0 and seen["vector"][0, 3] == 20.0  # fps - 1, elevation
    assert float(seen["vector"][0, 2]) == pytest.approx(draw.augment_sigma)
    objective.losses([dataclasses.replace(draw, row=2, drop_frame=False, drop_embedding=False)])
    np.testing.assert_array_equal(seen["context"][0, 0].numpy(), source.tensor(2, "image"))
    frames = seen["x"][0, :, 4:]
    assert frames.any() and torch.equal(frames[0], frames[2])


def test_a_stage_refuses_a_start_of_the_wrong_kind_and_samples_of_another_size(chain):
    _, folder = chain
    with pytest.raises(BadInputError, match="kind image cannot start stage multi_view"):
        start_model("multi_view", folder / "image", settings_for("multi_view"))
    with pytest.raises(BadInputError, match="starts from a model of kind image"):
        start_model("video", None, settings_for("video"))
    row = {"frames": 8, "height": 128, "width": 128}
    with pytest.raises(BadInputError, match="height 128, the stage asks for 320"):
        check_samples([row], "video", stage_settings("video", {"frames": 8}), folder / "samples.parquet")
    check_samples(
        [row, row | {"height": 64}], "video", settings_for("video"), folder / "samples.parquet"
    )  # two buckets
    with pytest.raises(BadInputError, match="height 64, the stage asks for 128.*takes every size as a bucket"):
        check_samples(
            [row, row | {"height": 64}], "video", settings_for("video", height=128), folder / "samples.parquet"
        )
    with pytest.raises(BadInputError, match="no sample holds 9 frames, the longest holds 8"):
        check_samples([row], "video", settings_for("video", frames=9), folder / "samples.parquet")
    check_samples([row], "image", settings_for("image", frames=1), folder / "samples.parquet")
