"""The engine on a tiny video U-Net, without launcher or trainer: what one process, or several, compute with it.

``torchrun … -m tests.engine_runs REQUEST.json`` runs a list of cases in one start and writes what rank 0 has found.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from svdflow.common.storage import DataRoot
from svdflow.diffusion.model_directory import VideoModel
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.unet import build_video_unet
from svdflow.training.train.build_ops import worker_environment
from svdflow.training.train.checkpoint import Checkpoint, newest_sound, save_checkpoint
from svdflow.training.train.data import Gathering, SampleSource
from svdflow.training.train.draws import Plan
from svdflow.training.train.engine import Engine, start_processes
from svdflow.training.train.objective import Objective
from svdflow.training.train.presets import MODEL_KIND
from svdflow.training.train.settings import StageSettings, stage_settings
from tests.ports import free_port
from tests.training_runs import UNET, make_samples, make_sequences

BATCH = 4
SAMPLES = 8


def engine_settings(stage: str = "video", **values) -> StageSettings:
    base = {"batch": BATCH, "processes": 1, "zero_stage": 0, "precision": "fp32", "lr": 1e-3, "steps": 100,
            "frames": 5 if stage == "interpolation" else None, "height": None, "width": None, "ema": None, "unet": UNET,
            "warmup": 0}  # fmt: skip
    return stage_settings(stage, base | values)


class _NoAutoencoder:
    """A loss on encoded samples asks for none, in text-to-video and in interpolation."""

    def to(self, _: object) -> "_NoAutoencoder":
        return self


class Setting:
    """Samples, and a fresh model whenever one is asked for: the same weights each time."""

    def __init__(self, folder: Path, stage: str = "video") -> None:
        self.kind = MODEL_KIND[stage]
        root, manifest = make_sequences(folder) if stage == "interpolation" else make_samples(folder)
        from svdflow.common.manifests import read_rows

        rows = read_rows("samples", manifest)
        gathering = Gathering.of(stage, engine_settings(stage), training=True)
        self.source = SampleSource(DataRoot.open(root.location), rows, gathering)

    def unet(self) -> torch.nn.Module:
        torch.manual_seed(3)
        return build_video_unet(UNetSettings(**UNET), self.kind)

    def objective(self, unet, net) -> Objective:
        return Objective(VideoModel(self.kind, unet, _NoAutoencoder()), self.source, net, torch.device("cpu"))

    def batches(self, settings, step, rank, processes):
        plan = Plan(settings, len(self.source.rows))
        return [plan.micro_batch(step, index, rank, processes) for index in range(settings.accumulation)]


class Run:
    """An engine and what belongs to it."""

    def __init__(self, setting: Setting, settings: StageSettings, rank=0, processes=1, resume=None) -> None:
        unet = setting.unet()
        self.setting, self.settings, self.rank, self.processes = setting, settings, rank, processes
        self.engine = Engine(unet, settings, resume)
        self.objective = setting.objective(unet, self.engine.net)

    def steps(self, count: int) -> list:
        figures = []
        for _ in range(count):
            batches = self.setting.batches(self.settings, self.engine.step, self.rank, self.processes)
            figures.append(
                self.engine.train_step([lambda draws=draws: self.objective.mean_loss(draws) for draws in batches])
            )
        return figures

    def gradient(self) -> torch.Tensor:
        """The gradient of the next step's global batch, as DeepSpeed holds it before it is clipped. Makes the step."""
        from deepspeed.utils import safe_get_full_grad

        module, found = self.engine.deepspeed, []
        step = module.step

        def look() -> None:
            if module.is_gradient_accumulation_boundary():
                # a copy: at ZeRO 0 these are the tensors that are clipped in place
                found.extend(
                    safe_get_full_grad(p).detach().float().flatten().clone() for p in module.module.parameters()
                )
            step()

        module.step = look
        self.steps(1)
        module.step = step
        return torch.cat(found)

    def whole(self, part: str = "model") -> torch.Tensor:
        return torch.cat([tensor.flatten() for of, _, tensor in self.engine.tensors() if of == part])

    def parts(self) -> dict[str, torch.Tensor]:
        return {part: self.whole(part) for part in self.engine.layout()}

    def save(self, folder: Path) -> None:
        engine = self.engine
        if self.rank == 0:
            save_checkpoint(folder, engine.step, engine.layout(), engine.tensors(), {}, 9)
        else:
            for _ in engine.tensors():
                pass
        torch.distributed.barrier()

    def close(self) -> None:
        self.engine.deepspeed.destroy()


def plain_torch(setting: Setting, settings: StageSettings, steps: int) -> dict[str, torch.Tensor]:
    """Weights, running average and first gradient of a loop in plain torch: what the engine must equal."""
    unet = setting.unet()
    objective = setting.objective(unet, unet)
    optimizer = (
        torch.optim.SGD(unet.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        if settings.optimizer == "sgd"
        else torch.optim.AdamW(
            unet.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
    )
    average = [p.detach().clone() for p in unet.parameters()]
    found = {}
    plan = Plan(settings, len(setting.source.rows))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * (min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0)
        optimizer.zero_grad()
        draws = [plan.draw(step * settings.batch + index) for index in range(settings.batch)]
        objective.mean_loss(draws).backward()
        if step == 0:
            found["gradient"] = torch.cat([p.grad.detach().clone().flatten() for p in unet.parameters()])
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(unet.parameters(), settings.clip)
        optimizer.step()
        keep = min(settings.ema or 0, (2 + step) / (11 + step))
        for held, p in zip(average, unet.parameters(), strict=True):
            held.mul_(keep).add_(p.detach(), alpha=1 - keep)
    found["model"] = torch.cat([p.detach().flatten() for p in unet.parameters()])
    found["ema"] = torch.cat([value.flatten() for value in average])
    return found


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((a.double() - b.double()).norm() / b.double().norm())


@contextmanager
def one_process() -> Iterator[None]:
    """A process group of this process alone, in DeepSpeed's environment.

    The group stays for the next test module: DeepSpeed remembers the first one for as long as the process lives.
    """
    before, port = dict(os.environ), free_port()
    os.environ.update(worker_environment() | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
                      "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"})  # fmt: skip
    threads = torch.get_num_threads()
    try:
        if torch.distributed.is_initialized():
            torch.set_num_threads(1)
            torch.set_flush_denormal(True)
        else:
            start_processes()
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
        os.environ.clear()
        os.environ.update(before)


def run_cases(request: dict, rank: int, processes: int) -> dict:
    """Cases by name; each has ``settings`` and ``steps``, and may have ``gradient``, ``resume``, ``save``, ``more``."""
    stage = request.get("stage", "video")
    setting, found = Setting(Path(request["folder"]) / f"rank {rank}", stage), {}
    for name, case in request["cases"].items():
        settings = engine_settings(stage, **{"processes": processes, **case["settings"]})
        resume = None
        if "resume" in case:
            resume, _ = newest_sound(Path(case["resume"]))
            assert isinstance(resume, Checkpoint)
        run = Run(setting, settings, rank, processes, resume)
        told: dict = {"gradient": run.gradient()} if case.get("gradient") else {}
        told["figures"] = torch.tensor(
            [[f.loss, f.gradient_norm, f.square_sum] for f in run.steps(case["steps"])], dtype=torch.float64
        )
        if len(told["figures"]):
            torch.distributed.all_reduce(told["figures"])
        told |= run.parts()
        if "save" in case:
            run.save(Path(case["save"]))
            draws = [Plan(settings, SAMPLES).draw(10_000 + i) for i in range(2)]
            with run.engine.averaged(), torch.no_grad():
                told["averaged loss"] = run.objective.losses(draws)
        if "more" in case:
            run.steps(case["more"])
            told |= {f"later {part}": value for part, value in run.parts().items()}
        run.close()
        found[name] = told
    return found


def main(path: str) -> None:
    from safetensors.torch import save_file

    request = json.loads(Path(path).read_text())
    rank, processes, _ = start_processes()
    found = run_cases(request, rank, processes)
    if rank == 0:
        flat = {f"{name}|{key}": value.contiguous() for name, told in found.items() for key, value in told.items()}
        save_file(flat, request["out"])
    torch.distributed.barrier()


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)
