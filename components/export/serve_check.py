"""The serving check: real requests to a real server, and what came back held against the same model in process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..common.errors import ServiceError
from ..common.files import write_atomic
from ..common.identity import file_sha256, identity
from ..common.progress import Progress
from ..common.report import StepReport, images, table, videos
from ..common.storage import DataRoot
from ..common.video import encode_mp4
from ..diffusion.settings import INTERPOLATION_RATE
from .client import VideoClient
from .input_images import InputImage, choose_images
from .model_config import exported_models, read_parameters
from .repository import repository_digest
from .request import INTERPOLATION, MODEL_NAME
from .server import TritonServer
from .service import InterpolationService, VideoService
from .settings import ServeSettings

VERSION = "1"


@dataclass
class _Answers:
    server: str
    version: str
    videos: list[np.ndarray]  # of each image, with the first seed: uint8 [F, H, W, 3]
    seconds: list[float]
    other_seed: np.ndarray  # of the first image, with the next seed
    interpolated: np.ndarray | None = None  # the first video at four times its rate, where there is a model for it
    interpolation_s: float = 0.0


def check_serving(
    repository: Path, clips: Path, selection: Path, generated: Path, root: DataRoot, settings: ServeSettings
) -> StepReport:
    """Serve the repository, send it images, and hold its answers against the model in process.

    Two things must hold: frames over gRPC equal those of the same model in process (same seed, same number of threads),
    and another seed gives another video. Two are measured: the time a request takes, and whether each image is found
    again, by mean squared error among all of them, from the first frame of its own video (which says how well the model
    keeps its input). Where the repository has an interpolation model, the first video is brought to four times its
    frame rate: its own frames have to be among those that come back, and all of them equal to those made in process.

    Args:
        repository: what ``export_repository`` wrote.
        clips: manifest of the clips whose first frames are sent.
        selection: held-out clips are taken first, then other kept ones, then dropped ones.
        generated: directory for ``served.mp4``, the video of the first image.
        root: data root of the clips.
        settings: requests, threads, time-outs; ``url`` to check a server that runs elsewhere.

    Raises:
        ServiceError: the server does not start or answer, or its answers are not the model's own.
        BadInputError: no exported model, or fewer than two different images.
    """
    parameters = read_parameters(repository)
    manifests = [file_sha256(path) for path in (clips, selection) if path.is_file()]
    key = identity(version=VERSION, repository=repository_digest(repository), manifests=manifests, settings=settings)
    found = None if settings.url else root.find("serve", key)  # a server elsewhere may have changed meanwhile
    if found is not None:
        report = StepReport.from_json(root.read(found["report"]))
        report.done, report.reused = 0, report.done
    else:
        inputs = choose_images(clips, selection, root, settings.images, (parameters["height"], parameters["width"]))
        fps = settings.fps or parameters["default_fps"]
        answers = _ask(repository, inputs, fps, settings, root.scratch("serve") / "triton.log")
        difference = _difference_in_process(repository, parameters, inputs, answers, settings)
        if answers.interpolated is not None:
            _check_interpolated(repository, answers, fps, settings)
        played = [encode_mp4(video, fps) for video in answers.videos]
        report = _report(inputs, answers, difference, played, fps, settings)
        found = {"report": root.put_bytes(report.to_json()), "served": root.put_bytes(played[0])}
        if not settings.url:
            root.record("serve", key, found)
    write_atomic(generated / "served.mp4", root.read(found["served"]))
    return report


def _ask(repository: Path, inputs: list[InputImage], fps: int, settings: ServeSettings, log: Path) -> _Answers:
    with (
        _server_url(repository, settings, log) as url,
        VideoClient(url, timeout_s=settings.request_timeout_s) as client,
    ):
        if not client.ready():
            raise ServiceError(
                f"{url}: no server there has the model {MODEL_NAME} loaded; start one with `svdflow serve`"
            )
        server, received, seconds = client.server(), [], []
        asked: dict[str, Any] = {
            name: getattr(settings, name) for name in ("fps", "motion_bucket", "noise_aug", "steps", "guidance")
        }
        with Progress("requests", len(inputs) + 1) as progress:
            for item in inputs:
                started = time.monotonic()
                received.append(client.generate(item.rgb, seed=settings.seed, **asked))
                seconds.append(time.monotonic() - started)
                progress.advance(note=f"{seconds[-1]:.1f} s")
            other = client.generate(inputs[0].rgb, seed=settings.seed + 1, **asked)
            progress.advance()
        interpolated, started = None, time.monotonic()
        if INTERPOLATION in exported_models(repository):
            interpolated = client.interpolate(received[0], seed=settings.seed, fps=fps)
        interpolation_s = time.monotonic() - started
    if np.array_equal(other, received[0]):
        raise ServiceError(
            f"{url}: seeds {settings.seed} and {settings.seed + 1} gave the same video; the server ignores the seed"
        )
    name = "tritonserver" if not settings.url else server["name"]
    return _Answers(name, server["version"], received, seconds, other, interpolated, interpolation_s)


@contextmanager
def _server_url(repository: Path, settings: ServeSettings, log: Path) -> Iterator[str]:
    if settings.url:
        yield settings.url
        return
    models = exported_models(repository)
    with TritonServer(
        repository, models, threads=settings.threads, log=log, start_timeout_s=settings.start_timeout_s
    ) as server:
        yield server.url


def _difference_in_process(
    repository: Path, parameters: dict[str, Any], inputs: list[InputImage], answers: _Answers, settings: ServeSettings
) -> int | None:
    """Largest difference, of 255 levels, between what was served and what the model makes here; None when not compared.

    Raises:
        ServiceError: it is more than ``settings.tolerance``.
    """
    if not settings.compare:
        return None
    with _threads(settings.threads):
        service = VideoService(_latest(repository) / "model", parameters, settings.device)
        worst = 0
        for item, served in list(zip(inputs, answers.videos, strict=True))[: settings.compare]:
            asked = {
                name: getattr(settings, name)
                for name in ("seed", "fps", "motion_bucket", "noise_aug", "steps", "guidance")
            }
            worst = max(worst, _levels_apart(served, service.generate(item.rgb, asked), settings.tolerance))
    return worst


def _check_interpolated(repository: Path, answers: _Answers, fps: int, settings: ServeSettings) -> None:
    """Hold the interpolated video against the one that was interpolated, and against the model in process.

    Raises:
        ServiceError: the given frames are not where they stood, or what was made differs by more than the tolerance.
    """
    given, served = answers.videos[0], answers.interpolated
    assert served is not None
    parameters = read_parameters(repository, INTERPOLATION)
    same_size = given.shape[1:3] == (parameters["height"], parameters["width"])  # else they were fitted
    rate = INTERPOLATION_RATE
    if len(served) != rate * (len(given) - 1) + 1 or (same_size and not np.array_equal(served[::rate], given)):
        raise ServiceError(
            f"{len(given)} frames were given for interpolation and {len(served)} came back, or others than the given "
            "ones where they stood"
        )
    if settings.compare:
        with _threads(settings.threads):
            service = InterpolationService(_latest(repository, INTERPOLATION) / "model", parameters, settings.device)
            own = service.generate(given, {"seed": settings.seed, "fps": fps})
        _levels_apart(served, own, settings.tolerance)


def _levels_apart(served: np.ndarray, own: np.ndarray, tolerance: int) -> int:
    """Largest difference of frames, of 255 levels.

    Raises:
        ServiceError: it is more than the tolerance, or they are of different shapes.
    """
    if own.shape != served.shape or own.dtype != served.dtype:
        raise ServiceError(
            f"served frames are {served.dtype} {list(served.shape)}, the model's own {own.dtype} {list(own.shape)}"
        )
    worst = int(np.abs(own.astype(int) - served.astype(int)).max())
    if worst > tolerance:
        raise ServiceError(
            f"served frames differ from the model's own by up to {worst} of 255 levels (allowed: {tolerance}); "
            "the server runs another model, another device or another number of threads"
        )
    return worst


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _latest(repository: Path, model: str = MODEL_NAME) -> Path:
    return max(
        (path for path in (repository / model).iterdir() if path.name.isdigit()), key=lambda path: int(path.name)
    )


def _first_frame_matches(inputs: list[InputImage], answers: _Answers) -> list[int]:
    """For each video, the index of the image that its first frame is nearest to, by mean squared error."""
    sent = np.stack([item.rgb for item in inputs]).astype(np.float32)
    return [int(((sent - video[0].astype(np.float32)) ** 2).mean(axis=(1, 2, 3)).argmin()) for video in answers.videos]


def _psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    error = float(((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255.0**2 / error))


def _report(
    inputs: list[InputImage],
    answers: _Answers,
    difference: int | None,
    played: list[bytes],
    fps: int,
    settings: ServeSettings,
) -> StepReport:
    nearest = _first_frame_matches(inputs, answers)
    matches = sum(index == found for index, found in enumerate(nearest))
    count, shape = len(inputs), answers.videos[0].shape
    rows: list[list[Any]] = []
    for index, (item, video, seconds) in enumerate(zip(inputs, answers.videos, answers.seconds, strict=True)):
        found_again = "yes" if nearest[index] == index else f"no, taken for {inputs[nearest[index]].clip_id[:8]}"
        rows.append(
            [item.clip_id[:8], item.origin, round(seconds, 3), round(_psnr_db(item.rgb, video[0]), 2), found_again]
        )
    latency = {
        "median": round(float(np.median(answers.seconds)), 4),
        "p90": round(float(np.percentile(answers.seconds, 90)), 4),
        "max": round(max(answers.seconds), 4),
    }
    compared = (
        "not compared"
        if difference is None
        else f"{difference} of 255 levels apart over {min(settings.compare, count)} videos"
    )
    facts = [
        ["server", f"{answers.server} {answers.version}"],
        ["video", f"{shape[0]} frames of {shape[2]}x{shape[1]} px at {fps} fps"],
        ["latency, median", f"{latency['median']:.3f} s"], ["latency, 90th percentile", f"{latency['p90']:.3f} s"],
        ["frames over gRPC against in process", compared], ["another seed", "another video"],
        ["images found again by the first frame", f"{matches} of {count} (by chance: 1)"],
    ]  # fmt: skip
    shown: list[tuple[Path | bytes, str]] = [
        (data, f"{item.clip_id[:8]}, {item.origin}") for data, item in zip(played, inputs, strict=True)
    ]
    shown.append((encode_mp4(answers.other_seed, fps), f"{inputs[0].clip_id[:8]}, seed {settings.seed + 1}"))
    between = answers.interpolated
    if between is not None:
        rate = INTERPOLATION_RATE * fps
        shown.append((encode_mp4(between, rate), f"{inputs[0].clip_id[:8]}, interpolated"))
        facts.append(["interpolated", f"{len(between)} frames at {rate} fps in {answers.interpolation_s:.3f} s"])
    return StepReport(
        step="serve",
        title="Serving check",
        done=count + 1,
        counts={"images sent": count, "videos received": count + 1},
        summary={
            "serving": {
                "server": answers.server,
                "version": answers.version,
                "latency_s": latency["median"],
                "latency_p90_s": latency["p90"],
                "frames": shape[0],
                "height": shape[1],
                "width": shape[2],
                "video": "generated/served.mp4",
                "equal_to_in_process": None if difference is None else difference == 0,
                "seeds_differ": True,
                "images": count,
                "first_frame_matches": matches,
                "interpolated_frames": None if between is None else len(between),
            }
        },
        sections=[
            table("What was served", ["", ""], facts),
            images("Images sent", [(item.rgb, f"{item.clip_id[:8]}, {item.origin}") for item in inputs]),
            videos("Videos received", shown),
            table("Requests", ["clip", "selection", "seconds", "first frame, PSNR dB", "image found again"], rows,
                  note="One request at a time; the model was warm."),
        ],
        versions={"svdflow": __version__, "tritonserver": answers.version},
    )  # fmt: skip
