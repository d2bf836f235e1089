"""Holds objects of Kubernetes' own kinds against its client's models: no unknown field, nothing missing or mistyped.

Less than a schema tells (a pattern, a list's length), but always at hand.
"""

import re
from functools import cache
from typing import Any

from kubernetes import client

Object = dict[str, Any]
GROUPS = ("apps", "batch", "policy", "networking.k8s.io", "rbac.authorization.k8s.io", "scheduling.k8s.io")
PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "datetime": str, "object": object}


def is_core(obj: Object) -> bool:
    """Whether the client has a model of its kind."""
    group, _, version = obj["apiVersion"].rpartition("/")
    return version == "v1" and group in ("", *GROUPS)


def errors(obj: Object) -> list[str]:
    """What is wrong with an object, each with the path to it."""
    # of RBAC and of events there are two kinds of one name: the group stands before it
    names = [f"V1{obj['kind']}", f"Rbac{obj['kind']}"]
    model = next((name for name in names if hasattr(client, name)), "")
    return list(_errors(model, obj, obj["kind"])) if model else [f"{obj['kind']}: no such kind"]


@cache
def _required(model: str) -> frozenset[str]:
    """Fields that the model refuses to be made without."""
    cls, lenient = getattr(client, model), client.Configuration()
    lenient.client_side_validation = False
    empty, asked = cls(local_vars_configuration=lenient), set()
    empty.local_vars_configuration = client.Configuration()
    for name, field in cls.attribute_map.items():
        try:
            setattr(empty, name, None)
        except ValueError:
            asked.add(field)
    return frozenset(asked)


def _errors(kind: str, value: Any, path: str) -> Any:
    if found := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            yield f"{path}: is no list"
            return
        for at, each in enumerate(value):
            yield from _errors(found[1], each, f"{path}[{at}]")
    elif found := re.fullmatch(r"dict\(str, (.+)\)", kind):
        if not isinstance(value, dict):
            yield f"{path}: is no mapping"
            return
        for key, each in value.items():
            if path.endswith((".requests", ".limits")) and isinstance(each, int):  # quantities
                continue
            yield from _errors(found[1], each, f"{path}.{key}")
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]) or (kind == "int" and isinstance(value, bool)):
            yield f"{path}: {value!r} is no {kind}"
    elif not isinstance(value, dict):
        yield f"{path}: is no mapping"
    else:
        cls = getattr(client, kind)
        fields = {field: cls.openapi_types[name] for name, field in cls.attribute_map.items()}
        for key, each in value.items():
            if key not in fields:
                yield f"{path}.{key}: no such field"
            else:
                yield from _errors(fields[key], each, f"{path}.{key}")
        yield from (f"{path}.{key}: is missing" for key in sorted(_required(kind) - set(value)))
