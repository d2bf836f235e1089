"""Who is shown what next, and which answers count. Holds a study's open votes; one process may."""

from __future__ import annotations

import json
import random
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .study import Study, Task
from .votes import CHECK, Vote, VoteLog, is_trusted, now, read_votes


@dataclass(frozen=True)
class Showing:
    """A page: two videos and a question. ``ticket`` comes back with the answer, and nobody can make one up."""

    ticket: str
    category: str
    text: str | None
    left: str  # sha256 of the video
    right: str


class Ballots:
    """The open votes of a study.

    A ticket holds, sealed, what was shown to whom, so that nothing of it need be remembered: an answer counts after a
    restart as well, and no page tells which contestants it shows. What is remembered is only which tasks wait for an
    answer, and for how long.

    Args:
        study: what is voted on.
        log: where votes go.
        chance: draws tasks, sides and checks.
        clock: s, for reservations.
    """

    def __init__(
        self,
        study: Study,
        log: VoteLog,
        chance: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from cryptography.fernet import Fernet

        self.study, self.settings, self.log = study, study.settings, log
        self.tasks = {task.name: task for task in study.tasks()}
        self._chance, self._clock, self._key = chance or random.SystemRandom(), clock, Fernet(study.secret())
        self._lock = threading.Lock()
        self._raters: dict[str, list[str]] = {name: [] for name in self.tasks}  # who has answered
        self._passed: dict[str, list[bool]] = defaultdict(list)  # a rater's attention checks
        self._answered: dict[str, set[str]] = defaultdict(set)  # rater to names of tasks and checks
        self._reserved: dict[str, dict[str, float]] = defaultdict(dict)  # task to rater to when it ends
        self._shown: dict[str, tuple[str, Showing]] = {}  # rater to what waits for the answer
        for vote in read_votes(study.votes):
            self._note(vote)

    def admit(self) -> str:
        """A pass for a new rater, which nobody can make up."""
        return self._seal({"rater": secrets.token_hex(12)})

    def rater_of(self, admission: str) -> str | None:
        """Whose pass it is; None where it is none."""
        told = self._read(admission)
        return told["rater"] if told is not None and set(told) == {"rater"} else None

    def next_for(self, rater: str) -> Showing | None:
        """What a rater is shown next; the same again until it is answered. None when there is nothing left."""
        with self._lock:
            waiting = self._shown.get(rater)
            if waiting and (self._is_check(waiting[0]) or self._reserved[waiting[0]].get(rater, 0) > self._clock()):
                return waiting[1]
            name = self._choose(rater)
            if name is None:
                self._shown.pop(rater, None)
                return None
            if not self._is_check(name):
                self._reserved[name][rater] = self._clock() + self.settings.reserved_s
            showing = self._show(name, rater)
            self._shown[rater] = (name, showing)
            return showing

    def cast(self, rater: str, ticket: str, side: str) -> bool:
        """Take an answer; False where it is none: another's ticket, a second answer, an unknown side.

        Raises:
            StorageError: the vote cannot be written; it was not taken.
        """
        read = self._read(ticket)
        if read is None or "task" not in read or read["rater"] != rater or side not in ("left", "right"):
            return False
        with self._lock:
            name = read["task"]
            if name in self._answered[rater] or not (self._is_check(name) or name in self.tasks):
                return False
            at = now()
            took_s = round(max(0.0, at - read["at"]), 3)
            vote = Vote(name, read["left"], read["right"], read[side], rater, at, took_s)
            self.log.append(vote)
            self._note(vote)
            self._reserved[name].pop(rater, None)
            if self._shown.get(rater, ("",))[0] == name:
                del self._shown[rater]
            return True

    def given_by(self, rater: str) -> int:
        """How many answers a rater has given."""
        return len(self._answered.get(rater, ()))

    def is_waited_for(self, rater: str) -> bool:
        """Whether questions that this rater could answer are with others at the moment, who may not come back."""
        wanted, answered = self.settings.votes_per_task, self._answered.get(rater, set())
        most = self.settings.max_votes_per_rater
        return (most is None or len(answered) < most) and any(
            name not in answered and self._votes(name) < wanted for name in self.tasks
        )

    def state(self) -> tuple[int, int]:
        """Votes there are, of those that are wanted."""
        wanted = self.settings.votes_per_task
        return sum(min(self._votes(name), wanted) for name in self.tasks), wanted * len(self.tasks)

    # what is next

    def _choose(self, rater: str) -> str | None:
        answered, most = self._answered[rater], self.settings.max_votes_per_rater
        if most is not None and len(answered) >= most:
            return None
        open_ = [name for name in self.tasks if name not in answered and self._open(name)]
        if not open_:
            return None
        checks = [
            name
            for n, check in enumerate(self.study.checks)
            if not check.forgotten and (name := f"{CHECK}{n}") not in answered
        ]
        if checks and self._chance.random() < self.settings.check_share:
            return self._chance.choice(checks)
        return self._chance.choice(open_)

    def _open(self, name: str) -> bool:
        """Whether a task wants more votes than it has and than are being given."""
        reserved, wanted = self._reserved.get(name), self.settings.votes_per_task - self._votes(name)
        if reserved and wanted > 0:
            at = self._clock()
            for rater in [rater for rater, until in reserved.items() if until <= at]:
                del reserved[rater]
            wanted -= len(reserved)
        return wanted > 0

    def _votes(self, name: str) -> int:
        """How many votes of a task count as things stand."""
        share = self.settings.checks_passed
        return sum(is_trusted(self._passed.get(rater, []), share) for rater in self._raters[name])

    def _note(self, vote: Vote) -> None:
        self._answered[vote.rater].add(vote.task)
        if self._is_check(vote.task):
            self._passed[vote.rater].append(vote.chosen == 0)
        elif vote.task in self._raters:
            self._raters[vote.task].append(vote.rater)

    @staticmethod
    def _is_check(name: str) -> bool:
        return name.startswith(CHECK)

    # what is shown

    def _show(self, name: str, rater: str) -> Showing:
        category, text, sides = self._sides(name)
        left, right = self._chance.sample([0, 1], 2)
        told = {"task": name, "rater": rater, "left": sides[left][0], "right": sides[right][0], "at": now()}
        return Showing(self._seal(told), category, text, sides[left][1], sides[right][1])

    def _sides(self, name: str) -> tuple[str, str | None, list[tuple[int, str]]]:
        """Category, text, and number and video of both."""
        if self._is_check(name):
            check = self.study.checks[int(name.removeprefix(CHECK))]
            return "quality", None, [(0, check.good), (1, check.ruined)]
        task: Task = self.tasks[name]
        item = self.study.items[task.item]
        text = item.text if task.category == "prompt" else None
        return task.category, text, [(n, item.videos[n]) for n in (task.first, task.second)]

    def _seal(self, told: dict[str, object]) -> str:
        return (
            self._key.encrypt(json.dumps(told, separators=(",", ":")).encode()).decode().rstrip("=")
        )  # as cookies like it

    def _read(self, ticket: str) -> dict[str, Any] | None:
        from cryptography.fernet import InvalidToken

        try:
            return json.loads(self._key.decrypt(ticket.encode() + b"=" * (-len(ticket) % 4)))
        except InvalidToken:
            return None
