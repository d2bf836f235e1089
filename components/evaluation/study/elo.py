"""Elo ratings of models from votes on pairs, as the SVD paper has them (App. E.1)."""

from __future__ import annotations

import numpy as np

_BYTES = 1 << 27  # of orders held at a time


def elo_ratings(
    winners_G: np.ndarray,
    losers_G: np.ndarray,
    players: int,
    *,
    k: float = 1.0,
    start: float = 1000.0,
    shuffles: int = 1000,
    seed: int = 0,
    resample: bool = False,
) -> np.ndarray:
    """Ratings after all games, once for each of many orders of the games.

    A player expects ``1 / (1 + 10 ** ((other - own) / 400))`` of a game and gains ``k`` times what it got beyond that;
    the last rating depends on the order, so it is taken over many. Their mean over the orders is the paper's rating.

    Args:
        winners_G: int, the winner of each of G games.
        losers_G: int, the loser.
        players: how many there are; those who never play keep ``start``.
        k: points that a surprise is worth; 1 in the paper.
        start: everybody's first rating; 1000 in the paper.
        shuffles: orders; 1000 in the paper.
        seed: of the orders.
        resample: draw the games with replacement for each order: then the spread of the ratings is that of other
            votes by the same raters, and not of other orders alone.

    Returns:
        float64 [shuffles, players].
    """
    games = len(winners_G)
    ratings_SP = np.full((shuffles, players), start, np.float64)
    generator = np.random.default_rng(seed)
    at_once = max(1, _BYTES // max(1, 8 * games))
    for begin in range(0, shuffles, at_once):
        part_SP = ratings_SP[begin : begin + at_once]
        rows = np.arange(len(part_SP))
        if resample:
            order_SG = (
                generator.integers(0, games, (len(part_SP), games)) if games else np.zeros((len(part_SP), 0), int)
            )
        else:
            order_SG = generator.permuted(np.tile(np.arange(games), (len(part_SP), 1)), axis=1)
        for game_S in order_SG.T:
            winner_S, loser_S = winners_G[game_S], losers_G[game_S]
            expected_S = 1 / (1 + 10 ** ((part_SP[rows, loser_S] - part_SP[rows, winner_S]) / 400))
            gain_S = k * (1 - expected_S)
            part_SP[rows, winner_S] += gain_S
            part_SP[rows, loser_S] -= gain_S
    return ratings_SP


def wins(winners_G: np.ndarray, losers_G: np.ndarray, players: int) -> np.ndarray:
    """How often each player beat each other one: int64 [winner, loser]."""
    table = np.zeros((players, players), np.int64)
    np.add.at(table, (winners_G, losers_G), 1)
    return table
