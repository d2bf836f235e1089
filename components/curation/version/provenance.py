"""Who makes a version, with which code and from what: the trailers of its tag's message. Its tree holds none of it."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .git import Git

BY, CODE, SOURCE = "Registered-by", "Code", "From"


def trailers(git: Git, source: str) -> list[str]:
    """Lines for the end of a message: the person or account, the code's version, what the version was made from."""
    return [f"{BY}: {person(git)}", f"{CODE}: svdflow {code_version()}", f"{SOURCE}: {_line(source) or 'not told'}"]


def person(git: Git) -> str:
    """Git's name and address of the user, with the account; the account alone where git knows of nobody."""
    try:
        account = f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # an account without a name, as in many containers
        account = f"{os.getuid()}@{socket.gethostname()}"
    name, mail = git.user()
    return account if mail == "svdflow@localhost" else _line(f"{name} <{mail}> ({account})")


def own_version() -> str:
    """Of the installed package."""
    try:
        return version("svdflow")
    except PackageNotFoundError:
        return "unknown"


def code_version() -> str:
    """The package's version, and the commit when it runs from its own git checkout."""
    here = Path(__file__).resolve()
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here.parent, env=environment, capture_output=True, check=False)
        return done.stdout.decode().strip() if done.returncode == 0 else ""

    if not git("ls-files", "--error-unmatch", here.name):
        return own_version()
    return f"{own_version()} ({git('describe', '--always', '--dirty', '--abbrev=12', '--exclude=*')})"


def _line(text: str) -> str:
    return " ".join(text.split())
