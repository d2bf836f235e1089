"""Frames between those of a video, made in this process by an interpolation model.

A video file is decoded, interpolated and written in one stream: its length does not matter.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import BadInputError
from ..common.files import atomic_file
from ..common.frames import fit_frame
from ..common.progress import Progress
from ..common.video import VideoFrame, decode, open_video, probe, write_mp4
from ..diffusion.settings import INTERPOLATION_RATE
from .in_process import bucket_of_score, video_size_of
from .model_config import request_parameters
from .request import INTERPOLATION, VideoRequest, check_fit, video_request
from .settings import ExportSettings

if TYPE_CHECKING:
    from ..diffusion.interpolating import KeyFrames
    from ..diffusion.model_directory import VideoModel

# times as many frames to passes, as Align your Latents goes from T over 4T to 16T
PASSES = {INTERPOLATION_RATE: 1, INTERPOLATION_RATE**2: 2}
_ROUNDING_FPS = 0.5  # models know whole rates: within it a rate is one of training. Ours


def interpolate_file(
    video: Path, out: Path, model: Path, times: int = INTERPOLATION_RATE, key_frames: KeyFrames = "given", **asked: Any
) -> str:
    """Write a video at a multiple of its frame rate, and say so in one line.

    A second line tells of a rate outside of those that the model was trained at, once however many passes there are.

    Args:
        video: a file in any container that is read; its sound is left out.
        out: the MP4 file to write. Frames that were unevenly spaced stay so.
        model: directory of an interpolation model.
        times: 4, or 16 in two passes.
        key_frames: ``given`` keeps the pixels of the video's own frames; ``decoded`` has them pass through the model's
            autoencoder, so that they look like those between them.
        asked: seed, motion_bucket or motion_score, noise_aug, steps; height and width that frames are brought to, as
            pictures are, else those that the model was trained at. None or absent takes the default.

    Raises:
        BadInputError: no such video, or of fewer than two frames; no interpolation model; a value out of its bounds.
        StorageError: the disk is full or not writable.
    """
    if times not in PASSES:
        raise BadInputError(
            f"--times {times}: a pass makes 4 times as many frames and two make 16; ask for one of these"
        )
    if out.suffix.lower() != ".mp4":
        raise BadInputError(f"{out}: the video is an MP4 file; let its name end in .mp4")
    if not video.is_file():
        raise BadInputError(f"{video}: there is no such video")
    if out.exists() and out.samefile(video):
        raise BadInputError(f"{out}: is the video itself; name another file to write")
    info = probe(video)
    if info.frames < 2:
        raise BadInputError(f"{video}: has one frame; nothing lies between fewer than two")
    with open_video(video) as container:
        sound = bool(container.streams.audio)
    started = time.monotonic()
    opened = _opened(model, asked)
    size = video_size_of(opened.model, asked)
    height, width = size["height"], size["width"]
    check_fit(info.height, info.width, height, width)
    key_times: deque[float] = deque()

    def fitted() -> Iterator[np.ndarray]:
        for frame in decode(video):
            key_times.append(frame.time_s)
            yield fit_frame(frame.rgb, height, width)

    with _shown(opened, info.frames, times, f"clips of 5 frames of {width}x{height} px") as on_step:
        made = _passes(opened, fitted(), info.fps, times, key_frames, on_step)
        with atomic_file(out) as stream:
            count = write_mp4(stream, _timed(made, key_times, times), times * info.fps)
    said = (
        f"{out}: {count} frames of {width}x{height} px at {times * info.fps:g} fps, of {(count - 1) // times + 1} at "
        f"{info.fps:g} fps, made in {time.monotonic() - started:.1f} s" + ("; its sound is left out" if sound else "")
    )
    return "\n".join(filter(None, [said, _beyond_training(opened.model.card, times * info.fps)]))


def interpolate_frames(frames_FHWC: np.ndarray, model: Path, fps: float, asked: Mapping[str, Any]) -> np.ndarray:
    """A video at four times its frame rate, uint8 [4 (F - 1) + 1, H, W, 3], of its own size.

    Args:
        frames_FHWC: uint8 RGB, two at least, with sides that are multiples of the autoencoder's factor.
        model: directory of an interpolation model.
        fps: of the frames given.
        asked: seed, motion_bucket or motion_score, noise_aug, steps. None or absent takes the default.

    Raises:
        BadInputError: no interpolation model, or a value out of its bounds.
    """
    opened = _opened(model, asked)
    frames_FHWC = np.array(frames_FHWC)  # what came over gRPC cannot be written to, of which torch warns
    count, height, width = frames_FHWC.shape[:3]
    with _shown(opened, count, INTERPOLATION_RATE, f"clips of 5 frames of {width}x{height} px") as on_step:
        return np.stack(list(_passes(opened, frames_FHWC, fps, INTERPOLATION_RATE, "given", on_step)))


def interpolation_directory(model: Path) -> Path:
    """Where an interpolation model lies, without loading it; fetched if it is a repository of a hub.

    Raises:
        BadInputError: no model directory, or a model of another kind.
    """
    from ..diffusion.hub import resolve_model
    from ..diffusion.model_directory import read_card

    place = resolve_model(model)
    if (kind := read_card(place)["kind"]) != INTERPOLATION:
        raise BadInputError(
            f"{model}: a model of kind {kind}; frames between others are made by one of kind {INTERPOLATION}, which "
            "`svdflow train interpolation` leaves"
        )
    return place


def _beyond_training(card: Mapping[str, Any], told_fps: float) -> str:
    """What to say of a rate outside of those of training by more than a rounding; nothing where they are not known.

    A card that has no rates asked for tells the usual one of its windows, below which there were others.
    """
    if asked := (card.get("configuration") or {}).get("fps"):
        low, high = float(np.min(asked)), float(np.max(asked))
    elif usual := (card.get("conditioning") or {}).get("fps"):
        low, high = 0.0, float(usual)
    else:
        return ""
    if low - _ROUNDING_FPS < told_fps < high + _ROUNDING_FPS:
        return ""
    rates = f"up to {high:g}" if not low else f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"The model was told {told_fps:g} frames a second and was trained at {rates}: judge its motion by eye"


@dataclass(frozen=True)
class _Opened:
    model: VideoModel
    request: VideoRequest


def _opened(model: Path, asked: Mapping[str, Any]) -> _Opened:
    from ..diffusion.device import default_device
    from .service import InterpolationService

    parameters = request_parameters(ExportSettings(), INTERPOLATION)
    names = ("seed", "motion_bucket", "noise_aug", "steps")
    request = {name: asked.get(name) for name in names}
    video_request(request, parameters)  # refuses what it can before a model is loaded
    service = InterpolationService(interpolation_directory(model), parameters, str(default_device()))
    if asked.get("motion_score") is not None:
        request["motion_bucket"] = bucket_of_score(model, service.model, asked)
    return _Opened(service.model, video_request(request, parameters))


def _passes(
    opened: _Opened, frames: Iterable[np.ndarray], fps: float, times: int, key_frames: KeyFrames, on_step: Any
) -> Iterable[np.ndarray]:
    from ..diffusion.interpolating import interpolated

    request = opened.request
    for turn in range(PASSES[times]):
        frames = interpolated(
            opened.model,
            frames,
            fps=fps * INTERPOLATION_RATE**turn,
            motion_bucket=request.motion_bucket,
            noise_aug=request.noise_aug,
            steps=request.steps,
            guidance=request.guidance,
            guidance_shape="linear",
            seed=request.seed + turn,  # no pass has the noise of another
            key_frames=key_frames,
            on_step=on_step,
        )
    return frames


@contextmanager
def _shown(opened: _Opened, count: int, times: int, what: str) -> Iterator[Any]:
    """Progress in denoising steps of all passes; meanwhile a GPU that is too small says what to do."""
    from ..diffusion.device import within_memory

    clips = sum((count - 1) * INTERPOLATION_RATE**turn for turn in range(PASSES[times]))
    with within_memory(what), Progress("denoising steps", clips * opened.request.steps) as progress:
        yield lambda _step: progress.advance()


def _timed(frames: Iterable[np.ndarray], key_times: deque[float], times: int) -> Iterator[VideoFrame]:
    """Frames with their times: those between two given ones evenly between the times of these."""
    for index, rgb in enumerate(frames):
        place = index % times
        if index and not place:
            key_times.popleft()
        start_s = key_times[0]
        gap_s = key_times[1] - start_s if place else 0.0
        yield VideoFrame(index, start_s + gap_s * place / times, rgb)
