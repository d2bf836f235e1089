"""The images, without building them: what their Dockerfiles say, what their locks hold, and how they are built."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.utils import canonicalize_name

from tests.reachable_imports import component_bodies, third_party

REPOSITORY = Path(__file__).resolve().parents[2]
CONTAINERS = REPOSITORY / "containers"
IMAGES = tomllib.loads((CONTAINERS / "images.toml").read_text())
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
BUILDS = re.compile(r"\b(gcc|g\+\+|build-essential|make|cmake|python3?-dev|pip|setuptools|wheel|cargo|rustc)\b")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"containers_{name}", CONTAINERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def stages(name: str) -> tuple[list[str], list[list[str]]]:
    """The instructions before the first FROM, and those of each stage, one line each."""
    text = re.sub(r"^\s*#.*\n", "", (CONTAINERS / name / "Dockerfile").read_text(), flags=re.M)
    lines = [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    return lines[: starts[0]], [lines[a:b] for a, b in zip(starts, [*starts[1:], len(lines)], strict=True)]


def test_every_component_runs_in_an_image_that_is_described_and_has_a_dockerfile():
    described = {f"svdflow/{name}:{VERSION}" for name in IMAGES}
    assert set(component_bodies()) <= described
    assert {path.parent.name for path in CONTAINERS.glob("*/Dockerfile")} == set(IMAGES)
    listed = yaml.safe_load((REPOSITORY / "infra/components/images/kustomization.yaml").read_text())["images"]
    assert {f"{each['name']}:{each['newTag']}" for each in listed if each["name"].startswith("svdflow/")} <= described


@pytest.mark.parametrize("name", IMAGES)
def test_the_base_is_pinned_by_digest_and_can_be_replaced(name):
    before, each = stages(name)
    assert re.fullmatch(r"ARG BASE_IMAGE=[a-z0-9./-]+:[\w.-]+@sha256:[0-9a-f]{64}", before[0]) and len(before) == 1
    assert [stage[0].removesuffix(" AS build") for stage in each] == ["FROM ${BASE_IMAGE}"] * 2
    assert ":latest" not in (CONTAINERS / name / "Dockerfile").read_text()


@pytest.mark.parametrize("name", IMAGES)
def test_the_last_stage_runs_as_nobody_special_and_takes_nothing_that_builds(name):
    _, (build, last) = stages(name)
    users = [line for line in last if line.startswith("USER ")]
    assert users == ["USER 1000:1000"] and last.index(users[0]) > max(
        number for number, line in enumerate(last) if line.startswith(("RUN ", "COPY "))
    )
    assert [line for line in last if line.startswith("COPY --from")] == ["COPY --from=build /opt/svdflow /opt/svdflow"]
    assert [line for line in last if line.startswith("RUN ") and BUILDS.search(line)] == []
    assert not [line for line in [*build, *last] if line.startswith("ADD ")]
    assert not [line for line in last if "PIP_" in line], (
        "an index, and its password, would stay in the image's history"
    )
    assert last[-1] == 'CMD ["svdflow-self-check"]' and last[-2] == "WORKDIR /work"
    assert any("install-packages /containers/" + name + "/requirements.lock" in line for line in build)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_says_what_it_is(name):
    _, (_, last) = stages(name)
    (labels,) = (line for line in last if line.startswith("LABEL "))
    said = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', labels))
    assert said == {
        "title": f"svdflow/{name}",
        "version": "${VERSION}",
        "revision": "${REVISION}",
        "base.name": "${BASE_IMAGE}",
        "licenses": "Apache-2.0",
    }
    (environment,) = (line for line in last if line.startswith("ENV "))
    assert f"SVDFLOW_IMAGE={name}" in environment and "HOME=/tmp" in environment


@pytest.mark.parametrize("name", IMAGES)
def test_an_images_lock_is_what_its_requirements_need_of_the_lock(name):
    locks = script("locks")
    locked = locks.locked_versions(REPOSITORY / "requirements.lock")
    written = (CONTAINERS / name / "requirements.lock").read_text().splitlines()
    assert written == locks.image_lock(IMAGES[name]["requirements"], locked), "run `python containers/locks.py`"
    assert set(written) < set(locked.values())


def wanted_packages(name: str) -> dict[str, str]:
    """What the last stage looks for, to the Debian package that brings it."""
    _, (_, last) = stages(name)
    (line,) = (line for line in last if "/containers/prepare-root" in line)
    return dict(re.findall(r" ([\w.-]+):([\w.-]+)", line.partition("/containers/prepare-root")[2]))


GLVND = "libEGL.so.1 libGL.so.1 libXrender.so.1"


@pytest.mark.parametrize(
    ("libraries", "drivers", "missing"),
    [
        (GLVND, "/usr/lib/x86_64-linux-gnu/dri/swrast_dri.so", []),  # Debian 12
        (f"{GLVND} libgallium-25.0.7-2.so", "/usr/lib/x86_64-linux-gnu/libgallium-25.0.7-2.so", []),  # Debian 13
        (GLVND, "", ["libgl1-mesa-dri"]),
        ("", "", ["libegl1", "libgl1", "libgl1-mesa-dri", "libxrender1"]),
    ],
    ids=["Debian 12", "Debian 13", "no driver", "nothing"],
)
def test_only_packages_that_a_base_has_not_are_installed(tmp_path, libraries, drivers, missing):
    """The part of the script that looks, on a system of stand-ins: apt is called for nothing that is there."""
    looking = (CONTAINERS / "prepare-root").read_text().partition('if [ -n "$missing" ]')[0]
    wanted = wanted_packages("training")
    answers = {"ldconfig": libraries, "ls": drivers} | {program: "" for program in ("mpirun", "sshd", "ssh")}
    for program, answer in answers.items():
        (tmp_path / program).write_text(f"#!/bin/sh\nprintf '%s\\n' {answer}\n" if answer else "#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    pairs = [f"{what}:{package}" for what, package in wanted.items()]
    done = subprocess.run(["sh", "-c", f"{looking}\necho $missing", "prepare-root", *pairs], text=True, check=True,
                          capture_output=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})  # fmt: skip
    assert done.stdout.split() == missing


def test_the_packages_that_images_want_are_of_the_debian_that_they_state():
    release = Path("/etc/os-release")
    if not release.is_file() or 'VERSION_ID="12"' not in release.read_text() or not shutil.which("apt-cache"):
        pytest.skip("this is no Debian 12, which is the base")
    known = set(subprocess.run(["apt-cache", "pkgnames"], capture_output=True, text=True, check=True).stdout.split())
    if len(known) < 10_000:
        pytest.skip("apt has no lists here: apt-get update")
    wanted = {package for name in IMAGES for package in wanted_packages(name).values()}
    assert {"git", "libegl1", "libgl1-mesa-dri", "openssh-server"} <= wanted
    assert wanted <= known


def test_a_requirement_that_is_not_locked_is_told_by_name():
    with pytest.raises(LookupError, match="no-such-thing is needed and not in requirements.lock"):
        script("locks").image_lock(["no-such-thing"], {"numpy": "numpy==2.0"})


@pytest.fixture(scope="module")
def carriers() -> Mapping[str, list[str]]:
    """Top-level package to the distributions that bring it."""
    return metadata.packages_distributions()


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_holds_what_its_code_can_reach(name, carriers):
    lock = (CONTAINERS / name / "requirements.lock").read_text().splitlines()
    locked = {canonicalize_name(line.partition("==")[0]) for line in lock}
    reached = third_party(f"svdflow/{name}:{VERSION}", IMAGES[name]["entries"])
    missing = {
        package: module
        for package, module in reached.items()
        if not locked & {canonicalize_name(each) for each in carriers.get(package, ())}
    }
    assert {package: module for package, module in missing.items() if package not in IMAGES[name]["absent"]} == {}
    assert not {package for package in reached.keys() - missing.keys() if package in IMAGES[name]["absent"]}, (
        "it is there"
    )


def test_a_bill_of_materials_names_python_debian_and_what_wheels_carry(tmp_path):
    info = tmp_path / "site/Made_Up-1.2.dist-info"
    (info / "sboms").mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: Made_Up\nVersion: 1.2\nLicense-Expression: MIT\n")
    inside = {
        "bomFormat": "CycloneDX",
        "components": [{"type": "library", "name": "libx", "version": "3", "hashes": []}],
    }
    (info / "sboms/auditwheel.cdx.json").write_text(json.dumps(inside))
    (info / "RECORD").write_text(
        "Made_Up-1.2.dist-info/METADATA,,\nMade_Up-1.2.dist-info/sboms/auditwheel.cdx.json,,\n"
    )
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    installed = ["Package: git", "Status: install ok installed", "Architecture: amd64", "Version: 1:2.39", " y: z"]
    removed = ["Package: gone", "Status: deinstall ok config-files", "Architecture: all", "Version: 1", ""]
    (tmp_path / "var/lib/dpkg/status").write_text("\n".join([*installed, "", *removed]))
    sbom = script("sbom")
    bill = sbom.bill("curation", "0.1.0", tmp_path, [str(tmp_path / "site")])
    assert bill == sbom.bill("curation", "0.1.0", tmp_path, [str(tmp_path / "site")])
    python, made_up, git = bill["components"]
    assert python["name"] == "python"
    assert made_up["purl"] == "pkg:pypi/made-up@1.2" and made_up["licenses"] == [{"expression": "MIT"}]
    assert made_up["components"] == [{"type": "library", "name": "libx", "version": "3"}]
    assert git["purl"] == "pkg:deb/debian/git@1%3A2.39?arch=amd64&distro=debian-12"
    assert len({each["bom-ref"] for each in bill["components"]}) == 3


@pytest.fixture
def image_home(tmp_path, monkeypatch) -> Path:
    """What /opt/svdflow holds in an image, and a site-packages of its own: `packaging` and a made-up svdflow."""
    home, site = tmp_path / "home", tmp_path / "site"
    home.mkdir()
    site.mkdir()
    found = metadata.distribution("packaging")
    for name in ("packaging", f"packaging-{found.version}.dist-info"):
        (site / name).symlink_to(found.locate_file(name))
    distribution(site, "svdflow", "0.1.0", "Requires-Dist: not-for-every-image")
    (home / "requirements.lock").write_text(f"packaging=={found.version}\n")
    (home / "images.toml").write_text('[toy]\nimports = ["packaging.version"]\nprograms = ["sh"]\n')
    listed = [{"name": "packaging", "version": found.version}, {"name": "svdflow", "version": "0.1.0"}]
    (home / "sbom.cdx.json").write_text(json.dumps({"components": listed}))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("SVDFLOW_IMAGE_HOME", str(home))
    monkeypatch.setenv("SVDFLOW_IMAGE", "toy")
    return home


def distribution(site: Path, name: str, version: str, *lines: str) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir()
    written = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""]
    (folder / "METADATA").write_text("\n".join(written))


def checked(path: Path) -> tuple[int, dict[str, list[str]]]:
    command = [sys.executable, "-S", str(CONTAINERS / "self_check.py"), "--json"]  # -S: without this environment
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": str(path)}, timeout=600)
    return done.returncode, json.loads(done.stdout)["faults"]


def test_the_self_check_finds_each_thing_that_is_wrong(image_home, tmp_path):
    programs, site, packaging = tmp_path / "programs", tmp_path / "site", metadata.version("packaging")
    programs.mkdir()
    (programs / "sh").symlink_to("/bin/sh")
    _, faults = checked(programs)
    assert {name: found for name, found in faults.items() if found and name != "user"} == {}

    (programs / "sh").unlink()
    (programs / "gcc").symlink_to("/bin/true")
    (image_home / "requirements.lock").write_text("packaging==0.0.1\nno-such-thing==1\n")
    (image_home / "images.toml").write_text('[toy]\nimports = ["no_such_module"]\nprograms = ["sh"]\n')
    asked = ("absent-thing>=2", "packaging<1", "other; extra == 'x'", "opencv-python", "setuptools")
    distribution(site, "wanting", "1", *(f"Requires-Dist: {each}" for each in asked))
    distribution(site, "opencv_python_headless", "5.0")
    code, faults = checked(programs)
    assert code == 1
    assert {name: found for name, found in faults.items() if found and name != "user"} == {
        "tools": [f"{programs}/gcc is left"],
        "locked": [f"packaging is {packaging}, locked is 0.0.1", "no-such-thing is missing"],
        "complete": [
            "wanting requires absent-thing>=2, which is missing",
            f"wanting requires packaging<1, and {packaging} is there",
        ],
        "modules": ["import no_such_module: ModuleNotFoundError: No module named 'no_such_module'"],
        "programs": ["sh is not on PATH"],
        "bill": faults["bill"],
    }
    unlisted = ("opencv_python_headless 5.0", "wanting 1")
    assert sorted(faults["bill"]) == [f"{each} is not in sbom.cdx.json" for each in unlisted]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be root")
def test_the_self_check_refuses_to_be_root(image_home, tmp_path):
    code, faults = checked(tmp_path)
    assert code == 1 and "runs as root" in faults["user"]


FAKE = """#!/bin/sh
# Stands for a builder: writes down how it is called and answers as podman does.
printf '%s\\n' "$(basename "$0")" "$@" --- >>"$CALLS"
case "$1 $2" in
"info ") exit "${INFO:-0}" ;;
"image inspect") echo '[{"Size": 123000000, "Digest": "sha256:feed", "Id": "sha256:1d"}]' ;;
"push "*) for last; do :; done; while [ "$1" != --digestfile ]; do shift; done; printf sha256:beef >"$2" ;;
run*) case "$*" in *cdx.json) echo '{"components": []}' ;; *) echo "self-check passed" ;; esac ;;
esac
"""


@pytest.fixture
def builders(tmp_path, monkeypatch):
    """Put stand-ins of builders on PATH, alone; gives their calls."""
    calls = tmp_path / "calls"
    calls.touch()
    monkeypatch.setenv("CALLS", str(calls))

    def put(*names: str) -> None:
        folder = tmp_path / "builders"
        folder.mkdir()
        for name in names:
            (folder / name).write_text(FAKE)
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin" if names else str(folder))
        monkeypatch.setattr("shutil.which", lambda name: str(folder / name) if name in names else None)

    put.calls = lambda: [call.splitlines() for call in calls.read_text().split("---\n") if call.strip()]
    return put


@pytest.fixture
def build(tmp_path, monkeypatch) -> ModuleType:
    """The build script in a repository of its own: the real recipes, a clean commit."""
    module = script("build")
    monkeypatch.setattr(module, "REPOSITORY", tmp_path / "repository")
    monkeypatch.setattr(module, "version_and_revision", lambda: ("1.2.3", "abcdef012345"))
    return module


def test_an_image_is_built_tagged_checked_described_and_pushed(builders, build, tmp_path, capsys):
    builders("podman")
    (tmp_path / "ca.pem").write_text("certificates")
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://user:secret@index.example/simple\n")
    build.main(
        {"IMAGES": "curation", "BASE_IMAGE": "registry.example/python@sha256:00", "PUSH": "localhost:5000/team/"}
        | {"PIP_INDEX_URL": "https://index.example/simple", "HTTPS_PROXY": "http://proxy.example:3128"}
        | {"CA_BUNDLE": str(tmp_path / "ca.pem"), "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
        | {"BUILDER_OPTIONS": "--isolation=chroot"}
    )
    called = builders.calls()
    (built,) = (call for call in called if call[1] == "build")
    pairs = dict(zip(built, built[1:], strict=False))
    given = [b for a, b in zip(built, built[1:], strict=False) if a == "--build-arg"]
    assert pairs["--file"].endswith("containers/curation/Dockerfile")
    assert [b for a, b in zip(built, built[1:], strict=False) if a == "--tag"] == [
        "svdflow/curation:1.2.3", "svdflow/curation:1.2.3-abcdef012345",
    ]  # fmt: skip
    assert {"VERSION=1.2.3", "REVISION=abcdef012345", "BASE_IMAGE=registry.example/python@sha256:00"} <= set(given)
    assert {"PIP_INDEX_URL=https://index.example/simple", "HTTPS_PROXY=http://proxy.example:3128"} <= set(given)
    assert [b for a, b in zip(built, built[1:], strict=False) if a == "--secret"] == [
        f"id=ca_bundle,src={tmp_path}/ca.pem", f"id=pip_conf,src={tmp_path}/pip.conf",
    ]  # fmt: skip
    assert "secret@" not in " ".join(built), "a password in the arguments would be seen in the list of processes"
    assert built[-2:] == ["--isolation=chroot", str(tmp_path / "repository")]
    ran = [call for call in called if call[1] == "run"]
    assert len(ran) == 2 and all({"--read-only", "--network=none", "--cap-drop=ALL"} <= set(call) for call in ran)
    pushes = [call[-1] for call in called if call[1] == "push"]
    assert pushes == [f"localhost:5000/team/svdflow/curation:{tag}" for tag in ("1.2.3", "1.2.3-abcdef012345")]
    (told,) = json.loads((tmp_path / "repository/build/images/images.json").read_text())
    assert (told["size"], told["pushed"]) == ("123 MB", "localhost:5000/team/svdflow/curation@sha256:beef")
    assert (tmp_path / "repository/build/images/curation.cdx.json").exists()
    assert "123 MB  localhost:5000/team/svdflow/curation@sha256:beef" in capsys.readouterr().out


def test_a_changed_script_or_lock_changes_what_is_built_anew(build, tmp_path, monkeypatch):
    copy = tmp_path / "containers"
    shutil.copytree(CONTAINERS, copy, ignore=shutil.ignore_patterns("wheels"))
    monkeypatch.setattr(build, "CONTAINERS", copy)
    before = {name: build.recipe(name) for name in IMAGES}
    assert len(set(before.values())) == len(IMAGES)
    (copy / "curation/requirements.lock").write_text("numpy==2.0\n")
    assert [name for name in IMAGES if build.recipe(name) != before[name]] == ["curation"]
    (copy / "prepare-root").write_text("#!/bin/sh\n")
    assert all(build.recipe(name) != before[name] for name in IMAGES)


def test_a_client_of_docker_without_its_engine_gives_way(builders, build, monkeypatch):
    monkeypatch.setenv("INFO", "1")
    builders("docker", "buildah")
    assert build.find_builder() == "buildah"
    with pytest.raises(build.BuildError, match="docker cannot build here: install one of them .* or start docker's"):
        build.find_builder("docker")


def test_without_a_builder_it_says_what_to_install(builders, build):
    builders()
    with pytest.raises(build.BuildError, match="none of docker, podman and buildah can build here: install"):
        build.find_builder()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"IMAGES": "nope"}, "there is no image nope; they are pipeline, curation, training, evaluation, triton"),
        ({"PUSH": "registry.example/x:tag"}, "PUSH=registry.example/x:tag: not a registry and path"),
        ({"PUSH": "--all"}, "PUSH=--all: not a registry"),
        ({"PUSH": "a b; rm -rf ."}, "not a registry"),
        ({"BASE_IMAGE": "--privileged"}, "BASE_IMAGE=--privileged: not an image's name"),
        ({"BUILDER": "kaniko"}, "BUILDER=kaniko: use one of docker, podman, buildah"),
        ({"CA_BUNDLE": "/no/such.pem"}, "CA_BUNDLE: there is no file /no/such.pem"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(builders, build, given, says):
    builders("podman")
    with pytest.raises(build.BuildError, match=re.escape(says)):
        build.main({"IMAGES": "pipeline"} | given)
    assert builders.calls() == []


def test_files_that_differ_from_the_commit_are_not_pushed(builders, build, monkeypatch):
    builders("podman")
    monkeypatch.setattr(build, "version_and_revision", lambda: ("1.2.3", "abcdef012345-dirty"))
    with pytest.raises(build.BuildError, match="commit first"):
        build.main({"IMAGES": "pipeline", "PUSH": "registry.example/team"})


def test_what_reaches_a_builder_is_the_source_and_nothing_else():
    kept = (REPOSITORY / ".dockerignore").read_text().split()
    assert kept[0] == "*" and {line for line in kept if line.startswith("!")} == {
        "!LICENSE", "!README.md", "!pyproject.toml", "!components", "!pipelines", "!containers",
    }  # fmt: skip
