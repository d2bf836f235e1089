"""Build the images with docker, podman or buildah, whichever is there: ``make images``.

    make images IMAGES="pipeline curation" BASE_IMAGE=registry/python@sha256:… PUSH=registry.example/team

Everything comes by variables of the environment, which make passes on; `containers/README.md` says what each does.
Each image is tagged with the version and with version and revision, checked from inside without a network, and its bill
of materials, size and digest are written to build/images.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

CONTAINERS = Path(__file__).resolve().parent
REPOSITORY = CONTAINERS.parent
BUILDERS = ("docker", "podman", "buildah")
# Host, port and path as registries take them: no tag, no digest, nothing that a program could read as an option.
PREFIX = re.compile(r"[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9]+([._-]{1,2}[a-z0-9]+)*)*")
REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
LOCAL = re.compile(r"(localhost|127\.0\.0\.1)(:|/|$)")
INDEX_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
CERTIFICATES = ("CA_BUNDLE", "PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


class BuildError(Exception):
    """What went wrong and what to do, in one line."""


@dataclass
class Built:
    """One image as it was built."""

    name: str
    tags: list[str]
    base: str
    revision: str
    size: str = ""
    digest: str = ""  # of the manifest, once it is known; the image's id before
    pushed: str = ""  # registry/name@digest


def find_builder(asked: str = "") -> str:
    """The program that builds.

    Raises:
        BuildError: none of the three is there, or the one that was asked for.
    """
    for name in (asked,) if asked else BUILDERS:
        if name not in BUILDERS:
            raise BuildError(f"BUILDER={name}: use one of {', '.join(BUILDERS)}")
        if shutil.which(name) and (name != "docker" or _quiet([name, "info"])):
            return name
    raise BuildError(
        f"{asked + ' cannot' if asked else 'none of docker, podman and buildah can'} build here: "
        "install one of them (apt-get install buildah), or start docker's engine"
    )


def version_and_revision() -> tuple[str, str]:
    """The package's version; the commit's first 12 digits, ``-dirty`` when files differ from it."""
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return version, "unknown"
    return version, done.stdout.strip() if done.returncode == 0 else "unknown"


def recipe(name: str) -> str:
    """A hash of what the build mounts: builders whose cache does not look at mounts see a changed argument instead."""
    digest = hashlib.sha256()
    for path in [
        CONTAINERS / "install-packages",
        CONTAINERS / "prepare-root",
        CONTAINERS / "build.lock",
        CONTAINERS / "sbom.py",
    ]:
        digest.update(path.read_bytes())
    digest.update((CONTAINERS / name / "requirements.lock").read_bytes())
    for wheel in sorted((CONTAINERS / "wheels").glob("*.whl")):
        digest.update(f"{wheel.name} {wheel.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def build_command(
    builder: str, name: str, tags: list[str], arguments: Mapping[str, str], given: Mapping[str, str]
) -> list[str]:
    """The command that builds one image.

    Args:
        builder: docker, podman or buildah.
        name: of the image.
        tags: its references.
        arguments: build arguments beside those that ``given`` brings.
        given: variables of the environment: index, proxies, certificates, pip's configuration, BUILDER_OPTIONS.

    Raises:
        BuildError: a file that a variable names is not there.
    """
    command = [builder, "build", "--file", str(CONTAINERS / name / "Dockerfile")]
    if builder != "docker":
        command += ["--layers", "--format", "oci"]
    for tag in tags:
        command += ["--tag", tag]
    passed = {key: given[key] for key in (*INDEX_VARIABLES, *PROXY_VARIABLES) if given.get(key)}
    for key, value in {**arguments, **passed}.items():
        command += ["--build-arg", f"{key}={value}"]
    bundle = next((given[key] for key in CERTIFICATES if given.get(key)), "")
    for identity, variable, path in (
        ("ca_bundle", "CA_BUNDLE", bundle),
        ("pip_conf", "PIP_CONFIG_FILE", given.get("PIP_CONFIG_FILE", "")),
    ):
        if path and path != os.devnull:
            if not Path(path).is_file():
                raise BuildError(f"{variable}: there is no file {path}")
            if "," in path:
                raise BuildError(f"{variable}: {path} has a comma in its name, which builders cannot take")
            command += ["--secret", f"id={identity},src={Path(path).resolve()}"]
    return [*command, *shlex.split(given.get("BUILDER_OPTIONS", "")), str(REPOSITORY)]


def run_command(builder: str, tag: str, command: list[str], given: Mapping[str, str]) -> list[str]:
    """The command that runs another in an image, read-only and without a network; not for buildah, which cannot."""
    options = ["--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL"]
    return [builder, "run", *options, *shlex.split(given.get("RUN_OPTIONS", "")), tag, *command]


def run_in_image(builder: str, tag: str, command: list[str], given: Mapping[str, str]) -> str:
    """What a command in an image prints.

    Raises:
        BuildError: it failed.
    """
    if builder != "buildah":
        return _output(run_command(builder, tag, command, given))
    container = _output(["buildah", "from", "--pull-never", tag]).strip()
    try:
        return _output(["buildah", "run", container, "--", *command])
    finally:
        _quiet(["buildah", "rm", container])


def size_and_digest(builder: str, tag: str) -> tuple[str, str]:
    """An image's unpacked size, and the digest of its manifest; docker knows only the image's id before a push."""
    if builder == "buildah":
        size = json.loads(_output(["buildah", "images", "--json", tag]))[0]["size"]
        return size, _output(["buildah", "inspect", "--type", "image", "--format", "{{.FromImageDigest}}", tag]).strip()
    found = json.loads(_output([builder, "image", "inspect", tag]))[0]
    return f"{found['Size'] / 1e6:.0f} MB", found.get("Digest") or found["Id"]


def push(builder: str, image: Built, prefix: str) -> str:
    """Push all tags of an image; gives ``registry/name@sha256:…``."""
    repository = f"{prefix}/svdflow/{image.name}"
    plain = ["--tls-verify=false"] if LOCAL.match(prefix) and builder != "docker" else []
    digest = ""
    for tag in image.tags:
        target = f"{repository}:{tag.rpartition(':')[2]}"
        _output([builder, "tag", tag, target])
        if builder == "docker":
            _run(["docker", "push", target])
            digests = json.loads(_output(["docker", "image", "inspect", target]))[0]["RepoDigests"]
            digest = next(each.partition("@")[2] for each in digests if each.startswith(f"{repository}@"))
        else:
            file = REPOSITORY / "build" / "images" / f"{image.name}.digest"
            _run([builder, "push", *plain, "--digestfile", str(file), target])
            digest = file.read_text().strip()
            file.unlink()
    return f"{repository}@{digest}"


def build_image(builder: str, name: str, given: Mapping[str, str]) -> Built:
    """Build, check, describe and, if asked, push one image."""
    version, revision = version_and_revision()
    tags = [f"svdflow/{name}:{version}", f"svdflow/{name}:{version}-{revision}"]
    arguments = {"VERSION": version, "REVISION": revision, "RECIPE": recipe(name)}
    variable = "TRITON_BASE_IMAGE" if name == "triton" else "BASE_IMAGE"
    if base := given.get(variable, ""):
        if not REFERENCE.fullmatch(base):
            raise BuildError(f"{variable}={base}: not an image's name")
        arguments["BASE_IMAGE"] = base
    _run(build_command(builder, name, tags, arguments, given))
    written = re.search(r"^ARG BASE_IMAGE=(\S+)$", (CONTAINERS / name / "Dockerfile").read_text(), re.M)
    image = Built(name, tags, base or (written.group(1) if written else ""), revision)
    image.size, image.digest = size_and_digest(builder, tags[0])
    print(run_in_image(builder, tags[0], ["svdflow-self-check"], given), end="", flush=True)
    place = REPOSITORY / "build" / "images"
    place.mkdir(parents=True, exist_ok=True)
    bill = run_in_image(builder, tags[0], ["cat", "/opt/svdflow/sbom.cdx.json"], given)
    (place / f"{name}.cdx.json").write_text(bill)
    if prefix := given.get("PUSH", "").rstrip("/"):
        image.pushed = push(builder, image, prefix)
        image.digest = image.pushed.partition("@")[2]
    return image


def main(given: Mapping[str, str]) -> None:
    """Build what IMAGES names, or all.

    Raises:
        BuildError: with what to do.
    """
    known = list(tomllib.loads((CONTAINERS / "images.toml").read_text()))
    names = given.get("IMAGES", "").replace(",", " ").split() or known
    if unknown := [name for name in names if name not in known]:
        raise BuildError(f"IMAGES: there is no image {', '.join(unknown)}; they are {', '.join(known)}")
    if prefix := given.get("PUSH", "").rstrip("/"):
        if not PREFIX.fullmatch(prefix):
            raise BuildError(f"PUSH={prefix}: not a registry and path, as registry.example/team")
        if version_and_revision()[1].endswith("-dirty"):
            raise BuildError("PUSH: files differ from the commit that the images would be named after; commit first")
    builder = find_builder(given.get("BUILDER", ""))
    built = []
    for name in names:
        print(f"svdflow/{name} with {builder}", flush=True)
        built.append(build_image(builder, name, given))
    (REPOSITORY / "build" / "images" / "images.json").write_text(
        json.dumps([asdict(each) for each in built], indent=1) + "\n"
    )
    for each in built:
        print(f"{each.tags[-1]}  {each.size}  {each.pushed or each.digest}")


def _output(command: list[str]) -> str:
    return _run(command, subprocess.PIPE)


def _run(command: list[str], out: int | None = None) -> str:
    try:
        done = subprocess.run(command, stdout=out, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        told = (done.stdout or "").strip()
        raise BuildError(f"{told}\n{' '.join(command[:2])} ended with {done.returncode}; what it said is above".strip())
    return done.stdout or ""


def _quiet(command: list[str]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


if __name__ == "__main__":
    try:
        main(os.environ)
    except BuildError as error:
        sys.exit(f"images: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
