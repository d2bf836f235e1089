"""A promoted model as a Triton model repository."""

from __future__ import annotations

import glob
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..common.errors import BadInputError, GateRefused, StorageError
from ..common.files import link_or_copy, write_atomic
from ..common.identity import file_sha256, identity, tree_sha256
from ..common.report import StepReport, table
from ..diffusion.settings import INTERPOLATED_FRAMES
from .model_config import WARM_UP_STEPS_FILE, model_config_text, raise_bounds
from .request import INTERPOLATION, SERVED
from .settings import ExportSettings

VERSION = "1"


def export_repository(model: Path, metrics: Path, out: Path, settings: ExportSettings) -> StepReport:
    """Write ``out/KIND``: configuration, ``<version>/model.py``, the model directory, card and metrics.

    A repository that is there already gets the model as a further version; equal content is found, not written again.
    A model, and a version of one, appears at once and whole, or not at all. The interpolation model that the settings
    name is written beside it, by the same rules. Last comes ``out/contents.json``, the digest of every file: by it a
    release that is copied elsewhere is known to be whole, and to be this one.

    Args:
        model: a model directory of kind image_to_video or interpolation.
        metrics: what the evaluation measured, with the gate's verdict under ``gate``.
        out: the repository; made when missing.
        settings: placement, bounds, defaults.

    Raises:
        GateRefused: there are no metrics, they are another model's, or the verdict is not a clear yes.
        BadInputError: no model of such a kind.
        StorageError: the disk is full or not writable.
    """
    wanted = [_Wanted.of(model, metrics, settings)]
    if settings.interpolation and settings.interpolation_metrics:
        beside = _Wanted.of(Path(settings.interpolation), Path(settings.interpolation_metrics), settings)
        if beside.kind != INTERPOLATION or wanted[0].kind == INTERPOLATION:
            raise BadInputError(
                f"export.interpolation: {beside.model} is of kind {beside.kind}, beside one of kind {wanted[0].kind}; "
                "it is for a model of kind interpolation beside one of another kind"
            )
        wanted.append(beside)
    report = StepReport(
        step="export",
        title="Triton model repository",
        counts={"models in": len(wanted), "model versions out": len(wanted)},
        versions={"svdflow": __version__},
    )
    for one in wanted:  # all of them have been looked at
        _export(one, out, settings, settings.version if one is wanted[0] else None, report)
    with _disk_errors(out):
        if raised := raise_bounds(out):
            rows: list[list[Any]] = [[name, was, now] for name, (was, now) in raised.items()]
            note = "To what the release asks of itself: its own videos, at its defaults."
            report.sections.append(table("Bounds of interpolation that were raised", ["", "set to", "is"], rows, note))
        _write_contents(out)
    return report


@dataclass(frozen=True)
class _Wanted:
    """A model that may be exported: its kind, what the gate said of it, its identity, and the size of its videos."""

    model: Path
    metrics: Path
    kind: str
    digest: str
    verdict: str
    size: tuple[int, int, int]

    @staticmethod
    def of(model: Path, metrics: Path, settings: ExportSettings) -> _Wanted:
        card = read_card(model)
        digest = tree_sha256(model)
        verdict = _promoted(metrics, digest)
        return _Wanted(model, metrics, card["kind"], digest, verdict, video_size(model, card, settings))


def _export(wanted: _Wanted, out: Path, settings: ExportSettings, version: int | None, report: StepReport) -> None:
    # The configuration belongs to all versions of a model: it is not part of a version's identity.
    key = identity(
        version=VERSION, model=wanted.digest, metrics=file_sha256(wanted.metrics), code=file_sha256(_MODEL_PY)
    )
    served = out / wanted.kind
    number = version or _version_with(served, key) or _next_version(served)
    known = _key_of(served / str(number))
    if known is not None and known != key:
        raise BadInputError(
            f"{served}: version {number} holds another model; leave export.version unset for the next free number"
        )

    with _disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if not served.exists():  # a server that loads all that is there never finds a part of a model
            with _appearing(served, beside=out) as partial:
                _write_version(partial, number, wanted.model, wanted.metrics, key)
                _write_configuration(partial, wanted.kind, settings, wanted.size)
        else:
            if known is None:
                _write_version(served, number, wanted.model, wanted.metrics, key)
            _write_configuration(served, wanted.kind, settings, wanted.size)
    frames, height, width = wanted.size
    facts: list[list[Any]] = [
        ["model", wanted.kind], ["version", number], ["frames", frames], ["height px", height], ["width px", width],
        ["placement", settings.placement], ["instances per device", settings.instances],
        ["steps unless asked", settings.steps],
        ["at most steps", settings.max_steps], ["requests that may wait", settings.max_queue],
        ["weights", wanted.digest[:12]],
    ]  # fmt: skip
    report.done += known is None
    report.reused += known is not None
    told = {
        "model": wanted.kind, "version": number, "frames": frames, "height": height, "width": width,
        "weights": wanted.digest,
    }  # fmt: skip
    if report.summary:
        report.summary["export"][wanted.kind] = told
    else:
        report.summary = {"export": told}
    note = f"{wanted.verdict[0].upper()}{wanted.verdict[1:]}."
    report.sections.append(table("What is served", ["", ""], facts, note=note))


_MODEL_PY = Path(__file__).with_name("triton_model.py")
_KEY = "export.json"
CONTENTS = "contents.json"


def read_card(model: Path) -> dict[str, Any]:
    """The card of the directory of a model that can be served.

    Raises:
        BadInputError: no model directory, or of another kind.
    """
    try:
        card = json.loads((model / "svdflow.json").read_text())
    except FileNotFoundError:
        raise BadInputError(
            f"{model}: no model directory (svdflow.json is missing); give the one that a training step wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"{model}/svdflow.json: cannot be read: {error}") from None
    if card.get("kind") not in SERVED:
        raise BadInputError(
            f"{model}: a model of kind {card.get('kind')!r}; it takes one of kind {' or '.join(SERVED)}"
        )
    return card


def repository_digest(repository: Path) -> str:
    """Identity of what a repository serves; the bytecode that a server leaves in it does not count."""
    files = sorted(p for p in repository.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return identity(files={path.relative_to(repository).as_posix(): file_sha256(path) for path in files})


def _promoted(metrics: Path, weights: str) -> str:
    """The gate's verdict in words.

    Raises:
        GateRefused: there are no metrics, they are another model's, or the verdict among them is not a clear yes.
    """
    try:
        measured = json.loads(metrics.read_text())
    except OSError:
        raise GateRefused(
            f"{metrics}: there are no metrics, so nothing is exported; run the evaluate and gate steps"
        ) from None
    except ValueError as error:
        raise GateRefused(f"{metrics}: the metrics cannot be read, so nothing is exported: {error}") from None
    if not isinstance(measured, dict) or not measured:
        raise GateRefused(f"{metrics}: holds no measurement, so nothing is exported; run the evaluate step")
    measured_model = measured["model"].get("sha256") if isinstance(measured.get("model"), dict) else None
    if measured_model not in (None, weights):
        raise GateRefused(
            f"{metrics}: was measured on another model ({measured_model[:12]}, not {weights[:12]}), "
            "so nothing is exported; evaluate this model"
        )
    if "gate" not in measured:
        raise GateRefused(f"{metrics}: carries no verdict of the gate, so nothing is exported; run the gate step")
    gate = measured["gate"] if isinstance(measured["gate"], dict) else {}
    reasons = "; ".join(map(str, gate.get("reasons") or []))
    if gate.get("passed") is not True:
        raise GateRefused(f"the gate refused this model, so nothing is exported: {reasons or 'no reason given'}")
    held = "; ".join(f"{c['name']} {c['found']} ({c['needed']})" for c in gate.get("criteria") or [])
    return f"passed the gate: {held or 'no criterion recorded'}"


def video_size(model: Path, card: dict[str, Any], settings: ExportSettings) -> tuple[int, int, int]:
    """Frames, height and width of a video: as set, else as the model was trained; interpolation has frames of its own.

    Raises:
        BadInputError: neither says it.
    """
    configuration, size = card.get("configuration") or {}, []
    for name in ("frames", "height", "width"):
        value = getattr(settings, name) or configuration.get(name) or card.get(name)
        if name == "frames" and card.get("kind") == INTERPOLATION:
            value = INTERPOLATED_FRAMES
        if not value:
            raise BadInputError(f"{model}/svdflow.json: does not say the {name} of a video; set export.{name}")
        size.append(int(value))
    return size[0], size[1], size[2]


def _write_version(served: Path, number: int, model: Path, metrics: Path, key: str) -> None:
    with _appearing(served / str(number), beside=served / str(number)) as partial:
        for path in sorted(p for p in model.rglob("*") if p.is_file()):
            target = partial / "model" / path.relative_to(model)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, target)
        shutil.copyfile(_MODEL_PY, partial / "model.py")
        shutil.copyfile(model / "svdflow.json", partial / "svdflow.json")
        shutil.copyfile(metrics, partial / "metrics.json")
        (partial / _KEY).write_text(json.dumps({"key": key, "svdflow": __version__}, indent=1) + "\n")


def _write_configuration(served: Path, kind: str, settings: ExportSettings, size: tuple[int, int, int]) -> None:
    warm_up = served / "warmup" / WARM_UP_STEPS_FILE
    warm_up.parent.mkdir(parents=True, exist_ok=True)
    for path, data in (
        (warm_up, (1).to_bytes(4, "little")),
        (served / "config.pbtxt", model_config_text(kind, settings, size).encode()),
    ):
        write_atomic(path, data)


def _write_contents(out: Path) -> None:
    names = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    kept = sorted(n.as_posix() for n in names if not any(p.startswith(".") or p == "__pycache__" for p in n.parts))
    files = {name: file_sha256(out / name) for name in kept if name != CONTENTS}
    write_atomic(out / CONTENTS, (json.dumps({"format": 1, "files": files}, indent=1) + "\n").encode())


@contextmanager
def _appearing(target: Path, beside: Path) -> Iterator[Path]:
    """A directory to fill, beside a path, that takes its name when all is well, and is gone otherwise.

    What a process left there that was killed goes: a repository is written by one run at a time.
    """
    begins = f".{beside.name}.{target.name}."
    for left in beside.parent.glob(glob.escape(begins) + "?" * 32):
        shutil.rmtree(left, ignore_errors=True)
    partial = beside.with_name(begins + uuid.uuid4().hex)
    try:
        partial.mkdir()
        yield partial
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{out}: the model repository cannot be written: {error.strerror or error}") from None


def _versions(served: Path) -> list[int]:
    return sorted(int(path.name) for path in served.glob("[0-9]*") if path.name.isdigit()) if served.is_dir() else []


def _key_of(directory: Path) -> str | None:
    try:
        return str(json.loads((directory / _KEY).read_text())["key"])
    except FileNotFoundError:
        return "" if directory.exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _version_with(served: Path, key: str) -> int | None:
    return next((number for number in reversed(_versions(served)) if _key_of(served / str(number)) == key), None)


def _next_version(served: Path) -> int:
    return max(_versions(served), default=0) + 1
