"""Captions from an OpenAI-compatible server: a real one on loopback, with every fault such a server has."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from svdflow.common.config import load_settings
from svdflow.common.errors import ConfigError, ServiceError
from svdflow.common.video import VideoFrame
from svdflow.curation.annotate import endpoint as module
from svdflow.curation.annotate import prompts
from svdflow.curation.annotate.annotator import ClipView, ModelAnnotator, load
from svdflow.curation.annotate.endpoint import ask
from svdflow.curation.annotate.settings import AnnotateSettings

LOCAL = load_settings(AnnotateSettings, "annotate", "local")


class _Server(BaseHTTPRequestHandler):
    """Answers by a script of (status, answer, headers); then with what ``speak`` makes of the question."""

    script: list[tuple] = []
    asked: list[tuple[dict, dict]] = []
    speak = staticmethod(lambda body: "a dog runs")
    busy, most_busy = 0, 0
    lock, over, six = threading.Lock(), threading.Event(), threading.Barrier(6)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            _Server.busy += 1
            _Server.most_busy = max(_Server.most_busy, _Server.busy)
            self.asked.append((dict(self.headers), body))
            status, answer, *more = self.script.pop(0) if self.script else (200, self.speak(body))
        try:
            if answer == "hang":
                self.over.wait(120)
                return
            if answer == "meet":
                self.six.wait(120)
            if answer == "hang up":
                return
            payload = answer if isinstance(answer, bytes) else chat(answer)
            self.send_response(status)
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)
        finally:
            with self.lock:
                _Server.busy -= 1

    def log_message(self, *args: object) -> None:
        pass


def chat(words: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": words}}]}).encode()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waited.append))  # the server sleeps for real
    return waited


@pytest.fixture
def endpoint():
    _Server.script, _Server.asked, _Server.busy, _Server.most_busy = [], [], 0, 0
    _Server.speak, _Server.over = staticmethod(lambda body: "a dog runs"), threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield LOCAL.model_copy(
        update={
            "endpoint_url": f"http://127.0.0.1:{server.server_port}/v1",
            "endpoint_model": "vlm",
            "endpoint_timeout_s": 120,
            "caption_video": "endpoint",
            "caption_summary": "endpoint",
            "caption_image": "endpoint",
            "prefer_description": False,
        }
    )
    _Server.over.set()
    server.shutdown()
    server.server_close()


def annotator_of(axis: str, settings: AnnotateSettings) -> ModelAnnotator:
    (found,) = (a for a in load(settings) if a.axis == axis)
    assert isinstance(found, ModelAnnotator)
    return found


def clip(number: int = 0, **columns: str | None) -> ClipView:
    pictures = [np.full((32, 48, 3), 10 * number + n, np.uint8) for n in range(3)]
    frames = [VideoFrame(n, n / 2, picture) for n, picture in enumerate(pictures)]
    return ClipView(f"clip{number}", key_frames=frames, spread_frames=pictures * 2, columns=dict(columns))


def test_the_endpoint_gets_frames_and_key_and_gives_a_caption(endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDFLOW_CAPTION_KEY", "sesame")
    view = clip(caption_image="a red disc", caption_video="it moves")
    video = annotator_of("caption_video", endpoint)
    assert video.spread == 8
    assert video.annotate(view) == {"caption_video": "a dog runs", "caption_video_model": "vlm prompt@1"}
    annotator_of("caption_summary", endpoint).annotate(view)
    (headers, asked), (_, summary) = _Server.asked
    assert headers["Authorization"] == "Bearer sesame" and asked["model"] == "vlm" and asked["temperature"] == 0
    pictures = [part["image_url"]["url"] for part in asked["messages"][0]["content"] if part["type"] == "image_url"]
    assert len(pictures) == 6 and all(url.startswith("data:image/jpeg;base64,") for url in pictures)
    assert "a red disc" in summary["messages"][0]["content"][0]["text"] and len(summary["messages"][0]["content"]) == 1


def test_what_may_pass_is_tried_again_later_each_time(endpoint, waits: list[float]) -> None:
    _Server.script = [(503, "busy"), (200, b"not json"), (200, "hang up"), (200, "at  last\n")]
    assert ask(endpoint, "say", []).split() == ["at", "last"] and len(_Server.asked) == 4
    assert waits == sorted(waits) and 0.2 <= waits[0] <= 0.3 and 3.2 <= waits[2] <= 4.8


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks_within_reason(endpoint, waits: list[float]) -> None:
    _Server.script = [
        (429, "slow down", {"Retry-After": "7"}),
        (503, "no", {"Retry-After": "86400"}),
        (429, "slow down", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    ]
    assert ask(endpoint, "say", []) == "a dog runs"
    assert waits[0] == 7 and waits[1] == 30 and waits[2] < 5


@pytest.mark.parametrize(
    "malformed",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b"\xff\xfe" + b"\0" * 10,
        b'{"choices": [{"message": {"content": "cut o',
        b"[" * 100_000,
        chat("x" * (2 << 20)),
        chat("  "),
        chat("word " * 2000),
        chat(["words"]),
        chat(None),
    ],
)
def test_an_answer_that_is_no_caption_is_no_caption(endpoint, waits, malformed: bytes) -> None:
    _Server.script = [(200, malformed)] * 4
    with pytest.raises(ServiceError, match="tried 4 times"):
        ask(endpoint, "say", [])
    _Server.script = [(200, malformed)]
    assert ask(endpoint, "say", []) == "a dog runs"


def test_a_server_that_hangs_is_timed_out_and_tried_again(endpoint, waits) -> None:
    _Server.script = [(200, "hang")]
    patient = endpoint.model_copy(update={"endpoint_timeout_s": 0.3, "endpoint_tries": 50})  # others may be late, too
    assert ask(patient, "say", []) == "a dog runs" and len(_Server.asked) > 1
    _Server.script = [(200, "hang")] * 50  # the first ones may be taken by late tries from before
    with pytest.raises(ServiceError, match="timed out"):
        ask(endpoint.model_copy(update={"endpoint_timeout_s": 0.3, "endpoint_tries": 1}), "say", [])


@pytest.mark.parametrize(
    ("script", "tries", "reason"),
    [
        ([(401, "no")], 1, "401"),
        ([(404, "no")], 1, "404"),
        ([(500, "x")] * 4, 4, "500"),
        ([(307, "x", {"Location": "http://127.0.0.1:9/steal"})], 1, "307"),
    ],
)
def test_the_endpoint_is_given_up_with_its_reason_and_without_the_key(
    endpoint, script, tries, reason, waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVDFLOW_CAPTION_KEY", "sesame")
    _Server.script = list(script)
    with pytest.raises(ServiceError, match=reason) as caught:
        ask(endpoint, "say", [])
    assert len(_Server.asked) == tries and "sesame" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_told(endpoint: AnnotateSettings, waits) -> None:
    with pytest.raises(ServiceError, match="refused"):
        ask(endpoint.model_copy(update={"endpoint_url": "http://127.0.0.1:9/v1"}), "say", [])


def test_requests_for_many_clips_are_under_way_at_once_and_a_refused_one_costs_its_own_clip(endpoint, waits) -> None:
    def speak(body: dict) -> object:
        text = body["messages"][0]["content"][0]["text"]
        return "meet" if "slow" in text else b"no" if "bad" in text else f"joined {text.split()[-1]}"

    _Server.speak, _Server.six = staticmethod(speak), threading.Barrier(6)  # answered when all six are there
    annotator = annotator_of("caption_summary", endpoint.model_copy(update={"endpoint_requests": 8}))
    said = [f"slow {n}" for n in range(6)] + ["bad", "good", ""]
    found = annotator.measure([clip(n, caption_image=text, caption_video=None) for n, text in enumerate(said)])
    assert _Server.most_busy >= 6
    assert isinstance(found[6], ServiceError)
    assert found[7] == {"caption_summary": "joined good", "caption_summary_model": "vlm prompt@1"}
    assert found[8] == {"caption_summary": None, "caption_summary_model": None}


def test_a_new_prompt_or_model_is_another_identity_and_another_address_is_not(endpoint, monkeypatch) -> None:
    def identity(**changed) -> str:
        return annotator_of("caption_video", endpoint.model_copy(update=changed)).identity()

    before = identity()
    assert identity(endpoint_url="http://elsewhere/v1") == before == identity(endpoint_requests=1, endpoint_tries=9)
    assert identity(endpoint_model="other") != before != identity(video_caption_frames=4)
    monkeypatch.setitem(prompts.PROMPTS, "caption_video", prompts.Prompt("2", "What happens?"))
    assert identity() != before


def test_a_caption_is_text_that_a_manifest_can_hold(endpoint, waits) -> None:
    """A model may stop in the middle of a character: JSON can hold half a surrogate pair, UTF-8 cannot."""
    _Server.script = [(200, b'{"choices": [{"message": {"content": "a smile \\ud83d"}}]}')]
    (found,) = annotator_of("caption_video", endpoint).measure([clip()])
    assert isinstance(found, dict) and found["caption_video"].startswith("a smile ")
    assert found["caption_video"].encode("utf-8")


def test_a_key_out_of_a_file_may_end_with_a_line_end(endpoint, waits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDFLOW_CAPTION_KEY", "sesame\n")
    assert ask(endpoint, "say", []) == "a dog runs" and not waits
    assert _Server.asked[0][0]["Authorization"] == "Bearer sesame"


@pytest.mark.parametrize("url", ["http://me:sesame@host/v1", "https://host/v1?api-key=sesame"])
def test_an_address_with_a_secret_in_it_is_refused_without_telling_it(endpoint, url) -> None:
    with pytest.raises(ConfigError, match="SVDFLOW_CAPTION_KEY") as caught:
        load(endpoint.model_copy(update={"endpoint_url": url}))
    assert "sesame" not in str(caught.value)
