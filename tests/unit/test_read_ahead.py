"""Reading ahead: the same things in the same order, however many readers there are."""

import signal
import sys
import threading
import time
from traceback import extract_stack

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from svdflow.common.errors import BadInputError
from svdflow.diffusion.model_directory import VideoModel
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.unet import build_video_unet
from svdflow.training.train.draws import Plan
from svdflow.training.train.objective import Objective
from svdflow.training.train.read_ahead import ReadAhead
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.signals import Asked
from tests.engine_runs import Setting, _NoAutoencoder, one_process
from tests.training_runs import UNET, make_autoencoder, make_samples
from tests.waiting import wait_for


def taken(reading: ReadAhead) -> list:
    found = []
    try:
        while True:
            found.append(reading.take())
    except StopIteration:
        return found
    finally:
        reading.close()


@pytest.mark.parametrize("readers", [0, 1, 5])
def test_what_was_asked_for_comes_in_order_to_its_end(readers):
    assert taken(ReadAhead(iter(range(40)), lambda n: n * n, readers)) == [n * n for n in range(40)]
    assert taken(ReadAhead(iter(()), lambda n: n, readers)) == []


def test_a_slow_reading_holds_up_neither_the_others_nor_the_order():
    second_is_done = threading.Event()

    def read(n: int) -> int:
        if n == 0:
            assert second_is_done.wait(120), "the second reader has not come to its turn"
        if n == 1:
            second_is_done.set()
        return n

    assert taken(ReadAhead(iter(range(6)), read, 2)) == list(range(6))


def test_no_more_is_read_ahead_than_two_for_each_reader():
    asked = []

    def ask():
        for n in range(100):
            asked.append(n)
            yield n

    reading = ReadAhead(ask(), lambda n: n, 3)
    assert asked == []
    for turn in range(1, 5):
        assert reading.take() == turn - 1
        assert len(asked) == turn + 6
    reading.close()


def test_an_error_comes_when_its_turn_comes_and_time_that_was_waited_is_counted():
    opened = threading.Event()

    def read(n: int) -> int:
        if n == 2:
            raise BadInputError("sample 2 is damaged")
        if n == 1:
            opened.wait(120)
        return n

    reading = ReadAhead(iter(range(5)), read, 2)
    assert reading.take() == 0
    before, taker = reading.waited_s, threading.get_ident()

    def open_while_it_waits() -> None:
        assert wait_for(lambda: "result" in {frame.name for frame in extract_stack(sys._current_frames()[taker])}, 120)
        time.sleep(0.2)
        opened.set()

    threading.Thread(target=open_while_it_waits).start()
    assert reading.take() == 1 and reading.waited_s - before > 0.1
    with pytest.raises(BadInputError, match="sample 2 is damaged"):
        reading.take()
    reading.close()


@pytest.mark.parametrize("kind", ["text_to_video", "image_to_video"])
def test_many_threads_read_the_bytes_that_one_reads(tmp_path, kind):
    setting = Setting(tmp_path)
    unet = build_video_unet(UNetSettings(**UNET), kind)
    objective = Objective(VideoModel(kind, unet, _NoAutoencoder()), setting.source, unet, torch.device("cpu"))
    plan = Plan(stage_settings("video", {"batch": 2, "processes": 1, "frames": None}), len(setting.source.rows))
    draws = [plan.micro_batch(step, 0, 0, 1) for step in range(60)]
    alone, together = (taken(ReadAhead(iter(draws), objective.read, readers)) for readers in (0, 16))
    for one, other in zip(alone, together, strict=True):
        assert one.draws == other.draws
        for a, b in zip(one.readings, other.readings, strict=True):
            np.testing.assert_array_equal(a.latents, b.latents)
            np.testing.assert_array_equal(a.context, b.context)
            assert (a.picture is None) == (kind == "text_to_video")
            if a.picture is not None:
                np.testing.assert_array_equal(a.picture, b.picture)
        for name in ("noises", "frame_noises"):
            for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
                assert (a is None and b is None) or np.array_equal(a, b)


def test_runs_with_and_without_readers_and_resumed_end_bit_identical(tmp_path):
    from svdflow.training.train.heartbeat import Heartbeat
    from svdflow.training.train.job import Job
    from svdflow.training.train.trainer import Trainer
    from tests.training_runs import settings_for

    root, samples = make_samples(tmp_path)
    autoencoder = make_autoencoder(tmp_path / "vae")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}

    def train(name: str, stop_at: int = 0, **values) -> dict:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        settings = settings_for(autoencoder, processes=1, zero_stage=1, accumulation=2, steps=4, **values)
        asked = Asked()
        job = Job("image", settings, samples, root.location, None, folder / "checkpoints", None, folder / "logs",
                  folder / "samples", folder / "model", {"init": None, "configuration": {}})  # fmt: skip
        run = Trainer(job, asked, Heartbeat(folder, 0))
        if stop_at:
            losses_of = run.objective.losses_of

            def stopping(batch):
                asked.to_stop = run.engine.step + 1 == stop_at
                return losses_of(batch)

            run.objective.losses_of = stopping
        return run.run()

    try:
        with one_process():
            plain = train("plain", readers=0)
            ahead = train("ahead", readers=3)
            assert train("stopped", stop_at=3, readers=3) is None
            resumed = train("stopped", readers=1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert resumed["resumed_from"] == 3
    assert plain["loss"] == ahead["loss"] == resumed["loss"]
    assert 0 < plain["waiting_share"] < 1 and 0 <= ahead["waiting_share"] < 1
    weights = [
        load_file(tmp_path / name / "model/unet/diffusion_pytorch_model.safetensors")
        for name in ("plain", "ahead", "stopped")
    ]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], value) for name, value in other.items())
