"""What the engine costs on top of bare DeepSpeed, what a step waits for data, and what a process holds (ten minutes).

OMP_NUM_THREADS=1 pytest -s tests/benchmarks/test_engine_overhead.py

One process; engine and bare loop take turns on the same tensors, so that a busy machine disturbs both alike. Medians;
the ratio is of CPU seconds, which other people's work on the machine does not count in.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from svdflow.common.sample_tensors import pack_picture
from svdflow.common.shards import write_shard
from svdflow.common.storage import DataRoot
from svdflow.diffusion.model_directory import VideoModel
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.unet import build_video_unet
from svdflow.training.train.build_ops import worker_environment
from svdflow.training.train.data import Gathering, SampleSource
from svdflow.training.train.draws import Plan
from svdflow.training.train.objective import Objective
from svdflow.training.train.read_ahead import ReadAhead
from tests.engine_launch import REPOSITORY
from tests.engine_runs import Run, Setting, engine_settings, one_process

ROUNDS = 15
WIDE = {"latent_channels": 4, "block_out_channels": [64, 64], "layers_per_block": 1, "attention_heads": [4, 4],
        "cross_attention_dim": 16, "addition_time_embed_dim": 8, "num_frames": 2, "sample_size": 8}  # fmt: skip


class Bare:
    """DeepSpeed and nothing else, on the tensors that a recording of the engine's own calls left."""

    def __init__(self, unet: torch.nn.Module, settings, calls: list) -> None:
        import deepspeed

        optimizer = torch.optim.AdamW(unet.parameters(), lr=settings.lr)
        self.engine, *_ = deepspeed.initialize(
            model=unet, optimizer=optimizer, dist_init_required=False,
            config={"train_batch_size": settings.batch, "train_micro_batch_size_per_gpu": settings.micro_batch,
                    "gradient_clipping": settings.clip, "zero_optimization": {"stage": settings.zero_stage},
                    "zero_allow_untested_optimizer": True, "steps_per_print": 1 << 30},
        )  # fmt: skip
        self.calls = calls

    def step(self, index: int) -> None:
        args, kwargs, target = self.calls[index % len(self.calls)]
        output = self.engine(*args, **kwargs)[0]
        loss = (output.float() - target).square().flatten(1).mean(1).mean()
        self.engine.backward(loss)
        self.engine.step()


def recorded(setting: Setting, settings, unet: torch.nn.Module, steps: int) -> list:
    """The tensors that the U-Net is called with at each step, and a target for each."""
    calls = []

    def net(*args, **kwargs):
        target = torch.randn_like(args[0])
        calls.append(([a.clone() for a in args], kwargs, target))
        return (target,)

    objective = setting.objective(unet, net)
    for step in range(steps):
        for draws in setting.batches(settings, step, 0, 1):
            objective.losses(draws)
    return calls


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    with one_process():
        found = Setting(tmp_path_factory.mktemp("samples"))
        found.unet = lambda: (torch.manual_seed(3), build_video_unet(UNetSettings(**WIDE), "text_to_video"))[1]
        yield found


@pytest.mark.parametrize("ema", [None, 0.999], ids=["without average", "with average"])
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_the_engine_costs_little_on_top_of_bare_deepspeed(setting, zero_stage, ema):
    settings = engine_settings(zero_stage=zero_stage, ema=ema)
    run = Run(setting, settings)
    unet = setting.unet()
    bare = Bare(unet, settings, recorded(setting, settings, unet, ROUNDS + 2))
    waited, tensor = [0.0], setting.source.tensor

    def timed(*args, **kwargs):
        began = time.perf_counter()
        value = tensor(*args, **kwargs)
        waited[0] += time.perf_counter() - began
        return value

    setting.source.tensor = timed
    ours, theirs, data = [], [], []
    try:
        for index in range(ROUNDS + 2):
            waited[0] = 0.0
            began, wall = time.process_time(), time.perf_counter()
            run.steps(1)
            between, wall = time.process_time(), time.perf_counter() - wall
            bare.step(index)
            ended = time.process_time()
            if index >= 2:
                ours.append(between - began)
                theirs.append(ended - between)
                data.append(waited[0] / wall)
    finally:
        setting.source.tensor = tensor
        run.close()
        bare.engine.destroy()
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"ZeRO {zero_stage}, average {ema}: engine {statistics.median(ours):.3f}, bare DeepSpeed "
        f"{statistics.median(theirs):.3f} CPU s a step, ratio {ratio:.3f}; waits for data {statistics.median(data):.2%}"
    )
    assert ratio < (1.15 if ema else 1.05)


STEP_S = 0.5  # of one sample of 14x576x1024 px: what a fast GPU would take


def full_size_source(folder: Path) -> SampleSource:
    """Two sequences of 32 frames of 576x1024 px, as the step encode writes them."""
    rng, frames = np.random.default_rng(0), 32
    picture = np.kron(rng.integers(0, 255, (72, 128, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    samples = {
        f"s{i}": {
            "mean": rng.standard_normal((frames, 4, 72, 128)).astype(np.float16),
            "logvar": np.full((frames, 4, 72, 128), -4, np.float16),
            "images": rng.standard_normal((frames, 1024)).astype(np.float32),
            "picture-000000": pack_picture(picture),
        }
        for i in range(2)
    }
    write_shard(folder / "shard", samples)
    root = DataRoot.open(folder / "root")
    uri = root.put_file(folder / "shard")
    row = {"layout": "frames", "shard_uri": uri, "frames": 14, "height": 576, "width": 1024, "fps": 8.0, "stride": 1,
           "first_frame": 0, "sequence_frames": frames, "sequence_fps": 8.0, "starts": [0]}  # fmt: skip
    return SampleSource(root, [row | {"sample_id": name, "tensor_prefix": name} for name in samples],
                        Gathering((14,), sampled=True))  # fmt: skip


def test_with_two_readers_a_step_waits_for_data_less_than_two_percent_of_its_time(tmp_path):
    """Full-size image-to-video samples; the step itself is a pause, in which the processor is free as with a GPU."""
    source = full_size_source(tmp_path)
    unet = build_video_unet(UNetSettings(**WIDE), "image_to_video")
    objective = Objective(VideoModel("image_to_video", unet, torch.nn.Identity()), source, unet, torch.device("cpu"))
    plan = Plan(engine_settings(batch=1), len(source.rows))
    shares = {}
    for readers in (0, 2):
        reading = ReadAhead((plan.micro_batch(step, 0, 0, 1) for step in range(10_000)), objective.read, readers)
        found = []
        for _ in range(ROUNDS + 2):
            began, before = time.perf_counter(), reading.waited_s
            reading.take()
            time.sleep(STEP_S)
            found.append((reading.waited_s - before) / (time.perf_counter() - began))
        reading.close()
        shares[readers] = statistics.median(found[2:])
    print(f"of a step of {STEP_S} s, waiting for data: {shares[0]:.2%} without readers, {shares[2]:.2%} with two")
    assert shares[2] < 0.02


MEASURE = """
import json, os, sys, torch
from pathlib import Path
from tests.engine_runs import Run, Setting, engine_settings, start_processes
rank, processes, _ = start_processes()
setting = Setting(Path(sys.argv[1]) / f"rank {rank}")
told = {}
for stage in range(4):
    for checkpointing in (False, True):
        held = {"activations": 0}
        run = Run(setting, engine_settings(zero_stage=stage, ema=0.99, processes=processes, precision="fp32",
                                           gradient_checkpointing=checkpointing), rank, processes)
        module = run.engine.deepspeed
        backward = module.backward
        storages = {}
        def keep(tensor):
            if not isinstance(tensor, torch.nn.Parameter):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor
        weights = {p.untyped_storage().data_ptr() for p in module.module.parameters()}
        def counted(loss):
            held["activations"] = sum(size for place, size in storages.items() if place not in weights)
            storages.clear()
            backward(loss)
            wrapper = module.optimizer
            groups = [*(getattr(wrapper, "averaged_gradients", None) or {}).values()]
            tensors = [t for group in groups if group for t in group if t is not None]
            tensors += [p.grad for p in module.module.parameters() if p.grad is not None]
            places = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
            held["gradients"] = sum(places.values())
        module.backward = counted
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run.steps(1)
        masters = run.engine.masters
        size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)
        parameters = [getattr(p, "ds_tensor", p.data) for p in module.module.parameters()]
        shared = {t.untyped_storage().data_ptr() for t in parameters}
        told[f"{stage} {checkpointing}"] = held | {
            "parameters": size(parameters),
            "fp32 weights": size([t for t in masters.tensors if t.untyped_storage().data_ptr() not in shared]),
            "moments": size([*masters.state("exp_avg"), *masters.state("exp_avg_sq")]),
            "average": size(masters.state("ema")),
        }
        run.close()
if rank == 0:
    Path(sys.argv[2]).write_text(json.dumps(told))
torch.distributed.barrier()
os._exit(0)
"""


def test_what_a_process_holds_by_zero_stage(tmp_path):
    script, out = tmp_path / "measure.py", tmp_path / "told.json"
    script.write_text(MEASURE)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
               "--local-addr=127.0.0.1", str(script), str(tmp_path), str(out)]  # fmt: skip
    environment = worker_environment() | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(out.read_text())
    columns = list(told["0 False"])
    # at ZeRO 3 DeepSpeed holds tensors below 100,000 elements whole as well: all of this U-Net's, not counted here
    print("KB of process 0 of 2".ljust(28), *(name.rjust(13) for name in columns))
    for case, held in told.items():
        stage, checkpointing = case.split()
        name = f"ZeRO {stage}{', recomputing' if checkpointing == 'True' else ''}"
        print(name.ljust(28), *(f"{held[column] / 1e3:13,.0f}" for column in columns))
    whole = told["0 False"]
    for stage in (1, 2, 3):
        assert told[f"{stage} False"]["moments"] == pytest.approx(whole["moments"] / 2, rel=0.01)
        assert told[f"{stage} False"]["average"] == pytest.approx(whole["average"] / 2, rel=0.01)
    assert told["3 False"]["parameters"] == pytest.approx(whole["parameters"] / 2, rel=0.01)
    assert told["2 True"]["activations"] < 0.7 * told["2 False"]["activations"]  # of two levels, a layer each
