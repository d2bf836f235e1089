"""Tiny videos for a preference study, and raters who answer it without a browser."""

import random
from itertools import count
from pathlib import Path

import numpy as np

from svdflow.common.video import encode_mp4
from svdflow.evaluation.study.ballots import Ballots
from svdflow.evaluation.study.study import Study
from svdflow.evaluation.study.votes import VoteLog


def a_video(path: Path, brightness: int, frames: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.arange(33, dtype=np.uint8)[None, None, :, None]
    path.write_bytes(encode_mp4(np.broadcast_to(ramp + brightness, (frames, 16, 33, 3))[:, :, :32], 8))


def ballots(study: Study, seed: int = 0, clock=lambda: 0.0) -> Ballots:
    return Ballots(study, VoteLog(study.votes), random.Random(seed), clock)


def asked(held: Ballots, showing) -> dict:
    return held._read(showing.ticket)


def vote_all(held: Ballots, rater: str, takes) -> int:
    """A rater answers until there is nothing left; ``takes`` chooses of (left, right), True for left."""
    for given_ in count():
        showing = held.next_for(rater)
        if showing is None:
            return given_
        told = asked(held, showing)
        side = "left" if takes(told["task"], told["left"], told["right"]) else "right"
        assert held.cast(rater, showing.ticket, side)
    raise AssertionError


def lower_wins(task: str, left: int, right: int) -> bool:
    return left < right
