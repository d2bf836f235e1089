"""Activation checkpointing: the same gradients, less in memory, nothing of it in what is saved."""

import copy

import pytest
import torch
from diffusers.models.attention import TemporalBasicTransformerBlock

from svdflow.diffusion.checkpointing import checkpoint_activations
from svdflow.diffusion.network import unet_model_fn
from svdflow.diffusion.settings import TINY_UNET
from svdflow.diffusion.unet import build_image_unet, build_video_unet

TINY = TINY_UNET.model_copy(update={"cross_attention_dim": 32, "latent_channels": 4})
X = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
CONTEXT = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
VECTOR = torch.tensor([[6.0, 127.0], [24.0, 3.0]])


@pytest.fixture(scope="module", params=["image", "text_to_video"])
def unet(request):
    torch.manual_seed(0)
    net = build_image_unet(TINY) if request.param == "image" else build_video_unet(TINY, request.param)
    return net.train()


def backward(net, image_only=None) -> torch.Tensor:
    vector = None if type(net).__name__ == "UNet2DConditionModel" else VECTOR
    image_only = None if vector is None else image_only
    model_fn = unet_model_fn(net, CONTEXT, vector, image_only_B=image_only)
    out = model_fn(X, torch.tensor([0.7, -0.4]))
    out.square().mean().backward()
    return out.detach()


def bytes_kept(net) -> int:
    """What autograd holds on to after a forward pass, weights left out."""
    weights = {p.data_ptr() for p in (*net.parameters(), *net.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        vector = None if type(net).__name__ == "UNet2DConditionModel" else VECTOR
        unet_model_fn(net, CONTEXT, vector)(X, torch.tensor([0.7, -0.4]))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("image_only", [None, torch.tensor([1, 0])], ids=["videos", "an image and a video"])
def test_results_and_gradients_are_those_without(unet, image_only):
    plain, frugal = copy.deepcopy(unet), copy.deepcopy(unet)
    checkpoint_activations(frugal)
    assert torch.equal(backward(plain, image_only), backward(frugal, image_only))
    for (name, ours), theirs in zip(frugal.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name


def test_temporal_layers_run_again_once_and_keep_nothing_meanwhile():
    torch.manual_seed(0)
    unet = build_video_unet(TINY, "text_to_video").train()
    frugal, theirs, calls = copy.deepcopy(unet), copy.deepcopy(unet), []
    checkpoint_activations(frugal)
    theirs.enable_gradient_checkpointing()
    blocks = [module for module in frugal.modules() if isinstance(module, TemporalBasicTransformerBlock)]
    for block in blocks:
        block.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    backward(frugal)
    assert len(calls) == 2 * len(blocks) > 0
    assert bytes_kept(frugal) < 0.6 * bytes_kept(theirs) < 0.6 * bytes_kept(unet)


def test_a_frugal_model_is_saved_as_any_other_and_can_be_switched_back(unet, tmp_path):
    frugal = copy.deepcopy(unet)
    checkpoint_activations(frugal)
    checkpoint_activations(frugal)
    assert list(frugal.state_dict()) == list(unet.state_dict())
    for name, net in (("plain", unet), ("frugal", frugal)):
        net.save_pretrained(tmp_path / name)
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "frugal" / path.name).read_bytes()
    frugal.disable_gradient_checkpointing()
    assert bytes_kept(frugal) == bytes_kept(unet)
