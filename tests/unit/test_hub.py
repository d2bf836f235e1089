"""Models by the name of their repository, from a hub on loopback that speaks the real one's protocol."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from svdflow.common.errors import BadInputError
from svdflow.diffusion.hub import origin_of, resolve_model
from svdflow.pipelines.cli import app

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
UNET = {"_class_name": "UNet2DConditionModel", "block_out_channels": [32, 64], "layers_per_block": 1,
        "attention_head_dim": [2, 4], "cross_attention_dim": 16, "out_channels": 4}  # fmt: skip


class Hub:
    """One repository, ``org/model``: files by revision, and a gated one beside it."""

    def __init__(self, files: dict[str, dict[str, bytes]]) -> None:
        self.files, self.fetched = files, []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):  # noqa: N802
                owner.answer(self)

            def do_HEAD(self):  # noqa: N802
                owner.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request) -> None:
        place = request.path.split("?")[0].strip("/").split("/")
        status, body, headers = 404, b"{}", {"X-Error-Code": "RepoNotFound"}
        revisions = {**{c: name for name, c in COMMITS.items()}, **{name: name for name in COMMITS}}
        if place[:3] == ["api", "models", "closed"]:
            status, headers = 403, {"X-Error-Code": "GatedRepo"}
        elif place[:4] == ["api", "models", "org", "model"] and len(place) > 5:
            name = revisions.get(place[5])
            if name not in self.files:
                headers = {"X-Error-Code": "RevisionNotFound"}
            elif place[4] == "revision":
                siblings = [{"rfilename": path} for path in self.files[name]]
                status, headers = 200, {}
                body = json.dumps({"id": "org/model", "sha": COMMITS[name], "siblings": siblings}).encode()
            elif place[4] == "tree":
                status, headers = 200, {}
                body = json.dumps(
                    [
                        {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for path, data in self.files[name].items()
                    ]
                ).encode()
        elif place[:3] == ["org", "model", "resolve"]:
            name, path = revisions.get(place[3]), "/".join(place[4:])
            if path in self.files.get(name, {}):
                status, body = 200, self.files[name][path]
                headers = {"X-Repo-Commit": COMMITS[name], "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
                if request.command == "GET":
                    self.fetched.append(path)
            else:
                headers = {"X-Error-Code": "EntryNotFound"}
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    parts = {
        "model_index.json": b"{}",
        "unet/config.json": json.dumps(UNET).encode(),
        "unet/diffusion_pytorch_model.safetensors": b"full",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
        "unet/diffusion_pytorch_model.bin": b"pickled",
        "tokenizer/merges.txt": b"a b",
        "svd.safetensors": b"the authors' single file",
        "image_decoder.ckpt": b"pickled",
        "README.md": b"words",
    }
    half = {name: data for name, data in parts.items() if name != "unet/diffusion_pytorch_model.safetensors"}
    found = Hub({"main": parts, "v1": half})
    monkeypatch.setenv("HF_ENDPOINT", found.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield found
    found.close()


def files_of(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_a_repository_s_parts_are_fetched_once_in_full_precision_and_nothing_pickled(hub):
    directory = resolve_model("org/model")
    kept = {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt"}
    assert files_of(directory) == kept and set(hub.fetched) == kept
    assert (directory / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == b"full"
    assert origin_of(directory) == f"org/model@{'a' * 40}"
    assert resolve_model(Path("org/model")) == directory and len(hub.fetched) == len(kept)


def test_a_revision_is_another_model_and_half_precision_is_taken_where_there_is_no_other(hub):
    directory = resolve_model("org/model@v1")
    assert origin_of(directory) == f"org/model@{'b' * 40}"
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in files_of(directory)
    assert not {name for name in hub.fetched if name.endswith((".bin", ".ckpt")) or "/" not in name} - {
        "model_index.json"
    }
    assert resolve_model(f"org/model@{'b' * 40}") == directory


def test_configurations_alone_are_enough_for_a_dry_run(hub):
    command = ["train", "image", "--profile", "test", "--dry-run", "--json", "--init", "org/model"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0 and json.loads(done.stdout)["parameters"]["total"] < 10_000_000
    assert hub.fetched and not [name for name in hub.fetched if name.endswith(".safetensors")]


def test_a_directory_comes_before_a_repository_of_its_name(hub, tmp_path):
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert resolve_model("org/model") == tmp_path / "org" / "model" and not hub.fetched


def test_without_a_network_a_pinned_model_that_was_fetched_is_found_and_another_is_an_error(hub, monkeypatch):
    pinned = f"org/model@{'a' * 40}"
    directory = resolve_model(pinned)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    assert resolve_model(pinned) == directory
    with pytest.raises(BadInputError, match="other/model: .*the hub does not answer.*give its directory") as caught:
        resolve_model("other/model")
    assert "\n" not in str(caught.value) and "from http://127.0.0.1:9 " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("org/nothing", "there is no such repository"),
        ("org/model@v9", "it has no revision v9"),
        ("closed/model", "its licence has to be accepted.*HF_TOKEN"),
        ("absent", "no such model here"),
        ("../org/model", "no such model here"),
        ("https://example.org/model", "no such model here"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_line_without_the_token(hub, monkeypatch, name, says):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    with pytest.raises(BadInputError, match=says) as caught:
        resolve_model(name)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_repository_of_something_else_is_refused(hub):
    del hub.files["main"]["unet/config.json"]
    with pytest.raises(BadInputError, match="holds no unet/config.json"):
        resolve_model("org/model")
