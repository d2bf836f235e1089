"""Settings of a preference study. Cheap to import."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...common.config import Settings

Category = Literal["quality", "prompt"]
QUESTIONS: dict[Category, str] = {  # the paper's two categories (App. E.1); the wording is ours
    "quality": "Which video looks better?",
    "prompt": "Which video shows better what the text says?",
}
TITLES: dict[Category, str] = {"quality": "visual quality", "prompt": "prompt following"}


class StudySettings(Settings):
    """What is asked, how often, and whose votes count. [P] is the SVD paper, App. E.1."""

    categories: tuple[Category, ...] = Field(("quality", "prompt"), min_length=1)  # [P]
    votes_per_task: int = Field(3, ge=1, le=1000)  # [P], on average; here of different raters
    seed: int = 0  # of the pairs' order and sides, and of Elo's orders
    check_share: float = Field(0.05, ge=0, le=0.5)  # ours: of what a rater is shown, attention checks
    checks_passed: float = Field(0.8, ge=0, le=1)  # ours: a rater below it has no vote
    reserved_s: float = Field(600.0, gt=0)  # ours: how long a task waits for the rater it was shown to
    max_votes_per_rater: int | None = Field(None, ge=1)  # ours
    elo_k: float = Field(1.0, gt=0)  # [P]
    elo_start: float = 1000.0  # [P]
    elo_orders: int = Field(1000, ge=1, le=100_000)  # [P]
