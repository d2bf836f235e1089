"""Run a compiled pipeline's IR under kfp.local, in this process."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

from svdflow.common.processes import die_with_parent


def main(job_path: str) -> int:
    """Run the job; returns 0 when every task succeeded, else 1. The cause of a failure is in its step's report."""
    die_with_parent()
    warnings.filterwarnings("ignore", message=".*custom or non-Python base image.*", category=RuntimeWarning)
    from kfp import components, local

    logging.getLogger().setLevel(logging.INFO)
    job = json.loads(Path(job_path).read_text())
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=job["pipeline_root"])
    pipeline = components.load_component_from_file(job["ir"])
    try:
        pipeline(**job["arguments"])
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
