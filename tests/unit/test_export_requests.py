"""Requests to a served model: their bounds and defaults, pictures that go in, the client; without a server."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.manifests import AXES, write_manifest
from svdflow.common.video import encode_mp4
from svdflow.export.generate import generate_file, read_image
from svdflow.export.input_images import choose_images
from svdflow.export.model_config import request_parameters
from svdflow.export.request import check_fit, check_image, check_interpolation, check_key_frames, video_request
from svdflow.export.settings import ExportSettings, ServeSettings

SETTINGS = ExportSettings()
PARAMETERS = request_parameters(SETTINGS)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((5, 64, 64), "uint8", "frames, height, width, 3"),
        ((5, 64, 64, 3), "float32", "float32"),
        ((1, 64, 64, 3), "uint8", "1 frames are given; this model takes 2 to 64"),
        ((65, 64, 64, 3), "uint8", "in parts that share a frame"),
        ((2, 8, 64, 3), "uint8", "64x8"),
        ((64, 1024, 1040, 3), "uint8", "68157440 pixels together; this model takes up to 67108864"),
    ],
)
def test_what_are_no_bearable_frames_is_refused(shape, dtype, reason):
    with pytest.raises(BadInputError, match=reason):
        check_key_frames(shape, dtype, request_parameters(SETTINGS, "interpolation"))
    check_key_frames((28, 576, 1024, 3), "uint8", request_parameters(SETTINGS, "interpolation"))


def largest_scaled(height: int, width: int, bound: float) -> float:
    """Pixels of the largest picture that covers a size, of any shape up to 1:``bound``, by the formula of covering."""
    return max(height * height * bound, width * width * bound)


@pytest.mark.parametrize("shape", [(1_048_576, 16, 3), (16, 1_048_576, 3), (16, 272, 3)])
def test_a_long_and_narrow_picture_is_refused_whatever_its_pixels(shape):
    assert shape[0] * shape[1] <= PARAMETERS["max_image_pixels"]
    with pytest.raises(BadInputError, match=r"up to 16 times the other.*cut the part out"):
        check_image(shape, "uint8", PARAMETERS)
    with pytest.raises(BadInputError, match="up to 16 times the other"):
        check_key_frames((2, *shape), "uint8", request_parameters(SETTINGS, "interpolation"))


def test_what_a_picture_is_scaled_to_is_bounded_by_the_size_that_it_covers():
    told = {"height": 576, "width": 1024}
    for shape in ((16, 256, 3), (256, 16, 3), (1000, 16_000, 3), (16_000, 1000, 3)):
        check_image(shape, "uint8", PARAMETERS | told)
    assert largest_scaled(576, 1024, 16) <= 32 * 576 * 1024
    check_fit(1000, 8000, 64, 1024)
    with pytest.raises(BadInputError, match=r"1000x8000 px; to cover a video of 1024x64 px .* to 1024x8192 px"):
        check_fit(8000, 1000, 64, 1024)
    with pytest.raises(BadInputError, match="to cover a video"):
        check_image((8000, 1000, 3), "uint8", PARAMETERS | {"height": 64, "width": 1024})


@given(
    given_px=st.tuples(st.integers(16, 4096), st.integers(16, 4096)),
    size=st.tuples(st.integers(8, 300), st.integers(8, 300)),
)
def test_no_picture_that_passes_is_scaled_to_more_than_32_times_its_target(given_px, size):
    scale = max(size[0] / given_px[0], size[1] / given_px[1])
    shares = scale * given_px[0] * scale * given_px[1] / (size[0] * size[1])
    try:
        check_image((*given_px, 3), "uint8", PARAMETERS | {"height": size[0], "width": size[1]})
    except BadInputError:
        assert shares > 31 or max(given_px) > 16 * min(given_px)
    else:
        assert shares < 34 and max(given_px) <= 16 * min(given_px)  # whole pixels of small sizes


INTERPOLATING = request_parameters(SETTINGS, "interpolation") | {"height": 576, "width": 1024}


@pytest.mark.parametrize(
    ("frames", "asked", "says"),
    [
        (28, {}, ""),  # the paper's longest video, at the released number of steps: 675
        (9, {"steps": 100}, ""),  # 800
        (10, {"steps": 100}, "10 frames at 100 steps take 900 .* send up to 9 frames at a time, in parts that share"),
        (5, {"steps": 100, "guidance": (1.0, 1.5)}, ""),
        (6, {"steps": 100, "guidance": (1.5, 1.0)}, "steps with guidance take 1000 model evaluations.* up to 5 frames"),
        (64, {"steps": 100, "guidance": (3.0, 3.0)}, "12600 model evaluations.* up to 800.* or for no guidance"),
    ],
)
def test_the_work_of_one_request_for_interpolation_is_bounded(frames, asked, says):
    request = video_request(asked, INTERPOLATING)
    if not says:
        return check_interpolation(frames, request, INTERPOLATING)
    with pytest.raises(BadInputError, match=says):
        check_interpolation(frames, request, INTERPOLATING)
    check_interpolation(frames, request, INTERPOLATING | {"max_evaluations": 12_600})


def test_a_bound_below_one_pair_of_frames_does_not_advise_parts():
    request = video_request({"steps": 30}, INTERPOLATING)
    with pytest.raises(BadInputError, match="makes up to 20 for a request: ask for fewer steps$"):
        check_interpolation(2, request, INTERPOLATING | {"max_evaluations": 20})


def test_a_repository_that_tells_no_bound_of_work_has_the_default():
    told = {name: value for name, value in INTERPOLATING.items() if name != "max_evaluations"}
    with pytest.raises(BadInputError, match="up to 800"):
        check_interpolation(64, video_request({}, told), told)
    assert INTERPOLATING["max_evaluations"] == SETTINGS.max_evaluations == 800


def test_an_answer_that_grpc_cannot_carry_is_refused_by_its_bytes():
    request = video_request({"steps": 1}, INTERPOLATING)
    check_interpolation(64, request, INTERPOLATING)  # 253 frames, 448 MB
    large = INTERPOLATING | {"height": 2304, "width": 4096}
    with pytest.raises(BadInputError, match=r"64 frames become 253 of 4096x2304 px.*send up to (\d+) frames") as found:
        check_interpolation(64, request, large)
    fitting = int(str(found.value).split("send up to ")[1].split()[0])
    assert (4 * (fitting - 1) + 1) * 2304 * 4096 * 3 < 2**31 <= (4 * fitting + 1) * 2304 * 4096 * 3
    check_interpolation(fitting, request, large)
    with pytest.raises(BadInputError, match=f"send up to {fitting} frames"):
        check_interpolation(fitting + 1, request, large)


def test_the_service_refuses_before_it_fits_a_frame(monkeypatch):
    from svdflow.common import frames as frames_module
    from svdflow.export import service

    monkeypatch.setattr(service, "_loaded", lambda *_: None)
    monkeypatch.setattr(frames_module, "fit_frame", lambda *_: pytest.fail("a frame was fitted"))
    with pytest.raises(BadInputError, match="1575 model evaluations"):
        service.InterpolationService(Path("m"), INTERPOLATING).generate(np.zeros((64, 16, 16, 3), np.uint8), {})
    with pytest.raises(BadInputError, match="up to 16 times the other"):
        service.VideoService(Path("m"), INTERPOLATING | {"frames": 2}).generate(np.zeros((16, 300, 3), np.uint8), {})


def test_a_request_that_says_nothing_takes_the_defaults():
    request = video_request({"seed": None}, PARAMETERS)
    assert (request.seed, request.fps, request.motion_bucket, request.steps, request.guidance) == (
        0,
        7,
        127,
        25,
        (1.0, 3.0),
    )


@given(
    seed=st.integers(0, 2**63 - 1),
    fps=st.integers(1, 30),
    motion_bucket=st.integers(0, 255),
    noise_aug=st.floats(0, 10),
    steps=st.integers(1, 100),
    guidance=st.tuples(st.floats(0, 20), st.floats(0, 20)),
)
def test_what_is_within_the_bounds_is_taken_as_it_is(**asked):
    assert vars(video_request(asked, PARAMETERS)) == asked


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", 101), ("fps", 0), ("fps", 31), ("motion_bucket", -1), ("motion_bucket", 256),
        ("seed", -1),
        ("noise_aug", float("nan")), ("noise_aug", float("inf")), ("noise_aug", -0.1), ("guidance", (1.0, 20.5)),
        ("guidance", [1.0]),
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_refused_by_name(name, value):
    with pytest.raises(BadInputError, match=name):
        video_request({name: value}, PARAMETERS)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((8, 90, 3), "uint8", "90x8"),
        ((64, 64), "uint8", "height, width, 3"),
        ((64, 64, 3), "float32", "float32"),
        ((5000, 5000, 3), "uint8", "pixels"),
    ],
)
def test_what_is_no_bearable_image_is_refused(shape, dtype, reason):
    with pytest.raises(BadInputError, match=reason):
        check_image(shape, dtype, PARAMETERS)


def test_unknown_settings_are_refused():
    from svdflow.common.config import validate_settings

    with pytest.raises(ConfigError, match="serve.thread"):
        validate_settings(ServeSettings, "serve", {"thread": 2})


def test_the_client_needs_numpy_and_tritonclient_alone():
    program = (
        "import sys\n"
        "class Guard:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        banned = {'torch', 'diffusers', 'transformers', 'pydantic', 'pyarrow', 'av', 'cv2', 'PIL', 'kfp',"
        " 'yaml', 'psutil', 'rich', 'pandas'}\n"
        "        if name.split('.')[0] in banned: raise ImportError('heavy: ' + name)\n"
        "sys.meta_path.insert(0, Guard())\n"
        "from svdflow.export.client import VideoClient\n"
        "client = VideoClient('127.0.0.1:1')\n"
        "print(client.ready())\n"
        "print(sorted(m for m in sys.modules if m.startswith('svdflow.')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "False"
    loaded = done.stdout.splitlines()[1]
    assert (
        loaded == "['svdflow.common', 'svdflow.common.errors', 'svdflow.export', "
        "'svdflow.export.client', 'svdflow.export.request']"
    )


def test_the_client_sends_no_token_in_the_clear():
    from svdflow.export.client import VideoClient

    with pytest.raises(BadInputError, match="TLS"):
        VideoClient("localhost:8001", token="secret")
    with pytest.raises(BadInputError, match="host:port"):
        VideoClient("http//nowhere")


def test_images_come_from_held_out_clips_first_and_from_different_videos(root, tmp_path):
    # clip: video, origin, grey level of its first frame; "e" looks like "a"
    plan = {
        "a": ("v1", "held_out", 40), "b": ("v1", "held_out", 80), "c": ("v2", "held_out", 120),
        "d": ("v3", "train", 160), "e": ("v4", "train", 40),
        "f": ("v5", None, 200),
    }  # fmt: skip
    clips, selection = [], []
    for clip_id, (video_id, split, level) in plan.items():
        uri = root.put_bytes(encode_mp4(np.full((2, 48, 64, 3), level, np.uint8), 8))
        clips.append(
            {"clip_id": clip_id, "video_id": video_id, "start_s": 0.0, "end_s": 0.25, "first_frame": 0, "last_frame": 1,
             "cut_evidence": "{}",
             "shard_uri": uri, "member": clip_id, "offset": 0, "bytes": len(root.read(uri)), "frames": 2,
             "fps": 8.0, "width": 64, "height": 48}
        )  # fmt: skip
        failed = {f"{axis}_failed": False for axis in AXES}
        selection.append(
            {
                "clip_id": clip_id,
                "video_id": video_id,
                "keep": split is not None,
                "split": split,
                "reasons": [],
                "thresholds": "{}",
                **failed,
            }
        )
    write_manifest("clips", clips, tmp_path / "clips.parquet")
    write_manifest("selection", selection, tmp_path / "selection.parquet")
    chosen = choose_images(tmp_path / "clips.parquet", tmp_path / "selection.parquet", root, 8, (32, 32))
    assert [(item.clip_id, item.origin) for item in chosen] == [
        ("a", "held out"), ("c", "held out"), ("b", "held out"), ("d", "train"), ("f", "dropped"),
    ]  # fmt: skip
    assert {item.rgb.shape for item in chosen} == {(32, 32, 3)}
    assert all(abs(float(item.rgb.mean()) - plan[item.clip_id][2]) < 3 for item in chosen)


def test_a_photograph_is_read_upright(tmp_path):
    from PIL import Image

    picture = Image.fromarray(
        np.repeat(np.uint8([[[255, 0, 0]], [[0, 0, 255]]]), 40, axis=1).repeat(20, axis=0)
    )  # red above blue, 40x40
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.png", exif=exif)
    rgb = read_image(tmp_path / "a.png")
    assert rgb[0, 0].tolist() == [0, 0, 255] and rgb[-1, 0].tolist() == [255, 0, 0]


def test_what_cannot_be_generated_is_said_in_one_line(tmp_path):
    with pytest.raises(BadInputError, match="--url"):
        generate_file(tmp_path / "a.png", tmp_path / "o.mp4")
    with pytest.raises(BadInputError, match="no such image"):
        generate_file(tmp_path / "a.png", tmp_path / "o.mp4", url="127.0.0.1:1")
    (tmp_path / "a.png").write_bytes(b"GIF89a not an image")
    with pytest.raises(BadInputError, match="no readable image"):
        generate_file(tmp_path / "a.png", tmp_path / "o.mp4", url="127.0.0.1:1")
    with pytest.raises(BadInputError, match="mp4"):
        generate_file(tmp_path / "a.png", tmp_path / "o.avi", url="127.0.0.1:1")


def test_a_token_comes_out_of_a_file_and_goes_over_tls_alone(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    ask = {"image": tmp_path / "a.png", "out": tmp_path / "o.mp4", "token_file": tmp_path / "token"}
    with pytest.raises(BadInputError, match="token: no readable token"):
        generate_file(**ask, url="grpcs://127.0.0.1:1")
    (tmp_path / "token").write_text("two words\n")
    with pytest.raises(BadInputError, match="holds no token"):
        generate_file(**ask, url="grpcs://127.0.0.1:1")
    (tmp_path / "token").write_text("sesame\n")
    with pytest.raises(BadInputError, match="only sent over TLS") as refused:
        generate_file(**ask, url="127.0.0.1:1")
    assert "sesame" not in str(refused.value)
