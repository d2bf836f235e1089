"""Node 0's log, as it is written: to the step's output and to a file, once each line, through broken connections."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ....common.cluster.api import Cluster
from ....common.cluster.errors import Broken, ClusterError, NotThere
from ....common.cluster.kinds import PODS

_SILENCE_S = 300.0  # a step of a large model may say nothing for minutes
_MAX_PRINTED = 4000  # characters of a line
_PAUSE_S = 0.5


class LogFollower:
    """Follows one pod after another. Nothing that goes wrong here ends the training.

    Args:
        cluster: a connection.
        path: the file, begun anew.
        container: of the pods.
        echo: takes each line.
        silence_s: without a line for so long, the connection is made anew.
    """

    def __init__(
        self,
        cluster: Cluster,
        path: Path,
        container: str = "node",
        echo: Callable[[str], None] = lambda line: print(line, flush=True),
        silence_s: float = _SILENCE_S,
    ) -> None:
        self.cluster, self.path, self.container, self.echo, self.silence_s = cluster, path, container, echo, silence_s
        self._file: BinaryIO = open(path, "wb")
        self._threads: list[threading.Thread] = []
        self._pods: set[str] = set()
        self._ended: set[str] = set()

    def follow(self, pod: str) -> None:
        """Begin with a pod, after the ones before."""
        if pod in self._pods:
            return
        self._pods.add(pod)
        before = self._threads[-1] if self._threads else None
        thread = threading.Thread(target=self._run, args=(pod, before), daemon=True)
        self._threads.append(thread)
        thread.start()

    def ended(self, pod: str) -> None:
        """Say that a pod's container has ended: the end of its log is the end, not a break."""
        self._ended.add(pod)

    def close(self, wait_s: float) -> None:
        """Give what is still on its way ``wait_s`` seconds, then close the file."""
        self._ended |= self._pods
        for thread in self._threads:
            thread.join(wait_s)
        self._file.flush()
        if not any(thread.is_alive() for thread in self._threads):
            self._file.close()

    def _run(self, pod: str, before: threading.Thread | None) -> None:
        if before:
            before.join()
        try:
            self._follow(pod)
        except (ClusterError, OSError, ValueError) as error:
            if not self.cluster.closed:
                print(f"the log of pod {pod} cannot be read any further: {error}", file=sys.stderr, flush=True)

    def _follow(self, pod: str) -> None:
        last, times = "", 0  # the time of the last line, and how many lines had it
        while not self.cluster.closed:
            over = pod in self._ended
            query = {"follow": "true", "timestamps": "true", "container": self.container, "sinceTime": last}
            passed = 0
            try:
                with self.cluster.lines(PODS, pod, "log", query, self.silence_s) as lines:
                    for raw in lines:
                        stamp, _, line = raw.decode(errors="replace").partition(" ")
                        if stamp < last:  # asked for by the second: told before
                            continue
                        if stamp == last:
                            passed += 1
                            if passed <= times:
                                continue
                            times += 1
                        else:
                            last, times, passed = stamp, 1, 1
                        self._write(line)
                if over:
                    return
            except NotThere:
                return
            except Broken:
                pass
            except ClusterError as error:
                if error.status != 400 or over:  # 400: its container has not begun
                    raise
            self.cluster.pause(_PAUSE_S)

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self.echo(line if len(line) <= _MAX_PRINTED else f"{line[:_MAX_PRINTED]} …")
