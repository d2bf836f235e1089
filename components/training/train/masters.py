"""The fp32 weights and the optimiser's state as DeepSpeed holds them at any ZeRO stage, and whole, by parameter.

    stage   the model's weights      fp32 weights, moments, running average
    0       whole                    whole; in bf16 beside the model's own weights
    1, 2    whole                    this process's share of one flat tensor
    3       a share of each tensor   a share of each tensor, flat

The running average lies in the optimiser's state beside the moments, so it is split, offloaded and gathered as they
are, and it averages the fp32 weights, whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

AVERAGE = "ema"
_FLAT = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")


class Masters:
    """What the optimiser updates in this process, and the parameters it belongs to.

    Args:
        engine: DeepSpeed's, with a torch optimiser inside.
        state: names of the state's tensors ("exp_avg", …); they start at zero, the average at the weights.
        step: optimiser steps done.
    """

    def __init__(self, engine: Any, state: Sequence[str], step: int) -> None:
        self.device = engine.device
        self.zero_stage = int(engine.zero_optimization_stage())
        self.parameters: dict[str, torch.nn.Parameter] = dict(engine.module.named_parameters())
        self._wrapper = engine.optimizer
        self.optimizer = getattr(self._wrapper, "optimizer", None) or self._wrapper
        trained = [p for p in self.parameters.values() if p.requires_grad]
        flat = next((name for name in _FLAT if hasattr(self._wrapper, name)), None)
        if flat:
            self.tensors: list[torch.Tensor] = list(getattr(self._wrapper, flat))
        elif hasattr(self._wrapper, "fp32_groups"):
            self.tensors = [p for group in self._wrapper.fp32_groups for p in group]
            for master, p in zip(self.tensors, trained, strict=True):
                master.data.copy_(p.data)  # DeepSpeed has made a step with them, weight decay included
        else:
            self.tensors = list(trained)
        self._master_of = {} if flat else dict(zip(trained, self.tensors, strict=True))
        if self.zero_stage == 3:
            self._clear_padding(trained)
        for master in self.tensors:
            # The optimiser makes its state at the first step; a checkpoint's has to lie there before.
            self.optimizer.state[master] = {"step": torch.tensor(float(step))} | {
                name: master.detach().clone() if name == AVERAGE else torch.zeros_like(master) for name in state
            }
        if hasattr(self._wrapper, "_lazy_init_hp_params_optimizer_state"):
            self._wrapper._lazy_init_hp_params_optimizer_state()

    def state(self, name: str) -> list[torch.Tensor]:
        """One part of the state, tensor by tensor as in ``tensors``."""
        return [self.optimizer.state[master][name] for master in self.tensors]

    def square_sum(self) -> float:
        """Sum of squares of the fp32 weights in trained layers; this process's part of it."""
        total = float(torch.stack(torch._foreach_norm([t.detach() for t in self.tensors])).double().square().sum())
        return total / (1 if self.zero_stage else torch.distributed.get_world_size())

    # whole tensors, by parameter; every process must call these together and in the same order

    def whole(self, name: str, part: str | None = None) -> torch.Tensor:
        """A parameter's fp32 weights, or a part of its state, as one tensor in main memory."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        p: Any = self.parameters[name]
        if not p.requires_grad:
            value = self._gathered(p)
        elif self._master_of:
            master = self._master_of[p]
            value = master if part is None else self.optimizer.state[master][part]
        else:
            value = safe_get_full_fp32_param(p) if part is None else safe_get_full_optimizer_state(p, part)
        return value.detach().to("cpu", torch.float32, copy=True).reshape(self.shape(name))

    def put(self, name: str, value: torch.Tensor, part: str | None = None) -> None:
        """Set what ``whole`` gives, for a trained parameter. The model sees new weights after ``publish``."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        p = self.parameters[name]
        with torch.no_grad():
            if self._master_of:
                master = self._master_of[p]
                (master if part is None else self.optimizer.state[master][part]).copy_(value)
            elif self.zero_stage == 3:
                self._put_share(p, value, part)
            elif part is None:
                safe_set_full_fp32_param(p, value.to(self.device))
            else:
                safe_set_full_optimizer_state(p, value.to(self.device), part)

    def shape(self, name: str) -> torch.Size:
        """The whole parameter's."""
        p: Any = self.parameters[name]
        return p.ds_shape if hasattr(p, "ds_shape") else p.shape

    def swap_with_average(self) -> None:
        """Exchange the fp32 weights and their running average, in this process's share, and show them to the model."""
        for master, average in zip(self.tensors, self.state(AVERAGE), strict=True):
            kept = average.clone()
            average.copy_(master.detach())
            master.data.copy_(kept)
        self.publish()

    def publish(self) -> None:
        """Bring the model's weights in line with the fp32 ones, as at the end of a step."""
        wrapper = self._wrapper
        if self.zero_stage == 3:
            wrapper._partition_all_parameters()
            for index in range(len(self.tensors)):
                wrapper._reassign_or_swap_out_partitioned_parameters(index)
            if wrapper.persistent_parameters:  # small ones are kept whole from step to step
                wrapper.persistent_parameters[0].all_gather(wrapper.persistent_parameters)
        elif hasattr(wrapper, "update_lp_params"):
            wrapper.update_lp_params()
        else:
            with torch.no_grad():
                for p, master in self._master_of.items():
                    if master is not p:
                        p.copy_(master)

    def _clear_padding(self, trained: Sequence[Any]) -> None:
        """Set to zero what fills up last shares: DeepSpeed leaves the memory as it was, and norms would count it."""
        from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param

        rank = torch.distributed.get_rank()
        for p in trained:
            size = p.ds_tensor.numel()
            mine = min(max(p.ds_numel - rank * size, 0), size)
            if mine < size:
                share = safe_get_local_fp32_param(p).detach().clone()
                share[mine:] = 0
                safe_set_local_fp32_param(p, share)

    def _put_share(self, p: Any, value: torch.Tensor, part: str | None) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size, rank = p.ds_tensor.numel(), torch.distributed.get_rank()
        share = torch.zeros(size)  # the last process's may be padded
        mine = value.flatten()[rank * size : (rank + 1) * size]
        share[: mine.numel()] = mine
        if part is None:
            safe_set_local_fp32_param(p, share)
        else:
            safe_set_local_optimizer_state(p, share, part)

    def _gathered(self, p: Any) -> torch.Tensor:
        """A frozen parameter's weights: DeepSpeed keeps no fp32 copy of them."""
        if not hasattr(p, "ds_tensor"):
            return p.data
        shares = [torch.empty_like(p.ds_tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(shares, p.ds_tensor.contiguous())
        return torch.cat(shares).narrow(0, 0, p.ds_numel)
