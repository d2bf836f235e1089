"""Make an older version the newest again: a new commit and tag with its files. Nothing is rewritten or removed."""

from __future__ import annotations

from pathlib import Path

from ...common.errors import BadInputError, StorageError
from ...common.storage import DataRoot, object_uri
from ...common.storage_s3 import S3Root
from .card import next_number
from .denied import refuse_forgotten
from .provenance import trailers
from .register import common_files, moved_meanwhile, version_message
from .registry import Registry, VersionTag
from .version_files import fetch_manifests, listed_files, read_card, store_version

_TRIES = 8


def roll_back(registry: Registry, to: VersionTag, remote: S3Root, source: str = "") -> VersionTag:
    """Tag the content of an older version as the newest one; its number says what differs from the one before.

    Args:
        registry: of the versions.
        to: the version to go back to.
        remote: the store, where all its files must still lie.
        source: what asked for it; recorded.

    Returns:
        The new version; the present newest where that has the content already.

    Raises:
        StorageError: the store lacks files of that version, or git refuses.
        BadInputError: it holds a video that was taken down.
    """
    for _ in range(_TRIES):
        with registry.locked():
            latest = registry.tags(to.name)[-1]
            card, newest = read_card(registry, to), read_card(registry, latest)
            if not card:
                raise BadInputError(f"{to}: was not made by svdflow (it has no card); check it out with git instead")
            if card["content"] == newest.get("content"):
                return latest
            listed = listed_files(registry, str(to), to.name, remote)
            lost = sorted(path for path, md5 in listed.items() if not remote.exists(object_uri(md5)))
            if lost:
                raise StorageError(
                    f"{remote.location}: lacks {len(lost)} of the {len(listed)} files of {to}, such as {lost[0]}; "
                    "register it again from its manifests"
                )
            manifests = fetch_manifests(listed, remote)
            refuse_forgotten(registry, manifests)
            number = next_number(latest.number, newest, card["members"], card["manifest_schema"])
            tag = VersionTag(to.name, number)
            files = _with_sizes(listed, remote)
            stored = store_version(remote, tag, files, card, manifests)
            about = [f"Rolls-back-to: {to} ({registry.revision(str(to))})", *trailers(registry.git, source)]
            message = version_message(tag, card, about, said=f"back to the content of {to}")
            common = common_files(registry, remote, to.name)
            if registry.publish({**common, **stored.committed}, message, tag):
                return tag
    raise moved_meanwhile(registry, _TRIES)


def _with_sizes(listed: dict[str, str], remote: DataRoot) -> dict[str, tuple[str, int]]:
    """Shards and manifests of a listing, with their bytes; what describes the version is made anew."""
    return {
        path: (md5, remote.size(object_uri(md5)))
        for path, md5 in listed.items()
        if Path(path).parent.name in ("shards", "manifests")
    }
