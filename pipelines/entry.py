"""What the installed command `svdflow` starts: the command line, or what to install for it."""

import os
import sys


def main() -> None:
    """Run the command line; without its libraries say in one line how to get them."""
    # diffusers makes transformers warn that torchvision is missing, which nothing here needs
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        from .cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("svdflow"):
            raise
        sys.exit(f"svdflow: the command needs {error.name}, which is not installed: pip install 'svdflow[pipelines]'")
    run()
