"""An object in front of a camera that goes round it: the only module that talks to the renderer (pyvista, off-screen).

Heavy to import; run in worker processes, since a renderer without a graphics driver may take its process down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyvista
from vtkmodules.vtkCommonCore import vtkLogger

from ..common.errors import BadInputError
from .mesh_files import FileObject, material_file
from .objects import GeneratedObject, Part

_MARGIN = 1.05  # of the sphere around the object to the edge of the picture


@dataclass(frozen=True)
class Orbit:
    """One trip round an object: constant elevation, ``views`` equal steps over the full circle.

    Attributes:
        elevation_deg: of the camera above the object's horizontal plane.
        start_deg: azimuth of view 0; azimuths grow counter-clockwise seen from above.
        views: number of pictures; size_px: their width and height; supersampling: see RenderSettings.
        field_of_view_deg: vertical angle of view.
        background: RGB, 0 to 255.
        light_seed: of the lamps' places and strengths; lights: their number.
    """

    elevation_deg: float
    start_deg: float
    views: int
    size_px: int
    supersampling: int
    field_of_view_deg: float
    background: tuple[int, int, int]
    light_seed: int
    lights: int


def render_orbit(thing: GeneratedObject | FileObject, orbit: Orbit) -> np.ndarray:
    """The views of an object, uint8 RGB [V, H, W, 3].

    Raises:
        BadInputError: nothing of the object can be seen.
    """
    vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_OFF)  # it reports every display it did not find
    side = orbit.size_px * orbit.supersampling
    plotter = pyvista.Plotter(off_screen=True, window_size=[side, side], lighting="none")
    try:
        plotter.background_color = pyvista.Color(orbit.background)
        up = _add_object(plotter, thing)
        plotter.remove_all_lights()  # a file may bring its own
        centre, radius = _bounding_sphere(plotter, thing.name)
        axes = _axes(up)
        _add_lights(plotter, orbit, axes, centre, radius)
        distance = radius * _MARGIN / np.sin(np.radians(orbit.field_of_view_deg / 2))
        camera, views = plotter.camera, []
        camera.view_angle = orbit.field_of_view_deg
        camera.focal_point, camera.up = tuple(centre), tuple(axes[2])
        for index in range(orbit.views):
            azimuth = orbit.start_deg + 360.0 * index / orbit.views
            camera.position = tuple(centre + distance * _direction(axes, azimuth, orbit.elevation_deg))
            camera.clipping_range = (0.1 * (distance - radius), distance + 2 * radius)
            plotter.render()  # without it every screenshot shows the same view
            views.append(_shrink(np.asarray(plotter.screenshot(None, return_img=True))[..., :3], orbit.size_px))
    finally:
        plotter.close()
    stacked = np.stack(views)
    if not (stacked != np.array(orbit.background, np.uint8)).any(axis=(1, 2, 3)).all():
        raise BadInputError(f"{thing.name}: cannot be seen from every side; is it empty, flat or fully transparent?")
    return stacked


def _add_object(plotter: Any, thing: GeneratedObject | FileObject) -> str:
    if isinstance(thing, GeneratedObject):
        for part in thing.parts:
            smooth = part.shape != "box"
            plotter.add_mesh(
                _part_mesh(part),
                color=part.colour,
                smooth_shading=smooth,
                split_sharp_edges=smooth,
                ambient=0.35,
                diffuse=0.75,
                specular=0.15,
                specular_power=20,
            )
        return "z"
    if thing.path.suffix.lower() == ".glb":
        plotter.import_gltf(str(thing.path), set_camera=False)
    else:
        material: Path | None = material_file(thing.path)
        plotter.import_obj(str(thing.path), None if material is None else str(material))
        if material is None:
            for actor in plotter.actors.values():
                actor.GetProperty().SetColor(0.75, 0.72, 0.68)
    return "y"  # glTF's rule, and the custom of OBJ files


def _part_mesh(part: Part) -> Any:
    if part.shape == "superquadric":
        mesh = pyvista.ParametricSuperEllipsoid(n1=part.exponents[0], n2=part.exponents[1])
    elif part.shape == "box":
        mesh = pyvista.Cube(x_length=2, y_length=2, z_length=2)
    elif part.shape == "cylinder":
        mesh = pyvista.Cylinder(direction=(0, 0, 1), radius=1, height=2, resolution=48)
    elif part.shape == "cone":
        mesh = pyvista.Cone(direction=(0, 0, 1), radius=1, height=2, resolution=48)
    elif part.shape == "torus":
        thickness = part.size[2] / part.size[0]
        mesh = pyvista.ParametricTorus(ringradius=1.0, crosssectionradius=thickness).scale(
            (1, 1, 1 / thickness), inplace=False
        )
    else:
        raise BadInputError(f"unknown shape {part.shape!r} of an object's part")
    mesh = mesh.scale(part.size, inplace=False)
    for turn, rotate in zip(part.turn_deg, ("rotate_x", "rotate_y", "rotate_z"), strict=True):
        mesh = getattr(mesh, rotate)(turn, inplace=False) if turn else mesh
    return mesh.translate(part.centre, inplace=False)


def _bounding_sphere(plotter: Any, name: str) -> tuple[np.ndarray, float]:
    clouds = []
    for actor in plotter.actors.values():
        data = actor.GetMapper().GetInput()
        if data is None or data.GetPoints() is None:
            continue
        points = np.asarray(pyvista.wrap(data).points, dtype=float)
        matrix = np.array([[actor.GetMatrix().GetElement(r, c) for c in range(4)] for r in range(4)])
        clouds.append(points @ matrix[:3, :3].T + matrix[:3, 3])
    cloud = np.concatenate(clouds) if clouds else np.zeros((0, 3))
    if not len(cloud) or not np.isfinite(cloud).all() or np.abs(cloud).max() > 1e12:
        raise BadInputError(f"{name}: holds no surface that the renderer can read")
    centre = (cloud.min(0) + cloud.max(0)) / 2
    radius = float(np.linalg.norm(cloud - centre, axis=1).max())
    if radius == 0:
        raise BadInputError(f"{name}: all its points lie in one place")
    return centre, radius


def _axes(up: str) -> np.ndarray:
    """Front, left and up as rows; front is x with z up, and z with y up."""
    return np.eye(3) if up == "z" else np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])


def _direction(axes: np.ndarray, azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    a, e = np.radians(azimuth_deg), np.radians(elevation_deg)
    return np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)]) @ axes


def _add_lights(plotter: Any, orbit: Orbit, axes: np.ndarray, centre: np.ndarray, radius: float) -> None:
    rng = np.random.default_rng(orbit.light_seed)
    strengths = rng.uniform(0.5, 1.0, orbit.lights)
    strengths *= rng.uniform(1.1, 1.5) / strengths.sum()
    start = rng.uniform(0, 360)
    for index, strength in enumerate(strengths):
        azimuth = start + 360 * index / orbit.lights + rng.uniform(-30, 30)
        place = centre + 20 * radius * _direction(axes, azimuth, rng.uniform(15, 75))
        tint = 1 - rng.uniform(0, 0.12, 3)
        plotter.add_light(
            pyvista.Light(
                position=tuple(place),
                focal_point=tuple(centre),
                color=tuple(tint),
                intensity=float(strength),
                light_type="scene light",
                positional=False,
            )
        )


def _shrink(picture: np.ndarray, size_px: int) -> np.ndarray:
    return (
        picture
        if picture.shape[0] == size_px
        else cv2.resize(picture, (size_px, size_px), interpolation=cv2.INTER_AREA)
    )
