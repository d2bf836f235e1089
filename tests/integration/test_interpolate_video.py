"""`svdflow interpolate` and `generate --interpolate`: a video file in, one of 4 or 16 times its frame rate out."""

import io
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from generated_files import frames_of_videos, write_picture
from typer.testing import CliRunner

from svdflow.common.errors import BadInputError
from svdflow.common.frames import fit_frame
from svdflow.common.video import VideoFrame, decode, encode_mp4, write_mp4
from svdflow.diffusion import interpolating
from svdflow.diffusion.model_directory import load_model, read_card, write_card
from svdflow.export import interpolate as interpolate_module
from svdflow.export.interpolate import interpolate_file
from svdflow.pipelines.cli import app
from tests.interpolation_models import HEIGHT, WIDTH, write_interpolation_model

FPS = 12.5


def squares(frames: int, height: int = 60, width: int = 90) -> np.ndarray:
    """Large squares that slide to the right by 2 px a frame, so that H.264 loses little."""
    colours = np.random.default_rng(0).integers(30, 225, (-(-height // 20), -(-(width + 2 * frames) // 20), 3))
    wide = np.kron(colours.astype(np.uint8), np.ones((20, 20, 1), np.uint8))[:height]
    return np.stack([wide[:, 2 * (frames - t) : 2 * (frames - t) + width] for t in range(frames)])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_interpolation_model(tmp_path_factory.mktemp("interpolation") / "model")


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("video") / "in.mp4"
    path.write_bytes(encode_mp4(squares(4), FPS))
    return path


@pytest.fixture
def written(monkeypatch) -> list[np.ndarray]:
    """Frames of each video that is written, as they are before they become an MP4."""
    videos: list[np.ndarray] = []

    def keep(out, frames, fps):
        shown = list(frames)
        videos.append(np.stack([frame.rgb for frame in shown]))
        return write_mp4(out, shown, fps)

    monkeypatch.setattr(interpolate_module, "write_mp4", keep)
    return videos


@pytest.fixture
def blending(monkeypatch) -> None:
    """In the model's place one that blends, so that nothing but the stream takes time and memory."""

    def blend(_model, frames, *, on_step=None, **_given):
        before = None
        for frame in frames:
            if before is not None:
                for share in range(4):
                    yield (before + (frame.astype(float) - before) * share / 4).round().astype(np.uint8)
            before = frame
        yield before

    monkeypatch.setattr(interpolating, "interpolated", blend)


def run(*words) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception:
        raise done.exception
    return done.output


def times_of(path: Path) -> tuple[list[float], Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [float(frame.time) for frame in container.decode(stream)], stream.average_rate


def test_the_command_writes_the_samplers_own_frames_at_four_times_the_rate(model, video, tmp_path, written):
    out = tmp_path / "o.mp4"
    said = run("interpolate", video, "-o", out, "--model", model, "--steps", 2, "--seed", 3, "--motion-bucket", 90)
    given = np.stack([fit_frame(frame.rgb, HEIGHT, WIDTH) for frame in decode(video)])
    expected = interpolating.interpolate(load_model(model), given, fps=FPS, motion_bucket=90, steps=2, seed=3)
    np.testing.assert_array_equal(written[0], expected)
    assert "13 frames of 48x32 px at 50 fps, of 4 at 12.5 fps" in " ".join(said.split()) and "sound" not in said
    times, rate = times_of(out)
    assert rate == 50 and times == pytest.approx([i / 50 for i in range(13)])
    read = np.stack([frame.rgb for frame in decode(out)]).astype(int)
    assert np.abs(read - expected).mean() < 5


def test_sixteen_times_is_the_model_twice_and_a_motion_score_goes_through_its_map(model, video, tmp_path, written):
    shared = ("interpolate", video, "-o", tmp_path / "o.mp4", "--model", model, "--steps", 1, "--height", 16)
    run(*shared, "--width", 16, "--times", 16, "--key-frames", "decoded", "--motion-score", 6)
    given = np.stack([fit_frame(frame.rgb, 16, 16) for frame in decode(video)])
    loaded = load_model(model)
    for turn, fps in enumerate((FPS, 4 * FPS)):
        told = {"fps": fps, "motion_bucket": 120, "steps": 1, "seed": turn, "key_frames": "decoded"}
        given = interpolating.interpolate(loaded, given, **told)
    assert len(given) == 49
    np.testing.assert_array_equal(written[0], given)
    assert times_of(tmp_path / "o.mp4")[1] == 200


def test_the_published_videos_are_28_frames_at_7_made_109_at_28(blending, model, tmp_path):
    (tmp_path / "in.mp4").write_bytes(encode_mp4(squares(28), 7))
    interpolate_file(tmp_path / "in.mp4", tmp_path / "o.mp4", model)
    times, rate = times_of(tmp_path / "o.mp4")
    assert (len(times), rate) == (109, 28) and (times[-1] + 1 / 28) == pytest.approx(3.89, abs=0.01)


def test_frames_that_are_unevenly_spaced_stay_so_and_sound_is_left_out_and_said_so(blending, model, tmp_path):
    spaced = [0.0, 0.1, 0.15, 0.4]
    plain = io.BytesIO()
    write_mp4(plain, (VideoFrame(i, t, rgb) for i, (t, rgb) in enumerate(zip(spaced, squares(4), strict=True))), 10)
    with av.open(io.BytesIO(plain.getvalue())) as source, av.open(str(tmp_path / "in.mp4"), "w") as out:
        picture, sound = out.add_stream_from_template(source.streams.video[0]), out.add_stream("aac", rate=8000)
        sound.layout = "mono"
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = picture
                out.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(sound.encode(frame))
        out.mux(sound.encode())
    said = interpolate_file(tmp_path / "in.mp4", tmp_path / "o.mp4", model)
    assert said.splitlines()[0].endswith("; its sound is left out")
    expected = np.interp(np.arange(13) / 4, np.arange(4), spaced)
    assert times_of(tmp_path / "o.mp4")[0] == pytest.approx(expected, abs=2e-3)
    with av.open(str(tmp_path / "o.mp4")) as made:
        assert not made.streams.audio


def test_a_rate_outside_of_those_of_training_is_told_once_and_nothing_else_is(blending, video, tmp_path):
    model = write_interpolation_model(tmp_path / "model")
    card = read_card(model)

    def said(times: int, **told: object) -> list[str]:
        write_card(model, card | told)
        return interpolate_file(video, tmp_path / "o.mp4", model, times).splitlines()

    size = {"frames": 5, "height": HEIGHT, "width": WIDTH}
    assert said(4)[1:] == [
        "The model was told 50 frames a second and was trained at up to 8: judge its motion by eye"
    ]  # its windows' own rate
    trained = {"configuration": size | {"fps": [7.0, 50.0]}, "conditioning": {"fps": 7.0}}
    assert len(said(4, **trained)) == 1
    (told,) = said(16, **trained)[1:]
    assert "told 200 frames a second and was trained at 7 to 50" in told
    slow = {"configuration": size | {"fps": [60.0]}, "conditioning": {"fps": 60.0}}
    assert "told 50 frames a second and was trained at 60:" in said(4, **slow)[1]
    for rate in (49.6, 50.4):  # which rounds to what the model is told
        assert len(said(4, configuration=size | {"fps": [rate]})) == 1
        assert len(said(4, conditioning={"fps": rate})) == 1
    assert len(said(4, conditioning={"fps": 60.0})) == 1, "the usual rate of windows that had others, too"
    assert len(said(16, configuration=size, conditioning={})) == 1, "no record of a rate"


def test_a_video_of_no_bearable_shape_is_refused_and_nothing_written(blending, model, tmp_path):
    (tmp_path / "long.mp4").write_bytes(encode_mp4(np.zeros((2, 16, 320, 3), np.uint8), 7))
    with pytest.raises(BadInputError, match="320x16 px; one side may be up to 16 times the other"):
        interpolate_file(tmp_path / "long.mp4", tmp_path / "o.mp4", model)
    assert not (tmp_path / "o.mp4").exists()


@pytest.mark.parametrize("fps", [1e-9, 0.0, -3.0, float("nan"), float("inf"), 1e9, 1e300])
def test_a_rate_that_no_mp4_can_have_is_refused_by_name(fps):
    shown = [VideoFrame(0, 0.0, np.zeros((16, 16, 3), np.uint8))]
    for write in (lambda: write_mp4(io.BytesIO(), shown, fps), lambda: encode_mp4(shown[0].rgb[None], fps)):
        with pytest.raises(BadInputError, match="frames a second: no MP4 can be written at this rate; give one from"):
            write()


@pytest.mark.parametrize("fps", [0.001, 16 * 24000 / 1001, 30_000_000.0])
def test_rates_at_the_bounds_are_written(fps):
    shown = [VideoFrame(n, n / fps, np.zeros((16, 16, 3), np.uint8)) for n in range(2)]
    out = io.BytesIO()
    assert write_mp4(out, shown, fps) == 2
    for written in (out.getvalue(), encode_mp4(np.zeros((2, 16, 16, 3), np.uint8), fps)):
        assert len(list(decode(written))) == 2


def test_a_long_video_takes_no_more_memory_than_a_short_one(blending, model, tmp_path):
    def peak_bytes(frames: int) -> int:
        (tmp_path / "in.mp4").write_bytes(encode_mp4(squares(2, 96, 160)[np.arange(frames) % 2], 24))
        tracemalloc.start()
        try:
            interpolate_file(tmp_path / "in.mp4", tmp_path / "o.mp4", model, height=96, width=160)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(2)  # what is loaded once
    short, long = peak_bytes(20), peak_bytes(400)
    whole = 4 * 380 * 96 * 160 * 3  # what the further frames would take
    assert long - short < 0.1 * whole
    assert len(times_of(tmp_path / "o.mp4")[0]) == 4 * 399 + 1


def test_a_video_that_breaks_off_leaves_what_was_there(model, video, tmp_path, monkeypatch):
    def broken(path):
        yield from list(decode(path))[:2]
        raise BadInputError(f"{path}: decoding breaks off")

    monkeypatch.setattr(interpolate_module, "decode", broken)
    (tmp_path / "o.mp4").write_bytes(b"before")
    with pytest.raises(BadInputError, match="breaks off"):
        interpolate_file(video, tmp_path / "o.mp4", model, steps=1, height=16, width=16)
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"] and (tmp_path / "o.mp4").read_bytes() == b"before"


def test_what_cannot_be_interpolated_is_said_in_one_line(model, video, tmp_path):
    out, one = tmp_path / "o.mp4", tmp_path / "one.mp4"
    one.write_bytes(encode_mp4(squares(1), 5))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/svdflow.json").write_text('{"kind": "image_to_video", "format": 1}')
    for asked, says in (
        ({"video": tmp_path / "nowhere.mp4"}, "there is no such video"),
        ({"video": tmp_path / "text.mp4"}, "no readable video container"),
        ({"video": one}, "nothing lies between fewer than two"),
        ({"out": tmp_path / "o.gif"}, "let its name end in .mp4"),
        ({"out": video}, "is the video itself"),
        ({"times": 8}, "--times 8: a pass makes 4 times"),
        ({"model": tmp_path / "other"}, "kind image_to_video; frames between others are made by one of kind interpol"),
        ({"model": tmp_path / "empty"}, "empty"),
        ({"steps": 101}, "steps is 101; this model takes 1 to 100"),
        ({"height": 20}, "both sides must be multiples of 8"),
        ({"motion_bucket": 3, "motion_score": 1.0}, "two ways to say the same"),
    ):
        with pytest.raises(BadInputError, match=says) as refused:
            interpolate_file(**({"video": video, "out": out, "model": model, "steps": 1} | asked))
        assert "\n" not in str(refused.value) and not out.exists()


def test_a_generated_video_is_interpolated_in_process(model, tmp_path, monkeypatch):
    import torch

    from svdflow.diffusion.autoencoder import load_autoencoder
    from svdflow.diffusion.conditioning import build_feature_extractor, build_image_encoder
    from svdflow.diffusion.model_directory import VideoModel, save_model
    from svdflow.diffusion.settings import TINY_UNET
    from svdflow.diffusion.unet import build_video_unet

    torch.manual_seed(0)
    unet = build_video_unet(TINY_UNET.model_copy(update={"cross_attention_dim": 32, "num_frames": 3}), "image_to_video")
    card = {"configuration": {"frames": 3, "height": 32, "width": 32}}
    parts = (unet.eval(), load_autoencoder(), build_image_encoder(32), build_feature_extractor(), None, card)
    save_model(VideoModel("image_to_video", *parts), tmp_path / "video")
    write_picture(tmp_path / "in.png")
    frames = frames_of_videos(monkeypatch)
    command = ["generate", tmp_path / "in.png", "-o", tmp_path / "o.mp4", "--model", tmp_path / "video"]
    command += ["--steps", 1, "--seed", 5]
    run(*command)
    said = run(*command, "--interpolate", model)
    plain, between = frames
    expected = interpolating.interpolate(load_model(model), plain, fps=7, steps=1, seed=5)
    np.testing.assert_array_equal(between, expected)
    assert "9 frames of 32x32 px at 28 fps" in " ".join(said.split()) and times_of(tmp_path / "o.mp4")[1] == 28
    with pytest.raises(BadInputError, match="a model of kind image_to_video; frames between"):
        run(*command, "--interpolate", tmp_path / "video")
    with pytest.raises(BadInputError, match="nothing lies between fewer than two"):
        run(*command, "--interpolate", model, "--frames", 1)
    assert len(frames) == 2, "what cannot be done is said before a video is made"
