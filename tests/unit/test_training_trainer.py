"""A training run in this very process: when it goes astray, and when it is told to stop at an awkward moment."""

import signal
import time
from itertools import chain, islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from svdflow.common.errors import ConfigError, StorageError
from svdflow.common.storage import DataRoot
from svdflow.diffusion.discrete import DiscreteSchedule
from svdflow.diffusion.edm import EDM, Parameterisation
from svdflow.diffusion.model_directory import load_model, read_card, save_model
from svdflow.training.train import trainer as trainer_module
from svdflow.training.train import work as work_module
from svdflow.training.train.checkpoint import newest_sound, save_checkpoint
from svdflow.training.train.checkpoint_store import CheckpointStore
from svdflow.training.train.heartbeat import Heartbeat
from svdflow.training.train.job import Job
from svdflow.training.train.model import start_model
from svdflow.training.train.prometheus_metrics import VARIABLE, served
from svdflow.training.train.signals import Asked
from svdflow.training.train.start import check_start
from svdflow.training.train.trainer import Trainer, TrainingDiverged
from tests.engine_runs import one_process
from tests.ports import free_port
from tests.scraping import scrape, training
from tests.training_runs import make_autoencoder, make_samples, settings_for


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with one_process():
        yield *make_samples(folder), make_autoencoder(folder / "vae")


@pytest.fixture
def asked():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    yield Asked()
    signal.alarm(0)
    for number, handler in before.items():
        signal.signal(number, handler)


def trainer(data, folder, asked, **values):
    root, samples, autoencoder = data
    folder.mkdir(exist_ok=True)
    settings = settings_for(autoencoder, **({"processes": 1, "zero_stage": 1} | values))
    job = Job("image", settings, samples, root.location, None, folder / "checkpoints", None, folder / "logs",
              folder / "samples", folder / "model", {"init": None, "configuration": {}})  # fmt: skip
    return Trainer(job, asked, Heartbeat(folder, 0))


def test_a_run_that_goes_astray_ends_and_keeps_the_last_checkpoint_from_before(data, tmp_path, asked):
    run = trainer(data, tmp_path, asked, steps=40, checkpoint_every=1, diverged_steps=4)
    losses_of = run.objective.losses_of
    run.objective.losses_of = lambda batch: losses_of(batch) * (1e6 if run.engine.step >= 12 else 1)
    with pytest.raises(TrainingDiverged) as caught:
        run.run()
    kept, _ = newest_sound(tmp_path / "checkpoints")
    assert kept.step == 12
    line = str(caught.value)
    assert "diverged at step 16" in line and "for 4 steps in a row" in line and "train_image.lr" in line
    assert str(kept.directory) in line and "\n" not in line

    run = trainer(data, tmp_path, asked, steps=40)
    fresh_losses = run.objective.losses_of
    run.objective.losses_of = lambda batch: fresh_losses(batch) * float("nan")
    with pytest.raises(TrainingDiverged, match="step 13: the loss is not a number"):
        run.run()


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_gradient_that_is_no_number_leaves_no_checkpoint_of_its_step(data, tmp_path, asked, zero_stage):
    """The step is made all the same, at a finite loss: weights that are no numbers must not become a checkpoint."""
    run = trainer(data, tmp_path, asked, steps=8, checkpoint_every=1, zero_stage=zero_stage)
    losses_of = run.objective.losses_of

    def losses(batch):
        found = losses_of(batch)
        return found + (found * 0).sqrt() if run.engine.step == 2 else found

    run.objective.losses_of = losses
    with pytest.raises(TrainingDiverged, match="step 3: the gradient norm is not a number"):
        run.run()
    kept, _ = newest_sound(tmp_path / "checkpoints")
    assert kept.step == 2
    assert all(t.isfinite().all() for t in load_file(kept.directory / "model.safetensors").values())


def test_a_run_told_to_stop_while_it_validates_keeps_its_weights_and_ends_as_an_undisturbed_one(data, tmp_path, asked):
    whole = trainer(data, tmp_path / "whole", asked, steps=6, held_out_seeds=3, validate_every=2).run()
    assert [point["step"] for point in whole["validation"]] == [2, 4]
    assert whole["best_checkpoint"] in ("step_00000002", "step_00000004")

    run = trainer(data, tmp_path / "told", asked, steps=6, held_out_seeds=3, validate_every=2, checkpoint_every=100)
    losses = run.work.judge.losses

    def told(draws):
        asked.to_stop = run.engine.step == 4
        return losses(draws)

    run.work.judge.losses = told
    assert run.run() is None
    kept, _ = newest_sound(tmp_path / "told" / "checkpoints")
    assert kept.step == 4
    asked.to_stop = False
    resumed = trainer(data, tmp_path / "told", asked, steps=6, held_out_seeds=3, validate_every=2).run()
    assert (resumed["resumed_from"], resumed["loss"]) == (4, whole["loss"])
    weights = [
        load_file(tmp_path / name / "model/unet/diffusion_pytorch_model.safetensors") for name in ("told", "whole")
    ]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_a_model_of_the_discrete_schedule_says_so_on_disk_and_is_trained_on_as_such(data, tmp_path, asked):
    discrete = {"noise_schedule": "discrete", "prediction": "epsilon", "offset_noise": 0.1, "steps": 2}
    trainer(data, tmp_path, asked, **discrete).run()
    model = load_model(tmp_path / "model")
    assert model.parameterisation == Parameterisation("epsilon", DiscreteSchedule())
    settings = settings_for(data[2], processes=1, **discrete)
    check_start("image", tmp_path / "model", settings)
    assert start_model("image", tmp_path / "model", settings).parameterisation == model.parameterisation
    to_edm = settings_for(data[2], processes=1)
    assert start_model("video", tmp_path / "model", to_edm).parameterisation == EDM
    other = settings_for(data[2], processes=1, noise_schedule="discrete")
    for start in (check_start, start_model):
        with pytest.raises(ConfigError, match=r"train_image.prediction: .*model predicts epsilon, not v_prediction"):
            start("image", tmp_path / "model", other)
    save_model(start_model("image", None, to_edm), tmp_path / "continuous")
    with pytest.raises(ConfigError, match=r"train_video.noise_schedule: .*continuous knows continuous noise levels"):
        check_start("video", tmp_path / "continuous", settings)


@pytest.mark.parametrize("losses", [(3.0, 1.0, 2.0), (3.0, 2.0, 1.0)], ids=["best on the way", "best at the end"])
def test_the_weights_that_are_handed_on_are_the_last_or_the_best_ones_as_asked(data, tmp_path, asked, losses):
    """Held-out losses are made up; checkpoints are written where they fall, though none is due."""
    at = dict(zip((2, 4, 6), losses, strict=True))
    for hand_on in ("best", "last"):
        folder = tmp_path / hand_on
        run = trainer(data, folder, asked, steps=6, validate_every=2, checkpoint_every=100, hand_on=hand_on)
        run.work.judge.losses = lambda draws, run=run: torch.full((len(draws),), at.get(run.engine.step, 9.0))
        result = run.run()
        chosen = 4 if hand_on == "best" and losses[1] == 1.0 else 6
        card = read_card(folder / "model")
        assert result["handed_on"] == card["steps"] == chosen and result["steps"] == 6
        assert card["metrics"]["held_out_after"] == at[chosen]
        kept = [path.name for path in sorted((folder / "checkpoints").glob("step_*"))]
        on_the_way = ["step_00000002", "step_00000004"] if hand_on == "best" else []
        assert kept == [*on_the_way, "step_00000006"]
    best, last = (
        load_file(tmp_path / name / "model/unet/diffusion_pytorch_model.safetensors") for name in ("best", "last")
    )
    same = all(torch.equal(best[name], last[name]) for name in best)
    assert same == (losses[2] == 1.0)
    if not same:
        average = load_file(tmp_path / "best" / "checkpoints" / "step_00000004" / "ema.safetensors")
        assert all(torch.equal(best[name], average[name]) for name in best)


def test_a_run_that_dies_while_its_end_is_looked_at_has_no_step_to_do_again(data, tmp_path, asked):
    dies, whole = trainer(data, tmp_path / "dies", asked, steps=3), trainer(data, tmp_path / "whole", asked, steps=3)
    step = dies.engine.step

    def losses(draws):
        if dies.engine.step > step:
            raise SystemExit("killed")
        return torch.zeros(len(draws))

    dies.work.judge.losses = losses
    with pytest.raises(SystemExit):
        dies.run()
    again = trainer(data, tmp_path / "dies", asked, steps=3)
    again.engine.train_step = None  # whoever calls it fails
    assert (again.run()["resumed_from"], whole.run()["resumed_from"]) == (3, None)
    one, other = (
        load_file(tmp_path / name / "model/unet/diffusion_pytorch_model.safetensors") for name in ("dies", "whole")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_disk_too_small_for_the_checkpoint_at_the_end_costs_a_line_and_not_the_model(
    data, tmp_path, asked, monkeypatch, capfd
):
    def full_at(step):
        def save(folder, at, layout, tensors, *rest):
            if at == step:
                tensors = chain(islice(tensors, 1), broken(tensors))
            return save_checkpoint(folder, at, layout, tensors, *rest)

        def broken(tensors):
            yield from islice(tensors, 1)
            yield from tensors if gone else fail()

        def fail():
            gone.append(True)
            raise OSError(28, "No space left on device")

        gone = []
        monkeypatch.setattr(trainer_module, "save_checkpoint", save)

    full_at(3)
    result = trainer(data, tmp_path / "full", asked, steps=3, checkpoint_every=2).run()
    assert result["steps"] == 3 and read_card(tmp_path / "full/model")["steps"] == 3
    assert [path.name for path in (tmp_path / "full/checkpoints").iterdir()] == ["step_00000002"]
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "No space left" in line]
    assert line.startswith("all steps are done")
    full_at(2)
    with pytest.raises(StorageError, match="step 2 cannot be written"):
        trainer(data, tmp_path / "before", asked, steps=3, checkpoint_every=2).run()


@pytest.mark.parametrize("told", [False, True], ids=["runs to its end", "told to stop at its end"])
def test_the_checkpoint_at_the_end_is_copied_to_the_store_only_for_a_run_that_is_told_to_stop(
    data, tmp_path, asked, told
):
    run = trainer(data, tmp_path, asked, steps=3, checkpoint_every=2, held_out_seeds=3)
    run.store = CheckpointStore(DataRoot.open(tmp_path / "store"), "run", tmp_path / "checkpoints", print)

    def losses(draws):
        asked.to_stop = told and run.engine.step == 3
        return torch.zeros(len(draws))

    run.work.judge.losses = losses
    result = run.run()
    assert run.store.wait(60) and (result is None) == told
    assert run.store.steps() == ([3, 2] if told else [2])


def test_what_is_looked_at_on_the_way_is_the_running_average_and_lies_in_the_log(data, tmp_path, asked, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trainer(data, tmp_path, asked, steps=4, validate_every=2, sample_every=2)
    step, judged = run.engine.train_step, run.work.judge.losses
    kept, seen = {}, []

    def whole(part: str) -> torch.Tensor:
        return torch.cat([tensor.flatten() for of, _, tensor in run.engine.tensors() if of == part])

    def stepped(losses):
        figures = step(losses)
        kept[run.engine.step] = whole("model"), whole("ema")
        return figures

    def look(what: str) -> None:
        weights = torch.cat([p.detach().flatten() for p in run.engine.deepspeed.module.parameters()])
        seen.append((what, run.engine.step, weights.clone()))

    def write(folder, *_):
        look("samples")
        np.save(folder / "sample_0.npy", np.full((1, 16, 16, 3), 40, np.uint8))

    run.engine.train_step = stepped
    run.work.judge.losses = lambda draws: look("held-out loss") or judged(draws)
    monkeypatch.setattr(work_module, "write_samples", write)
    result = run.run()
    looked = {(what, at) for what, at, _ in seen if at}
    assert looked == {(what, at) for what in ("samples", "held-out loss") for at in (2, 4)}
    for what, at, weights in seen:
        if at:
            model, average = kept[at]
            assert torch.equal(weights, average) and not torch.equal(weights, model), (what, at)

    log = EventAccumulator(str(tmp_path / "logs"))
    log.Reload()
    for name in ("loss", "gradient_norm", "parameter_norm"):
        points = log.Scalars(f"train/{name}")
        assert [point.step for point in points] == [1, 2, 3, 4]
        assert [point.value for point in points] == pytest.approx(result[name], rel=1e-6)
    held_out = {point.step: point.value for point in log.Scalars("held_out/mean")}
    expected = {2: result["validation"][0]["mean"], 4: result["after"]["mean"]}
    assert held_out == pytest.approx(expected, rel=1e-6)
    levels = [name for name in log.Tags()["scalars"] if name.startswith("held_out/sigma_")]
    assert len(levels) == 2 and [image.step for image in log.Images("samples")] == [2, 4]


def test_prometheus_is_told_what_the_result_tells_and_a_resumed_run_goes_on_from_its_step(
    data, tmp_path, asked, monkeypatch
):
    port, told = free_port(), []
    monkeypatch.setenv(VARIABLE, str(port))

    def looked_at(run):
        """Scraped before every step, while the engine is at work."""
        step = run.engine.train_step

        def stepping(losses):
            told.append(training(scrape(port)))
            asked.to_stop = run.engine.step == 3  # this step is the last
            return step(losses)

        run.engine.train_step = stepping
        with served(run):
            return run.run(), training(scrape(port))

    how = {"steps": 6, "warmup": 4, "validate_every": 2, "checkpoint_every": 3, "readers": 0}
    began = time.time()
    result, last = looked_at(trainer(data, tmp_path, asked, **how))
    assert result is None and [point["step"] for point in told] == [0, 1, 2, 3]
    assert "loss" not in told[0] and told[0]["held_out_loss"] > 0, "measured before the first step"
    assert [point["learning_rate"] for point in told[1:]] == pytest.approx([2.5e-4, 5e-4, 7.5e-4])
    assert (last["steps_total"], last["samples_total"], last["checkpoints_written_total"]) == (4, 16, 2)
    assert told[3]["checkpoints_written_total"] == 1
    stamps = [last[f"last_{what}_timestamp_seconds"] for what in ("step", "checkpoint")]
    assert began - 0.1 < stamps[0] <= stamps[1] < time.time() + 0.1, "in tenths of a second"

    asked.to_stop, told[:] = False, []
    result, last = looked_at(trainer(data, tmp_path, asked, **how))
    assert result["resumed_from"] == 4
    first = told[0]
    assert (first["step"], first["steps_planned"], first["loss"]) == (4, 6, result["loss"][3])
    assert {first[f"{name}_total"] for name in ("steps", "samples", "step_seconds", "checkpoints_written")} == {0}
    assert "learning_rate" not in first and first["held_out_loss"] == result["validation"][0]["mean"]
    assert (last["step"], last["steps_total"], last["samples_total"]) == (6, 2, 8)
    assert [last[name] for name in ("loss", "gradient_norm", "parameter_norm")] == pytest.approx(
        [result[name][-1] for name in ("loss", "gradient_norm", "parameter_norm")]
    )
    assert 0 < last["data_wait_seconds_total"] < last["step_seconds_total"] < 6 * 4 / result["samples_per_second"]
    assert ("gpu_memory_peak_bytes[0]" in last) == torch.cuda.is_available()


def test_the_sum_over_processes_is_every_gpus_own_peak(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 + device.index)
    processes = [SimpleNamespace(device=torch.device("cuda", rank % 2), rank=rank, processes=4) for rank in range(4)]
    told = [Trainer._peak_memory(process) for process in processes]
    assert [sum(column) for column in zip(*told, strict=True)] == [1000, 1001, 1000, 1001]
