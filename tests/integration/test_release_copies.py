"""A release goes into a bucket and out of it as the manifests say, by the real rclone and a real S3 server."""

import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.rendered import rendered

RCLONE = shutil.which("rclone") or os.environ.get("SVDFLOW_TEST_RCLONE", "")
pytestmark = pytest.mark.skipif(not RCLONE, reason="rclone is not installed")


@pytest.fixture
def copies(object_store, tmp_path):
    """Runs the containers of a pod that have rclone's command, with the work volume and the models in ``tmp_path``."""
    manifests = {
        (m["kind"], m["metadata"]["name"]): m for place in ("dev", "publish-release") for m in rendered()[place]
    }
    release = f"release-{uuid.uuid4().hex}"
    told = object_store.environment()
    environment = os.environ | told | {
        "RCLONE_S3_ENDPOINT": told["SVDFLOW_S3_ENDPOINT"], "RCLONE_S3_PROVIDER": "Other", "RCLONE_S3_ENV_AUTH": "true",
        "RCLONE_S3_NO_CHECK_BUCKET": "true",
    }  # fmt: skip
    variables = {
        "RUN": "run",
        "RELEASE": release,
        "MODEL_RELEASE": release,
        "SVDFLOW_RELEASES_BUCKET": object_store.bucket,
    }

    def run(kind: str, name: str, only: str | None = None) -> list[int]:
        pod = manifests[kind, name]["spec"]["template"]["spec"]
        codes = []
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            if container["command"] != ["rclone"] or only not in (None, container["name"]):
                continue
            arguments = []
            for text in container["args"]:
                for variable, value in variables.items():
                    text = text.replace(f"$({variable})", value)
                for volume in ("work", "models"):
                    text = text.replace(f"/{volume}", str(tmp_path / volume)) if text.startswith(f"/{volume}") else text
                arguments.append(text)
            done = subprocess.run(
                [RCLONE, "--retries=1", *arguments], env=environment, capture_output=True, timeout=300
            )
            codes.append(done.returncode)
            if done.returncode:
                break
        return codes

    return run


def repository(folder: Path, **files: str) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "contents.json").write_text(json.dumps(files))
    return folder


def listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_release_is_fetched_whole_or_not_at_all_and_never_changes(copies, tmp_path):
    place, models = tmp_path / "work/run/repository", tmp_path / "models"
    repository(place, one__config="1", one__weights="w")
    for left in ("one/__pycache__/model.pyc", ".half/weights", "one/.1.half/weights"):
        (place / left).parent.mkdir(parents=True)
        (place / left).write_text("left by others")
    fetch = ("Deployment", "triton-stable")
    assert copies(*fetch)[0] != 0, "there is none"
    for part in ("claim", "publish"):
        assert copies("Job", "publish-release", part) == [0]
        assert copies(*fetch)[0] != 0 and not models.exists(), "it is not whole"
    assert copies("Job", "publish-release") == [0, 0, 0], "a job that was killed goes on"
    assert copies(*fetch) == [0, 0]
    assert listed(models) == ["contents.json", "one/config", "one/weights"]
    assert copies("Job", "publish-release") == [0, 0, 0], "the same again"

    repository(place, one__config="1", one__weights="w", two__config="added")
    assert copies("Job", "publish-release")[0] != 0
    repository(place, one__config="1", one__weights="other")
    assert copies("Job", "publish-release")[0] != 0
    shutil.rmtree(models)
    assert copies(*fetch) == [0, 0] and listed(models) == ["contents.json", "one/config", "one/weights"]
    assert (models / "one/weights").read_text() == "w"
