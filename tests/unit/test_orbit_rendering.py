"""Orbits: the camera goes where it says, files of foreign make are read or set aside, nothing is rendered twice."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from svdflow.common.errors import BadInputError, ServiceError
from svdflow.common.lossless_frames import unpack_frames
from svdflow.common.manifests import read_rows
from svdflow.common.storage import DataRoot
from svdflow.multiview.mesh_files import object_files, open_object
from svdflow.multiview.objects import generate_object
from svdflow.multiview.render import render_orbits
from svdflow.multiview.settings import RenderSettings

SMALL = RenderSettings(views=4, size_px=48, supersampling=1, train_objects=2, held_out_objects=1)

# A cube whose sides differ in colour: x and z horizontal, y up. Side +z (the front) is red, +x is blue, the rest green.
CORNERS = [(-1, -1, -1), (1, -1, -1), (1, -1, 1), (-1, -1, 1), (-1, 1, -1), (1, 1, -1), (1, 1, 1), (-1, 1, 1)]
FACES = {
    "red": [(3, 2, 6), (3, 6, 7)],
    "blue": [(2, 1, 5), (2, 5, 6)],
    "green": [(0, 4, 5), (0, 5, 1), (0, 3, 7), (0, 7, 4), (4, 7, 6), (4, 6, 5), (0, 1, 2), (0, 2, 3)],
}
COLOURS = {"red": (1.0, 0, 0), "blue": (0, 0, 1.0), "green": (0, 1.0, 0)}


def write_glb(path: Path, **changes: object) -> None:
    """A cube as a minimal glTF 2.0 binary, written by the specification."""
    blob, views, accessors, primitives, materials = b"", [], [], [], []
    for name, triangles in FACES.items():
        points = np.array([CORNERS[i] for t in triangles for i in t], np.float32)
        normals = np.repeat(np.cross(points[1::3] - points[::3], points[2::3] - points[::3]), 3, axis=0)
        normals = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32)
        for array in (points, normals):
            views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": array.nbytes})
            accessors.append(
                {
                    "bufferView": len(views) - 1,
                    "componentType": 5126,
                    "count": len(array),
                    "type": "VEC3",
                    "min": array.min(0).tolist(),
                    "max": array.max(0).tolist(),
                }
            )
            blob += array.tobytes()
        materials.append({"pbrMetallicRoughness": {"baseColorFactor": [*COLOURS[name], 1.0], "metallicFactor": 0.0}})
        primitives.append(
            {
                "attributes": {"POSITION": len(accessors) - 2, "NORMAL": len(accessors) - 1},
                "material": len(materials) - 1,
            }
        )
    content = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": primitives}],
        "materials": materials,
        "buffers": [{"byteLength": len(blob)}],
        "bufferViews": views,
        "accessors": accessors,
    } | changes
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(blob), 0x004E4942) + blob
    path.write_bytes(struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks)


def write_obj(path: Path, material: str = "cube.mtl") -> None:
    lines = [f"mtllib {material}"] + [f"v {x} {y} {z}" for x, y, z in CORNERS]
    for name, triangles in FACES.items():
        lines += [f"usemtl {name}"] + ["f " + " ".join(str(i + 1) for i in t) for t in triangles]
    path.write_text("\n".join(lines) + "\n")
    colours = [f"newmtl {n}\nKa {r} {g} {b}\nKd {r} {g} {b}\n" for n, (r, g, b) in COLOURS.items()]
    (path.parent / "cube.mtl").write_text("\n".join(colours))


def dominant(view: np.ndarray) -> str:
    """The colour in the middle of a picture."""
    middle = view[view.shape[0] // 2, view.shape[1] // 2].astype(int)
    return ("red", "green", "blue")[int(middle.argmax())]


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_the_camera_goes_counter_clockwise_round_a_file_with_its_colours(kind: str, tmp_path: Path) -> None:
    from svdflow.multiview.scene import Orbit, render_orbit

    path = tmp_path / f"cube.{kind}"
    write_glb(path) if kind == "glb" else write_obj(path)
    thing = open_object(path, tmp_path, 1)
    orbit = Orbit(
        elevation_deg=0,
        start_deg=0,
        views=4,
        size_px=32,
        supersampling=1,
        field_of_view_deg=30,
        background=(255, 255, 255),
        light_seed=1,
        lights=3,
    )
    views = render_orbit(thing, orbit)
    # From above, y up: front is +z, a quarter turn counter-clockwise is +x.
    assert [dominant(view) for view in views[:2]] == ["red", "blue"]
    assert dominant(views[2]) == dominant(views[3]) == "green"
    assert (views[:, 0, 0] == 255).all()


def test_elevation_is_the_angle_above_the_horizon(tmp_path: Path) -> None:
    """The top face of a cube of side 2 covers a share of the picture's height that follows from the projection."""
    from svdflow.multiview.scene import Orbit, render_orbit

    write_obj(tmp_path / "cube.obj")
    thing = open_object(tmp_path / "cube.obj", tmp_path, 1)
    for elevation in (10.0, 30.0):
        orbit = Orbit(elevation, 0, 1, 256, 1, 30, (255, 255, 255), 1, 3)
        column = render_orbit(thing, orbit)[0][:, 128].astype(int)
        on = np.nonzero((column != 255).any(axis=1))[0]
        front = int((column[on].argmax(axis=1) == 0).sum())  # red pixels: the front face; the rest: the top
        distance = np.sqrt(3) * 1.05 / np.sin(np.radians(15))
        e = np.radians(elevation)

        def height(z: float, y: float, e: float = e, distance: float = distance) -> float:
            depth = distance - (z * np.cos(e) + y * np.sin(e))
            return float((y * np.cos(e) - z * np.sin(e)) / depth / np.tan(np.radians(15)) * 128)

        assert front == pytest.approx(height(1, 1) - height(1, -1), abs=2)
        assert len(on) - front == pytest.approx(height(-1, 1) - height(1, 1), abs=2)


def test_generated_objects_are_equal_by_seed_and_all_different() -> None:
    things = [generate_object(3, index) for index in range(20)]
    assert things == [generate_object(3, index) for index in range(20)]
    assert len({thing.object_id for thing in things}) == 20
    assert {thing.object_id for thing in things}.isdisjoint(generate_object(4, index).object_id for index in range(20))


def test_orbits_are_split_by_object_and_rendered_once(tmp_path: Path, root: DataRoot) -> None:
    settings = SMALL.model_copy(update={"orbits_per_object": 2})
    first = render_orbits("", tmp_path / "a.parquet", root, settings)
    written = root.writes
    again = render_orbits("", tmp_path / "b.parquet", root, settings)
    assert (first.done, first.reused, again.done, again.reused) == (6, 0, 0, 6)
    assert root.writes == written and (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    rows = read_rows("orbits", tmp_path / "a.parquet")
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["object_id"], set()).add(row["split"])
        assert -5 <= row["elevation_deg"] <= 30
        views = unpack_frames(root, row["shard_uri"])
        assert views.shape == (row["frames"], row["height"], row["width"], 3)
        changes = [np.abs(views[i].astype(int) - views[j]).mean() for i in range(4) for j in range(i)]
        assert min(changes) > 0.5, "two views of an asymmetric object are the same"
    assert sorted(map(sorted, splits.values())) == [["held_out"], ["train"], ["train"]]


def test_bad_files_are_set_aside_with_the_reason(tmp_path: Path, root: DataRoot) -> None:
    folder = tmp_path / "objects"
    folder.mkdir()
    write_glb(folder / "good.glb")
    (folder / "copy.glb").write_bytes((folder / "good.glb").read_bytes())
    (folder / "cut.glb").write_bytes((folder / "good.glb").read_bytes()[:100])
    (folder / "text.glb").write_text("hello")
    (folder / "empty.obj").write_text("# nothing\n")
    (folder / "nan.obj").write_text("v 0 0 0\nv nan nan nan\nv 1 1 0\nf 1 2 3\n")
    write_obj(folder / "escape.obj", "../../secret.mtl")
    write_glb(folder / "remote.glb", images=[{"uri": "../../etc/passwd"}])
    report = render_orbits(str(folder), tmp_path / "orbits.parquet", root, SMALL)
    assert [row["source"] for row in read_rows("orbits", tmp_path / "orbits.parquet")] == ["copy.glb"]
    reasons = dict(next(s for s in report.sections if s["title"] == "Objects set aside")["rows"])
    assert report.summary["multiview"]["set_aside"] == 7 == len(reasons)
    assert "same object" in reasons["good.glb"]
    assert "GLB" in reasons["cut.glb"] and "GLB" in reasons["text.glb"]
    assert "0 vertices" in reasons["empty.obj"]
    assert "outside" in reasons["escape.obj"] and "outside" in reasons["remote.glb"]


def test_a_folder_without_objects_says_so(tmp_path: Path, root: DataRoot) -> None:
    with pytest.raises(BadInputError, match="no such folder"):
        object_files(tmp_path / "none")
    with pytest.raises(BadInputError, match="holds no .glb or .obj"):
        object_files(tmp_path)


def test_without_a_graphics_driver_the_step_says_what_to_install(
    tmp_path: Path, root: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VTK then takes its process down with a segmentation fault: the worker's, not ours."""
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", str(tmp_path))
    monkeypatch.setenv("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
    with pytest.raises(ServiceError, match="apt-get install libegl1"):
        render_orbits(
            "", tmp_path / "a.parquet", root, SMALL.model_copy(update={"train_objects": 1, "held_out_objects": 0})
        )
