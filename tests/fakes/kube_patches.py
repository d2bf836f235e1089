"""Patches of objects: RFC 7386, and the part of RFC 6902 that clients of ours send."""

from __future__ import annotations

import copy
from typing import Any

from .kube_store import Object, Refused


def merge_patch(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    out = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge_patch(out.get(key), value)
    return out


def json_patch(old: Object, steps: list[Object]) -> Object:
    """The part of RFC 6902 that clients of ours send: test, add, replace, remove."""
    wrong = Refused(422, "Invalid", "the server rejected our request due to an error in our request", {})
    for step in steps:
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]]
        target: Any = old
        try:
            for key in parents:
                target = target[int(key)] if isinstance(target, list) else target[key]
            place: Any = int(last) if isinstance(target, list) and last != "-" else last
            if step["op"] == "test":
                if target[place] != step["value"]:
                    raise wrong
            elif step["op"] == "remove":
                del target[place]
            elif isinstance(target, list) and step["op"] == "add":
                target.insert(len(target) if place == "-" else place, step["value"])
            else:
                target[place] = step["value"]
        except (KeyError, IndexError, TypeError):
            raise wrong from None
    return old
