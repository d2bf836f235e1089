"""Elo ratings against what follows from their definition."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdflow.evaluation.study import elo
from svdflow.evaluation.study.elo import elo_ratings, wins

GAMES = st.lists(st.permutations(range(4)).map(lambda order: order[:2]), max_size=12)


def arrays(games):
    return np.array(games, int).reshape(-1, 2).T


def one_after_another(games, players, k=1.0):
    rating = [1000.0] * players
    for winner, loser in games:
        gain = k * (1 - 1 / (1 + 10 ** ((rating[loser] - rating[winner]) / 400)))
        rating[winner] += gain
        rating[loser] -= gain
    return rating


def test_one_vote_between_equals_is_half_a_point():
    assert elo_ratings(*arrays([(1, 0)]), 3, shuffles=5).tolist() == [[999.5, 1000.5, 1000.0]] * 5


def test_it_is_the_mean_over_all_orders_of_the_games():
    games = [(0, 1), (1, 2), (0, 2), (2, 0), (0, 1)]
    all_orders = np.array([one_after_another(order, 3, k=60) for order in permutations(games)])
    found = elo_ratings(*arrays(games), 3, k=60, shuffles=20_000)
    error = 4 * all_orders.std(axis=0) / np.sqrt(20_000)
    assert (np.abs(found.mean(axis=0) - all_orders.mean(axis=0)) < error).all()
    assert {tuple(row) for row in found.round(6)} == {tuple(row) for row in all_orders.round(6)}


@given(GAMES)
def test_points_only_change_hands_and_lost_votes_are_won_ones_mirrored(games):
    winners, losers = arrays(games)
    found = elo_ratings(winners, losers, 4, k=20, shuffles=30)
    assert np.allclose(found.sum(axis=1), 4000)
    assert np.allclose(elo_ratings(losers, winners, 4, k=20, shuffles=30), 2000 - found)


def test_with_many_votes_the_distance_is_that_of_the_share_won():
    winners = (np.arange(40_000) % 4 == 0).astype(int)  # player 0 wins three of four
    low, high = elo_ratings(winners, 1 - winners, 2, k=2, shuffles=16).mean(axis=0)[::-1]
    assert high - low == pytest.approx(400 * np.log10(3), abs=5)


@pytest.mark.parametrize("resample", [False, True])
def test_how_many_orders_are_held_at_a_time_changes_nothing(monkeypatch, resample):
    games = arrays([(0, 1), (1, 2), (0, 2), (2, 1)] * 5)
    whole = elo_ratings(*games, 3, shuffles=50, seed=3, resample=resample)
    monkeypatch.setattr(elo, "_BYTES", 7 * 8 * 20)
    assert (elo_ratings(*games, 3, shuffles=50, seed=3, resample=resample) == whole).all()


@given(GAMES)
def test_wins_are_counted_for_each_pair(games):
    table = wins(*arrays(games), 4)
    assert table.sum() == len(games)
    assert all(table[winner, loser] == games.count([winner, loser]) for winner, loser in games)
