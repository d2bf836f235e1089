"""`svdflow generate` and `svdflow interpolate`: videos out of models. What they do is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def generate(
    image: Annotated[Path, typer.Argument(help="The picture that the video starts from.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The MP4 to write.")] = Path("generated.mp4"),
    url: Annotated[
        str | None,
        typer.Option(help="host:port of Triton's gRPC; grpcs://host:port with TLS.", show_default="127.0.0.1:8001"),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the bearer token that a gateway asks for; sent over TLS alone.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A model directory, svdflow's or a released one, a single file, or ORG/NAME\\[@REV]: generate in this "
            "process, without a server."
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR[=WEIGHT]",
            help="With --model: an adapter, as the stage camera_motion leaves it. Repeat it for several.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed, another video.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames a second that the motion is made for.")] = None,
    motion_bucket: Annotated[int | None, typer.Option(help="How much motion, 0 to 255.")] = None,
    motion_score: Annotated[
        float | None,
        typer.Option(
            help="With --model, in its place: a motion score as clips are annotated with, by the model's map."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="With --model. Default: as trained.")] = None,
    height: Annotated[int | None, typer.Option(min=16, help="With --model, px. Default: as trained.")] = None,
    width: Annotated[int | None, typer.Option(min=16, help="With --model, px. Default: as trained.")] = None,
    interpolation: Annotated[
        Path | None,
        typer.Option(
            "--interpolate",
            metavar="DIR",
            help="An interpolation model: bring the video to 4 times its frame rate, in this process.",
        ),
    ] = None,
) -> None:
    """Make a video that starts from a picture, by a served model or a model directory.

    What is not given takes the model's own default.
    """
    from svdflow.export.generate import generate_file

    asked: dict[str, Any] = {
        "seed": seed,
        "fps": fps,
        "motion_bucket": motion_bucket,
        "motion_score": motion_score,
        "steps": steps,
    }
    asked |= {"frames": frames, "height": height, "width": width}
    url = url or ("" if model else "127.0.0.1:8001")
    places: dict[str, Any] = {"url": url, "model": model, "token_file": token_file, "interpolate": interpolation}
    print(generate_file(image, out, **places, lora=lora or (), **asked))


def interpolate(
    video: Annotated[Path, typer.Argument(help="A video file. Its sound is left out.")],
    model: Annotated[
        Path, typer.Option(help="Directory of an interpolation model, as the stage interpolation leaves it.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The MP4 to write.")] = Path("interpolated.mp4"),
    times: Annotated[
        int,
        typer.Option(
            help="How many times the frame rate: 4, or 16 in two passes. The model is told the rate that comes out, "
            "also one that it was not trained at."
        ),
    ] = 4,
    key_frames: Annotated[
        Literal["given", "decoded"],
        typer.Option(
            help="The video's own frames: as they are, or as the model's autoencoder renders them, like those between.",
        ),
    ] = "given",
    seed: Annotated[int | None, typer.Option(help="Another seed, other frames.")] = None,
    motion_bucket: Annotated[int | None, typer.Option(help="How much motion, 0 to 255.")] = None,
    motion_score: Annotated[
        float | None,
        typer.Option(help="In its place: a motion score as clips are annotated with, by the model's map."),
    ] = None,
    noise_aug: Annotated[float | None, typer.Option(help="Noise on what the model is given of the frames.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps for each pair of frames.")] = None,
    height: Annotated[int | None, typer.Option(min=16, help="Of the video made, px. Default: as trained.")] = None,
    width: Annotated[int | None, typer.Option(min=16, help="Of the video made, px. Default: as trained.")] = None,
) -> None:
    """Bring a video to 4 or 16 times its frame rate by an interpolation model, in this process.

    Frames are scaled to cover the model's size and cut to the centre. A video of any length takes the same memory.
    """
    from svdflow.export.interpolate import interpolate_file

    asked: dict[str, Any] = {
        "seed": seed,
        "motion_bucket": motion_bucket,
        "motion_score": motion_score,
        "noise_aug": noise_aug,
    }
    asked |= {"steps": steps, "height": height, "width": width}
    print(interpolate_file(video, out, model, times, key_frames, **asked))
