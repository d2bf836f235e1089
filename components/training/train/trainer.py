"""One process's part of a training run: steps, checkpoints, validation, samples, logs. All processes run the same."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...common.errors import StorageError, SvdflowError
from ...common.progress import Progress
from ...common.storage import DataRoot
from .checkpoint import best_sound, newest_sound, save_checkpoint
from .checkpoint_store import CheckpointStore
from .divergence import Divergence
from .draws import Draw
from .engine import Engine, start_processes, weights_of
from .heartbeat import Heartbeat
from .job import Job
from .read_ahead import ReadAhead
from .resume import agree_on_checkpoint
from .samples import write_grid
from .signals import Asked, Interrupted
from .tensorboard_log import TensorBoardLog
from .work import open_work

T = TypeVar("T")
_UPLOAD_S = 5.0  # of the grace, kept for the end of the process


class TrainingDiverged(SvdflowError):
    """The loss or the gradient went astray; the last checkpoint from before is kept."""


class Trainer:
    """A job under training in this process.

    Args:
        job: what is to be trained.
        asked: what signals have asked of this process.
        beat: its signs of life.
    """

    def __init__(self, job: Job, asked: Asked, beat: Heartbeat) -> None:
        self.job, self.settings, self.asked, self.beat = job, job.settings, asked, beat
        self.rank, self.processes, self.device = start_processes()
        beat.at("reading the model and the samples")
        self.work = open_work(job)
        self.store = self._open_store()
        resume = agree_on_checkpoint(job.checkpoints, self.store, self.rank, self.device, beat)
        self.state: dict[str, Any] = {
            "loss": [], "gradient_norm": [], "parameter_norm": [], "validation": [], "before": None, "best": None,
            "trained_s": 0.0, "waited_s": 0.0,
        }  # fmt: skip
        if resume:
            self.state |= resume.state["kept"]
        beat.at("setting up the engine")
        self.engine = Engine(self.work.net, self.settings, resume)
        self.started_at = self.engine.step
        self.work.attach(self.engine, self.device)
        self.objective = self.work.objective
        self.reading = ReadAhead(self._upcoming(), self.objective.read, self.settings.readers)
        self.divergence = Divergence(self.settings.diverged_ratio, self.settings.diverged_steps)
        self.divergence.remember(self.state["loss"], self.state["gradient_norm"])
        self.log = TensorBoardLog(job.logs, self.engine.step) if self.rank == 0 and job.logs else None
        self.saved, self.saved_at, self.saved_time = 0, self.engine.step, time.monotonic()
        self.stepped_time = self.saved_time
        self.unsent: Path | None = None  # the last checkpoint, when it has not been given to the store
        self.peak_memory: list[float] = []  # bytes, of each process's GPU
        self.telling = threading.Lock()  # held while figures that belong together change, or are read

    def run(self) -> dict[str, Any] | None:
        """Train to the end. Returns the result, or None when told to stop: then a checkpoint is kept."""
        s = self.settings
        try:
            if self.state["before"] is None:
                self.state["before"] = self._held_out_loss()
            with Progress("steps", s.steps, shown=self.rank == 0) as progress:
                progress.advance(self.engine.step)
                while self.engine.step < s.steps:
                    stopping, saving = self._step(progress)
                    if stopping:
                        raise Interrupted
                    held_out = self._look() if self.engine.step < s.steps else None
                    best = self._is_best(held_out)
                    if (saving or best or self._due(s.checkpoint_every)) and self.engine.step < s.steps:
                        self._save(held_out)
            if self.engine.step > self.saved_at:
                self._save(None, at_end=True)  # a kill while the end is looked at and written costs no step
            with self.engine.averaged():
                after = self._held_out_loss()
                if s.sample_every:
                    self._write_samples()
        except Interrupted:
            if self.engine.step > self.saved_at:
                self._save(None)
            elif self.store and self.unsent:
                self.store.send(self.unsent)
            if self.store and self.rank == 0:
                self.store.wait(max(0.0, self.asked.seconds_left(s.grace_s) - _UPLOAD_S))
            return None
        finally:
            self.reading.close()
        return self._finish(after)

    # steps

    def _upcoming(self) -> Iterator[list[Draw]]:
        """This process's micro-batches from here to the end."""
        s = self.settings
        for step in range(self.engine.step, s.steps):
            for index in range(s.accumulation):
                yield self.work.plan.micro_batch(step, index, self.rank, self.processes)

    def _step(self, progress: Progress) -> tuple[bool, bool]:
        """One optimiser step. Returns whether to stop, and whether a checkpoint was asked for."""
        s, began = self.settings, time.monotonic()
        self.beat.at(f"in step {self.engine.step + 1}")
        waited = self.reading.waited_s
        figures = self.engine.train_step([self._loss] * s.accumulation)
        waited = self.reading.waited_s - waited
        minutes = self.rank == 0 and began - self.saved_time > 60 * (s.checkpoint_minutes or math.inf)
        told = [
            *(value / self.processes for value in (figures.loss, figures.gradient_norm, waited)),
            figures.square_sum,
            float(self.asked.to_stop),
            float(self.asked.take_save() or minutes),
            *self._peak_memory(),
        ]
        loss, norm, waited, square_sum, stopping, saving, *self.peak_memory = self._sum(told)
        wrong = self.divergence.look(loss, norm)
        if wrong:
            raise TrainingDiverged(self._diverged(wrong))
        curves = {"loss": loss, "gradient_norm": norm, "parameter_norm": math.sqrt(square_sum)}
        with self.telling:
            for name, value in curves.items():
                self.state[name].append(value)
            self.stepped_time = time.monotonic()
            took = self.stepped_time - began
            self.state["trained_s"] += took
            self.state["waited_s"] += waited
        if self.log:
            curves["waiting_share"] = waited / max(took, 1e-9)
            self.log.scalars(self.engine.step, {f"train/{name}": value for name, value in curves.items()})
        progress.advance(note=f"loss {loss:.3f}")
        return stopping > 0, saving > 0

    def _loss(self) -> torch.Tensor:
        loss = self.objective.losses_of(self.reading.take()).mean()
        self.beat.at(f"in step {self.engine.step + 1}")
        return loss

    def _peak_memory(self) -> list[float]:
        """Most bytes that were ever allocated on this process's GPU, in its place among all; nothing without GPUs."""
        if self.device.type != "cuda":
            return []
        own = float(torch.cuda.max_memory_allocated(self.device))
        return [own if rank == self.rank else 0.0 for rank in range(self.processes)]

    def _look(self) -> float | None:
        """Validation and samples with the running average, where they are due. Returns the held-out loss."""
        s, held_out = self.settings, None
        if not (self._due(s.validate_every) or self._due(s.sample_every)):
            return None
        with self.engine.averaged():
            if self._due(s.validate_every) and (found := self._held_out_loss()):
                held_out = found["mean"]
                self.state["validation"].append({"step": self.engine.step, "mean": held_out, "loss": found["loss"]})
                if self.log:
                    levels = {f"held_out/sigma_{a:.3g}": b for a, b in zip(found["sigmas"], found["loss"], strict=True)}
                    self.log.scalars(self.engine.step, {"held_out/mean": held_out, **levels})
            if self._due(s.sample_every):
                self._write_samples()
        return held_out

    def _is_best(self, held_out: float | None) -> bool:
        """Whether these are the best weights so far, where the best ones are handed on."""
        if held_out is None or self.settings.hand_on != "best":
            return False
        best = self.state["best"]
        if best is not None and best["held_out"] <= held_out:
            return False
        self.state["best"] = {"step": self.engine.step, "held_out": held_out}
        return True

    def _due(self, every: int | None) -> bool:
        return bool(every) and self.engine.step % every == 0  # type: ignore[operator]

    def _held_out_loss(self) -> dict[str, Any] | None:
        return self.work.held_out_loss(self.rank, self.processes, self._interrupted)

    def _interrupted(self) -> bool:
        self.beat.at("measuring the held-out loss")
        return self._sum([float(self.asked.to_stop)])[0] > 0

    def _write_samples(self) -> None:
        folder = self.job.samples_out / f"step_{self.engine.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        self.beat.at("generating samples")
        self.work.write_samples(folder, self.rank, self.processes)
        torch.distributed.barrier()
        grid = write_grid(folder) if self.rank == 0 else None
        if self.log and grid is not None:
            self.log.picture(self.engine.step, "samples", grid)

    def _finish(self, after: dict[str, Any] | None) -> dict[str, Any]:
        """Rank 0 writes the model directory; all get the result."""
        self.beat.at("writing the model")
        s, best = self.settings, best_sound(self.job.checkpoints) if self.rank == 0 else None
        better = best if best and after and s.hand_on == "best" and best.state["held_out"] < after["mean"] else None
        weights = dict(self._beating(self.engine.final_weights(), "writing the model", keep=self.rank == 0))
        if better:
            weights |= dict(weights_of(better))
        result = {
            "steps": self.engine.step,
            "handed_on": better.step if better else self.engine.step,
            "resumed_from": self.started_at or None,
            "world_size": self.processes,
            "zero_stage": s.zero_stage,
            **{name: self.state[name] for name in ("loss", "gradient_norm", "parameter_norm", "validation", "before")},
            "after": after,
            "best_checkpoint": best.directory.name if best else None,
            "samples_per_second": s.steps * s.batch / max(self.state["trained_s"], 1e-9),
            "waiting_share": self.state["waited_s"] / max(self.state["trained_s"], 1e-9),
            "parameters": sum(math.prod(self.engine.masters.shape(name)) for name in self.engine.masters.parameters),
            "train_samples": len(self.work.train.rows),
            "held_out_samples": len(self.work.held_out.rows),
            "uploads": {"sent": self.store.sent, "failed": self.store.failures} if self.store else None,
        }
        if self.rank == 0:
            loss = better.state["held_out"] if better else after["mean"] if after else None
            self.work.save(weights, result, loss)
        if self.log:
            if after:
                self.log.scalars(self.engine.step, {"held_out/mean": after["mean"]})
            self.log.close()
        torch.distributed.barrier()
        return result

    # checkpoints

    def _save(self, held_out: float | None, at_end: bool = False) -> None:
        """Write a checkpoint, unless the run looks as if it were going astray.

        One ``at_end``, when all steps are done, is for a run that is killed before the model is written: a disk too
        small for it stops nothing, and it is copied to the store only when the run is told to stop.
        """
        if self.divergence.suspicious:
            return
        doing = f"writing the checkpoint of step {self.engine.step}"
        tensors = self._beating(self.engine.tensors(), doing)
        failed = False
        if self.rank == 0:
            state = {"kept": self.state, "held_out": held_out}
            keep = self.settings.keep_checkpoints
            try:
                written = save_checkpoint(
                    self.job.checkpoints, self.engine.step, self.engine.layout(), tensors, state, keep
                )
                self.unsent = written if at_end else None
                if self.store and not at_end:
                    self.store.send(written)
            except StorageError as error:
                if not at_end:
                    raise
                failed = True
                print(f"all steps are done, the model is written without a last checkpoint: {error}", flush=True)
        else:
            for _ in tensors:
                pass
        if self._sum([float(failed)])[0]:  # all processes wait here for each other
            return
        with self.telling:
            self.saved += 1
            self.saved_at, self.saved_time = self.engine.step, time.monotonic()

    def _open_store(self) -> CheckpointStore | None:
        if self.job.store is None:
            return None
        self.job.checkpoints.mkdir(parents=True, exist_ok=True)
        return CheckpointStore(
            DataRoot.open(self.job.root), self.job.store, self.job.checkpoints, lambda line: print(line, flush=True)
        )

    def _diverged(self, wrong: str) -> str:
        kept, _ = newest_sound(self.job.checkpoints) if self.rank == 0 else (None, [])
        where = f"the last checkpoint from before is {kept.directory}" if kept else "there is no checkpoint from before"
        section = f"train_{self.job.stage}"
        return (
            f"stage {self.job.stage} has diverged at step {self.engine.step}: {wrong}; {where}; "
            f"lower {section}.lr ({self.settings.lr:g}) or {section}.clip"
        )

    # between processes

    def _sum(self, values: list[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def _beating(self, items: Iterator[T], doing: str, keep: bool = True) -> Iterator[T]:
        """Give signs of life for every item; without ``keep`` they are gone through and left."""
        for item in items:
            self.beat.at(doing)
            if keep:
                yield item
