"""Objects from files: which ones a folder holds, what belongs to each, and what is refused before a renderer sees it.

GLB (glTF 2.0 binary, self-contained) and OBJ with its MTL and textures. The files are untrusted: nothing outside the
folder is opened on their behalf.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import BadInputError
from ..common.identity import file_sha256, identity

SUFFIXES = (".glb", ".obj")
_GLTF_MAGIC, _GLTF_JSON = 0x46546C67, 0x4E4F534A


@dataclass(frozen=True)
class FileObject:
    """An object in a file; ``object_id`` covers the file and all it refers to, not its name or place."""

    name: str
    path: Path
    object_id: str


def object_files(folder: Path) -> list[Path]:
    """The GLB and OBJ files below a folder, in a fixed order.

    Raises:
        BadInputError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise BadInputError(
            f"{folder}: there is no such folder of 3D objects; leave the setting empty for generated ones"
        )
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise BadInputError(f"{folder}: holds no {' or '.join(SUFFIXES)} file")
    return files


def open_object(path: Path, folder: Path, max_mb: float) -> FileObject:
    """Look a file over and name it by its content.

    Raises:
        BadInputError: it is too large, is not what its name says, or refers to something missing or outside the folder.
    """
    if path.stat().st_size > max_mb * 1e6:
        raise BadInputError(f"{path}: {path.stat().st_size / 1e6:.0f} MB is more than render.max_object_mb={max_mb:g}")
    companions = _obj_companions(path, folder) if path.suffix.lower() == ".obj" else _check_glb(path)
    hashes = {"": file_sha256(path)} | {name: file_sha256(file) for name, file in companions.items()}
    return FileObject(path.relative_to(folder).as_posix(), path, identity(kind=path.suffix.lower(), files=hashes))


def material_file(path: Path) -> Path | None:
    """The MTL file that an OBJ file names first, if it is there."""
    for words in _statements(path):
        if words[0] == "mtllib" and len(words) > 1:
            material = path.parent / words[1].strip()
            return material if material.is_file() else None
    return None


def _check_glb(path: Path) -> dict[str, Path]:
    data = path.read_bytes()
    try:
        magic, version, length = struct.unpack_from("<III", data, 0)
        chunk_length, chunk_type = struct.unpack_from("<II", data, 12)
        if magic != _GLTF_MAGIC or version != 2 or length > len(data) or chunk_type != _GLTF_JSON:
            raise ValueError("its header is not that of a whole glTF 2.0 binary")
        content = json.loads(data[20 : 20 + chunk_length])
        parts = content.get("buffers", []) + content.get("images", [])
        outside = [part["uri"] for part in parts if "uri" in part and not part["uri"].startswith("data:")]
        meshes = content.get("meshes", [])
    except (struct.error, ValueError, AttributeError, TypeError) as error:
        raise BadInputError(f"{path}: not a readable GLB file ({error})") from error
    if outside:
        raise BadInputError(f"{path}: refers to {outside[0]!r} outside itself; pack it into the GLB file")
    if not meshes:
        raise BadInputError(f"{path}: holds no mesh")
    return {}


def _obj_companions(path: Path, folder: Path) -> dict[str, Path]:
    vertices, faces, found = 0, 0, {}
    for words in _statements(path):
        vertices += words[0] == "v"
        faces += words[0] == "f"
        if words[0] == "mtllib" and len(words) > 1:
            material = _inside(path, words[1].strip(), folder)
            if not material.is_file():
                continue  # colours are lost, the shape is not
            found[words[1].strip()] = material
            for entry in _statements(material):
                if entry[0].lower().startswith("map_") and len(entry) > 1:
                    name = entry[1].strip().split()[-1]
                    texture = _inside(material, name, folder)
                    if texture.is_file():
                        found[name] = texture
    if not vertices or not faces:
        raise BadInputError(f"{path}: not a readable OBJ file: {vertices} vertices and {faces} faces")
    return found


def _inside(path: Path, name: str, folder: Path) -> Path:
    target = (path.parent / name.replace("\\", "/")).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise BadInputError(f"{path}: refers to {name!r} outside the folder of objects")
    return target


def _statements(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", errors="replace") as stream:
        return [words for line in stream if not line.startswith("#") and (words := line.split(maxsplit=1))]
