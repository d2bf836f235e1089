"""Git, as a registry of versions needs it: no prompt, an identity of its own, locks of dead processes removed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from ...common.errors import ServiceError, StorageError

IDENTITY = {
    "GIT_AUTHOR_NAME": "svdflow", "GIT_AUTHOR_EMAIL": "svdflow@localhost",
    "GIT_COMMITTER_NAME": "svdflow", "GIT_COMMITTER_EMAIL": "svdflow@localhost",
}  # fmt: skip
_LOCK = re.compile(r"'([^']+\.lock)'")
_STALE_S = 5.0  # no git command of ours holds a lock this long; what is older was left by a killed process
_TRIES = 40


class GitRefused(StorageError):
    """A git command ended with an error; the text is git's own."""


class Git:
    """Git commands in one repository. The user's configuration is read (credentials, proxies), never written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if shutil.which("git") is None:
            raise ServiceError("dataset versions need the program git: install it and run again")

    def __call__(self, *arguments: str, stdin: bytes = b"", index: Path | None = None) -> bytes:
        """Run a command; its standard output.

        Raises:
            GitRefused: it ended with an error.
        """
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith(("GIT_SSL", "GIT_SSH"))
        }
        environment = {**inherited, **IDENTITY, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        if index:
            environment["GIT_INDEX_FILE"] = str(index)
        command = ["git", "-c", "gc.auto=0", "-c", "core.quotePath=false", *arguments]
        for attempt in range(_TRIES):
            done = subprocess.run(
                command, cwd=self.directory, env=environment, input=stdin, capture_output=True, check=False
            )
            if done.returncode == 0:
                return done.stdout
            message = done.stderr.decode(errors="replace").strip()
            if attempt + 1 == _TRIES or not self._lock_may_clear(message):
                break
            time.sleep(0.25)
        raise GitRefused(f"{self.directory}: git {arguments[0]}: {' '.join(message.split())[-400:]}")

    def line(self, *arguments: str, stdin: bytes = b"", index: Path | None = None) -> str:
        """A command's output as one stripped line."""
        return self(*arguments, stdin=stdin, index=index).decode().strip()

    def succeeds(self, *arguments: str) -> bool:
        """Whether a command that answers a question says yes."""
        try:
            self(*arguments)
            return True
        except GitRefused:
            return False

    def _lock_may_clear(self, message: str) -> bool:
        """Whether git met a lock; removes it when it is a dead process's."""
        if "File exists" not in message or not (match := _LOCK.search(message)):
            return False
        lock = Path(match[1])
        try:
            if time.time() - (self.directory / lock).stat().st_mtime > _STALE_S:
                (self.directory / lock).unlink()
        except FileNotFoundError:
            pass
        return True
