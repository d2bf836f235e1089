"""The real Triton server with a tiny model of random weights."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest

from svdflow.common.errors import BadInputError, ServiceError
from svdflow.common.frames import fit_frame
from svdflow.common.manifests import AXES, write_manifest
from svdflow.common.video import encode_mp4, probe
from svdflow.export import serve_check
from svdflow.export.client import VideoClient
from svdflow.export.generate import generate_file
from svdflow.export.model_config import exported_models
from svdflow.export.repository import export_repository
from svdflow.export.serve_check import check_serving
from svdflow.export.server import TritonServer
from svdflow.export.settings import ExportSettings, ServeSettings
from tests.interpolation_models import HEIGHT, WIDTH, write_interpolation_model

pytestmark = pytest.mark.skipif(
    find_spec("pytriton") is None, reason="the carrier of the Triton server is not installed"
)

LIGHT_MODEL = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def initialize(self, args):
        {initialize}
    def execute(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    import torch

    from svdflow.diffusion.autoencoder import load_autoencoder
    from svdflow.diffusion.conditioning import build_feature_extractor, build_image_encoder
    from svdflow.diffusion.model_directory import VideoModel, save_model
    from svdflow.diffusion.settings import TINY_UNET
    from svdflow.diffusion.unet import build_video_unet

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("serving") / "model"
    unet = build_video_unet(TINY_UNET.model_copy(update={"num_frames": 3}), "image_to_video")
    encoder = build_image_encoder(TINY_UNET.cross_attention_dim)
    card = {"configuration": {"frames": 3, "height": 48, "width": 64}}
    save_model(
        VideoModel("image_to_video", unet, load_autoencoder(), encoder, build_feature_extractor(), None, card),
        directory,
    )
    return directory


@pytest.fixture(scope="module")
def between(tmp_path_factory) -> Path:
    return write_interpolation_model(tmp_path_factory.mktemp("interpolation") / "model")


@pytest.fixture(scope="module")
def repository(model, between, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("serving") / "a repository"
    metrics = out.parent / "metrics.json"
    metrics.write_text(json.dumps({"gate": {"passed": True}}))
    beside = {"interpolation": str(between), "interpolation_metrics": str(metrics)}
    # Not 1: Triton's batcher may sleep for .5 s while one request waits that its client has given up; a second wakes it
    settings = ExportSettings(placement="cpu", steps=2, max_queue=2, max_key_frames=6, **beside)
    export_repository(model, metrics, out, settings)
    return out


@pytest.fixture(scope="module")
def server(repository):
    with TritonServer(repository, exported_models(repository), threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with VideoClient(server.url) as opened:
        yield opened


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)


def test_served_frames_are_those_of_the_sampler_itself(client, model, image):
    import torch

    from svdflow.diffusion.model_directory import load_model
    from svdflow.diffusion.sampling import generate

    asked = {"seed": 5, "fps": 12, "motion_bucket": 30, "noise_aug": 0.1, "steps": 3, "guidance": (1.0, 2.5)}
    served = client.generate(image, **asked)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        own = generate(
            load_model(model), fit_frame(image, 48, 64), frames=3, **(asked | {"noise_aug": float(np.float32(0.1))})
        )
    finally:
        torch.set_num_threads(threads)
    assert served.dtype == np.uint8 and served.shape == (3, 48, 64, 3)
    np.testing.assert_array_equal(served, own)


def test_interpolated_frames_are_those_of_the_sampler_itself(client, between, image):
    import torch

    from svdflow.diffusion.interpolating import interpolate
    from svdflow.diffusion.model_directory import load_model

    frames = np.stack([np.roll(image, 3 * place, axis=1) for place in range(3)])
    asked = {"seed": 5, "fps": 7.5, "motion_bucket": 30, "noise_aug": 0.25, "steps": 2, "guidance": (1.0, 2.5)}
    served = client.interpolate(frames, **asked)
    given = np.stack([fit_frame(frame, HEIGHT, WIDTH) for frame in frames])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        own = interpolate(load_model(between), given, guidance_shape="linear", **asked)
    finally:
        torch.set_num_threads(threads)
    assert served.dtype == np.uint8 and served.shape == (9, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(served, own)
    np.testing.assert_array_equal(served[::4], given)
    assert not np.array_equal(served, client.interpolate(frames, **(asked | {"seed": 6})))


def test_a_generated_video_comes_back_interpolated_when_asked(client, image):
    plain = client.generate(image, seed=1, motion_bucket=9)
    both = client.generate(image, seed=1, motion_bucket=9, interpolate=True)
    np.testing.assert_array_equal(both, client.interpolate(plain, seed=1, fps=7, motion_bucket=9))
    assert not np.array_equal(both, client.interpolate(plain, seed=1, fps=14, motion_bucket=9))


def test_frames_out_of_bounds_and_a_server_without_the_model_are_told(client, server, image):
    with pytest.raises(BadInputError, match="7 frames are given; this model takes 2 to 6"):
        client.interpolate(np.stack([image] * 7))
    with pytest.raises(BadInputError, match="1 frames are given"):
        client.interpolate(image[None])
    with pytest.raises(BadInputError, match="must be uint8"):
        client.interpolate(image)
    with pytest.raises(BadInputError, match="fps is 0.25"):
        client.interpolate(np.stack([image] * 2), fps=0.25)
    with pytest.raises(ServiceError, match="has no model 'another'; export one into its repository"):
        VideoClient(server.url, model="another").generate(image)


def test_the_seed_and_the_image_and_the_conditions_decide_the_video(client, image):
    first = client.generate(image, seed=1)
    np.testing.assert_array_equal(first, client.generate(image, seed=1))
    for other in (
        client.generate(image, seed=2),
        client.generate(image[::-1], seed=1),
        client.generate(image, seed=1, motion_bucket=255),
    ):
        assert not np.array_equal(first, other)


def test_the_server_tells_its_version_and_its_models_bounds(client, server):
    assert client.ready()
    assert client.server()["version"] == server.version
    assert server.version[0].isdigit()
    assert {
        "frames": 3,
        "height": 48,
        "width": 64,
        "default_steps": 2,
        "max_steps": 100,
    }.items() <= client.parameters().items()
    assert not VideoClient(server.url, model="other").ready()


def test_a_request_out_of_bounds_is_told_what_it_may_be(client, image):
    with pytest.raises(BadInputError, match="steps is 101; this model takes 1 to 100"):
        client.generate(image, steps=101)
    with pytest.raises(BadInputError, match="8x8 px"):
        client.generate(image[:8, :8])
    with pytest.raises(BadInputError, match="GUIDANCE"):
        client.generate(image, guidance=(1, 2, 3))
    assert client.generate(image).shape == (3, 48, 64, 3)


def test_a_client_that_gave_up_does_not_keep_the_server_busy(client, image):
    """In time of the processor: how busy the machine is does not count."""
    started = processor_s()
    with pytest.raises(ServiceError, match="no answer"):
        client.generate(image, steps=100, guidance=(3, 3), timeout_s=0.3)
    client.generate(image, steps=1)  # after the other one, for there is one model
    given_up = processor_s() - started
    started = processor_s()
    client.generate(image, steps=100, guidance=(3, 3))
    assert 0 < given_up < (processor_s() - started) / 2


def test_requests_beyond_the_queue_are_refused_at_once(client, image):
    outcomes: list[str] = []
    refused = threading.Event()

    def ask() -> None:
        """More than the queue holds, again and again: a slow machine may send the first ones one after another."""
        while not refused.is_set() and len(outcomes) < 200:
            try:
                outcomes.append(str(client.generate(image, steps=12).shape))
            except ServiceError as error:
                outcomes.append(str(error))
                if "queue is full" in str(error):
                    refused.set()

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused.is_set()
    assert "(3, 48, 64, 3)" in outcomes


def test_an_image_file_becomes_a_video_file_through_a_server_and_in_process(server, model, between, image, tmp_path):
    from PIL import Image

    Image.fromarray(image).save(tmp_path / "in.png")
    said = generate_file(tmp_path / "in.png", tmp_path / "served.mp4", url=server.url, steps=2, seed=3, fps=9)
    generate_file(tmp_path / "in.png", tmp_path / "own.mp4", model=model, steps=2, seed=3, fps=9)
    found = probe(tmp_path / "served.mp4")
    assert (found.frames, found.width, found.height, found.fps) == (3, 64, 48, 9.0)
    assert "3 frames of 64x48 px at 9 fps" in said
    assert (tmp_path / "own.mp4").stat().st_size > 500
    asked = {"url": server.url, "steps": 2, "seed": 3, "fps": 9}
    said = generate_file(tmp_path / "in.png", tmp_path / "between.mp4", interpolate=between, **asked)
    found = probe(tmp_path / "between.mp4")
    assert (found.frames, found.width, found.fps) == (9, 64, 36.0) and "9 frames of 64x48 px at 36 fps" in said


def test_a_taken_port_is_named(server, repository):
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(ServiceError, match=f"port {port} .* is taken"), TritonServer(repository, grpc_port=port):
        pass


def test_an_unreachable_server_is_named(image):
    with pytest.raises(ServiceError, match="no server answers"):
        VideoClient("127.0.0.1:1").generate(image)


def light_repository(directory: Path, initialize: str = "pass") -> Path:
    version = directory / "image_to_video" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(LIGHT_MODEL.format(initialize=initialize))
    (version.parent / "config.pbtxt").write_text(
        'name: "image_to_video" backend: "python" max_batch_size: 0 '
        'input [{name: "IMAGE" data_type: TYPE_UINT8 dims: [-1]}] '
        'output [{name: "FRAMES" data_type: TYPE_UINT8 dims: [-1]}] instance_group [{kind: KIND_CPU}]'
    )
    return directory


def servers() -> set[int]:
    """Running Triton servers, their supervisors and backends on this machine."""
    found = set()
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if ("svdflow-triton-" in command or "svdflow.export.supervise" in command) and process.info[
            "status"
        ] != psutil.STATUS_ZOMBIE:
            found.add(process.pid)
    return found


def processor_s() -> float:
    """Time of the processor that this process's Triton servers have taken so far."""
    own = {child.pid for child in psutil.Process().children(recursive=True)} & servers()
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in own)


def below(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_a_model_that_does_not_load_ends_in_one_line_with_its_cause(tmp_path):
    repository = light_repository(tmp_path / "r", "raise ValueError('weights of another planet')")
    before = servers()
    with (
        pytest.raises(ServiceError, match="weights of another planet") as raised,
        TritonServer(repository, log=tmp_path / "log"),
    ):
        pass
    assert "\n" not in str(raised.value) and "\\n" not in str(raised.value)
    assert servers() <= before


def test_a_backend_that_crashes_while_loading_is_not_waited_for(tmp_path):
    repository = light_repository(tmp_path / "r", "import os; os.abort()")
    started = time.monotonic()
    server = TritonServer(repository, start_timeout_s=1200, log=tmp_path / "log")
    with pytest.raises(ServiceError, match="loads the model died"), server:
        pass
    assert time.monotonic() - started < 300


def test_a_repository_without_the_model_is_refused_before_a_server_starts(tmp_path):
    with pytest.raises(BadInputError, match="run the export step"), TritonServer(tmp_path):
        pass


def start_serving(repository: Path) -> tuple[subprocess.Popen, str]:
    program = (
        "import sys; from pathlib import Path; from svdflow.export.server import serve_repository; "
        "serve_repository(Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(repository)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("gRPC"):
            return process, line.split()[1]
    raise AssertionError("the server said nothing of its address")


def test_no_process_and_no_shared_memory_is_left_when_the_owner_is_killed(tmp_path):
    repository = light_repository(tmp_path / "killed")
    before = set(os.listdir("/dev/shm"))
    process, url = start_serving(repository)
    assert VideoClient(url).ready()
    children = below(process)
    assert len(children) == 3  # the supervisor, the server, the python backend
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, left = psutil.wait_procs(children, timeout=600.0)
    assert [p for p in left if p.status() != psutil.STATUS_ZOMBIE] == []
    assert {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("svdflow-")} == set()


def test_ctrl_c_ends_the_foreground_server_cleanly(tmp_path):
    repository = light_repository(tmp_path / "interrupted")
    process, _ = start_serving(repository)
    children = below(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(120.0) == 0
    assert process.stdout is not None and process.stdout.read().endswith("stopped\n")
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_the_serving_check_measures_a_real_server_once(repository, root, tmp_path, monkeypatch):
    clips, selection = [], []
    generator = np.random.default_rng(1)
    for index in range(3):
        frames = np.broadcast_to(
            generator.integers(0, 256, (1, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2), (4, 48, 64, 3)
        )
        uri = root.put_bytes(encode_mp4(frames, 8))
        clips.append(
            {"clip_id": f"{index:032x}", "video_id": f"v{index}", "start_s": 0.0, "end_s": 0.5, "first_frame": 0,
             "last_frame": 3,
             "cut_evidence": "{}", "shard_uri": uri, "member": "m", "offset": 0, "bytes": len(root.read(uri)),
             "frames": 4, "fps": 8.0,
             "width": 64, "height": 48}
        )  # fmt: skip
        failed = {f"{axis}_failed": False for axis in AXES}
        selection.append(
            {
                "clip_id": f"{index:032x}",
                "video_id": f"v{index}",
                "keep": True,
                "split": "held_out",
                "reasons": [],
                "thresholds": "{}",
                **failed,
            }
        )
    write_manifest("clips", clips, tmp_path / "clips.parquet")
    write_manifest("selection", selection, tmp_path / "selection.parquet")
    settings = ServeSettings(images=3, compare=1, steps=2)

    def check(generated: Path):
        return check_serving(
            repository, tmp_path / "clips.parquet", tmp_path / "selection.parquet", generated, root, settings
        )

    report = check(tmp_path / "generated")
    serving = report.summary["serving"]
    assert (report.done, report.reused) == (4, 0)
    assert (serving["server"], serving["frames"], serving["equal_to_in_process"], serving["images"]) == (
        "tritonserver",
        3,
        True,
        3,
    )
    assert serving["latency_s"] > 0 and 0 <= serving["first_frame_matches"] <= 3
    assert serving["interpolated_frames"] == 4 * 2 + 1
    assert probe(tmp_path / "generated/served.mp4").frames == 3
    assert [section["kind"] for section in report.sections] == ["table", "images", "videos", "table"]

    def no_server(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a second check of the same repository started a server")

    monkeypatch.setattr(serve_check, "TritonServer", no_server)
    again = check(tmp_path / "again")
    assert (again.done, again.reused, again.summary) == (0, 4, report.summary)
    assert (tmp_path / "again/served.mp4").read_bytes() == (tmp_path / "generated/served.mp4").read_bytes()


def test_a_server_of_another_model_is_noticed(server, repository, root, tmp_path, image):
    from svdflow.export.input_images import InputImage

    inputs = [InputImage("a", "train", fit_frame(image, 48, 64))]
    answers = serve_check._Answers(
        "tritonserver", "0", [np.zeros((3, 48, 64, 3), np.uint8)], [1.0], np.ones((3, 48, 64, 3), np.uint8)
    )
    with pytest.raises(ServiceError, match="differ from the model's own"):
        serve_check._difference_in_process(
            repository, VideoClient(server.url).parameters(), inputs, answers, ServeSettings(steps=1)
        )
