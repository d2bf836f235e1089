"""The files by which plain DVC knows a dataset version: the directory listing, the ``.dvc`` file, the configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import md5
from io import BytesIO

import yaml

REMOTE = "store"
_REMOTE_SECTION = f'remote "{REMOTE}"'
CONFIG, CONFIG_IGNORE, DVC_IGNORE, GIT_IGNORE, ARTIFACTS = (
    ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "dvc.yaml",
)  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """A directory as DVC stores it.

    Attributes:
        digest: md5 of the listing, with ``.dir``.
        data: the listing, byte for byte as DVC writes it.
        files: how many it lists; bytes: their sum.
    """

    digest: str
    data: bytes
    files: int
    bytes: int


def make_listing(files: Mapping[str, tuple[str, int]]) -> Listing:
    """The listing of a directory: relative path to (md5, bytes)."""
    entries = [{"md5": files[path][0], "relpath": path} for path in sorted(files)]
    data = json.dumps(entries, sort_keys=True).encode()
    digest = md5(data, usedforsecurity=False).hexdigest() + ".dir"
    return Listing(digest, data, len(entries), sum(size for _, size in files.values()))


def dvc_file(listing: Listing, path: str) -> bytes:
    """The ``.dvc`` file of a listed directory that lies at ``path``."""
    out = {"md5": listing.digest, "size": listing.bytes, "nfiles": listing.files, "hash": "md5", "path": path}
    return yaml.safe_dump({"outs": [out]}, sort_keys=False).encode()


def listed_digest(dvc: bytes) -> str:
    """The listing's digest in a ``.dvc`` file."""
    return yaml.safe_load(dvc)["outs"][0]["md5"]


def configuration(current: bytes, remote: str, endpoint_url: str) -> bytes:
    """DVC's configuration: the remote, no usage statistics, no look for updates. Other entries are kept."""
    from configobj import ConfigObj

    config = ConfigObj(BytesIO(current), list_values=False, encoding="utf-8")
    config.setdefault("core", {}).update({"analytics": "false", "check_update": "false", "remote": REMOTE})
    config.setdefault("cache", {}).setdefault("type", "reflink,hardlink,copy")  # versions share their bytes
    entry = config.setdefault(_REMOTE_SECTION, {})
    entry["url"] = remote
    if endpoint_url:
        entry["endpointurl"] = endpoint_url
    else:
        entry.pop("endpointurl", None)
    out = BytesIO()
    config.write(out)
    return out.getvalue()


def configured_remote(config: bytes) -> tuple[str, str]:
    """Location and endpoint URL ("" for AWS) of the remote in a configuration."""
    from configobj import ConfigObj

    entry = ConfigObj(BytesIO(config), list_values=False, encoding="utf-8").get(_REMOTE_SECTION, {})
    return entry.get("url", ""), entry.get("endpointurl", "")


def with_line(current: bytes, line: str) -> bytes:
    """A text file that has the line, once."""
    lines = current.decode().splitlines()
    return "".join(f"{each}\n" for each in (lines if line in lines else [*lines, line])).encode()


def with_artifact(current: bytes, name: str) -> bytes:
    """``dvc.yaml`` that declares the dataset, so that ``dvc artifacts get`` finds it by its tags."""
    content = yaml.safe_load(current) or {}
    content.setdefault("artifacts", {})[name] = {"path": name, "type": "dataset"}
    return yaml.safe_dump(content, sort_keys=True).encode()
