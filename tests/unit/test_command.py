"""The command `svdflow` as it is installed."""

import subprocess
import sys

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
