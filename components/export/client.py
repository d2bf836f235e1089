"""The client of product services: an image in, a video out; or a video in, the same at four times its frame rate.

It speaks gRPC and needs numpy and tritonclient alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..common.errors import BadInputError, ServiceError
from .request import INTERPOLATION, MODEL_NAME

_PROBE_TIMEOUT_S = 5.0
_KINDS = {np.int64: "INT64", np.int32: "INT32", np.float32: "FP32"}


class VideoClient:
    """Talks to one server. Thread-safe for its requests; use as a context manager or call ``close``."""

    def __init__(self, url: str, model: str = MODEL_NAME, timeout_s: float = 600.0, token: str | None = None) -> None:
        """Describe a connection; none is made before the first call.

        Args:
            url: host:port of the server's gRPC endpoint; ``grpcs://host:port`` for TLS.
            model: name of the served image-to-video model.
            timeout_s: of one request. The server stops computing for a client that has gone.
            token: bearer token, sent only over TLS.

        Raises:
            BadInputError: the URL is no host:port, or a token would travel in the clear.
        """
        import tritonclient.grpc as triton

        scheme, _, rest = url.rpartition("://")
        host, _, port = rest.rpartition(":")
        if scheme not in ("", "grpc", "grpcs") or not host or not port.isdigit():
            raise BadInputError(f"{url!r} is no gRPC address; write it as host:port or grpcs://host:port")
        if token and scheme != "grpcs":
            raise BadInputError(f"{url}: a token is only sent over TLS; write the address as grpcs://{rest}")
        self.url, self.model, self.timeout_s = rest, model, timeout_s
        self._headers = {"authorization": f"Bearer {token}"} if token else None
        self._triton = triton
        self._client = triton.InferenceServerClient(rest, ssl=scheme == "grpcs")

    def __enter__(self) -> VideoClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def generate(
        self,
        image: np.ndarray,
        *,
        seed: int | None = None,
        fps: int | None = None,
        motion_bucket: int | None = None,
        noise_aug: float | None = None,
        steps: int | None = None,
        guidance: Sequence[float] | None = None,
        interpolate: bool = False,
        timeout_s: float | None = None,
    ) -> np.ndarray:
        """A video that begins with an image. What is None takes the server's default.

        Args:
            image: uint8 RGB [H, W, 3] of any size; the server scales and crops it to the model's.
            seed: equal requests with equal seeds give equal videos.
            fps: frames per second the motion is made for.
            motion_bucket: amount of motion, 0 to 255.
            noise_aug: standard deviation of the noise added to the image, in a range of -1 to 1.
            steps: denoising steps.
            guidance: scale at the first and at the last frame, linear between.
            interpolate: bring the video to four times ``fps`` by the server's interpolation model, in a second request
                with the same seed and amount of motion. The rest takes that model's defaults: see ``interpolate``.
            timeout_s: instead of the client's, for each request.

        Returns:
            uint8 RGB [F, H, W, 3]; interpolated [4 (F - 1) + 1, H, W, 3].

        Raises:
            BadInputError: the server does not take this image or these parameters; says why.
            ServiceError: no answer, too late an answer, a full queue or a fault of the server.
        """
        image = np.ascontiguousarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise BadInputError(f"image is {image.dtype} {list(image.shape)}; it must be uint8 [height, width, 3], RGB")
        asked = {
            "SEED": (seed, np.int64), "FPS": (fps, np.int32), "MOTION_BUCKET": (motion_bucket, np.int32),
            "NOISE_AUG": (noise_aug, np.float32), "STEPS": (steps, np.int32), "GUIDANCE": (guidance, np.float32),
        }  # fmt: skip
        frames = self._frames(self.model, {"IMAGE": image}, asked, timeout_s)
        if not interpolate:
            return frames
        rate = self.parameters()["default_fps"] if fps is None else fps
        return self.interpolate(frames, seed=seed, fps=rate, motion_bucket=motion_bucket, timeout_s=timeout_s)

    def interpolate(
        self,
        frames: np.ndarray,
        *,
        seed: int | None = None,
        fps: float | None = None,
        motion_bucket: int | None = None,
        noise_aug: float | None = None,
        steps: int | None = None,
        guidance: Sequence[float] | None = None,
        timeout_s: float | None = None,
    ) -> np.ndarray:
        """A video at four times its frame rate: three frames between each two. What is None takes the server's default.

        Args:
            frames: uint8 RGB [F, H, W, 3], two or more, of any size; the server scales and crops them to the model's.
            seed: equal requests with equal seeds give equal videos.
            fps: frames per second of these frames.
            motion_bucket: amount of motion, 0 to 255.
            noise_aug: standard deviation of the noise added to what the model is given of the frames.
            steps: denoising steps.
            guidance: scale at the first and at the last frame of each pair, linear between.
            timeout_s: instead of the client's.

        Returns:
            uint8 RGB [4 (F - 1) + 1, H, W, 3].

        Raises:
            BadInputError: the server does not take these frames or parameters; says why.
            ServiceError: it has no interpolation model; or no answer, too late an answer, a full queue or a fault.
        """
        frames = np.ascontiguousarray(frames)
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
            raise BadInputError(
                f"frames are {frames.dtype} {list(frames.shape)}; they must be uint8 [frames, height, width, 3], RGB"
            )
        asked = {
            "SEED": (seed, np.int64), "FPS": (fps, np.float32), "MOTION_BUCKET": (motion_bucket, np.int32),
            "NOISE_AUG": (noise_aug, np.float32), "STEPS": (steps, np.int32), "GUIDANCE": (guidance, np.float32),
        }  # fmt: skip
        return self._frames(INTERPOLATION, {"KEY_FRAMES": frames}, asked, timeout_s)

    def ready(self) -> bool:
        """Whether the server answers and has the model loaded."""
        try:
            return bool(
                self._call("is_model_ready", self.model, client_timeout=_PROBE_TIMEOUT_S, headers=self._headers)
            )
        except ServiceError:
            return False

    def server(self) -> dict[str, Any]:
        """Name and version of the server.

        Raises:
            ServiceError: no answer.
        """
        found = self._call("get_server_metadata", client_timeout=_PROBE_TIMEOUT_S, headers=self._headers)
        return {"name": found.name, "version": found.version}

    def parameters(self) -> dict[str, Any]:
        """Defaults (``default_…``) and bounds (``max_…``) of a request, and the video's frames, height and width.

        Raises:
            ServiceError: no answer, or no such model.
        """
        found = self._call(
            "get_model_config", self.model, client_timeout=_PROBE_TIMEOUT_S, headers=self._headers
        ).config.parameters
        return {name: json.loads(value.string_value) for name, value in found.items()}

    def _frames(
        self, model: str, pictures: dict[str, np.ndarray], asked: dict[str, tuple[Any, Any]], timeout_s: float | None
    ) -> np.ndarray:
        inputs = [self._input(name, array, "UINT8") for name, array in pictures.items()]
        for name, (value, dtype) in asked.items():
            if value is not None:
                try:
                    array = np.atleast_1d(np.asarray(value, dtype=dtype))
                except (OverflowError, ValueError, TypeError) as error:
                    raise BadInputError(f"{name.lower()} {value!r} cannot be sent: {error}") from None
                inputs.append(self._input(name, array, _KINDS[dtype]))
        answer = self._call("infer", model, inputs, client_timeout=timeout_s or self.timeout_s, headers=self._headers)
        frames = answer.as_numpy("FRAMES")
        if frames is None or frames.ndim != 4:
            raise ServiceError(
                f"{self.url}: the model {model!r} answered without FRAMES [F, H, W, 3]; it is no svdflow model"
            )
        return frames

    def _input(self, name: str, array: np.ndarray, kind: str) -> Any:
        tensor = self._triton.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(array)
        return tensor

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self._client, method)(*args, **kwargs)
        except self._triton.InferenceServerException as error:
            status, message = str(error.status() or ""), str(error.message() or "")
        message = re.sub(r"\[request id: [^\]]*\] ", "", message)
        last = message.strip().splitlines()[-1] if message.strip() else status
        if status.endswith("INVALID_ARGUMENT"):
            raise BadInputError(last)
        if status.endswith("DEADLINE_EXCEEDED"):
            raise ServiceError(
                f"{self.url}: no answer from {args[0] if args else self.model!r} in {kwargs['client_timeout']:g} s; "
                "raise timeout_s or ask for fewer steps"
            )
        if "maximum queue size" in message:
            raise ServiceError(f"{self.url}: the server is busy and its queue is full; try again later")
        if "queue" in message and "timeout" in message.lower():
            raise ServiceError(f"{self.url}: the request waited in the queue for too long; try again later")
        if status.endswith("UNAVAILABLE") and "connect" in message.lower():
            raise ServiceError(f"{self.url}: no server answers there ({last}); start one with `svdflow serve`")
        if "unknown model" in message:
            raise ServiceError(
                f"{self.url}: the server has no model {args[0]!r}; export one into its repository and have the server "
                "load it"
            )
        raise ServiceError(f"{self.url}: {last}")
