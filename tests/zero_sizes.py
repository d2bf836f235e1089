"""Bytes that DeepSpeed holds for a small network at every ZeRO stage, as the first of four processes.

``python -m tests.zero_sizes`` prints one JSON object: "stage precision accumulation" to bytes of parameters, gradients,
optimiser and running average. The other three processes are not there: torch's fake process group moves nothing and
answers at once, so values are wrong and sizes are right.
"""

import json
import os
import sys

import torch

PROCESSES = 4
LAYERS = 100  # many small ones: DeepSpeed splits between parameters in places
CASES = [(stage, precision, 2) for stage in range(4) for precision in ("fp32", "bf16")] + [(2, "bf16", 1)]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(96, 32), *(torch.nn.Linear(32, 32) for _ in range(LAYERS)))
    net[0].requires_grad_(False)
    return net


def storages(tensors) -> int:
    """Bytes below tensors, nested as they come; what shares a storage counts once."""
    found = {}

    def look(value) -> None:
        if torch.is_tensor(value):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            look(list(value.values()))
        elif isinstance(value, (list, tuple)):
            for each in value:
                look(each)

    look(tensors)
    return sum(found.values())


def measure(stage: int, precision: str, accumulation: int) -> dict[str, int]:
    import deepspeed

    from svdflow.training.train.masters import AVERAGE, Masters

    net = network()
    config = {
        "train_batch_size": 4 * PROCESSES * accumulation,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": accumulation,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": {"stage": stage},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }
    if precision == "bf16" and stage and accumulation > 1:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad])
    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=config, dist_init_required=False)
    wrapper = engine.optimizer
    held_average = Masters(engine, ("exp_avg", "exp_avg_sq", AVERAGE), 0)
    x = torch.randn(4, 96, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    sizes = {}
    for _ in range(accumulation):
        engine.backward(engine(x).square().mean())
        if not sizes:
            parameters = list(engine.module.parameters())
            held = [getattr(p, "grad", None) for p in parameters] + [getattr(p, "grad_accum", None) for p in parameters]
            for name in (
                "averaged_gradients",
                "all_grad_tensors",
                "grad_partitions_flat_buffer",
                "fp32_groups_gradients_flat",
            ):
                held.append(getattr(wrapper, name, None))
            sizes["gradients"] = storages(held)
        engine.step()
    own = [getattr(p, "ds_tensor", p.data) for p in engine.module.parameters()]
    sizes["parameters"] = storages(own)
    base = getattr(wrapper, "optimizer", None) or wrapper
    masters = [p for group in base.param_groups for p in group["params"]]
    if stage == 3:
        masters += list(wrapper.fp32_partitioned_groups_flat)
    weights = {p.untyped_storage().data_ptr() for p in engine.module.parameters()}
    kept = [p for p in masters if p.untyped_storage().data_ptr() not in weights]
    state = [{name: value for name, value in values.items() if name != AVERAGE} for values in base.state.values()]
    state = [value for values in state for value in values.values() if torch.is_tensor(value)]
    sizes["optimizer"] = storages([kept, [value for value in state if value.numel() > 1]])
    sizes["average"] = storages(held_average.state(AVERAGE))
    return sizes


def main() -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0", "WORLD_SIZE": str(PROCESSES)}
    import deepspeed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.set_num_threads(1)
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # it would wait for the others
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=PROCESSES)
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    found = {" ".join(map(str, case)): measure(*case) for case in CASES}
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
