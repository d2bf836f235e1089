"""DeepSpeed around a U-Net: start, one optimiser step, the running average, the state by parameter name.

Everything that DeepSpeed splits over processes is given out whole and taken in whole, one parameter at a time: so a
checkpoint fits any ZeRO stage and any number of processes, and no process gathers more than one parameter for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ...diffusion.checkpointing import checkpoint_activations
from ...diffusion.compiled_blocks import compile_blocks
from .checkpoint import Checkpoint
from .masters import AVERAGE, Masters
from .settings import StageSettings
from .signals import Interrupted

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ()}
WEIGHTS = "model"


@dataclass(frozen=True)
class StepFigures:
    """What one optimiser step tells of itself."""

    loss: float  # mean over this process's samples
    gradient_norm: float  # of the whole batch, before clipping
    square_sum: float  # of the fp32 weights; the sum over processes is the squared norm


def start_processes() -> tuple[int, int, torch.device]:
    """Join torchrun's process group: NCCL with GPUs, gloo without. Returns rank, world size and device."""
    import deepspeed

    local = int(os.environ["LOCAL_RANK"])
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(local)
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        torch.set_flush_denormal(True)
    deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo", verbose=False)
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    return torch.distributed.get_rank(), torch.distributed.get_world_size(), device


class Engine:
    """A U-Net under training."""

    def __init__(self, unet: torch.nn.Module, settings: StageSettings, resume: Checkpoint | None = None) -> None:
        import deepspeed

        self.settings, self.step = settings, resume.step if resume else 0
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(settings.learns(name))
        if resume:
            with resume.reading(WEIGHTS) as read, torch.no_grad():
                for name, parameter in unet.named_parameters():
                    if parameter.requires_grad or not settings.lora:
                        parameter.copy_(read(name))
        if settings.gradient_checkpointing:
            checkpoint_activations(unet)
        self.deepspeed, *_ = deepspeed.initialize(
            model=unet, optimizer=self._optimizer(unet), config=self._config(), dist_init_required=False
        )
        self.device = torch.device(self.deepspeed.device)
        self._state = (*MOMENTS[settings.optimizer], *((AVERAGE,) if settings.ema else ()))
        self.masters = Masters(self.deepspeed, self._state, self.step)
        if resume:
            self._restore(resume)
        if settings.compile:
            compile_blocks(unet)

    def _optimizer(self, unet: torch.nn.Module) -> torch.optim.Optimizer:
        s, trained = self.settings, [p for p in unet.parameters() if p.requires_grad]
        if s.optimizer == "sgd":
            return torch.optim.SGD(trained, lr=s.lr, weight_decay=s.weight_decay)
        return torch.optim.AdamW(trained, lr=s.lr, betas=s.betas, weight_decay=s.weight_decay)

    def _config(self) -> dict[str, Any]:
        s = self.settings
        config: dict[str, Any] = {
            "train_batch_size": s.batch,
            "train_micro_batch_size_per_gpu": s.micro_batch,
            "gradient_accumulation_steps": s.accumulation,
            "gradient_clipping": s.clip,
            "bf16": {"enabled": s.precision == "bf16"},
            "zero_optimization": {"stage": s.zero_stage},
            "zero_force_ds_cpu_optimizer": False,  # its own CPU Adam would be compiled on first use, for minutes
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1 << 30,
        }
        if s.offload_optimizer:
            config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        if s.precision == "bf16" and s.accumulation > 1 and s.zero_stage:
            config["data_types"] = {"grad_accum_dtype": "fp32"}  # many small gradients vanish in a bf16 sum
        return config

    def net(self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, **others: Any) -> Any:
        """The model, in training and without gradients alike. Times and scalars keep their digits in bf16 too."""
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        # Only steps are compiled: held-out losses and samples have sizes of their own, and for each of them every block
        # would be compiled once more.
        eager = self.settings.compile and not torch.is_grad_enabled()
        with torch.compiler.set_stance("force_eager") if eager else nullcontext():
            return self.deepspeed(
                sample.to(dtype), timestep, encoder_hidden_states=encoder_hidden_states.to(dtype), **others
            )

    def train_step(self, losses: Sequence[Callable[[], torch.Tensor]]) -> StepFigures:
        """One optimiser step over the micro-batches' losses."""
        s = self.settings
        warm = min(1.0, (self.step + 1) / s.warmup) if s.warmup else 1.0
        for group in self.masters.optimizer.param_groups:
            group["lr"] = s.lr * warm
        total = torch.zeros((), device=self.device)
        norm = None
        with self._kernels():
            for index, loss_of in enumerate(losses):
                loss = loss_of()
                self.deepspeed.backward(loss)
                if s.zero_stage == 0 and index == len(losses) - 1:  # elsewhere DeepSpeed tells it
                    gradients = [p.grad for p in self.masters.parameters.values() if p.grad is not None]
                    norm = torch.nn.utils.get_total_norm(gradients)
                self.deepspeed.step()
                total += loss.detach().float() / len(losses)
        self.step += 1
        if s.ema:
            # The average forgets faster at first (ours, and common): at 0.9999 a short run would otherwise hand on its
            # start.
            keep = min(s.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.masters.state(AVERAGE), [t.detach() for t in self.masters.tensors], 1 - keep)
        norm = self.deepspeed.get_global_grad_norm() if norm is None else norm
        return StepFigures(float(total), float(norm), self.masters.square_sum())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Meanwhile the model computes with the running average, where one is kept. All processes call it together."""
        if not self.settings.ema:
            yield
            return
        self.masters.swap_with_average()
        try:
            yield
        except Interrupted:  # after another failure the other processes would not come along
            self.masters.swap_with_average()
            raise
        self.masters.swap_with_average()

    # whole state, by parameter name; every process must go through these together

    def layout(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """What ``tensors`` gives: part to parameter name to shape, in its order."""
        masters = self.masters
        trained = [name for name, p in masters.parameters.items() if p.requires_grad]
        kept = (
            trained if self.settings.lora else list(masters.parameters)
        )  # of an adapter's model the rest is the start's
        names = {WEIGHTS: kept} | {part: trained for part in self._state}
        return {part: {name: tuple(masters.shape(name)) for name in names[part]} for part in names}

    def tensors(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Part, parameter name and whole fp32 tensor in main memory, one at a time."""
        for part, shapes in self.layout().items():
            for name in shapes:
                yield part, name, self.masters.whole(name, None if part == WEIGHTS else part)

    def final_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What the stage hands on, one tensor at a time: the running average where one is kept, else the weights."""
        average = AVERAGE if self.settings.ema else None
        for name in self.masters.parameters:
            yield name, self.masters.whole(name, average)

    def _restore(self, resume: Checkpoint) -> None:
        trained = [name for name, p in self.masters.parameters.items() if p.requires_grad]
        for part in (WEIGHTS, *(part for part in self._state if part in resume.parts)):
            with resume.reading(part) as read:
                for name in trained:
                    self.masters.put(name, read(name), None if part == WEIGHTS else part)
        self.masters.publish()

    def _kernels(self) -> ExitStack:
        stack = ExitStack()
        if self.settings.precision == "bf16" and self.device.type == "cpu":
            # oneDNN's Conv3d gives NaN for some bf16 weight gradients (seen in torch 2.13)
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        if self.settings.attention == "memory_efficient":
            from torch.nn.attention import SDPBackend, sdpa_kernel

            frugal = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
            stack.enter_context(sdpa_kernel(frugal))
        return stack


def weights_of(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint would hand on, as ``Engine.final_weights``: the running average where it holds one."""
    from safetensors import safe_open

    averaged: set[str] = set()
    for part in (AVERAGE, WEIGHTS):
        if part in checkpoint.parts:
            with safe_open(checkpoint.directory / f"{part}.safetensors", framework="pt") as opened:
                names = set(opened.keys()) - averaged  # frozen layers have no average
                yield from ((name, opened.get_tensor(name)) for name in sorted(names))
                averaged |= names
