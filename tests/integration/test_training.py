"""Real DeepSpeed in two processes: a disturbed run ends where an undisturbed one does, and work done is found."""

import json
import os
import shutil
import signal
import uuid
from pathlib import Path
from unittest.mock import ANY

import psutil
import pytest

from svdflow.common.errors import SvdflowError
from svdflow.common.manifests import read_rows
from svdflow.common.storage import DataRoot
from svdflow.training.train.endings import TrainingFailed, TrainingInterrupted
from svdflow.training.train.prometheus_metrics import VARIABLE
from svdflow.training.train.train import train_stage
from tests.holding import Point, holding
from tests.ports import free_port
from tests.scraping import scraped
from tests.training_runs import (
    UNET,
    make_autoencoder,
    make_samples,
    send,
    settings_for,
    when,
)

STEPS = 40


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    return make_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("training data"))


def training_processes(root: DataRoot) -> list[str]:
    """Those of runs whose data root this is; others may be training on the machine."""
    lines = []
    for process in psutil.process_iter():
        try:
            lines.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return [line for line in lines if "svdflow.training.train.worker" in line and str(root.scratch("training")) in line]


def weights(model: Path) -> bytes:
    return (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def newest_checkpoint(root: DataRoot) -> Path:
    return max(root.scratch("training").glob("*/checkpoints/step_*"))


@pytest.mark.slow
def test_a_run_that_meets_one_fault_after_another_ends_bit_identical_and_is_then_found(
    data, autoencoder, object_store, tmp_path, monkeypatch
):
    """The undisturbed run has a directory for its data root, the disturbed one an object store."""
    root, samples = data
    version = {"name": "random", "tag": "v1"}
    port = free_port()
    monkeypatch.setenv(VARIABLE, str(port))
    settings = settings_for(autoencoder, steps=STEPS, checkpoint_every=1, hang_timeout_s=120)
    # looking at a run while it trains changes nothing in it
    looked_at = settings_for(autoencoder, steps=STEPS, checkpoint_every=20, validate_every=10)
    with scraped(port) as seen:
        whole = train_stage("image", samples, None, tmp_path / "whole", root, looked_at, version)
    told = whole.summary["training"]["image"]
    assert (told["steps"], told["world_size"], told["zero_stage"], told["resumed_from"]) == (STEPS, 2, 2, None)
    assert told["held_out_loss_after"] != told["held_out_loss_before"]
    titles = {section["title"]: section for section in whole.sections}
    assert titles["Held-out loss while it trained"]["series"]["mean"][0] == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert len(titles["Norms"]["series"]["gradient, before clipping"][1]) == STEPS
    losses = titles["Training loss"]["series"]["each step"][1]
    assert len({point["step"] for point in seen}) > 5 and seen[0]["processes"] == 2
    for point in seen:
        step = int(point["step"])
        assert (point["steps_total"], point["samples_total"]) == (step, 4 * step)
        assert point.get("loss") == (losses[step - 1] if step else None)
        # a step and the checkpoint after it are two moments; the last step has one whatever was asked
        assert point.get("checkpoints_written_total", 0) == (ANY if step in (20, STEPS) else 1 if step > 20 else 0)
    (record,) = (root.find("train", Path(uri).stem) for uri in root.list("results/train"))
    assert [p.name.split(".")[2] for p in root.fetch_tree(record["logs"]).iterdir()] == ["tfevents"]

    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SVDFLOW_CACHE_DIR", str(tmp_path / "cache"))
    other = DataRoot.open(f"s3://{object_store.bucket}/tests/{uuid.uuid4().hex}")
    for row in read_rows("samples", samples):
        other.put_file(root.fetch(row["shard_uri"]))
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]

    def disturbed(name, act, error, says, *points, settings=settings):
        """A run that is disturbed as soon as it waits at the first of some points; it goes on when that is done."""
        hold = holding(tmp_path / f"hold {name}", *points)
        with monkeypatch.context() as patch:
            for variable, value in {**hold.environment, "SVDFLOW_EVENTS": str(tmp_path / f"{name}.jsonl")}.items():
                patch.setenv(variable, value)
            watcher = when(lambda: hold.reached(0), lambda: (act(hold), hold.go_on.touch()))
            with pytest.raises(error, match=says) as caught:
                train_stage("image", samples, None, tmp_path / "broken", other, settings, version)
            watcher.join()
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "broken").exists() and training_processes(other) == []

    def signalled(number, *ranks):
        return lambda _: send(other, number, ranks)

    fourth_checkpoint = Point(r"/checkpoints/step_\d+$", after=3)  # it is written, and is to be put in its place
    disturbed("stopped", signalled(signal.SIGSTOP, 1), TrainingFailed,
              r"training process 1 \(pid \d+\) has given no sign of life for 12 s", fourth_checkpoint,
              settings=settings.model_copy(update={"hang_timeout_s": 12}))  # fmt: skip
    damaged = newest_checkpoint(other)
    (damaged / "ema.safetensors").write_bytes((damaged / "ema.safetensors").read_bytes()[:-100])
    disturbed("killed", signalled(signal.SIGKILL, 1), TrainingFailed,
              "training process 1 was killed", fourth_checkpoint)  # fmt: skip
    log = next(other.scratch("training").glob("*/train.log")).read_text()
    assert f"damaged checkpoints passed over: {damaged.name}" in log
    half_written = []

    def kill_both(_):
        half_written.extend(other.scratch("training").glob("*/checkpoints/.partial-*/ema.*"))
        send(other, signal.SIGKILL, [0, 1])

    disturbed("killed while writing", kill_both, SvdflowError, "was killed", fourth_checkpoint)
    assert half_written
    seldom = settings.model_copy(update={"checkpoint_every": 100})
    before = newest_checkpoint(other).name

    def checkpoint_then_end(hold):
        os.kill(os.getpid(), signal.SIGUSR1)  # to a checkpoint, and on
        when(lambda: hold.reached(1), lambda: os.kill(os.getpid(), signal.SIGTERM)).join()
        when(lambda: newest_checkpoint(other).name > before, lambda: None).join()

    disturbed("told", checkpoint_then_end, TrainingInterrupted, "SIGTERM",
              Point(r"/told\.jsonl$", after=0, event="open", told=signal.SIGUSR1),
              Point(r"/checkpoints/step_\d+$", after=0, told=signal.SIGTERM), settings=seldom)  # fmt: skip
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    kept = newest_checkpoint(other)
    copies = {uri.split("/")[-2] for uri in other.list("checkpoints")}
    assert kept.name in copies and len(copies) <= 3

    shutil.rmtree(other.scratch("training"))  # another machine, with nothing on its disk
    monkeypatch.setenv("SVDFLOW_EVENTS", str(tmp_path / "resumed.jsonl"))
    with scraped(port) as seen:
        resumed = train_stage("image", samples, None, tmp_path / "resumed", other, seldom, version)
    begin = int(kept.name.removeprefix("step_"))
    assert begin <= seen[0]["step"] < seen[-1]["step"] <= STEPS
    assert {point["step"] - point["steps_total"] for point in seen} == {begin}, "its counters begin at 0"
    events = [json.loads(line) for line in (tmp_path / "resumed.jsonl").read_text().splitlines()]
    steps = [event["done"] for event in events if event.get("what") == "steps"]
    assert steps == sorted(steps) and steps[-1] == STEPS, "of two processes one tells how far the run is"
    assert resumed.summary["training"]["image"]["resumed_from"] == begin > int(before.removeprefix("step_")) >= 8
    assert list(other.list("checkpoints")) == [] and list(other.scratch("training").glob("*/checkpoints/*")) == []
    assert weights(tmp_path / "resumed") == weights(tmp_path / "whole")
    assert resumed.sections[0]["series"] == whole.sections[0]["series"]

    writes = root.writes
    again = train_stage("image", samples, None, tmp_path / "again", root, settings, version)
    assert (again.done, again.reused, root.writes) == (0, 1, writes)
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    assert again.summary == whole.summary


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_processes_at_another_zero_stage(autoencoder, tmp_path, monkeypatch):
    """Half the GPUs are there when the run comes back: the curve goes on as if nothing had been, up to rounding."""
    settings = settings_for(autoencoder, steps=12, checkpoint_every=100)
    fewer = settings.model_copy(update={"processes": 1, "zero_stage": 3})
    curves = {}
    for name in ("whole", "broken"):
        root, samples = make_samples(tmp_path / name)

        def train(settings, root=root, samples=samples, out=tmp_path / f"{name} model"):
            return train_stage("image", samples, None, out, root, settings, {"name": "random", "tag": "v1"})

        if name == "broken":
            # it waits with its third checkpoint until it is told to end
            hold = holding(tmp_path / "hold", Point(r"/checkpoints/step_\d+$", after=2, told=signal.SIGTERM))
            with monkeypatch.context() as patch:
                for variable, value in hold.environment.items():
                    patch.setenv(variable, value)
                stop = when(hold.reached, lambda: os.kill(os.getpid(), signal.SIGTERM))
                with pytest.raises(TrainingInterrupted):
                    train(settings.model_copy(update={"checkpoint_every": 1}))
                stop.join()
            ended = train(fewer)
            told = ended.summary["training"]["image"]
            assert told["resumed_from"] in (3, 4) and (told["world_size"], told["zero_stage"]) == (1, 3)
        else:
            ended = train(settings)
        curves[name] = ended.sections[0]["series"]
    assert len(curves["whole"]) >= 1
    for curve, (steps, losses) in curves["whole"].items():
        assert len(steps) == 12
        assert curves["broken"][curve][0] == steps
        assert curves["broken"][curve][1] == pytest.approx(losses, rel=1e-3), curve


@pytest.mark.slow
def test_a_failure_inside_a_worker_comes_back_as_one_line(data, tmp_path):
    root, samples = data
    settings = settings_for("shipped", processes=1, unet=UNET | {"latent_channels": 8}, seed=5)
    with pytest.raises(SvdflowError, match="latents have 4 channels, the model takes 8") as caught:
        train_stage("image", samples, None, tmp_path / "out", root, settings, {})
    assert "\n" not in str(caught.value) and "train.log" in str(caught.value)
    assert training_processes(root) == []
