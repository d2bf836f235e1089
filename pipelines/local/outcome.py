"""What the terminal is told when a run has ended."""

from __future__ import annotations

import sys

from .run import RunResult


def tell(result: RunResult) -> None:
    """Say how a run ended and where its report lies."""
    if result.status == 130:
        print("interrupted; finished work is kept, and the same command goes on from there", file=sys.stderr)
    for line in result.errors if result.status == 1 else []:
        print(f"svdflow: {line}", file=sys.stderr)
    if result.status == 1:
        print(f"log: {result.log}", file=sys.stderr)
    report = result.workdir / "report.html"
    if report.is_file() and result.status != 130:
        print(f"report: {report}")
