"""Write the lock of every image: the part of requirements.lock that its requirements in images.toml need.

    python containers/locks.py          in the environment that requirements.lock describes: `make lock` runs it

What a distribution requires is read from its installed metadata, so nothing is resolved and no index is asked.
"""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONTAINERS = Path(__file__).resolve().parent
# What the first requires by name, the second provides.
STAND_INS = {"opencv-python": "opencv-python-headless"}
# Required, and not in requirements.lock: what installs packages is no part of an image.
TOOLS = {"setuptools", "pip", "wheel"}


def locked_versions(lock: Path) -> dict[str, str]:
    """Canonical name to the line of the lock, as ``{"pyyaml": "PyYAML==6.0.3"}``."""
    lines = (line.strip() for line in lock.read_text().splitlines())
    return {canonicalize_name(line.partition("==")[0]): line for line in lines if line and not line.startswith("#")}


def image_lock(requirements: list[str], locked: dict[str, str]) -> list[str]:
    """The lock's lines that the requirements and all that they require in turn need, sorted as the lock is.

    Raises:
        LookupError: a requirement is not in the lock, or not installed here.
    """
    needed: set[str] = set()
    todo = [Requirement(text) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        wanted = todo.pop()
        name = STAND_INS.get(canonicalize_name(wanted.name), canonicalize_name(wanted.name))
        if name in TOOLS or (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        if name not in locked:
            raise LookupError(f"{name} is needed and not in requirements.lock: install it and run `make lock`")
        needed.add(name)
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            raise LookupError(f"{name} is locked and not installed here: run `make setup`") from None
        todo += [
            each
            for each in map(Requirement, required)
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras))
        ]
    return [line for name, line in locked.items() if name in needed]


def write_locks() -> None:
    """Write ``containers/<image>/requirements.lock`` for every image of images.toml."""
    locked = locked_versions(CONTAINERS.parent / "requirements.lock")
    for name, image in tomllib.loads((CONTAINERS / "images.toml").read_text()).items():
        lines = image_lock(image["requirements"], locked)
        (CONTAINERS / name / "requirements.lock").write_text("\n".join(lines) + "\n")
        print(f"{name}: {len(lines)} of {len(locked)} distributions")


if __name__ == "__main__":
    try:
        write_locks()
    except LookupError as error:
        sys.exit(f"locks: {error}")
