"""Work on many independent units over N workers: a unit that crashes, hangs or eats memory costs itself alone.

``map_units`` is what steps call. Where the units are worked on is an ``Executor``'s business: ``LocalProcesses`` is
this machine, ``fanout_jobs.IndexedJobs`` the pods of a cluster. ``function`` and the units must be picklable
(module-level functions, plain values), for pods also marked ``in_pods`` and annotated.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .errors import StorageError, SvdflowError
from .processes import die_with_parent
from .progress import Progress

if TYPE_CHECKING:
    from .storage import DataRoot

UnitT = TypeVar("UnitT")
ValueT = TypeVar("ValueT")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

IN_PODS = "__svdflow_in_pods__"  # attribute of functions that pods may be asked to call
_POLL_S = 0.2
_START_S = 300.0  # a worker may take to start: an interpreter and its libraries, on a busy machine
_MEMORY_POLL_S = 0.05  # a process fills some 100 MB in this time
_MEMORY_SHARE = 0.8  # of this machine, for all workers together
# One thread a worker: the work is spread over processes already, and sums over threads differ in the last bits, so that
# a resumed run (other numbers of units, hence of workers) would not give the bytes of an undisturbed one.
_THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Outcome(Generic[UnitT, ValueT]):
    """What became of one unit: a value, or the reason why there is none.

    ``seconds`` is how long the last try took.
    """

    unit: UnitT
    value: ValueT | None
    error: str | None
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.error is None


@dataclass(frozen=True)
class Limits:
    """What one unit may cost before it is stopped and, when that repeats, set aside."""

    timeout_s: float = 600.0
    memory_bytes: int | None = None  # private memory of one worker; an equal share of the machine when None
    tries: int = 2  # of a unit that crashed, hung or ran out of memory


class Executor(Protocol):
    """A place where units are worked on: every unit comes back in exactly one outcome, in no order."""

    def run(
        self, function: Callable[[UnitT], ValueT], units: Sequence[UnitT], workers: int | None, limits: Limits
    ) -> Iterator[Outcome[UnitT, ValueT]]:
        """See ``map_units``; closing the iterator ends all work."""
        ...


def in_pods(function: FunctionT) -> FunctionT:
    """Mark a module-level function as one that the pods of a fan-out may call; argument and result are annotated."""
    setattr(function, IN_PODS, True)
    return function


def chosen_executor(
    root: DataRoot,
    what: str,
    key: str,
    together: Callable[..., Any] | None = None,
    cost: Callable[[Any], float] | None = None,
) -> Executor:
    """Where the environment wants units to be worked on: here, or with ``SVDFLOW_FANOUT`` in pods of a cluster.

    Args:
        root: through it pods get units and give outcomes.
        what: kind of work, for names: "split".
        key: identity of all inputs of the step, the same however much of its work is done already.
        together: see ``fanout_jobs.IndexedJobs``.
        cost: see ``LocalProcesses``; pods take even parts of the units.

    Raises:
        ConfigError: SVDFLOW_FANOUT cannot be used.
    """
    if not os.environ.get("SVDFLOW_FANOUT", "").strip():
        return LocalProcesses(cost)
    from .fanout_jobs import IndexedJobs

    return IndexedJobs(root, what, key, together=together)


def default_workers() -> int:
    """Processes to use on this machine: the cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_units(
    function: Callable[[UnitT], ValueT],
    units: Sequence[UnitT],
    what: str,
    workers: int | None = None,
    timeout_s: float = Limits.timeout_s,
    tries: int = Limits.tries,
    memory_bytes: int | None = Limits.memory_bytes,
    executor: Executor | None = None,
) -> Iterator[Outcome[UnitT, ValueT]]:
    """Apply ``function`` to each unit in workers; outcomes come as they are ready, in no order.

    Args:
        function: raises SvdflowError for a unit that cannot be used (not tried again); anything else is a fault.
        units: the work, handed out one at a time.
        what: what a unit is, for the progress display.
        workers: how many at once; all cores by default.
        timeout_s: a unit that takes longer is stopped.
        tries: how often a unit that crashed, hung or ran out of memory is tried before it is given up.
        memory_bytes: a worker whose private memory grows above this is stopped; an equal share of the machine by
            default.
        executor: where the work is done; processes on this machine by default.

    Raises:
        StorageError: a unit met one: a full disk or an absent store is no fault of a unit, and ends the work.
    """
    if not units:
        return
    with Progress(what, len(units)) as progress:
        for outcome in (executor or LocalProcesses()).run(
            function, units, workers, Limits(timeout_s, memory_bytes, tries)
        ):
            progress.advance()
            yield outcome


class LocalProcesses:
    """An Executor: processes on this machine, each with one unit at a time and one thread for its numerics.

    Args:
        cost: of a unit, in any measure: the dearest are begun first, so that none of them is worked on alone at the
            end. Without it units are taken in their order.
    """

    def __init__(self, cost: Callable[[Any], float] | None = None) -> None:
        self._cost = cost

    def run(
        self, function: Callable[[UnitT], ValueT], units: Sequence[UnitT], workers: int | None, limits: Limits
    ) -> Iterator[Outcome[UnitT, ValueT]]:
        """See ``Executor``."""
        workers = max(1, min(workers or default_workers(), len(units)))
        memory_bytes = limits.memory_bytes or int(_MEMORY_SHARE * machine_memory_bytes() / workers)
        cost = self._cost
        order = range(len(units)) if cost is None else sorted(range(len(units)), key=lambda at: -cost(units[at]))
        queue = deque((index, 1) for index in order)
        idle: list[_Worker] = []
        busy: list[_Worker] = []
        done: deque[Outcome[UnitT, ValueT]] = deque()
        with _memory_watched(busy, memory_bytes):
            try:
                while True:
                    while queue and len(busy) < workers:  # before an outcome is handed on: nobody waits for the caller
                        worker = idle.pop() if idle else _Worker(function)
                        worker.start(*queue.popleft(), units)
                        busy.append(worker)
                    if done:
                        yield done.popleft()
                    elif not busy:
                        return
                    ready = wait([worker.pipe for worker in busy], timeout=0 if done else _POLL_S)
                    for worker in list(busy):
                        if worker.says_it_has_started() or (worker.pipe not in ready and not worker.late(limits)):
                            continue
                        busy.remove(worker)
                        outcome, healthy = worker.collect(units, limits.timeout_s, memory_bytes)
                        if healthy:
                            idle.append(worker)
                        if healthy or worker.attempt >= limits.tries:
                            done.append(outcome)
                        else:
                            queue.append((worker.unit, worker.attempt + 1))
            finally:
                for worker in [*idle, *busy]:
                    worker.stop()


def machine_memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less where a control group says so."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(place).read_text()))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return total


def private_memory_bytes(pid: int) -> int:
    """Memory of a process that no file backs; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return sum(int(line.split()[1]) << 10 for line in status if line.startswith(("RssAnon", "RssShmem")))
    except (OSError, ValueError, IndexError):
        return 0


class _Worker:
    unit = -1  # index of the unit at work, or of the last one
    attempt = 0
    started_at = 0.0
    ready = False
    over_memory = False

    def __init__(self, function: Callable[..., Any]) -> None:
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # Packed, so that the worker has its variables before it imports the function's libraries. Set here for the time
        # of the start they would be moved under the feet of other threads, whose new processes read them (EFAULT).
        packed = bytes(ForkingPickler.dumps(function))
        self.process = context.Process(target=_serve, args=(theirs, packed), daemon=True)
        self.process.start()
        theirs.close()

    def start(self, index: int, attempt: int, units: Sequence[Any]) -> None:
        self.unit, self.attempt, self.started_at = index, attempt, time.monotonic()
        try:
            self.pipe.send(units[index])
        except OSError:
            pass  # the worker is gone: collect() says so

    def says_it_has_started(self) -> bool:
        """Its first message, once: until then a unit's time does not run."""
        if self.ready or not self.pipe.poll():
            return False
        try:
            self.pipe.recv()
        except (EOFError, OSError):
            return False  # it is gone: collect() says so
        self.ready, self.started_at = True, time.monotonic()
        return True

    def late(self, limits: Limits) -> bool:
        return time.monotonic() - self.started_at > limits.timeout_s + (0 if self.ready else _START_S)

    def collect(self, units: Sequence[Any], timeout_s: float, memory_bytes: int) -> tuple[Outcome, bool]:
        """The outcome of the unit at work, and whether the worker can take another."""
        unit, seconds = units[self.unit], time.monotonic() - self.started_at
        if not self.pipe.poll():
            self.stop()
            return Outcome(unit, None, f"took longer than {timeout_s:g} s and was stopped", seconds), False
        try:
            value, error, seconds = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            self.stop()
            why = f"its worker process died (exit code {self.process.exitcode})"
            if self.over_memory:
                why = f"took more than {memory_bytes / 1e6:,.0f} MB of memory and was stopped"
            return Outcome(unit, None, why, seconds), False
        if isinstance(error, StorageError):
            raise error
        return Outcome(unit, value, error, seconds), True

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@contextmanager
def _memory_watched(busy: list[_Worker], memory_bytes: int) -> Iterator[None]:
    """Kill workers that take too much, also while the caller is busy with an outcome."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_MEMORY_POLL_S):
            for worker in list(busy):
                if private_memory_bytes(worker.process.pid or 0) > memory_bytes:
                    worker.over_memory = True
                    worker.process.kill()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _serve(pipe: Connection, packed: bytes) -> None:
    die_with_parent()
    _be_killed_first()
    for name, threads in _THREADS.items():
        os.environ.setdefault(name, threads)
    function: Callable[[Any], Any] = ForkingPickler.loads(packed)
    pipe.send("started")
    while True:
        try:
            unit = pipe.recv()
        except EOFError:
            return
        started = time.monotonic()
        value: Any = None
        error: StorageError | str | None = None
        try:
            value = function(unit)
        except StorageError as raised:  # says nothing of the unit: the work cannot go on
            error = raised
        except SvdflowError as raised:
            error = str(raised)
        except Exception as raised:  # a fault of ours: the unit is set aside with the place it happened
            error = _fault(raised)
        seconds = time.monotonic() - started
        try:
            pipe.send((value, error, seconds))
        except (TypeError, AttributeError, ValueError) as raised:  # a value that cannot be sent
            pipe.send((None, _fault(raised), seconds))


def _fault(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno})"


def _be_killed_first() -> None:
    """When the whole machine runs out of memory, the kernel shall end a worker: it costs one unit."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass
