"""Triton's configuration of the image-to-video model, built as its protobuf message and written as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..common.errors import BadInputError
from .request import MODEL_NAME
from .settings import ExportSettings

WARM_UP_STEPS_FILE = "steps_1"

# name, Triton data type, dims, optional
INPUTS = (
    ("IMAGE", "TYPE_UINT8", (-1, -1, 3), False),  # RGB, any size: fitted to the model's own
    ("SEED", "TYPE_INT64", (1,), True),
    ("FPS", "TYPE_INT32", (1,), True),
    ("MOTION_BUCKET", "TYPE_INT32", (1,), True),
    ("NOISE_AUG", "TYPE_FP32", (1,), True),
    ("STEPS", "TYPE_INT32", (1,), True),
    ("GUIDANCE", "TYPE_FP32", (2,), True),  # at the first and the last frame, linear between
)
FRAMES_DIMS = (-1, -1, -1, 3)  # F, H, W, RGB


def model_config_text(settings: ExportSettings, size: tuple[int, int, int]) -> str:
    """The text of ``config.pbtxt``.

    Args:
        settings: placement, bounds and defaults.
        size: frames, height and width of what the model makes.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    frames, height, width = size
    config = pb.ModelConfig(name=MODEL_NAME, backend="python", max_batch_size=0)
    config.version_policy.latest.num_versions = 1
    for name, kind, dims, optional in INPUTS:
        config.input.add(name=name, data_type=pb.DataType.Value(kind), dims=dims, optional=optional)
    config.output.add(name="FRAMES", data_type=pb.DataType.Value("TYPE_UINT8"), dims=FRAMES_DIMS)

    kind = {"auto": "KIND_AUTO", "gpu": "KIND_GPU", "cpu": "KIND_CPU"}[settings.placement]
    group = config.instance_group.add(kind=pb.ModelInstanceGroup.Kind.Value(kind), count=settings.instances)
    group.gpus.extend(settings.gpus or [])

    queue = config.dynamic_batching.default_queue_policy  # the scheduler whose queue can be bounded, batches or not
    queue.max_queue_size = settings.max_queue
    queue.default_timeout_microseconds = int(settings.queue_timeout_s * 1e6)
    queue.timeout_action = pb.ModelQueuePolicy.REJECT

    for name, value in request_parameters(settings).items():
        config.parameters[name].string_value = json.dumps(value)
    for name, value in (("frames", frames), ("height", height), ("width", width)):
        config.parameters[name].string_value = json.dumps(value)

    if settings.warm_up:
        sample = config.model_warmup.add(
            name="one_step", batch_size=1, count=1
        )  # Triton skips a sample of batch size 0
        image, steps = sample.inputs["IMAGE"], sample.inputs["STEPS"]
        image.data_type, image.zero_data = pb.TYPE_UINT8, True
        image.dims.extend((height, width, 3))
        steps.data_type, steps.input_data_file = pb.TYPE_INT32, WARM_UP_STEPS_FILE
        steps.dims.append(1)
    return text_format.MessageToString(config)


def request_parameters(settings: ExportSettings) -> dict[str, Any]:
    """Defaults and bounds of a request, as they stand in the configuration's parameters."""
    names = ("seed", "fps", "motion_bucket", "noise_aug", "steps", "guidance")
    bounds = ("max_steps", "max_fps", "max_motion_bucket", "max_noise_aug", "max_guidance", "max_image_pixels")
    values = settings.model_dump(mode="json")
    return {f"default_{name}": values[name] for name in names} | {name: values[name] for name in bounds}


def read_parameters(repository: Path) -> dict[str, Any]:
    """The parameters in a repository's configuration: defaults, bounds and the size of the video.

    Raises:
        BadInputError: there is no exported model, or its configuration cannot be read.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    path = repository / MODEL_NAME / "config.pbtxt"
    try:
        config = text_format.Parse(path.read_text(), pb.ModelConfig())
        return {name: json.loads(value.string_value) for name, value in config.parameters.items()}
    except FileNotFoundError:
        raise BadInputError(
            f"{repository}: no exported model here ({MODEL_NAME}/config.pbtxt is missing); run the export step"
        ) from None
    except (OSError, ValueError, text_format.ParseError) as error:
        raise BadInputError(f"{path}: cannot be read: {error}") from None
