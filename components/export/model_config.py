"""Triton's configuration of a served model, built as its protobuf message and written as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..common.errors import BadInputError
from ..common.files import write_atomic
from .request import INTERPOLATION, MODEL_NAME, SERVED, evaluations, is_guided
from .settings import ExportSettings

WARM_UP_STEPS_FILE = "steps_1"


def _asked(fps: str) -> tuple[tuple[str, str, tuple[int, ...], bool], ...]:
    """Name, Triton data type, dims and whether it is optional, of what may be said with a picture."""
    return (
        ("SEED", "TYPE_INT64", (1,), True),
        ("FPS", fps, (1,), True),
        ("MOTION_BUCKET", "TYPE_INT32", (1,), True),
        ("NOISE_AUG", "TYPE_FP32", (1,), True),
        ("STEPS", "TYPE_INT32", (1,), True),
        ("GUIDANCE", "TYPE_FP32", (2,), True),  # at the first and the last frame, linear between
    )


INPUTS = {  # pictures are RGB of any size: fitted to the model's own
    MODEL_NAME: (("IMAGE", "TYPE_UINT8", (-1, -1, 3), False), *_asked("TYPE_INT32")),
    INTERPOLATION: (("KEY_FRAMES", "TYPE_UINT8", (-1, -1, -1, 3), False), *_asked("TYPE_FP32")),
}
FRAMES_DIMS = (-1, -1, -1, 3)  # F, H, W, RGB


def model_config_text(name: str, settings: ExportSettings, size: tuple[int, int, int]) -> str:
    """The text of ``config.pbtxt``.

    Args:
        name: of the model, one of SERVED.
        settings: placement, bounds and defaults.
        size: frames, height and width of what an image-to-video model makes; of an interpolation model height and width
            are what frames are brought to, and frames those of a pair of given ones with what lies between.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    frames, height, width = size
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=0)
    config.version_policy.latest.num_versions = 1
    for tensor, kind, dims, optional in INPUTS[name]:
        config.input.add(name=tensor, data_type=pb.DataType.Value(kind), dims=dims, optional=optional)
    config.output.add(name="FRAMES", data_type=pb.DataType.Value("TYPE_UINT8"), dims=FRAMES_DIMS)

    kind = {"auto": "KIND_AUTO", "gpu": "KIND_GPU", "cpu": "KIND_CPU"}[settings.placement]
    group = config.instance_group.add(kind=pb.ModelInstanceGroup.Kind.Value(kind), count=settings.instances)
    group.gpus.extend(settings.gpus or [])

    queue = config.dynamic_batching.default_queue_policy  # the scheduler whose queue can be bounded, batches or not
    queue.max_queue_size = settings.max_queue
    queue.default_timeout_microseconds = int(settings.queue_timeout_s * 1e6)
    queue.timeout_action = pb.ModelQueuePolicy.REJECT

    parameters = request_parameters(settings, name) | {"frames": frames, "height": height, "width": width}
    for parameter, value in parameters.items():
        config.parameters[parameter].string_value = json.dumps(value)

    if settings.warm_up:
        sample = config.model_warmup.add(
            name="one_step", batch_size=1, count=1
        )  # Triton skips a sample of batch size 0
        pictures, steps = sample.inputs[INPUTS[name][0][0]], sample.inputs["STEPS"]
        pictures.data_type, pictures.zero_data = pb.TYPE_UINT8, True
        pictures.dims.extend((height, width, 3) if name == MODEL_NAME else (2, height, width, 3))
        steps.data_type, steps.input_data_file = pb.TYPE_INT32, WARM_UP_STEPS_FILE
        steps.dims.append(1)
    return text_format.MessageToString(config)


def request_parameters(settings: ExportSettings, name: str = MODEL_NAME) -> dict[str, Any]:
    """Defaults and bounds of a request to a model, as they stand in the configuration's parameters."""
    names = ["seed", "fps", "motion_bucket", "noise_aug", "steps", "guidance"]
    bounds = ["max_steps", "max_fps", "max_motion_bucket", "max_noise_aug", "max_guidance", "max_image_pixels"]
    values = settings.model_dump(mode="json")
    if name == INTERPOLATION:
        values["guidance"] = values["interpolation_guidance"]
        bounds += ["max_key_frames", "max_video_pixels", "max_evaluations"]
    return {f"default_{name}": values[name] for name in names} | {name: values[name] for name in bounds}


def raise_bounds(repository: Path) -> dict[str, tuple[int, int]]:
    """Raise an interpolation model's bounds to what its own repository asks of it.

    That is one request at its defaults: with the video that the model beside it makes, as the serving check sends it
    and ``interpolate`` of a request for a video, or with two frames where there is none.

    Returns:
        Bound to what it was set to and what it is now, of those that were too low.

    Raises:
        BadInputError: a configuration cannot be read.
        StorageError: it cannot be written.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    models = exported_models(repository)
    if INTERPOLATION not in models:
        return {}
    told = read_parameters(repository, INTERPOLATION)
    video = read_parameters(repository) if MODEL_NAME in models else told | {"frames": 2}
    frames, picture = max(2, video["frames"]), video["height"] * video["width"]
    needed = {
        "max_key_frames": frames,
        "max_image_pixels": picture,
        "max_video_pixels": frames * picture,
        "max_evaluations": evaluations(frames, told["default_steps"], is_guided(told["default_guidance"])),
    }
    set_to = ExportSettings().model_dump(include=set(needed)) | told  # a repository of before tells not all
    raised = {name: (set_to[name], value) for name, value in needed.items() if value > set_to[name]}
    if raised:
        path = repository / INTERPOLATION / "config.pbtxt"
        config = text_format.Parse(path.read_text(), pb.ModelConfig())
        for name, (_, value) in raised.items():
            config.parameters[name].string_value = json.dumps(value)
        write_atomic(path, text_format.MessageToString(config).encode())
    return raised


def exported_models(repository: Path) -> tuple[str, ...]:
    """Names of the models that a repository holds."""
    return tuple(name for name in SERVED if (repository / name / "config.pbtxt").is_file())


def read_parameters(repository: Path, name: str = MODEL_NAME) -> dict[str, Any]:
    """The parameters in a model's configuration: defaults, bounds and the size of the video.

    Raises:
        BadInputError: there is no exported model, or its configuration cannot be read.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    path = repository / name / "config.pbtxt"
    try:
        config = text_format.Parse(path.read_text(), pb.ModelConfig())
        return {parameter: json.loads(value.string_value) for parameter, value in config.parameters.items()}
    except FileNotFoundError:
        raise BadInputError(
            f"{repository}: no exported model here ({name}/config.pbtxt is missing); run the export step"
        ) from None
    except (OSError, ValueError, text_format.ParseError) as error:
        raise BadInputError(f"{path}: cannot be read: {error}") from None
