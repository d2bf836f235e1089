"""DeepSpeed around a U-Net: start, one optimiser step, the running average, the state by parameter name.

Everything that DeepSpeed splits over processes is given out whole and taken in whole here, so that a checkpoint fits
any ZeRO stage and any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .checkpoint import Checkpoint
from .settings import StageSettings

MOMENTS = ("exp_avg", "exp_avg_sq")


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
            parameter.requires_grad_(settings.trainable == "all" or name.startswith(("time_embedding.", "time_proj.")))
        if resume:
            unet.load_state_dict(resume.tensors("model") or {})
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()  # type: ignore[operator]
        trained = [p for p in unet.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
        self.deepspeed, *_ = deepspeed.initialize(
            model=unet, optimizer=optimizer, config=self._config(), dist_init_required=False
        )
        self._base = getattr(self.deepspeed.optimizer, "optimizer", None) or self.deepspeed.optimizer
        self.device = self.deepspeed.device
        self._average: dict[str, torch.Tensor] = {}
        if settings.ema:
            self._average = {name: self._held(p).detach().float().clone() for name, p in self._parameters()}
        if resume:
            self._restore(resume)

    def _config(self) -> dict[str, Any]:
        s = self.settings
        return {
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

    @property
    def net(self) -> Callable[..., Any]:
        """The model to call, in training and without gradients alike."""
        return self.deepspeed

    def train_step(self, losses: Sequence[Callable[[], torch.Tensor]]) -> float:
        """One optimiser step over the micro-batches' losses. Returns their mean on this process."""
        warm = min(1.0, (self.step + 1) / self.settings.warmup) if self.settings.warmup else 1.0
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = self.settings.lr * warm
        total = 0.0
        for loss_of in losses:
            loss = loss_of()
            self.deepspeed.backward(loss)
            self.deepspeed.step()
            total += float(loss.detach()) / len(losses)
        self.step += 1
        if self.settings.ema:
            # The average forgets faster at first (ours, and common): at 0.9999 a short run would otherwise hand on its
            # start.
            keep = min(self.settings.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for name, p in self._parameters():
                    self._average[name].lerp_(self._held(p).detach().float(), 1 - keep)
        return total

    # whole state, by parameter name; every process must call these together

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Weights, moments and running average in fp32, whole, on the CPU."""
        from deepspeed.utils import safe_get_full_optimizer_state

        parts: dict[str, dict[str, torch.Tensor]] = {"model": self._weights(), **{key: {} for key in MOMENTS}}
        for name, p in self._parameters():
            if not p.requires_grad:
                continue
            for key in MOMENTS:
                moment = (
                    self._base.state[p][key] if self.settings.zero_stage == 0 else safe_get_full_optimizer_state(p, key)
                )
                parts[key][name] = moment.detach().float().cpu().clone().reshape(_shape(p))
        if self._average:
            parts["ema"] = {
                name: self._whole(value, p)
                for (name, p), value in zip(self._parameters(), self._average.values(), strict=True)
            }
        return parts

    def final_weights(self) -> dict[str, torch.Tensor]:
        """What the stage hands on: the running average where one is kept, else the weights."""
        if not self._average:
            return self._weights()
        return {
            name: self._whole(value, p)
            for (name, p), value in zip(self._parameters(), self._average.values(), strict=True)
        }

    def use_average(self) -> None:
        """Put the running average in the model's place, for the held-out loss. Training cannot go on after that."""
        with torch.no_grad():
            for name, p in self._parameters():
                if name in self._average:
                    self._held(p).copy_(self._average[name])

    def _weights(self) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        split = self.settings.zero_stage == 3 or (self.settings.precision == "bf16" and self.settings.zero_stage > 0)
        whole = {}
        for name, p in self._parameters():
            value = safe_get_full_fp32_param(p) if split and p.requires_grad else None
            if value is None:
                value = self._whole(self._held(p).detach(), p)
            whole[name] = value.detach().float().cpu().clone().reshape(_shape(p))
        return whole

    def _restore(self, resume: Checkpoint) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        # AdamW makes its state at the first step; here it comes from the checkpoint before that.
        if self.settings.zero_stage == 3:  # whose parameter groups are filled for the length of a step only
            held = self.deepspeed.optimizer.fp32_partitioned_groups_flat
        else:
            held = [p for group in self._base.param_groups for p in group["params"]]
        for p in held:
            self._base.state[p] = {
                "step": torch.tensor(float(resume.step)),
                **{key: torch.zeros_like(p) for key in MOMENTS},
            }
        if hasattr(self.deepspeed.optimizer, "_lazy_init_hp_params_optimizer_state"):
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()
        weights, average = resume.tensors("model") or {}, resume.tensors("ema") or {}
        moments = {key: resume.tensors(key) or {} for key in MOMENTS}
        with torch.no_grad():
            for name, p in self._parameters():
                if not p.requires_grad:
                    continue
                for key in MOMENTS:
                    value = moments[key][name].to(self.device)
                    if self.settings.zero_stage == 0:
                        self._base.state[p][key].copy_(value)
                    else:
                        safe_set_full_optimizer_state(p, value, key)
                if self.settings.zero_stage:
                    safe_set_full_fp32_param(p, weights[name].to(self.device))
            for name, p in self._parameters():
                if name in average and name in self._average:
                    self._average[name].copy_(self._part(average[name].to(self.device), p))

    # a parameter as this process holds it: whole, or its share at ZeRO 3

    def _parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.deepspeed.module.named_parameters())

    def _held(self, p: Any) -> torch.Tensor:
        return p.ds_tensor if hasattr(p, "ds_tensor") else p.data

    def _whole(self, held: torch.Tensor, p: Any) -> torch.Tensor:
        if not hasattr(p, "ds_tensor"):
            return held.float().cpu().clone()
        shares = [torch.empty_like(held) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(shares, held.contiguous())
        return torch.cat(shares).narrow(0, 0, p.ds_numel).reshape(p.ds_shape).float().cpu()

    def _part(self, whole: torch.Tensor, p: Any) -> torch.Tensor:
        if not hasattr(p, "ds_tensor"):
            return whole
        size = p.ds_tensor.numel()
        padded = torch.zeros(size * torch.distributed.get_world_size(), dtype=whole.dtype, device=whole.device)
        padded[: whole.numel()] = whole.flatten()
        return padded.narrow(0, size * torch.distributed.get_rank(), size)


def _shape(p: Any) -> torch.Size:
    return p.ds_shape if hasattr(p, "ds_shape") else p.shape
