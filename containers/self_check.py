#!/usr/bin/env python3
"""svdflow-self-check: whether this image holds what it is for, and nothing that builds. Ends with 1 when it does not.

    svdflow-self-check [--json]

It runs as the image's own user, with a read-only root, without a network.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HOME = Path(os.environ.get("SVDFLOW_IMAGE_HOME", "/opt/svdflow"))
TOOLS = ("cc", "gcc", "g++", "clang", "make", "cmake", "ninja", "ld", "rustc", "cargo", "pip", "pip3")
STAND_INS = {"opencv-python": "opencv-python-headless"}  # as in locks.py
NOT_NEEDED = {"setuptools", "pip", "wheel"}
Fault = Iterator[str]


def user() -> Fault:
    """Not root, and what is installed cannot be changed."""
    if os.geteuid() == 0:
        yield "runs as root"
    writable = [str(path) for path in (HOME, HOME / "bin", HOME / "site-packages") if os.access(path, os.W_OK)]
    if writable and not _read_only():
        yield f"can write to {', '.join(writable)}"


def scratch() -> Fault:
    """Temporary files and the home directory have a place."""
    for place in sorted({os.environ.get("TMPDIR", "/tmp"), os.path.expanduser("~")}):
        try:
            with tempfile.NamedTemporaryFile(dir=place):
                pass
        except OSError as error:
            yield f"cannot write to {place}: {error.strerror}; mount something there"


def tools() -> Fault:
    """Nothing that compiles or installs is left."""
    for name in TOOLS:
        if (found := shutil.which(name)) and not (name == "ninja" and found.startswith(str(HOME))):
            yield f"{found} is left"


def locked() -> Fault:
    """Exactly the locked versions, and svdflow."""
    for line in [*(HOME / "requirements.lock").read_text().split(), "svdflow"]:
        name, _, version = line.partition("==")
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield f"{name} is missing"
            continue
        if version and installed.partition("+")[0] != version:
            yield f"{name} is {installed}, locked is {version}"


def complete() -> Fault:
    """Every requirement of what is installed is met."""
    distributions = [each for each in metadata.distributions() if each.name]
    versions: dict[str, str] = {canonicalize_name(each.name): each.version for each in distributions}
    for each in distributions:
        if canonicalize_name(each.name) == "svdflow":  # its extras are by image
            continue
        for requirement in map(Requirement, each.requires or ()):
            asked: str = canonicalize_name(requirement.name)
            name = STAND_INS.get(asked, asked)
            if name in NOT_NEEDED or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
                continue
            if name not in versions:
                yield f"{each.name} requires {requirement}, which is missing"
            elif name == asked and not requirement.specifier.contains(
                versions[name].partition("+")[0], prereleases=True
            ):
                yield f"{each.name} requires {requirement}, and {versions[name]} is there"


def modules() -> Fault:
    """What the image is for can be imported."""
    for name in _image()["imports"]:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever it is, it is what the check is there to tell
            yield f"import {name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def programs() -> Fault:
    """The programs that its code starts are on PATH."""
    for name in _image()["programs"]:
        if shutil.which(name) is None:
            yield f"{name} is not on PATH"


def bill() -> Fault:
    """The bill of materials names what is installed."""
    listed = {
        (each["name"], each["version"]) for each in json.loads((HOME / "sbom.cdx.json").read_text())["components"]
    }
    for each in metadata.distributions():
        if each.name and (each.name, each.version) not in listed:
            yield f"{each.name} {each.version} is not in sbom.cdx.json"


CHECKS: tuple[Callable[[], Fault], ...] = (user, scratch, tools, locked, complete, modules, programs, bill)


def _image() -> dict[str, list[str]]:
    return tomllib.loads((HOME / "images.toml").read_text())[os.environ["SVDFLOW_IMAGE"]]


def _read_only() -> bool:
    return bool(os.statvfs("/").f_flag & os.ST_RDONLY)


def main() -> int:
    """Run all checks and print what they found; the exit status."""
    parser = argparse.ArgumentParser(prog="svdflow-self-check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    found = {check.__name__: list(check()) for check in CHECKS}
    faults = sum(map(len, found.values()))
    if asked.json:
        print(json.dumps({"image": os.environ["SVDFLOW_IMAGE"], "faults": found}))
        return int(faults > 0)
    for check in CHECKS:
        print(f"{'FAIL' if found[check.__name__] else 'ok':5}{(check.__doc__ or '').rstrip('.')}")
        for fault in found[check.__name__]:
            print(f"       {fault}")
    print(f"root file system: {'read-only' if _read_only() else 'writable'}; user {os.geteuid()}")
    print(f"self-check of svdflow/{os.environ['SVDFLOW_IMAGE']} {'failed' if faults else 'passed'}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
