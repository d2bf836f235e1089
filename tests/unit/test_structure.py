"""The house itself: the package list, which way imports point, thin components, nothing without a README."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.pipelines import PIPELINES
from svdflow.pipelines.cli import app
from svdflow.pipelines.registry import compile_pipeline, compiled_path, parameters, task_count

REPOSITORY = Path(__file__).resolve().parents[2]
COMPONENTS = REPOSITORY / "components"
PYTHON = sorted(p for room in ("components", "pipelines") for p in (REPOSITORY / room).rglob("*.py"))
COMPONENT_FILES = sorted(COMPONENTS.rglob("component*.py"))
CURATION = COMPONENTS / "curation"
ROOMS = {"ingest", "curation", "training", "multiview", "evaluation", "export", "report"}


def module_level_imports(tree: ast.Module) -> list[ast.stmt]:
    return [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]


def imported_rooms(path: Path) -> set[str]:
    """First folders below components/ that a file imports, relatively or by name."""
    here = path.relative_to(COMPONENTS).parts[:-1]
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            target = (*base, *(node.module.split(".") if node.module else [alias.name for alias in node.names][:1]))
            rooms.add(target[0])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("svdflow."):
            rooms.add(node.module.split(".")[1])
    return rooms


def test_the_package_list_names_every_package_in_the_tree():
    declared = set(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for room, prefix in (("components", "svdflow"), ("pipelines", "svdflow.pipelines")):
        for init in (REPOSITORY / room).rglob("__init__.py"):
            found.add(".".join((prefix, *init.parent.relative_to(REPOSITORY / room).parts)))
    assert declared == found


def test_every_folder_with_python_is_a_package():
    assert [str(p) for p in PYTHON if not (p.parent / "__init__.py").exists()] == []


@pytest.mark.parametrize("path", COMPONENT_FILES, ids=lambda p: str(p.relative_to(COMPONENTS)))
def test_a_component_file_imports_only_stdlib_and_kfp_at_module_level(path):
    names = set()
    for node in module_level_imports(ast.parse(path.read_text())):
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module or "."}
    assert {name.split(".")[0] for name in names} - {"kfp"} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", COMPONENT_FILES, ids=lambda p: str(p.relative_to(COMPONENTS)))
def test_a_component_folder_has_a_readme_and_metadata_in_the_common_form(path):
    assert len((path.parent / "README.md").read_text()) > 300
    metadata = yaml.safe_load((path.parent / "metadata.yaml").read_text())
    assert list(metadata)[:4] == ["name", "stability", "dependencies", "lastVerified"]
    assert metadata["stability"] in {"experimental", "alpha", "beta", "stable"}
    assert metadata["dependencies"]["kubeflow"][0]["name"] == "Pipelines"


@pytest.mark.parametrize(
    "path", [p for p in PYTHON if p.is_relative_to(COMPONENTS)], ids=lambda p: str(p.relative_to(COMPONENTS))
)
def test_imports_point_one_way(path):
    """Rooms meet in manifests: they import common and diffusion, never one another, and nobody imports pipelines."""
    if path.name.startswith("component"):
        return
    room = path.relative_to(COMPONENTS).parts[0]
    seen = imported_rooms(path)
    assert "pipelines" not in seen
    if room == "common":
        assert not seen & (ROOMS | {"diffusion"})
    elif room == "diffusion":
        assert not seen & ROOMS
    elif room in ROOMS:
        assert not seen & (ROOMS - {room})


@pytest.mark.parametrize("path", sorted(CURATION.rglob("*.py")), ids=lambda p: str(p.relative_to(CURATION)))
def test_the_steps_of_curation_do_not_import_one_another(path):
    here = path.relative_to(COMPONENTS).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            target = (*base, *(node.module or "").split("."))
            if target[0] == "curation" and len(here) > 1:
                assert target[:2] == here[:2], f"{path}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_domain_code_knows_no_pipeline_system_and_no_file_is_called_after_nothing(path):
    assert path.stem not in {"utils", "helpers", "misc", "manager"}
    text = path.read_text()
    if path.is_relative_to(COMPONENTS) and not path.name.startswith("component"):
        known = "kfp" if path.is_relative_to(COMPONENTS / "common/cluster") else "kfp|kubernetes"
        assert not re.search(rf"^\s*(from|import) ({known})\b", text, re.M)
    assert not re.search(r"^\s*import pickle|shell=True", text, re.M)
    if "torch.load(" in text:  # converters of published weights, once, to safetensors, of files with a pinned hash
        assert path.name.endswith("_weights.py") and "sha256" in text
        assert len(re.findall(r"torch\.load\(", text)) == len(re.findall(r"torch\.load\([^)]*weights_only=True", text))


@pytest.mark.parametrize("name", PIPELINES)
def test_the_committed_ir_is_what_the_code_compiles_to(name, tmp_path):
    fresh = compile_pipeline(name, tmp_path / "fresh.yaml")
    assert fresh.read_text() == compiled_path(name).read_text(), "run `make compile` and commit pipelines/compiled"


def spec_of(name: str) -> dict:
    return next(iter(yaml.safe_load_all(compiled_path(name).read_text())))


def test_every_pipeline_is_a_folder_with_a_readme_that_names_its_command():
    folders = {path.parent.name: path.parent for path in (REPOSITORY / "pipelines").glob("*/pipeline.py")}
    assert set(folders) == set(PIPELINES) == {path.stem for path in (REPOSITORY / "pipelines/compiled").glob("*.yaml")}
    for name, folder in folders.items():
        assert re.search(rf"^    svdflow (run )?{name}\b", (folder / "README.md").read_text(), re.M)


def test_svd_starts_with_the_very_tasks_of_curation():
    curation, svd = spec_of("curation"), spec_of("svd")
    shared = curation["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert len(shared) == 7 == task_count(compiled_path("curation")) - 1
    for name, task in shared.items():
        assert svd["components"]["comp-exit-handler-1"]["dag"]["tasks"][name] == task
        executor = curation["components"][task["componentRef"]["name"]]["executorLabel"]
        assert svd["deploymentSpec"]["executors"][executor] == curation["deploymentSpec"]["executors"][executor]


def test_the_command_knows_every_pipeline_and_what_it_takes():
    assert parameters(compiled_path("curation")) == {"workdir", "source", "profile", "overrides"}
    assert parameters(compiled_path("svd")) == {"workdir", "source", "profile", "overrides", "objects"}
    assert parameters(compiled_path("training")) == {"workdir", "dataset", "init", "profile", "overrides"}
    assert parameters(compiled_path("interpolation")) == {"workdir", "dataset", "init", "profile", "overrides"}
    assert parameters(compiled_path("train")) == {"workdir", "stage", "dataset", "init", "profile", "overrides"}
    told = " ".join(CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output.split())
    assert all(name in told for name in PIPELINES)
    for arguments, says in (
        (["run", "nope"], "curation, train, training, interpolation, svd"),
        (["run", "train"], "svdflow train STAGE"),
        (["run", "svd", "--source", "/tmp", "--dataset", "demo"], "takes no --dataset"),
        (["run", "training", "--source", "/tmp", "--workdir", "/tmp/nowhere"], "no dataset registry"),
        (["run", "curation", "--objects", "/tmp", "--source", "/tmp"], "takes no --objects"),
        (["run", "interpolation"], "--init: the stage interpolation starts from a model of video_high"),
        (["run", "interpolation", "--source", "/tmp"], "takes no --source"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, (ConfigError, BadInputError)) and says in str(result.exception)
