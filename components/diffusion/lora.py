"""Low-rank adapters (LoRA) of a UNet's attention: injected to be trained, kept as one file, merged to be used.

peft holds the layers while they are trained. An adapter's file has the matrices A [r, in] and B [out, r] of each layer,
``unet.<layer>.lora_A.weight`` and ``unet.<layer>.lora_B.weight``; merged, a weight is W + scale · alpha / r · B A.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..common.errors import BadInputError, ConfigError
from .settings import LoraSettings
from .weights_files import TensorFiles, TensorToWrite, write_safetensors

ADAPTER = "lora.safetensors"  # in a model directory whose weights it is merged into
_WITHIN = {"temporal": ".temporal_transformer_blocks.", "spatial": ".transformer_blocks."}
_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


def adapted_layers(unet: torch.nn.Module, lora: LoraSettings, field: str = "lora") -> list[str]:
    """Names of the linear layers that an adapter would sit on.

    Raises:
        ConfigError: the UNet has no such layer; ``field`` names the settings.
    """
    within = _WITHIN[lora.layers]
    linear = [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear) and within in name]
    if not linear:
        raise ConfigError(
            f"{field}.layers: {type(unet).__name__} has no {lora.layers} attention; a video model has both"
        )
    for module in lora.modules:
        if not any(name.endswith(f".{module}") for name in linear):
            raise ConfigError(
                f"{field}.modules: the {lora.layers} attention of {type(unet).__name__} has no layer {module}; it has "
                f"{', '.join(sorted({name.split('.attn1.')[1] for name in linear if '.attn1.' in name}))}"
            )
    return [name for name in linear if name.endswith(tuple(f".{module}" for module in lora.modules))]


def inject_lora(unet: torch.nn.Module, lora: LoraSettings, field: str = "lora") -> None:
    """Put an untrained adapter on a UNet, in place: it computes what it did, and the adapter alone learns.

    Raises:
        ConfigError: as ``adapted_layers``.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = adapted_layers(unet, lora, field)
    alpha: Any = lora.scale * lora.rank  # peft takes any number, whatever its annotation says
    inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=names), unet)


def merge_lora(weights: Mapping[str, torch.Tensor], lora: LoraSettings) -> dict[str, torch.Tensor]:
    """The weights of a UNet under its own names, out of those of one with a trained adapter: merged."""
    found = {}
    for name, tensor in weights.items():
        if name.endswith((_A, _B)):
            continue
        layer, inside, leaf = name.partition(_BASE)
        if inside and leaf == "weight":
            tensor = tensor + lora.scale * (weights[layer + _B] @ weights[layer + _A]).to(tensor)
        found[f"{layer}.{leaf}" if inside else name] = tensor
    return found


def save_lora(weights: Mapping[str, torch.Tensor], lora: LoraSettings, path: Path) -> None:
    """Write the adapter among a UNet's weights to a file."""
    tensors = [
        TensorToWrite(f"unet.{name.replace('.default', '')}", tuple(tensor.shape), torch.float32, partial(tensor.float))
        for name, tensor in weights.items()
        if name.endswith((_A, _B))
    ]
    write_safetensors(path, tensors, {"rank": str(lora.rank), "alpha": str(lora.scale * lora.rank)})


def apply_lora(unet: Any, path: Path, scale: float = 1.0) -> None:
    """Merge an adapter's file into a UNet, in place.

    Args:
        unet: of the architecture that the adapter was trained on.
        path: of the file.
        scale: how much of it; a negative one takes it out again.

    Raises:
        BadInputError: the file is damaged, tells no rank, or the UNet lacks a layer or has another width there.
    """
    layers = dict(unet.named_modules())
    with TensorFiles([path]) as file, torch.no_grad():
        try:
            factor = scale * float(file.metadata["alpha"]) / int(file.metadata["rank"])
        except (KeyError, ValueError, ZeroDivisionError):
            raise BadInputError(f"{path}: is no adapter of svdflow's; its metadata tell no rank and alpha") from None
        changes = {}
        for name in file.names():
            key, is_a, _ = name.removeprefix("unet.").partition(".lora_A.weight")
            if not is_a:
                continue
            weight = getattr(layers.get(key), "weight", None)
            change = file.read(f"unet.{key}.lora_B.weight") @ file.read(name)
            if weight is None or weight.shape != change.shape:
                there = "no such layer" if weight is None else f"one of {tuple(weight.shape)}"
                raise BadInputError(f"{path}: adapts {key} of {tuple(change.shape)}, and the model has {there}")
            changes[key] = factor * change
        for key, change in changes.items():  # not before all are known to fit
            layers[key].weight += change.to(layers[key].weight)
