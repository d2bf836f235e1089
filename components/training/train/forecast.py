"""What a stage would take, from shapes alone: memory per GPU, FLOPs, GPU-hours. No weights, no data, no GPU.

The U-Net is built on torch's meta device, where tensors have shapes and no bytes, and run forward and backward once.
Every tensor that autograd keeps for the backward pass is counted through saved-tensor hooks, every operation by torch's
FLOP counter. Attention is taken to run as flash attention, which keeps queries, keys, values and its output.

Counted: parameters, gradients, optimiser states, running average, what is kept for the backward pass, DeepSpeed's
communication buffers. Not counted: the frozen encoders, gradients of activations in flight, workspaces of kernels, the
CUDA context and fragmentation; for these a share of the card is left free (``HEADROOM``, ours).

Legend: B batch, F frames, N tokens, D context width, K scalars, C channels, h w latent sides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import BadInputError, ConfigError
from ...diffusion.json_files import read_json
from ...diffusion.settings import VECTOR_CONDITIONS, UNetSettings, input_channels, sizes_in
from .presets import MODEL_KIND
from .settings import StageSettings

if TYPE_CHECKING:
    import torch

CARDS_GB = (40, 80)  # of an A100, in 2^30 bytes
HEADROOM = 0.1  # ours: of a card, for all that is not counted
LATENT_FACTOR = 8  # pixels to a latent, of every autoencoder of this family
TEXT_TOKENS = 77  # of Stable Diffusion 2.1's text encoder
_BUCKET = 500_000_000  # elements: DeepSpeed's default reduce_bucket_size
_LIVE = 1_000_000_000  # elements: DeepSpeed's default stage3_max_live_parameters


@dataclass(frozen=True)
class StateBytes:
    """Bytes in one process that do not depend on the batch."""

    parameters: int
    gradients: int
    optimizer: int
    average: int
    buffers: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.parameters + self.gradients + self.optimizer + self.average + self.buffers


@dataclass(frozen=True)
class Trace:
    """One forward and backward pass over a micro-batch.

    Attributes:
        kept: bytes kept for the backward pass.
        kept_checkpointed: the same with activation checkpointing: what stays from the forward pass, the inputs of the
            checkpointed blocks among it, and ``recomputed``.
        recomputed: bytes of the largest block that is recomputed at a time; part of ``kept_checkpointed``.
        forward_flops, backward_flops: floating-point operations, a multiply-add counted as two.
    """

    kept: int
    kept_checkpointed: int
    recomputed: int
    forward_flops: int
    backward_flops: int


@dataclass(frozen=True)
class Forecast:
    """What a stage would take; see ``forecast_stage``."""

    kind: str
    frames: int
    height: int
    width: int
    parameters: dict[str, int]
    trainable: int
    precision: str
    processes: int
    accumulation: int
    micro_batch: int
    zero_stage: int
    gradient_checkpointing: bool
    steps: int
    samples: int
    states: dict[int, StateBytes]
    trace: Trace
    flops_per_step: int
    mfu: float
    peak_tflops: float
    gpu_hours: float
    hours: float
    gpu_bytes: int
    fits: dict[int, bool]
    largest_micro_batch: dict[int, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1)


def forecast_stage(
    kind: str, settings: StageSettings, unet: UNetSettings, size: tuple[int, int, int], tokens: int, mfu: float,
    peak_tflops: float,
) -> Forecast:  # fmt: skip
    """Predict what a stage takes.

    Args:
        kind: of the stage.
        settings: of the stage.
        unet: sizes of its U-Net.
        size: frames, height and width of a sample, pixels.
        tokens: of the text context; an image condition is one token, two in interpolation.
        mfu: share of the peak that the model's own FLOPs reach, recomputation left out.
        peak_tflops: of the GPU, in 10^12 a second.

    Raises:
        ConfigError: sides that the autoencoder cannot take.
    """
    frames, height, width = size
    for name, side in (("height", height), ("width", width)):
        if side % LATENT_FACTOR:
            raise ConfigError(f"train_{kind}.{name}: {side} px is no multiple of {LATENT_FACTOR}, the autoencoder's")
    if kind == "interpolation" and isinstance(unet.sample_size, int):  # not grown yet: then by the samples' size
        unet = unet.model_copy(update={"sample_size": (height // LATENT_FACTOR, width // LATENT_FACTOR)})
    net = build_unet(kind, unet, settings)
    counts = _counts(net)
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    trace = trace_step(net, kind, unet, settings.micro_batch, size, tokens)
    states = {
        stage: state_bytes(
            counts["total"],
            trainable,
            stage,
            settings.processes,
            settings.precision,
            settings.accumulation,
            settings.ema is not None,
            bool(stage) and getattr(settings, "offload_optimizer", False),
        )
        for stage in range(4)
    }
    state, kept = states[settings.zero_stage], _kept(trace, settings)
    per_sample = kept / settings.micro_batch
    room = {card: int(card * 2**30 * (1 - HEADROOM)) for card in CARDS_GB}
    flops = (trace.forward_flops + trace.backward_flops) * settings.batch // settings.micro_batch
    gpu_hours = settings.steps * flops / (mfu * peak_tflops * 1e12) / 3600
    return Forecast(
        kind=kind, frames=frames, height=height, width=width, parameters=counts, trainable=trainable,
        precision=settings.precision, processes=settings.processes, accumulation=settings.accumulation,
        micro_batch=settings.micro_batch, zero_stage=settings.zero_stage,
        gradient_checkpointing=settings.gradient_checkpointing, steps=settings.steps,
        samples=settings.steps * settings.batch, states=states, trace=trace, flops_per_step=flops, mfu=mfu,
        peak_tflops=peak_tflops, gpu_hours=gpu_hours, hours=gpu_hours / settings.processes,
        gpu_bytes=state.total + kept, fits={card: state.total + kept <= free for card, free in room.items()},
        largest_micro_batch={card: max(0, int((free - state.total) // per_sample)) for card, free in room.items()},
    )  # fmt: skip


def state_bytes(
    parameters: int,
    trainable: int,
    zero_stage: int,
    processes: int,
    precision: str,
    accumulation: int = 1,
    ema: bool = False,
    offload: bool = False,
) -> StateBytes:
    """Bytes in each process, as the engine and DeepSpeed hold them.

    Weights and gradients have the precision computed in; gradients that are accumulated in bf16 are summed in fp32.
    The optimiser holds AdamW's two moments and, where DeepSpeed keeps one, an fp32 copy of the weights: in bf16, and at
    ZeRO 1 to 3 in fp32 too. The running average is fp32 and lies beside the moments. ZeRO 1 splits the optimiser over
    the processes, 2 the gradients too, 3 the weights too.

    Args:
        parameters: of the U-Net.
        trainable: those of them that learn.
        zero_stage: 0 to 3.
        processes: that share the work.
        precision: fp32 or bf16.
        accumulation: micro-batches before a step.
        ema: whether a running average is kept.
        offload: whether optimiser and running average lie in main memory.
    """
    width = 2 if precision == "bf16" else 4
    summed_wide = width == 2 and accumulation > 1 and zero_stage > 0

    def share(elements: int, from_stage: int) -> int:
        return -(-elements // processes) if zero_stage >= from_stage else elements

    gradients = share(trainable, 2) * (4 if summed_wide else width)
    if summed_wide and zero_stage == 1:  # DeepSpeed takes another optimiser, with each micro-batch's beside the sum
        gradients += trainable * width
    held = share(trainable, 1)
    buffers = _BUCKET * width if zero_stage and processes > 1 else 0
    if zero_stage == 3:
        buffers += min(parameters, _LIVE) * width  # weights that are gathered at a time
    return StateBytes(
        parameters=share(parameters, 3) * width,
        gradients=gradients,
        optimizer=0 if offload else held * (12 if width == 2 or zero_stage else 8),
        average=held * 4 if ema and not offload else 0,
        buffers=buffers,
    )


def build_unet(kind: str, unet: UNetSettings, settings: StageSettings, device: str = "meta") -> Any:
    """The stage's U-Net with nothing but shapes, in the precision computed in; what does not learn is frozen.

    Raises:
        ConfigError: an adapter on a layer that there is not.
    """
    import torch

    from ...diffusion.lora import inject_lora
    from ...diffusion.unet import build_image_unet, build_video_unet

    with torch.device(device):
        net = build_image_unet(unet) if kind == "image" else build_video_unet(unet, MODEL_KIND[kind])  # type: ignore[arg-type]
        if settings.lora:
            inject_lora(net, settings.lora, f"train_{kind}.lora")
    # Also the mixing factors, which diffusers builds on the CPU whatever it is told. Its own ``to`` would warn.
    torch.nn.Module.to(net, device, torch.bfloat16 if settings.precision == "bf16" else torch.float32)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(settings.learns(name))
    return net.train()


def trace_step(net: Any, kind: str, unet: UNetSettings, batch: int, size: tuple[int, int, int], tokens: int) -> Trace:
    """Run a U-Net forward and backward once and count; on the meta device this costs time alone.

    Args:
        net: as ``build_unet`` makes it, on any device.
        kind: of the stage.
        unet: its sizes.
        batch: samples of a micro-batch.
        size: frames, height and width of a sample, pixels.
        tokens: of the text context.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ...diffusion.checkpointing import checkpoint_activations

    parameter = next(net.parameters())
    inputs = _inputs(kind, unet, batch, size, tokens, parameter.dtype, parameter.device)
    saved = _Saved(net)
    checkpoint_activations(net, saved.block)
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with _flash_attention(parameter.device.type == "meta"):
        with forward, torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor):
            out = net(**inputs, return_dict=False)[0]
        with backward:
            out.backward(torch.ones_like(out))
    net.disable_gradient_checkpointing()
    net.zero_grad(set_to_none=True)
    return Trace(*saved.totals(), forward.get_total_flops(), backward.get_total_flops())


def unet_settings_of(init: Path | None, sections: Mapping[str, Mapping[str, Any]], kind: str) -> UNetSettings:
    """Sizes of a stage's U-Net: of the model it starts from, else of the chain that the settings describe.

    Args:
        init: a model directory, or None.
        sections: of a profile.
        kind: of the stage.

    Raises:
        BadInputError: the directory has no readable U-Net configuration.
    """
    if init is None:
        own = [sections.get(f"train_{name}") or {} for name in (kind, "video", "image")]
        return UNetSettings(**next((section["unet"] for section in own if section.get("unet")), {}))
    path = init / "unet" / "config.json"
    try:
        return sizes_in(read_json(path))
    except BadInputError as error:
        raise error if str(error).startswith(str(path)) else BadInputError(f"{path}: {error}") from None


def _kept(trace: Trace, settings: StageSettings) -> int:
    return trace.kept_checkpointed if settings.gradient_checkpointing else trace.kept


def _counts(net: Any) -> dict[str, int]:
    from ...diffusion.unet import parameter_counts

    return parameter_counts(net)


def _inputs(
    kind: str, unet: UNetSettings, batch: int, size: tuple[int, int, int], tokens: int, dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    import torch

    frames, height, width = size
    h, w = height // LATENT_FACTOR, width // LATENT_FACTOR
    own = {"image_to_video": 1, "multi_view": 1, "interpolation": 2}.get(kind, tokens)
    context_BND = torch.zeros(batch, own, unet.cross_attention_dim, dtype=dtype, device=device)
    inputs = {"timestep": torch.zeros(batch, device=device), "encoder_hidden_states": context_BND}
    if kind == "image":  # one frame of each sample
        return {"sample": torch.zeros(batch, unet.latent_channels, h, w, dtype=dtype, device=device), **inputs}
    channels = input_channels(MODEL_KIND[kind], unet.latent_channels)  # type: ignore[arg-type]
    x_BFChw = torch.zeros(batch, frames, channels, h, w, dtype=dtype, device=device)
    scalars_BK = torch.zeros(batch, len(VECTOR_CONDITIONS[MODEL_KIND[kind]]), device=device)
    return {"sample": x_BFChw, **inputs, "added_time_ids": scalars_BK}


class _Saved:
    """What autograd keeps, by storage: everything, and apart from it the inside of each block that is checkpointed."""

    def __init__(self, net: Any) -> None:
        self._weights = {_storage(tensor) for tensor in (*net.parameters(), *net.buffers())}
        self._stays: dict[int, Any] = {}  # storage to a tensor that holds it, so that no other takes its place
        self._blocks: list[dict[int, Any]] = []
        self._inside = False

    def keep(self, tensor: Any) -> Any:
        """The hook: note a tensor that is kept."""
        if (key := _storage(tensor)) not in self._weights:
            (self._blocks[-1] if self._inside else self._stays)[key] = tensor
        return tensor

    def block(self, module: Any, *arguments: Any) -> Any:
        """Run a block that activation checkpointing would run again in the backward pass."""
        if self._inside:
            return module(*arguments)
        for argument in arguments:
            if hasattr(argument, "untyped_storage"):
                self._stays[_storage(argument)] = argument
        self._blocks.append({})
        self._inside = True
        try:
            return module(*arguments)
        finally:
            self._inside = False

    def totals(self) -> tuple[int, int, int]:
        """Bytes kept, kept with checkpointing, and of the latter what is recomputed at a time."""
        everything = dict(self._stays)
        for block in self._blocks:
            everything |= block
        inside = (_bytes({key: t for key, t in block.items() if key not in self._stays}) for block in self._blocks)
        largest = max(inside, default=0)
        return _bytes(everything), _bytes(self._stays) + largest, largest


def _storage(tensor: Any) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensors: Mapping[int, Any]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


@contextmanager
def _flash_attention(wanted: bool) -> Iterator[None]:
    """Have attention on the meta device taken for what GPUs run; left alone it is taken for plain products."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Flash(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.nn.functional.scaled_dot_product_attention:
                scale = (kwargs or {}).get("scale")
                return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3], scale=scale)[0]
            return func(*args, **(kwargs or {}))

    if wanted:
        with Flash():
            yield
    else:
        yield
