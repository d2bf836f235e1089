"""The frame around every step, local or on a cluster: settings, data root, timing, the report, one-line errors.

A work directory is a directory that all steps see. Below it: ``data/`` (the data root, unless SVDFLOW_DATA_ROOT names
another),
``steps/<run>/<step>.json`` (each step's report, from which the run's page is made, also of a run that failed).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from .config import Settings, load_settings
from .errors import ConfigError, StorageError, SvdflowError
from .files import DISK_FULL, is_disk_full, link_tree, storage_error, write_atomic
from .progress import emit
from .report import StepReport
from .storage import DataRoot

SettingsT = TypeVar("SettingsT", bound=Settings)


class Step:
    """One step of one run: hand its report to ``finish``."""

    def __init__(self, name: str, workdir: str, run_id: str, profile: str, overrides: Mapping[str, Any]) -> None:
        # a local run names itself: the id that kfp.local makes up is not known outside of it
        self.name, self.workdir, self.run_id = name, workdir, os.environ.get("SVDFLOW_RUN_ID") or run_id
        self.profile, self.overrides = profile, dict(overrides)
        if workdir.startswith("s3:"):
            raise ConfigError(
                f"workdir {workdir!r}: a work directory is a directory that all steps see; "
                "only the data root may lie in S3 (SVDFLOW_DATA_ROOT=s3://bucket/prefix)"
            )
        self.report: StepReport | None = None

    @property
    def root(self) -> DataRoot:
        """The run's data root."""
        return DataRoot.open(os.environ.get("SVDFLOW_DATA_ROOT") or f"{self.workdir}/data")

    def settings(self, model: type[SettingsT], section: str | None = None) -> SettingsT:
        """The step's validated settings; the section is the step's name unless told."""
        return load_settings(model, section or self.name, self.profile, self.overrides)

    def keep(self, place: str, path: Path) -> None:
        """Keep a copy of a file or a directory in the work directory, as ``manifests/videos.parquet``.

        A directory replaces what an earlier run kept in its place.
        """
        target = Path(self.workdir) / place
        if path.is_file():
            _copy(path, target)
            return
        files = {file.relative_to(path): file for file in path.rglob("*") if file.is_file()}
        for old in [p for p in target.rglob("*") if p.is_file() and p.relative_to(target) not in files]:
            old.unlink()
        for name, file in files.items():
            _copy(file, target / name)

    def keep_links(self, place: str, directory: Path) -> None:
        """Keep a directory in the work directory by hard links where that is possible, as ``models/video``.

        For large files that nobody changes in place. What an earlier run kept there is replaced when all is there.
        """
        target = Path(self.workdir) / place
        partial = target.with_name(f".{target.name}.partial")
        link_tree(directory, partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)

    def finish(self, report: StepReport) -> StepReport:
        """Keep the report; it is written when the step ends."""
        self.report = report
        return report


@contextmanager
def run_step(
    name: str, workdir: str, run_id: str, profile: str, overrides: Mapping[str, Any] | None = None
) -> Iterator[Step]:
    """Run a step's body: time it, write its report, turn expected errors into one line and exit status 1."""
    os.environ["SVDFLOW_STEP"] = name
    step = Step(name, workdir, run_id, profile, overrides or {})
    emit(event="start")
    started = time.monotonic()
    error: BaseException | None = None
    try:
        yield step
        if step.report is None:
            raise RuntimeError(f"step {name} ended without a report")
    except BaseException as caught:
        error = caught
        if not isinstance(error, SvdflowError) and is_disk_full(error):
            error = StorageError(f"{getattr(error, 'filename', None) or workdir}: {DISK_FULL}")
    report = step.report or StepReport(step=name, title=name)
    report.seconds = round(time.monotonic() - started, 3)
    if error is not None:
        shown = isinstance(error, SvdflowError)
        report.error = str(error) if shown else f"{type(error).__name__}: {error}"
    report.step = name
    try:
        write_atomic(steps_directory(workdir, step.run_id) / f"{name}.json", report.to_json())
    finally:
        emit(event="end", error=report.error, done=report.done, reused=report.reused)
        if isinstance(error, SvdflowError):
            print(f"svdflow {name}: {error}", file=sys.stderr, flush=True)
            raise SystemExit(1) from None
        if error is not None:
            raise error


def _copy(source: Path, target: Path) -> None:
    """Copy a file of any size so that readers see the old or the new content, never a part."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        try:
            shutil.copyfile(source, name)
            os.chmod(name, 0o644)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise storage_error(target, error) from error


def steps_directory(workdir: str, run_id: str) -> Path:
    """Where the reports of one run's steps lie."""
    return Path(workdir) / "steps" / run_id
