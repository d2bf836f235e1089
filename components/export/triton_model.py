"""Runs a served model inside Triton's python backend: copied into the repository as ``model.py``."""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from svdflow.common.errors import SvdflowError
from svdflow.export.request import INTERPOLATION
from svdflow.export.service import Cancelled, InterpolationService, VideoService

_OPTIONAL = ("SEED", "FPS", "MOTION_BUCKET", "NOISE_AUG", "STEPS", "GUIDANCE")


class TritonPythonModel:
    """One instance: one copy of the model on one device."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model directory that lies beside this file."""
        threading.Thread(target=_end_with_server, args=(os.getppid(),), daemon=True).start()
        if "OMP_NUM_THREADS" in os.environ:
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        parameters = json.loads(args["model_config"])["parameters"]
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        directory = Path(args["model_repository"]) / args["model_version"] / "model"
        service = InterpolationService if args["model_name"] == INTERPOLATION else VideoService
        self.service = service(
            directory, {name: json.loads(value["string_value"]) for name, value in parameters.items()}, device
        )

    def execute(self, requests: list) -> list:
        """Answer each request with FRAMES, or with an error that says what to change."""
        responses = []
        for request in requests:
            try:
                asked = {name.lower(): _array(request, name) for name in _OPTIONAL}
                pictures = _array(request, self.service.takes)
                frames = self.service.generate(
                    pictures, {name: _plain(value) for name, value in asked.items()}, request.is_cancelled
                )
            except Cancelled:
                responses.append(_refusal("the client has gone", pb_utils.TritonError.CANCELLED))
                continue
            except SvdflowError as error:
                responses.append(_refusal(str(error), pb_utils.TritonError.INVALID_ARG))
                continue
            # from_dlpack of a torch tensor: with numpy 2 here, an older backend sends garbage for an ndarray
            output = pb_utils.Tensor.from_dlpack("FRAMES", torch.from_numpy(np.ascontiguousarray(frames)))
            responses.append(pb_utils.InferenceResponse([output]))
        return responses


def _end_with_server(server: int) -> None:
    while os.getppid() == server:  # the backend's own watch of the server hangs when it is killed during a request
        time.sleep(1.0)
    os._exit(1)


def _array(request, name: str) -> np.ndarray | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    # not as_numpy(): with numpy 2 an older backend repeats the first element over the whole array
    return None if tensor is None else torch.from_dlpack(tensor.to_dlpack()).cpu().numpy().copy()


def _plain(value: np.ndarray | None):
    if value is None:
        return None
    return value.ravel().tolist() if value.size > 1 else value.item()


def _refusal(message: str, code: int):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
