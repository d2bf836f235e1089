"""Adapters: injected they change nothing, trained they learn alone, merged and loaded they compute what peft's do."""

import copy
import json
import signal

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.diffusion.lora import ADAPTER, adapted_layers, apply_lora, inject_lora, merge_lora, save_lora
from svdflow.diffusion.model_directory import CARD, load_model, save_model
from svdflow.diffusion.network import unet_model_fn
from svdflow.diffusion.settings import KINDS, TINY_UNET, LoraSettings, UNetSettings, kind_in
from svdflow.diffusion.unet import build_image_unet, build_video_unet, to_image_to_video
from svdflow.pipelines.registry import require_chain, resolve_settings
from svdflow.pipelines.stage_runs import forecast
from svdflow.training.train.forecast import build_unet
from svdflow.training.train.heartbeat import Heartbeat
from svdflow.training.train.job import Job
from svdflow.training.train.model import start_model
from svdflow.training.train.presets import GROWN_FROM, MODEL_KIND
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.signals import Asked
from svdflow.training.train.start import check_start
from svdflow.training.train.trainer import Trainer
from tests.engine_runs import one_process
from tests.training_runs import UNET, make_autoencoder, make_samples, settings_for

TINY = TINY_UNET.model_copy(update={"cross_attention_dim": 32, "latent_channels": 4})
LORA = LoraSettings(rank=4, alpha=8)
X = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def output(unet) -> torch.Tensor:
    context = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(2))
    return unet_model_fn(unet.eval(), context, torch.tensor([[6.0, 127.0]]))(X, torch.tensor([0.7]))


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return build_video_unet(TINY, "text_to_video").eval()


@pytest.fixture(scope="module")
def trained(base):
    """A copy with an adapter whose matrices are no longer zero."""
    unet = copy.deepcopy(base)
    inject_lora(unet, LORA)
    assert torch.equal(output(unet), output(base)), "an untrained adapter changes nothing"
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.2)
    return unet


def test_an_adapter_sits_on_the_projections_of_temporal_attention_alone(base, trained):
    names = adapted_layers(base, LORA)
    assert all(".temporal_transformer_blocks." in name and ".attn" in name for name in names)
    blocks = sum(type(module).__name__ == "TemporalBasicTransformerBlock" for module in base.modules())
    assert len(names) == blocks * 2 * 4
    assert sum(isinstance(module, LoraLayer) for module in trained.modules()) == len(names)
    spatial = adapted_layers(base, LoraSettings(layers="spatial"))
    assert spatial and not set(spatial) & set(names) and not [name for name in spatial if "temporal" in name]


def test_merged_weights_compute_what_peft_computes(base, trained):
    merged = copy.deepcopy(base)
    merged.load_state_dict(merge_lora(trained.state_dict(), LORA))
    assert (output(trained) - output(base)).abs().max() > 1e-2
    torch.testing.assert_close(output(merged), output(trained), atol=1e-5, rtol=1e-4)
    theirs = copy.deepcopy(trained)
    for module in theirs.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    for name, tensor in merged.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        found = theirs.state_dict().get(f"{layer}.base_layer.{leaf}", theirs.state_dict().get(name))
        torch.testing.assert_close(tensor, found, atol=1e-6, rtol=1e-5)


def test_an_adapter_s_file_goes_onto_the_model_by_any_share_and_off_again(base, trained, tmp_path):
    save_lora(trained.state_dict(), LORA, tmp_path / ADAPTER)
    stored = load_file(tmp_path / ADAPTER)
    assert len(stored) == 2 * len(adapted_layers(base, LORA))
    assert all(4 in tensor.shape and name.startswith("unet.") for name, tensor in stored.items())
    unet = copy.deepcopy(base)
    apply_lora(unet, tmp_path / ADAPTER)
    torch.testing.assert_close(output(unet), output(trained), atol=1e-5, rtol=1e-4)
    apply_lora(unet, tmp_path / ADAPTER, -0.25)
    apply_lora(unet, tmp_path / ADAPTER, -0.75)
    torch.testing.assert_close(output(unet), output(base), atol=1e-5, rtol=1e-4)


def test_a_file_that_does_not_fit_changes_nothing_and_is_told_why(base, trained, tmp_path):
    save_lora(trained.state_dict(), LORA, tmp_path / ADAPTER)
    image = build_image_unet(TINY)
    before = {name: tensor.clone() for name, tensor in image.state_dict().items()}
    with pytest.raises(BadInputError, match="and the model has no such layer"):
        apply_lora(image, tmp_path / ADAPTER)
    wide = build_video_unet(UNetSettings(**{**UNET, "block_out_channels": [64, 64]}), "text_to_video")
    with pytest.raises(BadInputError, match="and the model has"):
        apply_lora(wide, tmp_path / ADAPTER)
    whole = load_file(tmp_path / ADAPTER)
    told = {"rank": "4", "alpha": "8"}
    key = next(name for name in whole if ".lora_A." in name)
    for content, says in (
        ({name: tensor for name, tensor in whole.items() if name != key}, "damaged; of .* it lacks unet"),
        (whole | {key: whole[key][:3]}, "damaged; .* has no two matrices of one rank"),
        ({"a": torch.zeros(1)}, "adapts no layer"),
    ):
        save_file(content, tmp_path / "damaged.safetensors", told)
        with pytest.raises(BadInputError, match=says):
            apply_lora(image, tmp_path / "damaged.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in image.state_dict().items())
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInputError, match="its metadata tell no rank and alpha"):
        apply_lora(image, tmp_path / "other.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Samples, and a video model of a tiny size to start from."""
    folder = tmp_path_factory.mktemp("lora")
    root, samples = make_samples(folder)
    image = settings_for(make_autoencoder(folder / "vae"), processes=1)
    save_model(start_model("image", None, image), folder / "image")
    with one_process():
        save_model(start_model("video", folder / "image", video()), folder / "video")
        yield root, samples, folder


def video(**values):
    size = {"frames": None, "height": None, "width": None, "precision": "fp32", "processes": 1, "unet": UNET}
    run = {"steps": 4, "batch": 2, "lr": 1e-2, "zero_stage": 1, "held_out_levels": 1, "held_out_seeds": 1, "ema": None}
    return stage_settings("video", size | run | values)


def train(data, folder, stop_at=0, **values):
    root, samples, place = data
    folder.mkdir(exist_ok=True)
    asked = Asked()
    job = Job("video", video(lora={"rank": 2}, **values), samples, root.location, place / "video",
              folder / "checkpoints", None, folder / "logs", folder / "samples", folder / "model",
              {"init": None, "configuration": {}})  # fmt: skip
    run = Trainer(job, asked, Heartbeat(folder, 0))
    losses_of = run.objective.losses_of

    def counted(batch):
        asked.to_stop = bool(stop_at) and run.engine.step + 1 == stop_at
        return losses_of(batch)

    run.objective.losses_of = counted
    return run.run()


@pytest.fixture
def signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_run_trains_the_adapter_alone_and_leaves_it_beside_the_model_it_is_merged_into(data, tmp_path, signals):
    _, _, place = data
    whole = train(data, tmp_path / "whole", gradient_checkpointing=True, checkpoint_every=2)
    start, model = load_model(place / "video"), load_model(tmp_path / "whole" / "model")
    adapted = adapted_layers(start.unet, LORA)
    for name, tensor in model.unet.state_dict().items():
        same = torch.equal(tensor, start.unet.state_dict()[name])
        assert same == (name.removesuffix(".weight") not in adapted), name
    apply_lora(start.unet, tmp_path / "whole" / "model" / ADAPTER)
    for name, tensor in start.unet.state_dict().items():
        torch.testing.assert_close(tensor, model.unet.state_dict()[name], atol=1e-7, rtol=1e-6)
    kept = load_file(tmp_path / "whole" / "checkpoints" / "step_00000002" / "model.safetensors")
    assert len(kept) == 2 * len(adapted), "a checkpoint holds what learns"
    assert train(data, tmp_path / "told", stop_at=3) is None
    resumed = train(data, tmp_path / "told")
    assert resumed["resumed_from"] == 3 and resumed["loss"] == whole["loss"]
    ends = [load_file(tmp_path / name / "model" / ADAPTER) for name in ("whole", "told")]
    assert all(torch.equal(ends[0][name], tensor) for name, tensor in ends[1].items())


def test_at_zero_3_the_same_adapter_comes_out(data, tmp_path, signals):
    adapters = []
    for stage in (1, 3):
        train(data, tmp_path / str(stage), zero_stage=stage, steps=1, optimizer="sgd", held_out_samples=0)
        adapters.append(load_file(tmp_path / str(stage) / "model" / ADAPTER))
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, atol=1e-6, rtol=1e-4)


def test_an_adapter_on_a_layer_that_is_not_there_is_refused_from_shapes_alone(data):
    _, _, place = data
    with pytest.raises(ConfigError, match=r"train_image.lora.layers: UNet2DConditionModel has no temporal attention"):
        check_start("image", place / "image", settings_for(place / "vae", lora={"rank": 2}))
    with pytest.raises(ConfigError, match=r"train_video.lora.modules: .* has no layer to_z; it has .*to_q"):
        check_start("video", place / "video", video(lora={"modules": ["to_q", "to_z"]}))
    check_start("video", place / "video", video(lora={"rank": 2}))
    with pytest.raises(ConfigError, match=r"train_video.lora.rank"):
        video(lora={"rank": 0})
    with pytest.raises(ConfigError, match=r"train_image.lora: .*leave trainable at all"):
        settings_for(place / "vae", lora={}, trainable="time_embedding")


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """A directory for each kind of model, with nothing but configuration files."""
    folder = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        unet = build_image_unet(TINY) if kind == "image" else build_video_unet(TINY, kind)
        unet.save_config(folder / kind / "unet")
        (folder / kind / CARD).write_text(json.dumps({"kind": kind}))
    return folder


@pytest.mark.parametrize("stage", GROWN_FROM)
def test_an_adapter_on_a_start_that_the_stage_would_grow_is_refused_with_what_to_do(configured, stage):
    settings = stage_settings(stage, {"lora": {"rank": 2}})
    with pytest.raises(ConfigError, match=rf"train_{stage}.lora: .*{GROWN_FROM[stage]} is of kind") as why:
        check_start(stage, configured / GROWN_FROM[stage], settings)
    assert f"without lora first, and start the adapter from the model that it leaves (kind {MODEL_KIND[stage]})" in str(
        why.value
    )
    with pytest.raises(ConfigError, match=rf"train_{stage}.lora: .*could never act"):
        forecast(stage, "local", [f"train_{stage}.lora.rank=2"], configured / GROWN_FROM[stage], 0.4, 989)
    check_start(stage, configured / MODEL_KIND[stage], settings)
    check_start(stage, configured / GROWN_FROM[stage], stage_settings(stage, {}))


@torch.no_grad()
def test_what_a_grown_model_is_given_cannot_act_through_an_adapter_alone(base):
    """Why it is refused: whatever the adapter becomes, the picture given changes nothing."""
    unet = to_image_to_video(copy.deepcopy(base))
    inject_lora(unet, LORA)
    for name, parameter in unet.named_parameters():
        if ".lora_" in name:
            parameter.normal_(0, 0.2)
    vector, context = torch.tensor([[6.0, 127.0, 0.02]]), torch.zeros(1, 1, 32)
    one, other = (
        unet_model_fn(unet.eval(), context, vector, given)(X, torch.tensor([0.7])) for given in (X, X.flip(-1))
    )
    assert torch.equal(one, other)


def test_the_kind_in_a_configuration_is_the_one_of_the_network(configured):
    for kind in KINDS:
        assert kind_in(json.loads((configured / kind / "unet" / "config.json").read_text())) == kind
    with pytest.raises(BadInputError, match="7 input channels and 2 scalars is of no known kind"):
        kind_in(json.loads((configured / "text_to_video" / "unet" / "config.json").read_text()) | {"in_channels": 7})
    with pytest.raises(BadInputError, match="tells no widths"):
        kind_in({"num_frames": 14})


@pytest.mark.parametrize(("pipeline", "stage"), [("svd", "multi_view"), ("training", "image_to_video")])
def test_a_chain_whose_stages_grow_one_another_takes_no_adapter(pipeline, stage):
    require_chain(pipeline, resolve_settings("local", {}))
    asked = resolve_settings("local", {f"train_{stage}.lora": {"rank": 2}})
    with pytest.raises(ConfigError, match=rf"train_{stage}.lora: in the pipeline {pipeline} .*svdflow train"):
        require_chain(pipeline, asked)
    require_chain("interpolation", asked)


def test_the_dry_run_counts_what_an_adapter_learns():
    net = build_unet("video", UNetSettings(**UNET), video(lora={"rank": 2}))
    plain = build_unet("video", UNetSettings(**UNET), video())
    expected = sum(2 * (layer.in_features + layer.out_features) for name, layer in plain.named_modules()
                   if name in adapted_layers(plain, LORA))  # fmt: skip
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == expected > 0
