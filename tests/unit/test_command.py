"""The command `svdflow` as it is installed."""

import subprocess
import sys

import pytest

from svdflow import __version__

WITHOUT_TYPER = "import sys; sys.modules['typer'] = None; from svdflow.pipelines.entry import main; main()"


def test_the_command_tells_its_version():
    done = subprocess.run(["svdflow", "--version"], capture_output=True, text=True, env={"PATH": f"{sys.prefix}/bin"})
    assert (done.returncode, done.stdout) == (0, f"svdflow {__version__}\n")


def test_without_its_libraries_the_command_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TYPER], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "svdflow: the command needs typer, which is not installed: pip install 'svdflow[pipelines]'"
    ]


@pytest.mark.parametrize(
    ("option", "given", "says"),
    [
        ("--source", "no-such-folder", "--source 'no-such-folder': is not there"),
        ("--source", "", "--source '': is not there"),  # "$FOOTAGE" of a shell where it is not set
        ("--objects", "no-such-folder", "--objects no-such-folder: there is no such folder"),
    ],
)
def test_a_place_that_is_not_there_is_told_before_anything_starts(option, given, says, tmp_path):
    (tmp_path / "footage").mkdir()
    command = ["svdflow", "run", "svd", "--source", "footage", option, given, "--workdir", "run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": f"{sys.prefix}/bin"})
    assert done.returncode == 1 and says in done.stderr
    assert not (tmp_path / "run").exists()


def test_one_file_does_not_take_all_pipelines(tmp_path):
    done = subprocess.run(["svdflow", "compile", "--out", "ir.yaml"], capture_output=True, text=True, cwd=tmp_path,
                          env={"PATH": f"{sys.prefix}/bin"})  # fmt: skip
    assert done.returncode == 1 and "--out ir.yaml: is one file" in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_fills_a_narrow_terminal():
    done = subprocess.run(["svdflow", "run", "--help"], capture_output=True, text=True,
                          env={"PATH": f"{sys.prefix}/bin", "COLUMNS": "80"})  # fmt: skip
    lines = [line.strip() for line in done.stdout.splitlines()]
    begin = next(at for at, line in enumerate(lines) if line.startswith("A second run"))
    paragraph = lines[begin : lines.index("", begin)]
    words = [line.split()[0] for line in paragraph[1:]]
    for line, word in zip(paragraph, words, strict=False):
        assert len(f" {line} {word} ") > 80, f"{word!r} had room on the line before"
