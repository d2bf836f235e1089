"""Write the software bill of materials of the image that this runs in, as CycloneDX 1.6: ``python3 sbom.py FILE``.

It lists Python's distributions with what their wheels say of the libraries inside them (PEP 770), Debian's packages,
and Python itself. Not listed: what a wheel carries and does not say, and what a base compiled or unpacked by itself.
The same image gives the same bytes: there is no time in it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

Component = dict[str, Any]
KINDS = {"application", "framework", "library", "file", "data", "machine-learning-model"}


def python_distributions(paths: list[str]) -> Iterator[Component]:
    """The distributions below some folders, by name, the first of a name and version."""
    seen = set()
    for each in sorted(metadata.distributions(path=paths), key=lambda d: (d.name or "").lower()):
        if not each.name or (each.name, each.version) in seen:
            continue
        seen.add((each.name, each.version))
        name = each.name.lower().replace("_", "-").replace(".", "-")
        yield component("library", each.name, each.version, f"pkg:pypi/{quote(name)}@{quote(each.version)}") | {
            "licenses": licences(each.metadata),
            "components": bundled(each),
        }


def bundled(distribution: metadata.Distribution) -> list[Component]:
    """What the CycloneDX files within a distribution's metadata name."""
    found: dict[str, Component] = {}
    for file in distribution.files or ():
        if ".dist-info/sboms/" not in file.as_posix() or not file.name.endswith(".json"):
            continue
        try:
            document = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        for each in document.get("components", ()) if document.get("bomFormat") == "CycloneDX" else ():
            if each.get("name") and each.get("type") in KINDS:
                part = {key: each[key] for key in ("type", "name", "version", "purl") if isinstance(each.get(key), str)}
                found[json.dumps(part, sort_keys=True)] = part
    return [found[key] for key in sorted(found)]


def licences(fields: metadata.PackageMetadata) -> list[dict[str, Any]]:
    """An SPDX expression, or a name as the author wrote it: CycloneDX takes one expression or any number of names."""
    if "License-Expression" in fields:
        return [{"expression": fields["License-Expression"]}]
    named = [value.rpartition(" :: ")[2] for value in fields.get_all("Classifier") or () if value.startswith("License")]
    written = fields["License"].strip() if "License" in fields else ""
    if not named and written and "\n" not in written and len(written) <= 100:
        named = [written]
    return [{"license": {"name": name}} for name in sorted(set(named))]


def debian_packages(status: Path, system: dict[str, str]) -> Iterator[Component]:
    """Installed packages from dpkg's status file."""
    if not status.is_file():
        return
    for paragraph in status.read_text(errors="replace").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").endswith(" installed"):
            name, version, where = fields["Package"], fields["Version"], system.get("ID", "debian")
            release = f"arch={fields['Architecture']}&distro={where}-{system.get('VERSION_ID', '')}"
            purl = f"pkg:deb/{where}/{quote(name)}@{quote(version, safe='~')}?{release}"
            yield component("library", name, version, purl)


def component(kind: str, name: str, version: str, purl: str) -> Component:
    """One entry."""
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


def bill(image: str, version: str, root: Path = Path("/"), paths: list[str] | None = None) -> dict[str, Any]:
    """The whole document.

    Args:
        image: the image's name, as ``curation``.
        version: the image's version.
        root: of the file system, for what is not Python.
        paths: folders with Python's distributions. Default: this environment's, and those of the Python below it.
    """
    if paths is None:
        below = Path(sys.base_prefix).glob("lib/python3*/*-packages")
        local = Path(sys.base_prefix).glob("local/lib/python3*/*-packages")
        paths = [*sys.path, *(str(path) for path in [*below, *local] if str(path) not in sys.path)]
    release = root / "etc/os-release"
    lines = release.read_text().splitlines() if release.is_file() else []
    system = {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}
    python = platform.python_version()
    entries = [
        component("platform", "python", python, f"pkg:generic/python@{python}"),
        *({key: value for key, value in each.items() if value} for each in python_distributions(paths)),
        *debian_packages(root / "var/lib/dpkg/status", system),
    ]
    identity = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([image, version, entries], sort_keys=True))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{identity}",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": f"svdflow/{image}", "version": version}},
        "components": entries,
    }


if __name__ == "__main__":
    document = bill(os.environ["SVDFLOW_IMAGE"], os.environ.get("VERSION", "unversioned"))
    Path(sys.argv[1]).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    print(f"{sys.argv[1]}: {len(document['components'])} components")
