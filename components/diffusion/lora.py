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
_SHOWN = 3  # layers that a refusal names
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
        BadInputError: the file is damaged, tells no rank, or the UNet lacks layers or has another width there: the
            message names them. The UNet is then as it was.
    """
    layers = dict(unet.named_modules())
    with TensorFiles([path]) as file, torch.no_grad():
        try:
            factor = scale * float(file.metadata["alpha"]) / int(file.metadata["rank"])
        except (KeyError, ValueError, ZeroDivisionError):
            raise BadInputError(f"{path}: is no adapter of svdflow's; its metadata tell no rank and alpha") from None
        adapted = _adapted_shapes(file, path)
        wrong = {}
        for key, shape in adapted.items():
            weight = getattr(layers.get(key), "weight", None)
            if weight is None or tuple(weight.shape) != shape:
                there = "no such layer" if weight is None else f"one of {tuple(weight.shape)}"
                wrong[key] = f"{key} of {shape}, and the model has {there}"
        if wrong:
            shown = "; ".join(list(wrong.values())[:_SHOWN])
            more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise BadInputError(
                f"{path}: is of another model: {len(wrong)} of its {len(adapted)} layers do not fit. It adapts "
                f"{shown}{more}"
            )
        for key in adapted:  # not before all are known to fit
            change = file.read(f"unet.{key}.lora_B.weight") @ file.read(f"unet.{key}.lora_A.weight")
            layers[key].weight += (factor * change).to(layers[key].weight)


def _adapted_shapes(file: TensorFiles, path: Path) -> dict[str, tuple[int, ...]]:
    """Layer to the shape of the weight that an adapter's file changes.

    Raises:
        BadInputError: it changes none, or one of a layer's two matrices is missing or does not belong to the other.
    """
    names = set(file.names())
    adapted: dict[str, tuple[int, ...]] = {}
    for key in sorted({name.removeprefix("unet.").partition(".lora_")[0] for name in names if ".lora_" in name}):
        a, b = (f"unet.{key}.lora_{side}.weight" for side in "AB")
        if not {a, b} <= names:
            raise BadInputError(f"{path}: damaged; of {key} it lacks {a if a not in names else b}")
        of_a, of_b = file.shape(a), file.shape(b)
        if len(of_a) != 2 or len(of_b) != 2 or of_a[0] != of_b[1]:
            raise BadInputError(f"{path}: damaged; {key} has no two matrices of one rank, but {of_a} and {of_b}")
        adapted[key] = (of_b[0], of_a[1])
    if not adapted:
        raise BadInputError(f"{path}: adapts no layer (unet.<layer>.lora_A.weight); it is no adapter, or damaged")
    return adapted
