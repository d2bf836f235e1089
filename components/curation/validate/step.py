"""The step around a validation: what it writes lies in the run's work directory, also when it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.config import load_profile
from ...common.steps import run_step
from .settings import ValidateSettings
from .validate import Written, check_once, require_valid

_TITLES = {
    "validate": "Validate manifests",
    "validate_selection": "Validate the selection",
    "validate_samples": "Validate the samples",
    "validate_orbits": "Validate the orbits",
}


def validate_step(
    name: str,
    manifests: Mapping[str, str],
    page: str,
    failing: str,
    workdir: str,
    run_id: str,
    profile: str,
    overrides: Mapping[str, Any],
) -> None:
    """Validate as one step of a run; settings are those of the section ``validate`` for all of them.

    Args:
        name: the step's name.
        manifests: kind to path.
        page: the HTML page to write; a copy is kept in the work directory, as ``validation_selection.html``.
        failing: the JSON lines to write; a copy is kept beside it, as ``validation_selection_failing_rows.jsonl``.
        workdir: the run's work directory.
        run_id: names the run.
        profile: a shipped profile or a YAML file.
        overrides: dotted setting to value.

    Raises:
        SystemExit: the manifests are refused, told in one line.
    """
    with run_step(name, workdir, run_id, profile, overrides) as step:
        settings = step.settings(ValidateSettings, "validate")
        out = Written(Path(page), Path(failing))
        dataset = (load_profile(profile, overrides).get("version") or {}).get("name", "dataset")
        if "clips" not in manifests:  # what comes of a version is not compared with the version before: it was
            settings, dataset = settings.model_copy(update={"previous": ""}), ""
        files = {kind: Path(path) for kind, path in manifests.items()}
        report = check_once(files, out, step.root, settings, dataset)
        report.title = _TITLES[name]
        step.finish(report)
        kept = name.replace("validate", "validation")
        step.keep(f"{kept}.html", out.page)
        step.keep(f"{kept}_failing_rows.jsonl", out.failing)
        require_valid(report)
