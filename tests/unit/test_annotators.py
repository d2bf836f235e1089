"""Each annotator against something known: closed forms, geometry, a model made on the spot, a server on loopback."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from svdflow.common.config import load_settings
from svdflow.common.errors import BadInputError, ConfigError, ServiceError
from svdflow.common.flow import flow_figures
from svdflow.common.picture import colourfulness, contrast, sharpness
from svdflow.common.video import VideoFrame, encode_mp4
from svdflow.common.visual_words import dominant_colours, sentence
from svdflow.curation.annotate.annotator import ClipView, load
from svdflow.curation.annotate.captions_local import motion_phrase
from svdflow.curation.annotate.embeddings import thumbnail
from svdflow.curation.annotate.endpoint import ask
from svdflow.curation.annotate.heuristics import picture_quality
from svdflow.curation.annotate.look import key_indices, look
from svdflow.curation.annotate.motion import FarnebackFlow, FlowWatcher
from svdflow.curation.annotate.settings import AnnotateSettings
from svdflow.curation.annotate.text_regions import text_area

LOCAL = load_settings(AnnotateSettings, "annotate", "local")


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def moving(
    dx: float, dy: float, count: int = 5, fps: float = 2.0, zoom: float = 1.0, side: int = 128
) -> list[VideoFrame]:
    """A texture that moves by (dx, dy) px and grows by ``zoom`` per frame."""
    large = texture(3 * side, 3 * side)
    frames = []
    for n in range(count):
        scale, middle = zoom**n, 1.5 * side
        matrix = np.array(
            [[scale, 0, side / 2 - scale * middle + dx * n], [0, scale, side / 2 - scale * middle + dy * n]]
        )
        frames.append(VideoFrame(n, n / fps, cv2.warpAffine(large, matrix, (side, side), flags=cv2.INTER_LINEAR)))
    return frames


def watched(frames: list[VideoFrame], fps: float = 2.0, short_side_px: int = 128) -> np.ndarray:
    watcher = FlowWatcher(fps, short_side_px)
    for frame in frames:
        watcher.see(frame)
    return watcher.total / watcher.pairs


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (-3, 0), (0, 2), (2, -2)])
def test_a_shift_is_measured_as_the_shift(dx: float, dy: float) -> None:
    magnitude, found_dx, found_dy, radial = watched(moving(dx, dy))
    assert magnitude == pytest.approx(np.hypot(dx, dy), rel=0.1)
    assert (found_dx, found_dy) == pytest.approx((dx, dy), abs=0.3) and abs(radial) < 0.3


def test_a_zoom_moves_outward_by_what_geometry_says() -> None:
    _, dx, dy, radial = watched(moving(0, 0, zoom=1.03))
    x = np.arange(128) - 63.5
    assert radial == pytest.approx(0.03 * np.hypot(x, x[:, None]).mean(), rel=0.15)
    assert abs(dx) < 0.3 and abs(dy) < 0.3
    assert watched(moving(0, 0, zoom=1 / 1.03))[3] < 0


def test_opposite_motions_do_not_cancel() -> None:
    flow = np.zeros((20, 40, 2), np.float32)
    flow[:, :20, 0], flow[:, 20:, 0] = 3, -3
    magnitude, dx, dy, _ = flow_figures(flow)
    assert (magnitude, dx, dy) == (3, 0, 0)


def test_frames_are_taken_by_time_not_by_number() -> None:
    """At any frame rate the same motion per second gives the same score."""
    scores = [watched(moving(dx=6 / fps, dy=0, count=int(2 * fps) + 1, fps=fps))[0] for fps in (2.0, 8.0, 12.0)]
    assert scores == pytest.approx([3, 3, 3], rel=0.1)


def test_a_frame_that_comes_late_is_scaled_to_the_interval() -> None:
    frames = moving(2, 0, count=4)
    late = [
        VideoFrame(f.index, t, f.rgb) for f, t in zip(frames, (0.0, 0.5, 1.2, 2.0), strict=True)
    ]  # 0.7 s and 0.8 s apart
    assert watched(late)[0] == pytest.approx(np.mean([2, 2 * 0.5 / 0.7, 2 * 0.5 / 0.8]), rel=0.1)


def test_the_flow_resolution_sets_the_unit() -> None:
    large = moving(4, 0, side=256)
    assert watched(large, short_side_px=256)[0] == pytest.approx(4, rel=0.1)
    assert watched(large, short_side_px=128)[0] == pytest.approx(2, rel=0.1)


def test_a_clip_shorter_than_an_interval_is_measured_from_end_to_end() -> None:
    frames = moving(1, 0, count=4, fps=12)
    annotator = FarnebackFlow(LOCAL)
    view = ClipView("c", 0.3, key_frames=[frames[0], frames[1], frames[3]], watched={"motion": annotator.watcher()})
    for frame in frames:
        view.watched["motion"].see(frame)
    assert annotator.annotate(view)["motion_score"] == pytest.approx(6, rel=0.1)  # 3 px in a quarter of a second
    assert annotator.annotate(view)["motion_unit"] == "px/0.5s@short128"
    still = ClipView("c", 0.0, key_frames=[frames[0]] * 3, watched={"motion": annotator.watcher()})
    with pytest.raises(BadInputError, match="two frames"):
        annotator.annotate(still)


def test_one_decode_gives_the_frames_asked_for_in_order() -> None:
    levels = np.arange(21) * 10 + 20
    mp4 = encode_mp4(np.repeat(levels, 32 * 32 * 3).reshape(21, 32, 32, 3).astype(np.uint8), 10.0, crf=4)

    class Seen:
        times: list[float] = []

        def see(self, frame: VideoFrame) -> None:
            self.times.append(frame.time_s)

    keys, small = look(mp4, 21, {"x": Seen()}, spread=5)  # type: ignore[dict-item]
    assert [round(k.rgb.mean() / 10) - 2 for k in keys] == list(key_indices(21)) == [0, 10, 20]
    assert [round(s.mean() / 10) - 2 for s in small] == [0, 5, 10, 15, 20]
    assert Seen.times == pytest.approx(np.arange(21) / 10)
    keys, small = look(mp4, 30, {}, spread=3)  # the manifest promises more than decodes
    assert [round(k.rgb.mean() / 10) - 2 for k in keys] == [0, 14, 20] and len(small) == 3


def test_text_is_found_where_there_is_text_and_counted_by_area() -> None:
    page = np.full((240, 320, 3), 30, np.uint8)
    assert text_area(page) == 0
    cv2.putText(page, "DIRECTED BY", (20, 90), cv2.FONT_HERSHEY_DUPLEX, 1.3, (250, 250, 250), 2, cv2.LINE_AA)
    one = text_area(page)
    cv2.putText(page, "NOBODY AT ALL", (20, 180), cv2.FONT_HERSHEY_DUPLEX, 1.1, (250, 250, 250), 2, cv2.LINE_AA)
    two = text_area(page)
    assert 0.08 < one < 0.3 and one * 1.5 < two < 0.55
    large = cv2.resize(page, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    assert text_area(large) == pytest.approx(two, rel=0.2)


def test_picture_figures_agree_with_their_closed_forms() -> None:
    grey = np.full((64, 64, 3), 90, np.uint8)
    assert colourfulness(grey) == 0 and contrast(grey) == 0 and sharpness(grey) == 0 and picture_quality(grey) == 0
    halves = grey.copy()
    halves[:, :32], halves[:, 32:] = 0, 255
    assert contrast(halves) == pytest.approx(127.5)
    red_green = grey.copy()
    red_green[:, :32], red_green[:, 32:] = (200, 0, 0), (0, 200, 0)
    assert colourfulness(red_green) == pytest.approx(200 + 0.3 * 100)  # rg = ±200, yb = 100 everywhere
    sharp = texture(128, 128)
    assert sharpness(sharp) > sharpness(cv2.GaussianBlur(sharp, (0, 0), 3)) and picture_quality(
        sharp
    ) > picture_quality(grey)


def test_words_name_what_is_there() -> None:
    flag = np.zeros((90, 90, 3), np.uint8)
    flag[:30], flag[30:60], flag[60:] = (200, 40, 40), (240, 240, 236), (50, 90, 200)
    assert set(dominant_colours(flag)) == {"red", "white", "blue"}
    assert "dark" in sentence(np.full((32, 32, 3), 10, np.uint8)) and "smooth" in sentence(
        np.full((32, 32, 3), 10, np.uint8)
    )


@pytest.mark.parametrize(
    ("score", "camera", "words"),
    [
        (0.01, [0, 0, 0], "nothing moves"),
        (3.0, [2.9, 0.1, 0.0], "pans left"),
        (3.0, [-2.9, 0.1, 0.0], "pans right"),
        (3.0, [0.1, 2.9, 0.0], "tilts up"),
        (3.0, [0.1, 0.0, 2.8], "moves closer"),
        (3.0, [0.1, 0.0, -2.8], "moves away"),
        (3.0, [0.4, 0.1, 0.3], "the camera is still while something moves"),
    ],
)
def test_camera_motion_is_put_in_words(score: float, camera: list[float], words: str) -> None:
    assert words in motion_phrase(score, camera, 128)


def test_a_thumbnail_knows_a_scene_again_after_scaling_and_noise() -> None:
    scene, other = texture(240, 320, 1), texture(240, 320, 2)
    noisy = cv2.resize(scene, (96, 96)) + np.random.default_rng(0).normal(0, 20, (96, 96, 3))
    assert thumbnail(scene) @ thumbnail(np.clip(noisy, 0, 255).astype(np.uint8)) > 0.95
    assert thumbnail(scene) @ thumbnail(other) < 0.5 and not thumbnail(np.full((50, 50, 3), 9, np.uint8)).any()


def test_a_key_changes_with_what_its_annotator_reads_and_with_nothing_else() -> None:
    def keys(**changed):
        settings = LOCAL.model_copy(update=changed)
        return {a.axis: a.key("clip", "words", {"caption_image": "a"}) for a in load(settings)}

    before = keys()
    for change, axes in (
        ({"flow_short_side_px": 256}, {"motion", "caption_video"}),
        ({"text_box_threshold": 0.5}, {"text"}),
        ({"prefer_description": False}, {"caption_image"}),
        ({"workers": 7, "device": "cuda", "clip_model": "unused", "endpoint_url": "unused"}, set()),
    ):
        assert {axis for axis, key in keys(**change).items() if key != before[axis]} == axes
    assert len(set(before.values())) == 8


def test_an_unknown_annotator_or_a_missing_setting_is_told_in_one_line() -> None:
    with pytest.raises(ConfigError, match="annotate.motion: there is no annotator 'raft'; there are: farneback-flow"):
        load(LOCAL.model_copy(update={"motion": "raft"}))
    with pytest.raises(ConfigError, match="aesthetic_head"):
        load(LOCAL.model_copy(update={"aesthetic": "clip-aesthetic-head"}))
    with pytest.raises(ConfigError, match="endpoint_url"):
        load(LOCAL.model_copy(update={"caption_summary": "endpoint"}))


# production adapters, on models made here


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertTokenizerFast, CLIPConfig, CLIPImageProcessorPil, CLIPModel

    directory = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 40,
        "max_position_embeddings": 12,
        "eos_token_id": 3,
        "bos_token_id": 2,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "image_size": 32,
        "patch_size": 16,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval().save_pretrained(directory)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(directory)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghij",
        *[f"##{c}" for c in "abcdefghij"],
        "red",
        "blue",
        "disc",
        "moves",
    ]
    BertTokenizerFast(vocab={word: n for n, word in enumerate(words)}).save_pretrained(directory)
    return directory


def view_of(pictures: list[np.ndarray], **columns: str | None) -> ClipView:
    return ClipView(
        "clip", 1.0, key_frames=[VideoFrame(n, n / 2, p) for n, p in enumerate(pictures)], columns=dict(columns)
    )


def test_clip_gives_what_transformers_itself_gives(tiny_clip: Path) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    settings = LOCAL.model_copy(update={"similarity": "clip", "embedding": "clip", "clip_model": str(tiny_clip)})
    by_axis = {a.axis: a for a in load(settings)}
    pictures = [texture(48, 64, n) for n in range(3)]
    view = view_of(pictures, caption_image="red disc moves", caption_video=None, caption_summary="blue disc " * 20)
    found = by_axis["similarity"].annotate(view)
    model, tokenizer = CLIPModel.from_pretrained(tiny_clip).eval(), AutoTokenizer.from_pretrained(tiny_clip)
    pixels = AutoImageProcessor.from_pretrained(tiny_clip, use_fast=False)(images=pictures, return_tensors="pt")[
        "pixel_values"
    ]
    with torch.inference_mode():
        out = model(
            pixel_values=pixels,
            **{k: v for k, v in tokenizer(["red disc moves"], return_tensors="pt").items() if k != "token_type_ids"},
        )
    expected = (out.text_embeds @ out.image_embeds.T)[0].tolist()
    assert found["similarity_image"] == pytest.approx(expected, abs=1e-5)
    assert (
        found["similarity_video"] is None and len(found["similarity_summary"]) == 3
    )  # too long for the model: cut, not refused
    assert by_axis["embedding"].embed(view) == pytest.approx(out.image_embeds.numpy(), abs=1e-5)


def test_the_aesthetic_head_is_its_linear_layers(tiny_clip: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    layers = [
        (rng.normal(size=(8, 16)).astype(np.float32), rng.normal(size=8).astype(np.float32)),
        (rng.normal(size=(1, 8)).astype(np.float32), rng.normal(size=1).astype(np.float32)),
    ]
    save_file(
        {
            f"layers.{10 * n + 2}.{part}": a
            for n, pair in enumerate(layers)
            for part, a in zip(("weight", "bias"), pair, strict=True)
        },
        tmp_path / "head.safetensors",
    )
    settings = LOCAL.model_copy(
        update={
            "aesthetic": "clip-aesthetic-head",
            "embedding": "clip",
            "clip_model": str(tiny_clip),
            "aesthetic_head": str(tmp_path / "head.safetensors"),
        }
    )
    by_axis = {a.axis: a for a in load(settings)}
    view = view_of([texture(48, 64, n) for n in range(3)])
    x = by_axis["embedding"].embed(view)
    expected = (x @ layers[0][0].T + layers[0][1]) @ layers[1][0].T + layers[1][1]
    assert by_axis["aesthetic"].annotate(view)["aesthetic"] == pytest.approx(expected[:, 0].tolist(), abs=1e-4)


def test_other_weights_are_another_identity(tiny_clip: Path, tmp_path: Path) -> None:
    import shutil

    other = Path(shutil.copytree(tiny_clip, tmp_path / "other"))
    (other / "added.txt").write_text("changed")
    keys = []
    for directory in (tiny_clip, other):
        settings = LOCAL.model_copy(update={"similarity": "clip", "clip_model": str(directory)})
        keys.append(load(settings)[-1].key("clip", None, {}))
    assert keys[0] != keys[1]
    with pytest.raises(BadInputError, match="cannot be loaded"):
        load(LOCAL.model_copy(update={"embedding": "clip", "clip_model": str(tmp_path)}))[3].annotate(
            view_of([texture(48, 64)] * 3)
        )


def test_any_image_to_text_model_captions_the_middle_frame(tmp_path: Path) -> None:
    import torch
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessorPil,
        BlipProcessor,
    )

    torch.manual_seed(1)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "disc", "moves", "over", "sea"]
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": len(words),
        "encoder_hidden_size": 16,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
        "max_position_embeddings": 32,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "image_size": 32,
        "patch_size": 16,
    }
    network = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=vision, projection_dim=8, image_text_hidden_size=8)
    )
    network.text_decoder.cls.predictions.bias.data[7] = 20.0  # it can say nothing but "disc"
    network.save_pretrained(tmp_path)
    tokenizer = BertTokenizerFast(vocab={word: n for n, word in enumerate(words)})
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(tmp_path)
    settings = LOCAL.model_copy(
        update={"caption_image": "transformers-captioner", "captioner_model": str(tmp_path), "caption_tokens": 4}
    )
    annotator = next(a for a in load(settings) if a.axis == "caption_image")
    said = annotator.annotate(view_of([texture(48, 64)] * 3))
    assert set(said["caption_image"].split()) == {"disc"} and said["caption_image_model"].startswith(str(tmp_path))
    described = ClipView(
        "clip", 1.0, description=" two people dance ", key_frames=view_of([texture(48, 64)] * 3).key_frames
    )
    assert annotator.annotate(described) == {
        "caption_image": "two people dance",
        "caption_image_model": "sidecar-description@1",
    }


# an OpenAI-compatible server on loopback


class _Server(BaseHTTPRequestHandler):
    script: list[tuple[int, object]] = []
    asked: list[tuple[dict, dict]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((dict(self.headers), body))
        status, answer = self.script.pop(0) if self.script else (200, "a dog runs")
        payload = (
            answer
            if isinstance(answer, bytes)
            else json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
        )
        self.send_response(status)
        if status == 307:
            self.send_header("Location", "http://127.0.0.1:9/steal")
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("svdflow.curation.annotate.endpoint.time.sleep", lambda seconds: None)
    _Server.script, _Server.asked = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield LOCAL.model_copy(
        update={
            "endpoint_url": f"http://127.0.0.1:{server.server_port}/v1",
            "endpoint_model": "vlm",
            "endpoint_timeout_s": 5,
            "caption_video": "endpoint",
            "caption_summary": "endpoint",
            "caption_image": "endpoint",
        }
    )
    server.shutdown()
    server.server_close()


def test_the_endpoint_gets_frames_and_key_and_gives_a_caption(
    endpoint: AnnotateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVDFLOW_CAPTION_KEY", "sesame")
    by_axis = {a.axis: a for a in load(endpoint)}
    view = view_of([texture(48, 64)] * 3, caption_image="a red disc", caption_video="it moves")
    view.spread_frames = [texture(48, 64, n) for n in range(8)]
    assert by_axis["caption_video"].spread == 8
    assert by_axis["caption_video"].annotate(view) == {"caption_video": "a dog runs", "caption_video_model": "vlm"}
    by_axis["caption_summary"].annotate(view)
    (headers, video), (_, summary) = _Server.asked
    assert headers["Authorization"] == "Bearer sesame" and video["model"] == "vlm" and video["temperature"] == 0
    pictures = [part["image_url"]["url"] for part in video["messages"][0]["content"] if part["type"] == "image_url"]
    assert len(pictures) == 8 and all(url.startswith("data:image/jpeg;base64,") for url in pictures)
    assert "a red disc" in summary["messages"][0]["content"][0]["text"] and len(summary["messages"][0]["content"]) == 1


def test_the_endpoint_is_tried_again_when_that_can_help(endpoint: AnnotateSettings) -> None:
    _Server.script = [(503, "busy"), (200, b"not json"), (200, "  "), (200, "at  last\n")]
    assert ask(endpoint, "say", []) == "at last" and len(_Server.asked) == 4


@pytest.mark.parametrize(
    ("script", "tries", "reason"), [([(401, "no")], 1, "401"), ([(500, "x")] * 4, 4, "500"), ([(307, "x")], 1, "307")]
)
def test_the_endpoint_is_given_up_with_its_reason_and_without_the_key(
    endpoint, script, tries, reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVDFLOW_CAPTION_KEY", "sesame")
    _Server.script = list(script)
    with pytest.raises(ServiceError, match=reason) as caught:
        ask(endpoint, "say", [])
    assert len(_Server.asked) == tries and "sesame" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_told(endpoint: AnnotateSettings) -> None:
    with pytest.raises(ServiceError, match="refused"):
        ask(endpoint.model_copy(update={"endpoint_url": "http://127.0.0.1:9/v1"}), "say", [])
