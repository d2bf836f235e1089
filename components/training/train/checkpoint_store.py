"""Copies of a run's checkpoints in the object store, for a machine whose disk does not outlive it.

They are sent in the background, the newest first in turn: a store that is slow or down costs a copy, never a step.
``state.json`` goes last and is removed first, so a copy is whole or does not count.

    checkpoints/<run>/step_00000050/model.safetensors …
"""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from ...common.errors import StorageError
from ...common.files import link_tree
from ...common.storage import DataRoot
from .checkpoint import STATE, Checkpoint, directories, read_checkpoint

_PAUSES_S = (2.0, 10.0, 30.0, 120.0)  # between attempts; the last one again and again
_PIECE = 64 << 20


class CheckpointStore:
    """A run's checkpoints in a data root.

    Args:
        root: where they go.
        run: names the run.
        folder: of the run's checkpoints on this machine.
        tell: takes a line about an upload that failed.
    """

    def __init__(self, root: DataRoot, run: str, folder: Path, tell: Callable[[str], None]) -> None:
        self.root, self.prefix, self.folder, self.tell = root, f"checkpoints/{run}", folder, tell
        self.sent = 0
        self.failures = 0
        for leftover in folder.glob(".sending-*"):  # of a process that was killed meanwhile
            shutil.rmtree(leftover, ignore_errors=True)
        self._waiting: tuple[Path, str, set[str]] | None = None
        self._busy = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def send(self, directory: Path) -> None:
        """Have a checkpoint copied. One that still waits for its turn gives way to it."""
        # Links keep its bytes readable when the run removes it meanwhile.
        snapshot = self.folder / f".sending-{uuid.uuid4().hex}"
        link_tree(directory, snapshot)
        with self._changed:
            if self._waiting:
                shutil.rmtree(self._waiting[0], ignore_errors=True)
            self._waiting = (snapshot, directory.name, {d.name for d in directories(self.folder)})
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is left to send; returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy and self._waiting is None, seconds)

    def steps(self) -> list[int]:
        """The steps of whole copies in the store, the newest first.

        Raises:
            StorageError: the store does not answer.
        """
        names = (uri.split("/")[-2] for uri in self.root.list(self.prefix) if uri.endswith(f"/{STATE}"))
        return sorted((int(name.removeprefix("step_")) for name in names), reverse=True)

    def fetch(self, step: int) -> Checkpoint | None:
        """Bring a copy to this machine's folder; None when it is damaged.

        Raises:
            StorageError: the store does not answer, or the disk is full.
        """
        name = f"step_{step:08d}"
        partial = self.folder / f".partial-{uuid.uuid4().hex}" / name
        try:
            partial.mkdir(parents=True)
            for uri in self.root.list(f"{self.prefix}/{name}"):
                with open(partial / uri.rpartition("/")[2], "wb") as stream:
                    for offset in range(0, self.root.size(uri), _PIECE):
                        stream.write(self.root.read_range(uri, offset, _PIECE))
            if read_checkpoint(partial) is None:
                return None
            target = self.folder / name
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            return read_checkpoint(target)
        except OSError as error:
            raise StorageError(f"{self.folder}: the checkpoint of step {step} cannot be fetched ({error})") from error
        finally:
            shutil.rmtree(partial.parent, ignore_errors=True)

    def remove(self) -> None:
        """Remove all copies of the run: its result is recorded."""
        self._remove(self.prefix)

    def _names(self) -> set[str]:
        """Directories of copies in the store, whole or not."""
        return {uri.split("/")[-2] for uri in self.root.list(self.prefix)}

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None)
                assert self._waiting
                snapshot, name, keep = self._waiting
                self._waiting, self._busy = None, True
            self._send_until_done(snapshot, name, keep)
            shutil.rmtree(snapshot, ignore_errors=True)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _send_until_done(self, snapshot: Path, name: str, keep: set[str]) -> None:
        attempt = 0
        while True:
            try:
                for path in sorted(snapshot.iterdir(), key=lambda p: p.name == STATE):
                    self.root.put_named(f"{self.prefix}/{name}/{path.name}", path)
                self.sent += 1
                # Halves too, of a process that was killed while it sent or removed a copy.
                for old in self._names() - keep - {name}:
                    self._remove(f"{self.prefix}/{old}")
                return
            except StorageError as error:
                self.failures += 1
                pause = _PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]
                self.tell(f"checkpoint {name} could not be copied to the store, next attempt in {pause:g} s: {error}")
                attempt += 1
                with self._changed:
                    if self._changed.wait_for(lambda: self._waiting is not None, pause):
                        return  # a newer one takes its place

    def _remove(self, prefix: str) -> None:
        for uri in sorted(self.root.list(prefix), key=lambda uri: not uri.endswith(STATE)):
            self.root.remove(uri)
