"""The held-out loss by noise level: the same mean over samples and noise, however many processes share the draws."""

import numpy as np
import pytest
import torch

from svdflow.training.train.draws import held_out_draws, held_out_sigmas
from svdflow.training.train.held_out import held_out_loss
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.signals import Interrupted


class Judge:
    """A loss that tells draws apart, and counts how often it is asked."""

    samples = 5

    def __init__(self) -> None:
        self.calls = 0

    def losses(self, draws):
        self.calls += 1
        return torch.tensor([draw.sigma + 10 * draw.row + 100 * draw.noise_key[1] for draw in draws])

    def blind_losses(self, draws):
        return 2 * self.losses(draws), 3 * self.losses(draws)


def settings_of(processes: int, **values):
    own = {"processes": processes, "batch": 2 * processes, "held_out_samples": 3, "held_out_levels": 3}
    return stage_settings("video", own | values)


@pytest.mark.parametrize("processes", [1, 2, 4, 5])
def test_every_level_is_the_mean_over_samples_and_noises_and_no_draw_counts_twice(processes, monkeypatch):
    settings, sums, judges = settings_of(processes), [], [Judge() for _ in range(processes)]
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: sums.append(tensor.clone()))
    with np.errstate(invalid="ignore"):  # a process's own share need not have draws of every level
        for rank, judge in enumerate(judges):
            held_out_loss(judge, settings, rank, processes)
    assert len({judge.calls for judge in judges}) == 1, "at ZeRO 3 a call takes all processes"
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.copy_(sum(sums)))
    found = held_out_loss(Judge(), settings, 0, processes)
    draws = held_out_draws(settings, Judge.samples)
    assert found["draws"] == len(draws) == 3 * 3 * 2 and found["sigmas"] == held_out_sigmas(settings)
    for level in range(3):
        expected = np.mean([float(Judge().losses([draw])) for at, draw in draws if at == level])
        told = [found[name][level] for name in ("loss", "zero_network", "zero_output")]
        assert told == pytest.approx([expected, 2 * expected, 3 * expected], rel=1e-5)
    assert found["mean"] == pytest.approx(np.mean(found["loss"]))


def test_without_held_out_samples_there_is_none_and_a_run_told_to_stop_breaks_off():
    assert held_out_loss(Judge(), settings_of(1, held_out_samples=0), 0, 1) is None
    judge = Judge()
    with pytest.raises(Interrupted):
        held_out_loss(judge, settings_of(1), 0, 1, lambda: judge.calls > 3)
    assert judge.calls < 9
