"""Annotation under faults: models that crash, hang or refuse one clip, and kill -9 in the middle of the work."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from clip_sets import ClipSet, clip_set

from svdflow.common.config import load_settings
from svdflow.common.fanout import Outcome
from svdflow.common.manifests import read_rows
from svdflow.common.report import StepReport
from svdflow.common.storage import DataRoot
from svdflow.curation.annotate import annotate as step
from svdflow.curation.annotate.annotate import annotate_clips
from svdflow.curation.annotate.annotator import ClipView
from svdflow.curation.annotate.measure import Measured
from svdflow.curation.annotate.model_process import ModelProcess
from svdflow.curation.annotate.settings import AnnotateSettings
from svdflow.ingest.footage import make_scene
from tests.killed_annotate import CLIPS, annotate, commits, killed_and_run_again, prepare

# axes that need no network of their own: what is tested here is the frame around them
AXES = {
    "annotate.motion": "farneback-flow",
    "annotate.text": None,
    "annotate.embedding": None,
    "annotate.similarity": None,
    "annotate.plugins": ["moody_model"],
    "annotate.watermark": "moody",
    "annotate.workers": 2,
}
AXES_COUNT = 6
# a "model" that sees units of clips, and does what the brightness of a clip's first frame tells it to
PLUGIN = """
import os
import time
import numpy as np
from svdflow.common.errors import BadInputError
from svdflow.curation.annotate.annotator import ModelAnnotator, register
from svdflow.common.batching import in_batches_of


@register
class Moody(ModelAnnotator):
    name, version, axis = "moody", "1", "watermark"
    columns = ("watermark",)

    def prepare(self, clip):
        clip.once("means", lambda: np.array([rgb.mean() for rgb in clip.pictures()]))

    def measure(self, clips):
        means = np.stack([clip.once("means", lambda: None) for clip in clips])
        units = os.environ.get("MOODY_UNITS")
        if units:
            with open(units, "a") as log:
                log.write(f"{len(clips)}\\n")
        if (means[:, 0] < 2).any():
            mood = os.environ["MOODY"]
            if mood == "refuse":
                raise BadInputError("too dark")
            if mood == "refuse alone":
                return [BadInputError("too dark") if m[0] < 2 else {"watermark": np.sqrt(m).tolist()} for m in means]
            if mood == "crash":
                os._exit(9)
            if mood == "hold":
                time.sleep(600)
        found = in_batches_of(self.settings.unit_clips, means, lambda rows: np.sqrt(rows))
        return [{"watermark": row.tolist()} for row in found]
"""


def scene(number: int) -> np.ndarray:
    return make_scene(number, 10, 64, 96, camera="pan_left").frames


@pytest.fixture
def moody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AnnotateSettings:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "moody_model.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    monkeypatch.setenv("MOODY_UNITS", str(tmp_path / "units.txt"))
    return load_settings(AnnotateSettings, "annotate", "local", {**AXES, "annotate.unit_clips": 3})


def run(clips: ClipSet, out: Path, root: DataRoot, settings: AnnotateSettings) -> tuple[StepReport, dict[str, Any]]:
    report = annotate_clips(clips.videos, clips.clips, out, root, settings)
    return report, {row["clip_id"]: row for row in read_rows("annotations", out)}


@pytest.mark.parametrize("mood", ["refuse", "refuse alone", "crash"])
def test_a_clip_that_a_model_cannot_take_costs_itself_alone_and_its_neighbours_change_by_no_bit(
    tmp_path: Path, root: DataRoot, moody: AnnotateSettings, mood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOODY", mood)
    dark = np.zeros((10, 64, 96, 3), np.uint8)
    clips = clip_set(root, tmp_path, [scene(1), dark, scene(2), scene(3), scene(4)])
    report, rows = run(clips, tmp_path / "a.parquet", root, moody)
    assert rows[clips.ids[1]]["watermark"] is None and rows[clips.ids[1]]["motion_score"] is not None
    assert report.counts["annotations failed"] == 1
    units = (tmp_path / "units.txt").read_text().split()
    assert units[0] == "3" and ("2" in units)  # several clips at once, and the rest
    good = DataRoot.open(tmp_path / "good root")
    fewer = clip_set(good, tmp_path / "good", [scene(4), scene(1), scene(3), scene(2)])
    _, others = run(fewer, tmp_path / "b.parquet", good, moody)
    for ours, theirs in ((0, 1), (2, 3), (3, 2), (4, 0)):
        assert rows[clips.ids[ours]]["watermark"] == others[fewer.ids[theirs]]["watermark"]
    again, _ = run(clips, tmp_path / "c.parquet", root, moody)
    assert again.reused == 4 * AXES_COUNT + 5  # only what failed is tried again
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "c.parquet").read_bytes()


def test_a_worker_that_dies_in_one_clip_costs_that_clip_alone(
    tmp_path: Path, root: DataRoot, moody: AnnotateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same model, now in the process that decodes: what was kept of the clip before the crash stays."""
    monkeypatch.setenv("MOODY", "crash")
    clips = clip_set(root, tmp_path, [scene(1), np.zeros((10, 64, 96, 3), np.uint8), scene(2)])
    report, rows = run(clips, tmp_path / "a.parquet", root, moody.model_copy(update={"unit_clips": 1}))
    lost = rows[clips.ids[1]]
    assert lost["watermark"] is None and lost["caption_image"] is None and lost["motion_score"] is not None
    assert all(rows[clips.ids[n]]["caption_summary"] is not None for n in (0, 2))
    assert report.counts["clips set aside"] == 0 and report.counts["annotations failed"] == 5


def hangs_on_b(unit: list[Measured]) -> list[Measured]:
    """A process of models that does not come back when it sees one clip."""
    for measured in unit:
        if measured.content == "b":
            time.sleep(600)
        measured.result.computed["watermark"] = 1.0
    return unit


def takes_much_for_b(unit: list[Measured]) -> list[Measured]:
    """A process of models that fills its memory when it sees one clip."""
    for measured in unit:
        filled = bytearray(500_000_000 if measured.content == "b" else 1000)
        time.sleep(600 if measured.content == "b" else 0)
        measured.result.computed["watermark"] = float(len(filled))
    return unit


def test_a_model_that_takes_too_much_memory_for_a_clip_is_stopped_and_goes_on_with_the_others() -> None:
    with ModelProcess(["watermark"], 3600.0, 400_000_000, takes_much_for_b) as models:
        models.submit([Measured(work=None, content=name) for name in "abc"])  # type: ignore[arg-type]
        done = {m.content: m.result for m in models.measured(wait=True)}
    assert "more than 400 MB of memory and were stopped" in done.pop("b").failed["watermark"]
    assert sorted(done) == ["a", "c"] and all(result.computed and not result.failed for result in done.values())


def test_a_unit_is_closed_by_its_bytes_before_it_has_all_its_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(AnnotateSettings, "annotate", "local", {"annotate.unit_mb": 10, "annotate.unit_clips": 4})
    megabytes = [1, 1, 1, 1, 6, 6, 30, 1, 4, 4, 4]
    units: list[list[int]] = []

    class Models(ModelProcess):
        def submit(self, unit: Sequence[Measured]) -> None:
            units.append([m.view.bytes // 10**6 for m in unit])  # type: ignore[union-attr]

    def decoded(*_: Any, **__: Any) -> Iterator[Outcome]:
        for size in megabytes:
            view = ClipView("clip", taken={"frames": ([0.5], np.zeros(size * 10**6, np.uint8))})
            yield Outcome(None, Measured(work=None, view=view), None, 0.0)  # type: ignore[arg-type]

    monkeypatch.setattr(step, "ModelProcess", Models)
    monkeypatch.setattr(step, "map_units", decoded)
    monkeypatch.setattr(step, "late_axes", lambda *_: {"motion"})
    assert list(step._measured([], [], None, settings)) == []  # type: ignore[arg-type]
    assert units == [[1, 1, 1, 1], [6], [6], [30], [1, 4, 4], [4]]


def test_a_model_that_hangs_on_a_clip_is_stopped_and_goes_on_with_the_others() -> None:
    def clip(name: str) -> Measured:
        return Measured(work=None, content=name)  # type: ignore[arg-type]

    with ModelProcess(["watermark"], 1.0, 1 << 40, hangs_on_b) as models:
        models.submit([clip("a"), clip("b"), clip("c")])
        models.submit([clip("d"), clip("e")])
        done = {m.content: m.result for m in models.measured(wait=True)}
    assert sorted(done) == ["a", "b", "c", "d", "e"]
    assert "longer than 1 s" in done.pop("b").failed["watermark"]
    assert all(result.computed and not result.failed for result in done.values())


# kill -9


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    base = prepare(tmp_path_factory.mktemp("calm") / "base")
    assert annotate(base)
    return (base / "annotations.parquet").read_bytes(), commits(base)


@pytest.mark.parametrize(("part", "side"), [(0.4, "before"), (0.8, "after"), (1.0, "before")])
def test_killed_at_a_commit_the_next_run_ends_as_if_nothing_had_been(
    undisturbed: tuple[bytes, int], tmp_path: Path, part: float, side: str
) -> None:
    """Objects, results, the whole of a clip and the manifest itself; every one of them in tests/benchmarks."""
    manifest, last = undisturbed
    assert last > 7 * CLIPS
    killed_and_run_again(tmp_path / "base", round(part * last), side, manifest, last)


SCRIPT = f"""
import sys
from svdflow.common.config import load_settings
from svdflow.common.storage import DataRoot
from svdflow.curation.annotate.annotate import annotate_clips
from svdflow.curation.annotate.settings import AnnotateSettings

AXES = {AXES!r}
if __name__ == "__main__":
    videos, clips, out, root, units = sys.argv[1:]
    settings = load_settings(AnnotateSettings, "annotate", "local", {{**AXES, "annotate.unit_clips": int(units)}})
    report = annotate_clips(videos, clips, out, DataRoot.open(root), settings)
    print(report.done, report.reused)
"""


def start(
    tmp_path: Path, clips: ClipSet, out: Path, root: DataRoot, units: int, mood: str = "good"
) -> subprocess.Popen:
    script = tmp_path / "run_annotate.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "plugins"), "OMP_NUM_THREADS": "1", "MOODY": mood}
    command = [sys.executable, str(script), str(clips.videos), str(clips.clips), str(out), root.location, str(units)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def kept(root: DataRoot) -> int:
    """Results there are, one to each clip and annotator."""
    return sum(1 for _ in root.list("results/annotate/"))


@pytest.mark.slow
@pytest.mark.parametrize(("units", "kill_at"), [(1, [1, 30]), (4, [25, 45])])
def test_killed_in_the_middle_it_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path, moody: AnnotateSettings, units: int, kill_at: list[int]
) -> None:
    roots = [DataRoot.open(tmp_path / name) for name in ("calm", "killed")]
    # where it is to be killed the model waits at the dark clip: however slowly this test looks, it is not too late
    shots = [*(scene(n) for n in range(9)), np.zeros((10, 64, 96, 3), np.uint8)]
    sets = [clip_set(root, tmp_path / f"set{n}", shots) for n, root in enumerate(roots)]
    calm = start(tmp_path, sets[0], tmp_path / "calm.parquet", roots[0], units)
    assert calm.communicate()[0].split() == ["60", "0"]
    for count in kill_at:
        process = start(tmp_path, sets[1], tmp_path / "killed.parquet", roots[1], units, mood="hold")
        children: list[psutil.Process] = []
        while kept(roots[1]) < count and process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        psutil.wait_procs(children, timeout=600)
        assert not (tmp_path / "killed.parquet").exists()
    before = kept(roots[1])
    assert kill_at[-1] <= before < 60
    last = start(tmp_path, sets[1], tmp_path / "killed.parquet", roots[1], units)
    done, reused = map(int, last.communicate()[0].split())
    assert (done, reused) == (60 - before, before)  # what was kept is not computed again
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "calm.parquet").read_bytes()
    shutil.rmtree(roots[1].location)
