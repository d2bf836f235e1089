"""What can be compiled and run: the pipelines by name, and the settings model of every step of a profile."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from svdflow.common.config import Settings, load_profile, validate_settings
from svdflow.common.errors import ConfigError
from svdflow.training.encode.settings import with_image_section

from . import PIPELINES
from .limits import require_limits
from .tasks import Placement, placing

COMPILED = Path(__file__).resolve().parent / "compiled"  # an editable install links single files

STAGE_OF = {"interpolation": "interpolation"}  # pipelines around one stage, which is no parameter of theirs

# in which each of these stages grows the model of the one before
CHAINS = {"svd": ("video", "image_to_video", "multi_view"), "training": ("video", "image_to_video")}

SETTINGS = {
    "ingest": "svdflow.ingest.settings:IngestSettings",
    "split": "svdflow.curation.split.settings:SplitSettings",
    "annotate": "svdflow.curation.annotate.settings:AnnotateSettings",
    "validate": "svdflow.curation.validate.settings:ValidateSettings",
    "filter": "svdflow.curation.filter.settings:FilterSettings",
    "version": "svdflow.curation.version.settings:VersionSettings",
    "encode": "svdflow.training.encode.settings:EncodeSettings",
    "encode_images": "svdflow.training.encode.settings:EncodeImagesSettings",
    "train_image": "svdflow.training.train.settings:stage_settings",
    "train_video": "svdflow.training.train.settings:stage_settings",
    "train_image_to_video": "svdflow.training.train.settings:stage_settings",
    "render": "svdflow.multiview.settings:RenderSettings",
    "encode_orbits": "svdflow.training.encode.settings:EncodeSettings",
    "train_multi_view": "svdflow.training.train.settings:stage_settings",
    "train_interpolation": "svdflow.training.train.settings:stage_settings",
    "train_decoder": "svdflow.training.train.settings:stage_settings",
    "multiview": "svdflow.multiview.settings:MeasureSettings",
    "evaluate": "svdflow.evaluation.settings:EvaluateSettings",
    "measure_interpolation": "svdflow.evaluation.settings:InterpolationSettings",
    "gate": "svdflow.evaluation.settings:GateSettings",
    "export": "svdflow.export.settings:ExportSettings",
    "serve": "svdflow.export.settings:ServeSettings",
}


def load_object(place: str) -> Any:
    """Import ``module:name``."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


def resolve_settings(profile: str, overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every step's settings, validated, as plain values.

    Raises:
        ConfigError: a step that no pipeline has, or a setting that its step refuses; all faults are named.
    """
    values = load_profile(profile, overrides)
    faults = [f"{name}: no such step; steps are {', '.join(SETTINGS)}" for name in values if name not in SETTINGS]
    resolved = {}
    values = with_image_section(values)
    for name, place in SETTINGS.items():
        try:
            resolved[name] = _validated(name, load_object(place), values.get(name) or {}).model_dump(mode="json")
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("; ".join(faults))
    return resolved


def require_chain(pipeline: str, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what a pipeline's chain of stages cannot do, before the first of them trains for days.

    Args:
        pipeline: its name.
        settings: of every step, as ``resolve_settings`` returns them.

    Raises:
        ConfigError: a stage that grows the model before it would train an adapter alone, see ``train.start``.
    """
    for kind in CHAINS.get(pipeline, ()):
        if settings[f"train_{kind}"].get("lora"):
            raise ConfigError(
                f"train_{kind}.lora: in the pipeline {pipeline} this stage grows the model of the stage before, and "
                "new inputs do not learn beside an adapter. Leave it out here, and train the adapter on the model that "
                f"comes out: `svdflow train STAGE --init WORKDIR/models/{kind}`"
            )


def _validated(name: str, model: Any, values: Mapping[str, Any]) -> Settings:
    if name.startswith("train_"):  # a stage has its paper's numbers below the profile's
        return model(name.removeprefix("train_"), values)
    return validate_settings(model, name, values)


def compile_pipeline(name: str, out: Path | None = None) -> Path:
    """Compile a pipeline to IR YAML; returns the file.

    Raises:
        ConfigError: there is no pipeline of that name, or it is beyond what a backend takes.
    """
    path = out or compiled_path(name)
    place, _ = _known(name)
    from kfp.compiler import Compiler

    path.parent.mkdir(parents=True, exist_ok=True)
    Compiler().compile(load_object(place), str(path))
    require_limits(path.read_text(), str(path))
    return path


def placed_pipeline(name: str, place: Placement) -> str:
    """The IR of a pipeline, as text, with every task placed by ``place``: what an environment is sent.

    Raises:
        ConfigError: there is no pipeline of that name.
    """
    module, _ = _known(name)
    from kfp import dsl
    from kfp.compiler import Compiler

    pipeline = load_object(module)
    with placing(place), tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pipeline.yaml"
        declared = pipeline.component_spec
        again = dsl.pipeline(name=declared.name, description=declared.description)(pipeline.pipeline_func)
        Compiler().compile(again, str(path))
        return path.read_text()


def compiled_path(name: str) -> Path:
    """The committed IR of a pipeline.

    Raises:
        ConfigError: there is no pipeline of that name.
    """
    _known(name)
    return COMPILED / f"{name}.yaml"


def _known(name: str) -> tuple[str, str]:
    if name not in PIPELINES:
        raise ConfigError(f"no pipeline {name!r}; there are {', '.join(PIPELINES)}")
    return PIPELINES[name]


def parameters(ir_path: Path) -> set[str]:
    """Names of the parameters that a compiled pipeline takes."""
    return set(pipeline_spec(ir_path)["root"]["inputDefinitions"]["parameters"])


def task_count(ir_path: Path) -> int:
    """How many tasks run when all goes well, nested ones and the exit task included."""
    spec = pipeline_spec(ir_path)

    def count(dag: Mapping[str, Any]) -> int:
        total = 0
        for task in dag["tasks"].values():
            component = spec["components"][task["componentRef"]["name"]]
            total += count(component["dag"]) if "dag" in component else 1
        return total

    return count(spec["root"]["dag"])


def pipeline_spec(ir_path: Path) -> dict[str, Any]:
    """The pipeline itself in a compiled file, without what a platform adds."""
    import yaml

    return next(iter(yaml.load_all(ir_path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))))
