"""Git, as a registry of versions needs it: no prompt, an identity in every case, locks of dead processes removed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from ...common.errors import ServiceError, StorageError

_NOBODY = ("svdflow", "svdflow@localhost")  # where git knows of no user, as in a container
_SIGNED = ("commit-tree", "var", "stash")
_LOCK = re.compile(r"'([^']+\.lock)'")
_STALE_S = 5.0  # no git command of ours holds a lock this long; what is older was left by a killed process
_TRIES = 40
# What a pod gets from a secret, handed to git by git's own protocol: neither a file nor an argument holds it.
_USER, _PASSWORD = "SVDFLOW_GIT_USERNAME", "SVDFLOW_GIT_PASSWORD"
_HELPER = f"""!f() {{ printf 'username=%s\\npassword=%s\\n' "${_USER}" "${_PASSWORD}"; }}; f"""


class GitRefused(StorageError):
    """A git command ended with an error; ``said`` is all of git's own text, of which the message has the end."""

    def __init__(self, directory: Path, command: str, said: str) -> None:
        super().__init__(f"{directory}: git {command}: {' '.join(said.split())[-400:]}")
        self.said = said


class Git:
    """Git commands in one repository. The user's configuration is read (credentials, proxies), never written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._user: tuple[str, str] | None = None
        if shutil.which("git") is None:
            raise ServiceError("dataset versions need the program git: install it and run again")

    def __call__(self, *arguments: str, stdin: bytes = b"", index: Path | None = None, written_at: str = "") -> bytes:
        """Run a command; its standard output. ``written_at`` is the author's date of a commit, now by default.

        Raises:
            GitRefused: it ended with an error.
        """
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith(("GIT_SSL", "GIT_SSH"))
        }
        environment = {**inherited, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        if arguments[0] in _SIGNED:
            name, mail = self.user()
            environment |= {"GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": mail}
            environment |= {"GIT_COMMITTER_NAME": name, "GIT_COMMITTER_EMAIL": mail}
        if index:
            environment["GIT_INDEX_FILE"] = str(index)
        if written_at:
            environment["GIT_AUTHOR_DATE"] = written_at
        options = ["gc.auto=0", "advice.pushUpdateRejected=false", "core.quotePath=false"]
        if os.environ.get(_USER) and os.environ.get(_PASSWORD):
            options += ["credential.helper=", f"credential.helper={_HELPER}"]  # the empty one drops those before it
        command = ["git", *(part for option in options for part in ("-c", option)), *arguments]
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
        raise GitRefused(self.directory, arguments[0], message)

    def line(self, *arguments: str, stdin: bytes = b"", index: Path | None = None, written_at: str = "") -> str:
        """A command's output as one stripped line."""
        return self(*arguments, stdin=stdin, index=index, written_at=written_at).decode().strip()

    def succeeds(self, *arguments: str) -> bool:
        """Whether a command that answers a question says yes."""
        try:
            self(*arguments)
            return True
        except GitRefused:
            return False

    def user(self) -> tuple[str, str]:
        """Name and address that git has for this user: its environment, then its configuration, then svdflow's own."""
        if self._user is None:
            found = [
                os.environ.get(f"GIT_AUTHOR_{part.upper()}") or self._configured(f"user.{part}")
                for part in ("name", "email")
            ]
            self._user = (found[0], found[1]) if all(found) else _NOBODY
        return self._user

    def _configured(self, key: str) -> str:
        try:
            return self.line("config", key)
        except GitRefused:
            return ""

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
