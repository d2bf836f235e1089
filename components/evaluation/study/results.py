"""What a study found: ratings by category and together, who beat whom, and whether raters can be believed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ...common.errors import BadInputError
from ...common.report import StepReport, curves, table, videos
from .elo import elo_ratings, wins
from .settings import QUESTIONS, TITLES, Category
from .study import Study, Task, percentages
from .votes import CHECK, Vote, is_trusted, read_votes

# Ours: how much each category weighs where one percentage is chosen by both. The paper says of motion and aesthetics
# that quality mattered more, and took the filter that was best on average for the others (App. E.2.2).
WEIGHTS: dict[str | None, dict[Category, float]] = {
    "motion": {"quality": 0.75, "prompt": 0.25},
    "aesthetic": {"quality": 0.75, "prompt": 0.25},
}
EVEN: dict[Category, float] = {"quality": 0.5, "prompt": 0.5}
_SHOWN = 3  # items with their videos on the page
_TAIL = 2.5  # per cent, on both sides of an interval


@dataclass(frozen=True)
class Counted:
    """The votes that count, and what was seen of every rater."""

    votes: dict[Category, list[tuple[Task, Vote]]]
    raters: dict[str, dict[str, Any]]
    complete: bool  # every task has its votes
    tasks: int
    voted: int  # tasks with all their votes


def count_votes(study: Study) -> Counted:
    """Sort a study's votes: attention checks, raters who failed them, answers of the others."""
    tasks = {task.name: task for task in study.tasks()}
    votes: dict[Category, list[tuple[Task, Vote]]] = {category: [] for category in study.settings.categories}
    of_rater: dict[str, list[Vote]] = defaultdict(list)
    for vote in read_votes(study.votes):
        of_rater[vote.rater].append(vote)
    raters = {}
    per_task: Counter[str] = Counter()
    for rater, given in of_rater.items():
        checks = [vote.chosen == 0 for vote in given if vote.task.startswith(CHECK)]
        answers = [vote for vote in given if vote.task in tasks]
        counts = is_trusted(checks, study.settings.checks_passed)
        raters[rater] = {
            "votes": len(answers), "checks": len(checks), "checks_passed": sum(checks), "counted": counts,
            "median_s": median([vote.took_s for vote in given]),
        }  # fmt: skip
        for vote in answers if counts else ():
            task = tasks[vote.task]
            votes[task.category].append((task, vote))
            per_task[vote.task] += 1
    voted = sum(per_task[name] >= study.settings.votes_per_task for name in tasks)
    return Counted(votes, raters, voted == len(tasks), len(tasks), voted)


def study_results(study: Study, weights: Mapping[Category, float] | None = None) -> dict[str, Any]:
    """All figures, as plain values for JSON.

    Args:
        study: with its votes.
        weights: of the categories in the rating of both together; by default those of the study's filter axis.

    Raises:
        BadInputError: there is no vote that counts, or a weight is of no category of the study.
    """
    counted = count_votes(study)
    if not any(counted.votes.values()):
        raise BadInputError(f"{study.folder}: no vote that counts so far; `svdflow study serve` takes them")
    shares = _shares(study, weights)
    categories: dict[str, Any] = {}
    means, others = {}, {}
    for category, votes in counted.votes.items():
        pairs = [(vote.chosen, vote.rejected) for _, vote in votes]
        winners_G, losers_G = np.array(pairs, int).reshape(-1, 2).T
        means[category], others[category] = _ratings(study, winners_G, losers_G)
        categories[category] = {
            "votes": len(votes),
            "elo": _by_name(study, means[category]),
            "elo_95": _intervals(study, others[category]),
            "wins": wins(winners_G, losers_G, len(study.contestants)).tolist(),
            "left_chosen": _share([vote.chosen == vote.left for _, vote in votes]),
            "agreement": _agreement(votes),
        }
    together = np.sum([shares[c] * means[c] for c in shares], axis=0)
    spread = np.sum([shares[c] * others[c] for c in shares], axis=0)
    return {
        "format": 1,
        "contestants": list(study.contestants),
        "filter_axis": study.filter_axis,
        "tasks": counted.tasks,
        "tasks_with_all_votes": counted.voted,
        "complete": counted.complete,
        "categories": categories,
        "weights": dict(shares),
        "together": {
            "elo": _by_name(study, together),
            "elo_95": _intervals(study, spread),
            "share_above": (spread[:, :, None] > spread[:, None, :]).mean(axis=0).round(4).tolist(),
        },
        "raters": counted.raters,
        "settings": study.settings.model_dump(mode="json"),
    }


def choose_percentage(
    study: Study, weights: Mapping[Category, float] | None = None
) -> tuple[float, str, dict[str, Any]]:
    """The percentage to drop on the study's axis: the one with the best rating of both categories together.

    Returns:
        The percentage; how sure that is, in a sentence; and the results it was taken from.

    Raises:
        BadInputError: the study is of no filter, or lacks votes.
    """
    if study.filter_axis is None:
        raise BadInputError(
            f"{study.folder}: compares {', '.join(study.contestants)}, not percentages of a filter; "
            "such a study is made with --filter AXIS"
        )
    results = study_results(study, weights)
    if not results["complete"]:
        raise BadInputError(
            f"{study.folder}: {results['tasks_with_all_votes']} of {results['tasks']} questions have all their votes; "
            "take the others first"
        )
    percents = dict(zip(study.contestants, percentages(list(study.contestants)), strict=True))
    elo = results["together"]["elo"]
    order = sorted(study.contestants, key=lambda name: (-elo[name], percents[name]))
    best, second = (study.contestants.index(name) for name in order[:2])
    share = results["together"]["share_above"][best][second]
    sure = f"above {order[1]} in {100 * share:.1f} % of the votes' redraws"
    if share < 1 - _TAIL / 100:
        sure += ", which does not tell the two apart"
    return percents[order[0]], sure, results


def study_report(study: Study, results: Mapping[str, Any]) -> StepReport:
    """The results as a page shows them."""
    counted = sum(category["votes"] for category in results["categories"].values())
    report = StepReport("study", "Preference study", done=counted)
    compared = [item for item in study.items if not item.forgotten]
    report.counts = {
        "sets of videos": len(study.contestants), "prompts": len(compared), "questions": results["tasks"],
        "with all their votes": results["tasks_with_all_votes"], "votes that count": counted,
        "raters": len(results["raters"]),
    }  # fmt: skip
    shown = {TITLES[c]: results["categories"][c] for c in study.settings.categories}
    if len(shown) > 1:
        weights = ", ".join(f"{TITLES[c]} {w:g}" for c, w in results["weights"].items())
        shown[f"together ({weights})"] = results["together"]
    order = sorted(study.contestants, key=lambda name: -results["together"]["elo"][name])
    report.sections.append(table(
        "Elo", ["set", *shown],
        [[name, *[_with_interval(found, name) for found in shown.values()]] for name in order],
        note=f"K = {study.settings.elo_k:g}, mean of {study.settings.elo_orders} orders of the votes; in brackets "
        "where 95 % of the ratings lie when votes are drawn anew. With K = 1 and few votes all stay near the "
        "start: compare them with one another only.",
    ))  # fmt: skip
    if study.filter_axis:
        percents = percentages(list(study.contestants))
        at, start = np.argsort(percents), study.settings.elo_start
        series = {
            title: ([percents[n] for n in at], [found["elo"][study.contestants[n]] - start for n in at])
            for title, found in shown.items()
        }
        report.sections.append(
            curves(f"What dropping on {study.filter_axis} is worth", series, "% dropped", f"Elo − {start:g}")
        )
    for category in study.settings.categories:
        found = results["categories"][category]
        rows = [[name, *found["wins"][n]] for n, name in enumerate(study.contestants)]
        note = (
            f"“{QUESTIONS[category]}” {found['votes']} votes; the left video was taken in "
            f"{_percent(found['left_chosen'])}; of two raters of the same pair {_percent(found['agreement'])} agree."
        )
        title = f"Who beat whom: {TITLES[category]}"
        report.sections.append(table(title, ["set", *[f"over {n}" for n in study.contestants]], rows, note=note))
    for item in compared[:_SHOWN]:
        panels: list[tuple[Path | bytes, str]] = [
            (study.video(digest), name) for name, digest in zip(study.contestants, item.videos, strict=True)
        ]
        report.sections.append(videos(f"{item.name}: {item.text}" if item.text else item.name, panels, height_px=160))
    raters = [
        [rater[:8], r["votes"], f"{r['checks_passed']} of {r['checks']}", f"{r['median_s']:.1f} s",
         "yes" if r["counted"] else "no"]
        for rater, r in sorted(results["raters"].items(), key=lambda pair: -pair[1]["votes"])[:200]
    ]  # fmt: skip
    note = (
        f"A vote counts when its rater passed {_percent(study.settings.checks_passed)} of the attention checks or more."
    )
    report.sections.append(table("Raters", ["rater", "votes", "checks passed", "median time", "counted"], raters, note))
    return report


def _shares(study: Study, weights: Mapping[Category, float] | None) -> dict[Category, float]:
    asked = dict(weights) if weights else WEIGHTS.get(study.filter_axis, EVEN)
    if weights and (strangers := sorted(set(weights) - set(study.settings.categories))):
        raise BadInputError(
            f"{', '.join(strangers)}: no category of this study ({', '.join(study.settings.categories)})"
        )
    given = {category: asked.get(category, 0.0) for category in study.settings.categories}
    whole = sum(given.values())
    if min(given.values()) < 0 or not 0 < whole < math.inf:
        raise BadInputError(f"weights {given}: none may be below 0, and one must be above")
    return {category: value / whole for category, value in given.items()}


def _ratings(study: Study, winners_G: np.ndarray, losers_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rating of each contestant, and what it would be with other votes: float64 [P] and [orders, P]."""
    s, players = study.settings, len(study.contestants)
    how: dict[str, Any] = {"k": s.elo_k, "start": s.elo_start, "shuffles": s.elo_orders, "seed": s.seed}
    mean_P = elo_ratings(winners_G, losers_G, players, **how).mean(axis=0)
    return mean_P, elo_ratings(winners_G, losers_G, players, **how, resample=True)


def _by_name(study: Study, values_P: np.ndarray) -> dict[str, float]:
    return {name: round(float(value), 3) for name, value in zip(study.contestants, values_P, strict=True)}


def _intervals(study: Study, ratings_SP: np.ndarray) -> dict[str, list[float]]:
    low_P, high_P = np.percentile(ratings_SP, [_TAIL, 100 - _TAIL], axis=0)
    both = zip(study.contestants, low_P, high_P, strict=True)
    return {name: [round(float(low), 3), round(float(high), 3)] for name, low, high in both}


def _agreement(votes: Sequence[tuple[Task, Vote]]) -> float | None:
    """Of all pairs of raters who answered the same question, the share that answered alike."""
    answers: dict[str, Counter[int]] = defaultdict(Counter)
    for _, vote in votes:
        answers[vote.task][vote.chosen] += 1
    alike = sum(math.comb(n, 2) for found in answers.values() for n in found.values())
    pairs = sum(math.comb(found.total(), 2) for found in answers.values())
    return round(alike / pairs, 4) if pairs else None


def _share(answers: Sequence[bool]) -> float | None:
    return round(sum(answers) / len(answers), 4) if answers else None


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _with_interval(found: Mapping[str, Any], name: str) -> str:
    low, high = found["elo_95"][name]
    return f"{found['elo'][name]:.1f} [{low:.1f}, {high:.1f}]"
