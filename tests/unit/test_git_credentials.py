"""A git remote's user and password from a secret: git gets them when it asks, and they are written nowhere."""

import subprocess

import pytest

from svdflow.curation.version.git import Git, GitRefused

ASKED = b"protocol=https\nhost=git.example.com\n\n"


@pytest.fixture
def git(tmp_path, monkeypatch) -> Git:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    subprocess.run(["git", "init", "-q", tmp_path / "registry"], check=True)
    return Git(tmp_path / "registry")


def test_git_is_told_what_the_environment_holds(git, monkeypatch, tmp_path):
    monkeypatch.setenv("SVDFLOW_GIT_USERNAME", "svdflow-bot")
    monkeypatch.setenv("SVDFLOW_GIT_PASSWORD", "p'a\"ss $(word) \\n%s")
    told = dict(line.partition("=")[::2] for line in git("credential", "fill", stdin=ASKED).decode().splitlines())
    assert (told["username"], told["password"]) == ("svdflow-bot", "p'a\"ss $(word) \\n%s")
    git("credential", "approve", stdin=ASKED[:-1] + b"username=svdflow-bot\npassword=x\n\n")
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"svdflow-bot" in path.read_bytes()]
    assert kept == []


def test_without_them_git_asks_nobody(git, monkeypatch):
    monkeypatch.delenv("SVDFLOW_GIT_PASSWORD", raising=False)
    with pytest.raises(GitRefused):
        git("credential", "fill", stdin=ASKED)
