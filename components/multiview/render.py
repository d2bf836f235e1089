"""Objects to orbits: each object seen from all around at a constant elevation [P, section 4.5], as lossless views."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..common.decoding import decode_each, in_cluster, pictures, require_on_volume
from ..common.errors import BadInputError, ServiceError, SvdflowError
from ..common.fanout import Outcome, chosen_executor, in_pods, map_units
from ..common.identity import identity
from ..common.lossless_frames import pack_frames
from ..common.manifests import write_manifest
from ..common.picture import shrink
from ..common.pixels import Pixels
from ..common.report import StepReport, histogram, images, table
from ..common.storage import DataRoot
from .mesh_files import FileObject, object_files, open_object
from .objects import GeneratedObject, generate_object
from .settings import RenderSettings
from .stored_orbits import OrbitPlace

VERSION = "1"
GENERATED = "generated"  # the source of an orbit that comes from no file
REMEDY = "install a software renderer: apt-get install libegl1 libgl1-mesa-dri libosmesa6 libgl1"
_SHEET_ROWS, _SHEET_PX = 16, 72


@dataclass(frozen=True)
class OrbitJob:
    """An orbit to be rendered: what travels to a worker process."""

    orbit_id: str
    thing: GeneratedObject | FileObject
    split: str
    elevation_deg: float
    start_deg: float
    light_seed: int
    settings: RenderSettings


def render_orbits(objects: str, out: Path, root: DataRoot, settings: RenderSettings) -> StepReport:
    """Render the orbits of all objects and write the ``orbits`` manifest.

    Args:
        objects: a folder of GLB and OBJ files; empty for generated objects.
        out: the manifest (Parquet).
        root: where the views are kept; orbits found there are not rendered again.
        settings: sizes, elevations, split.

    Raises:
        BadInputError: the folder holds no usable object.
        ServiceError: no object can be rendered on this machine.
    """
    apart = bool(objects) and in_cluster()  # files of others: opened in pods, as are pictures that come of them
    things, refused = _open_folder(Path(objects), settings) if objects else (_generated(settings), {})
    jobs = [job for thing, split in things for job in _plan(thing, split, settings)]
    known = {job.orbit_id: value for job in jobs if (value := root.find("orbit", job.orbit_id)) is not None}
    found = {orbit_id: value for orbit_id, value in known.items() if root.exists(value["shard_uri"])}
    todo = [job for job in jobs if job.orbit_id not in found]
    failed: dict[str, str] = {}
    for outcome in _render_in_pods(todo, jobs, Path(objects), root) if apart else _render_all(todo):
        job = outcome.unit
        if outcome.value is None:
            failed[f"{job.thing.name} at {job.elevation_deg:.1f}°"] = outcome.error or "failed"
            continue
        uri = outcome.value if isinstance(outcome.value, str) else root.put_bytes(outcome.value)
        found[job.orbit_id] = {"shard_uri": uri}
        root.record("orbit", job.orbit_id, found[job.orbit_id])
    kept = [job for job in jobs if job.orbit_id in found]
    if not kept:
        reasons = "; ".join((refused | failed).values())
        raise BadInputError(f"{objects or 'generated objects'}: no object could be rendered: {reasons[:400]}")
    write_manifest("orbits", [_row(job, found[job.orbit_id]["shard_uri"]) for job in kept], out)
    places = [OrbitPlace(root.location, found[job.orbit_id]["shard_uri"]) for job in _spread(kept)]
    drawn = pictures(decode_each(orbit_strip, places, root, "pictures", needed=False, foreign=apart))
    shown = {_spread(kept)[place].orbit_id: picture for place, picture in drawn}
    return _report(kept, shown, refused, failed, done=len(todo) - len(failed), looked_at=len(things) + len(refused))


def _generated(settings: RenderSettings) -> list[tuple[GeneratedObject | FileObject, str]]:
    count = settings.train_objects + settings.held_out_objects
    things = [generate_object(settings.seed, index) for index in range(count)]
    return [(thing, "train" if index < settings.train_objects else "held_out") for index, thing in enumerate(things)]


def _open_folder(
    folder: Path, settings: RenderSettings
) -> tuple[list[tuple[GeneratedObject | FileObject, str]], dict[str, str]]:
    by_id: dict[str, FileObject] = {}
    refused: dict[str, str] = {}
    for path in object_files(folder):
        try:
            thing = open_object(path, folder, settings.max_object_mb)
        except (SvdflowError, OSError) as error:
            refused[path.relative_to(folder).as_posix()] = str(error)
            continue
        if thing.object_id in by_id:
            refused[thing.name] = f"the same object as {by_id[thing.object_id].name}"
        else:
            by_id[thing.object_id] = thing
    # The share of the hash that an object falls into never changes, so an object keeps its split as a folder grows;
    # only where that leaves a side of a small folder empty is its nearest object moved over.
    shares = {key: int(key[:8], 16) / 16**8 * 100 for key in by_id}
    held_out = {key for key, share in shares.items() if share < settings.held_out_percent}
    if 0 < settings.held_out_percent < 100 and len(by_id) > 1:
        held_out = held_out or {min(shares, key=shares.__getitem__)}
        if len(held_out) == len(by_id):
            held_out -= {max(shares, key=shares.__getitem__)}
    return [(thing, "held_out" if key in held_out else "train") for key, thing in by_id.items()], refused


def _plan(thing: GeneratedObject | FileObject, split: str, settings: RenderSettings) -> Iterator[OrbitJob]:
    """The orbits of an object: one random elevation in each of ``orbits_per_object`` equal slices of the range."""
    low, high = settings.elevation_min_deg, settings.elevation_max_deg
    pixels = settings.model_dump(
        mode="json", include={"views", "size_px", "field_of_view_deg", "background", "lights", "supersampling"}
    )
    for index in range(settings.orbits_per_object):
        rng = np.random.default_rng(int(identity(object=thing.object_id, orbit=index, seed=settings.seed)[:16], 16))
        elevation = round(low + (high - low) * (index + rng.uniform()) / settings.orbits_per_object, 3)
        start, light = round(rng.uniform(0, 360), 3), int(rng.integers(2**31))
        # the split is no part of it: a view does not change with the use that is made of it
        key = identity(
            version=VERSION, object=thing.object_id, elevation=elevation, start=start, light=light, settings=pixels
        )
        yield OrbitJob(key, thing, split, elevation, start, light, settings)


def _render_all(jobs: list[OrbitJob]) -> Iterator[Outcome[OrbitJob, bytes]]:
    """Render in worker processes; give up early, with the remedy, where no renderer works (it may crash)."""
    held_back: list[
        Outcome[OrbitJob, bytes]
    ] = []  # failures before the first success: of the files, or of the renderer?
    trusted = False
    for outcome in map_units(_render_job, jobs, "orbits", timeout_s=jobs[0].settings.timeout_s if jobs else 0):
        held_back.append(outcome)
        if not trusted and not outcome.ok:
            if len(held_back) < min(len(jobs), 3):
                continue
            _require_renderer(str(outcome.error))
        trusted = True
        yield from held_back
        held_back.clear()


@dataclass(frozen=True)
class OrbitWork:
    """An orbit to be rendered in a pod: the data root's location, and the orbit."""

    root: str
    job: OrbitJob


@in_pods
def render_into_root(work: OrbitWork) -> str:
    """Render an orbit and put its views into the data root; returns the URI.

    Raises:
        BadInputError: the object cannot be used.
    """
    return DataRoot.open(work.root).put_bytes(_render_job(work.job))


@in_pods
def orbit_strip(orbit: OrbitPlace) -> Pixels:
    """Some views of an orbit side by side, small.

    Raises:
        BadInputError: see ``OrbitPlace.read``.
    """
    return Pixels.of(shrink(strip(orbit.read()), _SHEET_PX))


def _render_in_pods(
    todo: list[OrbitJob], jobs: list[OrbitJob], folder: Path, root: DataRoot
) -> Iterator[Outcome[OrbitJob, str]]:
    require_on_volume(folder.resolve())
    executor = chosen_executor(root, "render", identity(orbits=[job.orbit_id for job in jobs]))
    works = [OrbitWork(root.location, job) for job in todo]
    timeout_s = todo[0].settings.timeout_s if todo else 0
    for outcome in map_units(render_into_root, works, "orbits", timeout_s=timeout_s, executor=executor):
        yield Outcome(outcome.unit.job, outcome.value, outcome.error, outcome.seconds)


def _require_renderer(symptom: str) -> None:
    """Draw a small generated object in a process of its own.

    Raises:
        ServiceError: that fails too.
    """
    settings = RenderSettings(views=2, size_px=32, supersampling=1)
    probe = OrbitJob("probe", generate_object(0, 0), "train", 10.0, 0.0, 0, settings)
    outcome = next(map_units(_render_job, [probe], "renderer probe", workers=1, timeout_s=120, tries=1))
    if outcome.error is not None:
        raise ServiceError(f"no 3D renderer works here ({symptom}); {REMEDY}")


def _render_job(job: OrbitJob) -> bytes:
    from .scene import Orbit, render_orbit

    settings = job.settings
    orbit = Orbit(
        job.elevation_deg,
        job.start_deg,
        settings.views,
        settings.size_px,
        settings.supersampling,
        settings.field_of_view_deg,
        settings.background,
        job.light_seed,
        settings.lights,
    )
    return pack_frames(job.orbit_id, render_orbit(job.thing, orbit))


def _row(job: OrbitJob, shard_uri: str) -> dict[str, Any]:
    return {
        "orbit_id": job.orbit_id,
        "object_id": job.thing.object_id,
        "source": GENERATED if isinstance(job.thing, GeneratedObject) else job.thing.name,
        "split": job.split,
        "elevation_deg": job.elevation_deg,
        "frames": job.settings.views,
        "height": job.settings.size_px,
        "width": job.settings.size_px,
        "shard_uri": shard_uri,
    }


def _spread(jobs: list[OrbitJob]) -> list[OrbitJob]:
    """At most ``_SHEET_ROWS`` orbits, evenly over all of them, so that the report does not grow with the data."""
    picks = np.unique(np.linspace(0, len(jobs) - 1, min(_SHEET_ROWS, len(jobs))).round().astype(int))
    return [jobs[int(pick)] for pick in picks]


def _report(
    kept: list[OrbitJob],
    shown: dict[str, np.ndarray],
    refused: dict[str, str],
    failed: dict[str, str],
    done: int,
    looked_at: int,
) -> StepReport:
    objects = {job.thing.object_id for job in kept}
    held_out = {job.thing.object_id for job in kept if job.split == "held_out"}
    elevations = [job.elevation_deg for job in kept]
    report = StepReport("render", "Render 3D objects as orbits", done=done, reused=len(kept) - done)
    report.counts = {
        "objects": looked_at,
        "objects rendered": len(objects),
        "orbits": len(kept),
        "views": sum(j.settings.views for j in kept),
        "set aside": len(refused) + len(failed),
    }
    report.summary = {
        "multiview": {
            "objects": len(objects),
            "held_out_objects": len(held_out),
            "orbits": len(kept),
            "set_aside": len(refused) + len(failed),
        }
    }
    by_id = {job.orbit_id: job for job in kept}
    sheets = [(sheet, _caption(by_id[key])) for key, sheet in shown.items()]
    report.sections.append(
        images("Orbits", sheets, note="One row an orbit; the first view is the input view.", height_px=72)
    )
    report.sections.append(histogram("Elevation of the orbits", elevations, "degrees"))
    if refused or failed:
        rows: list[list[Any]] = [[name, reason] for name, reason in sorted((refused | failed).items())[:50]]
        report.sections.append(table("Objects set aside", ["object", "reason"], rows))
    report.versions = {"pyvista": version("pyvista"), "vtk": version("vtk")}
    return report


def _caption(job: OrbitJob) -> str:
    return f"{job.thing.name}, {job.elevation_deg:.0f}°, {job.split.replace('_', ' ')}"


def strip(views_VHWC: np.ndarray, at_most: int = 8) -> np.ndarray:
    """Views side by side, uint8 [H, n W, 3]; evenly chosen when there are many."""
    picks = np.linspace(0, len(views_VHWC), min(at_most, len(views_VHWC)), endpoint=False).astype(int)
    return np.concatenate(list(views_VHWC[picks]), axis=1)
