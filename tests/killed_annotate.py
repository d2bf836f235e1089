"""The annotate step in a process group that is killed at the n-th commit, and run again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from svdflow.common.storage import DataRoot
from svdflow.ingest.footage import make_scene
from tests.integration.clip_sets import clip_set

CLIPS = 3
# Runs the step; all its processes die before or after the n-th time that something is put in its final place. Workers
# and the process of the models import this file anew, so they are patched as well; the count is the length of a file.
DRIVER = """
import os, signal, sys
from pathlib import Path

base, moment, side = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
sys.path.insert(0, str(base))
replace = Path.replace

def counted(self, target):
    with open(base / "commits", "ab") as log:
        log.write(b"x")
        log.flush()
        number = os.fstat(log.fileno()).st_size
    if number == moment and side == "before":
        os.killpg(0, signal.SIGKILL)
    done = replace(self, target)
    if number == moment and side == "after":
        os.killpg(0, signal.SIGKILL)
    return done

Path.replace = counted

if __name__ == "__main__":
    from svdflow.common.config import load_settings
    from svdflow.common.storage import DataRoot
    from svdflow.curation.annotate.annotate import annotate_clips
    from svdflow.curation.annotate.settings import AnnotateSettings

    axes = {"text": None, "embedding": None, "similarity": None, "plugins": ["late_means"], "watermark": "late-means",
            "workers": 1, "unit_clips": 2}
    settings = load_settings(AnnotateSettings, "annotate", "local", {f"annotate.{k}": v for k, v in axes.items()})
    root = DataRoot.open(base / "data")
    manifests = [base / f"{kind}.parquet" for kind in ("videos", "clips", "annotations")]
    report = annotate_clips(*manifests, root, settings)
    (base / "done").write_text(str(report.done))
"""
# stands for a network: it is measured over several clips, in the process of the models
PLUGIN = """
import numpy as np
from svdflow.curation.annotate.annotator import ModelAnnotator, register


@register
class LateMeans(ModelAnnotator):
    name, version, axis = "late-means", "1", "watermark"
    columns = ("watermark",)

    def prepare(self, clip):
        clip.once("means", lambda: np.array([rgb.mean() / 255 for rgb in clip.pictures()]))

    def measure(self, clips):
        return [{"watermark": clip.once("means", lambda: None).tolist()} for clip in clips]
"""


def prepare(base: Path) -> Path:
    """Clips in a data root of their own."""
    base.mkdir()
    (base / "driver.py").write_text(DRIVER)
    (base / "late_means.py").write_text(PLUGIN)
    shots = [make_scene(n, 8, 64, 96, camera="pan_left").frames for n in range(CLIPS)]
    clip_set(DataRoot.open(base / "data"), base, list(shots))
    return base


def annotate(base: Path, moment: int = 0, side: str = "before") -> bool:
    """Run the step, killed at a moment; whether it came to its end."""
    (base / "commits").write_bytes(b"")
    command = [sys.executable, str(base / "driver.py"), str(base), str(moment), side]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, start_new_session=True, stderr=subprocess.PIPE, env=environment, timeout=600)
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr.decode()
    return ended.returncode == 0


def commits(base: Path) -> int:
    """How often the last run put something in its place."""
    return (base / "commits").stat().st_size


def killed_and_run_again(base: Path, moment: int, side: str, manifest: bytes, last: int) -> None:
    """Killed at a moment: no manifest that is not whole; run again: the bytes of an undisturbed run, nothing twice."""
    prepare(base)
    assert not annotate(base, moment, side)
    out = base / "annotations.parquet"
    assert out.exists() == (moment == last and side == "after")
    kept = sum(1 for _ in DataRoot.open(base / "data").list("results/annotate/"))
    assert annotate(base)
    assert out.read_bytes() == manifest, (moment, side)
    assert int((base / "done").read_text()) == 6 * CLIPS - kept, "what was kept is not computed again"
    assert not list((base / "data" / "scratch" / "annotate").glob("*/*")), "what the killed run left is swept away"
