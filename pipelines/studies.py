"""Preference studies as the commands need them: their results written down, and takedowns that reach them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from svdflow.common.errors import BadInputError, SvdflowError
from svdflow.common.files import write_atomic
from svdflow.evaluation.study.notes import noted_studies
from svdflow.evaluation.study.results import study_report, study_results
from svdflow.evaluation.study.study import Study, open_study
from svdflow.evaluation.study.takedown import RESULTS, Forgotten, forget_in_study

_SHOWN = 5  # names that a line tells


def write_results(study: Study, found: dict[str, Any]) -> None:
    """Write results.json and results.html into a study's folder."""
    from svdflow.report.compose import versions
    from svdflow.report.page import render_page

    report = study_report(study, found)
    run = {
        "id": study.folder.name, "pipeline": "study", "profile": "paper", "settings_changed": {}, "failed": [],
        "versions": versions([report]), "state": "complete" if found["complete"] else "votes are missing",
    }  # fmt: skip
    data, page = (study.folder / name for name in RESULTS)
    write_atomic(data, json.dumps(found, indent=2, sort_keys=True).encode())
    write_atomic(page, render_page([report], run).encode())


def forget_in(folder: Path, video_id: str | None, names: Collection[str] = ()) -> list[str]:
    """Take a video out of a study, write its results anew where there were some, and tell what changed.

    Returns:
        Lines for a reader.

    Raises:
        BadInputError, StorageError: as ``forget_in_study``.
    """
    study, weights = open_study(folder), None
    if had := (folder / RESULTS[0]).is_file():
        with suppress(ValueError, KeyError):  # damaged: then the study's own
            weights = json.loads((folder / RESULTS[0]).read_bytes())["weights"]
    before = _results(study, weights)
    done = forget_in_study(folder, video_id, names)
    lines = [f"{folder}: {_went(done)}"]
    if done.items:
        after = _results(opened := open_study(folder), weights)
        if had and after:
            write_results(opened, after)
        lines += _changed(study, before, after, had)
    if done.unknown:
        lines.append(
            f"{folder}: of {len(done.unknown)} it is not known what they were made from: {_some(done.unknown)}. Those "
            f"that show it go with: svdflow study forget {folder} --item NAME"
        )
    return lines


def forget_in_all(workdir: Path, also: Collection[Path], video_id: str) -> tuple[list[str], list[str]]:
    """Take a video out of the studies that a work directory knows of, and of others.

    Returns:
        Lines for a reader; and of studies that could not be reached, why.
    """
    lines, unreached = [], []
    for folder in dict.fromkeys([*noted_studies(workdir), *(path.absolute() for path in also)]):
        if not folder.is_dir():
            lines.append(
                f"{folder}: a study with videos of this work directory was made there, and is there no more; if it was "
                f"moved: svdflow study forget ITS_FOLDER {video_id}"
            )
            continue
        try:
            lines += forget_in(folder, video_id)
        except SvdflowError as error:
            unreached.append(str(error))
    return lines, unreached


def _results(study: Study, weights: Any) -> dict[str, Any] | None:
    """None where no vote counts."""
    try:
        return study_results(study, weights)
    except BadInputError:
        return None


def _went(done: Forgotten) -> str:
    if not done.items:
        more = f"; {done.files} files that an earlier takedown left were removed" if done.files else ""
        return f"none of the {done.of} videos compared is known to be made from it{more}"
    return (
        f"{done.items} of the {done.of} videos compared left it, in every set, and {done.checks} attention checks "
        f"({done.checks_left} are left); {done.votes} votes on them count no longer"
    )


def _changed(study: Study, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, had: bool) -> list[str]:
    """What became of the results; ``had``: they were written down before."""
    if not before:
        return []
    lines = []
    if after:
        elo = [(name, before["together"]["elo"][name], after["together"]["elo"][name]) for name in study.contestants]
        moved = ", ".join(f"{name} {old:.1f} → {new:.1f}" for name, old, new in elo)
        lines.append(f"{study.folder}: Elo of all together: {moved}" + ("; the results were written anew" * had))
    else:
        lines.append(f"{study.folder}: no vote that counts is left, and so no results")
    if study.filter_axis:
        lines.append(
            f"{study.folder}: a profile chosen by it stands on votes that count no longer: svdflow study choose "
            f"{study.folder} -o PROFILE"
        )
    return lines


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
