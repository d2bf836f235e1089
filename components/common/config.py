"""Settings: one pydantic model per step, one YAML per profile, dotted overrides on top.

A profile file has one mapping per step (``ingest:``, ``split:``, …) and may name another profile in ``extends``. What a
profile does not mention keeps the default of the model, which is the paper's number wherever the paper gives one.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from .errors import ConfigError

_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
PROFILES = Path(__file__).parent / "profiles"
_NULL = "null"  # KFP knows no None among a parameter's values


class Settings(BaseModel):
    """Base of every step's settings: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SettingsT = TypeVar("SettingsT", bound=Settings)


def profile_names() -> list[str]:
    """Names of the profiles that ship with svdflow."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_profile(profile: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The raw settings of a profile: step name to mapping, bases merged in, overrides applied.

    Args:
        profile: a shipped profile's name, or the path of a YAML file.
        overrides: dotted path to value, as ``{"filter.motion_percent": 25}``; as they are or from ``sendable``.

    Raises:
        ConfigError: the profile does not exist, is no mapping or extends itself, or a step's settings are no mapping.
    """
    layers: list[dict[str, Any]] = []
    names: list[str] = []
    base: str | None = profile
    while base is not None:
        if base in names:
            raise ConfigError(f"{base}: extends itself")
        names.append(base)
        layer, base = read_profile(base)
        layers.insert(0, layer)
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer)
    for dotted, value in (overrides or {}).items():
        merged = merge(merged, _nest(dotted.split("."), _replaced(value, _NULL, None)))
    for step, values in merged.items():
        if values is not None and not isinstance(values, Mapping):
            raise ConfigError(f"{step} is no mapping of settings: {values!r}")
    return merged


def read_profile(profile: str) -> tuple[dict[str, Any], str | None]:
    """What a profile itself says, and which one it lies on, if any: a file beside it, or as it would be given.

    Raises:
        ConfigError: the profile does not exist, or is no mapping.
    """
    path = PROFILES / f"{profile}.yaml"
    if not path.is_file():
        path = Path(profile)
        if path.suffix not in (".yaml", ".yml") or not path.is_file():
            raise ConfigError(
                f"profile {profile!r} is neither a shipped one ({', '.join(profile_names())}) nor a YAML file"
            )
    try:
        loaded = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: a profile is a mapping of step names to settings")
    base = loaded.pop("extends", None)
    if base is None:
        return loaded, None
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends: {base!r} is no name of a profile")
    beside = path.parent / base
    return loaded, str(beside) if beside.is_file() else base


def load_settings(
    model: type[SettingsT], section: str, profile: str, overrides: Mapping[str, Any] | None = None
) -> SettingsT:
    """The validated settings of one step.

    Raises:
        ConfigError: names the field, the reason and the profile.
    """
    return validate_settings(model, section, load_profile(profile, overrides).get(section) or {})


def validate_settings(model: type[SettingsT], section: str, values: Mapping[str, Any]) -> SettingsT:
    """Build settings from plain values; errors name the dotted field."""
    try:
        return model(**values)
    except (ValidationError, TypeError) as error:
        if not isinstance(error, ValidationError):
            raise ConfigError(f"{section}: {error}") from None
        raise ConfigError("; ".join(_fault(model, section, details) for details in error.errors())) from None


def _fault(model: type[Settings], section: str, details: Mapping[str, Any]) -> str:
    named = details.get("ctx", {}).get("field", ())
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        message = "there is no such setting" + _meant(model, details["loc"])
    elif details["type"] in ("tuple_type", "list_type"):
        message = f"Input should be a list; write [{details['input']}]"
    return f"{'.'.join([section, *map(str, details['loc']), *named])}: {message}"


def _meant(model: type[Settings], loc: Sequence[str | int]) -> str:
    """Which settings of the same group an unknown one may be a slip of, as a question; empty where none is near."""
    group: Any = model
    for key in loc[:-1]:
        field = getattr(group, "model_fields", {}).get(key)
        group = field.annotation if field else None
    near = get_close_matches(str(loc[-1]), getattr(group, "model_fields", ()))
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def fault_of(field: str, message: str) -> PydanticCustomError:
    """What a validator of several fields raises, so that the error names the one to change."""
    return PydanticCustomError("fields", "{message}", {"message": message, "field": (field,)})


def settings_of_variable(model: type[SettingsT], variable: str, example: str) -> SettingsT | None:
    """The settings that an environment variable holds as a mapping in YAML or JSON; None where it is unset or empty.

    Raises:
        ConfigError: it is no mapping (``example`` shows one), or a field is wrong, which is named.
    """
    told = os.environ.get(variable, "").strip()
    return settings_of_text(model, variable, told, example) if told else None


def settings_of_text(model: type[SettingsT], variable: str, told: str, example: str) -> SettingsT:
    """What ``settings_of_variable`` reads, from the variable's value."""
    try:
        values = yaml.safe_load(told)
    except yaml.YAMLError as error:
        raise ConfigError(f"{variable}: is no YAML or JSON: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{variable}: has to be a mapping, as {example}")
    return validate_settings(model, variable, values)


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``a.b=value``; the value is read as YAML, so ``1e-4``, ``true`` and ``[1, 2]`` mean what they say.

    Raises:
        ConfigError: there is no ``=`` or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r}: write it as step.setting=value, for example filter.motion_percent=25")
    try:
        parsed = yaml.safe_load(value) if value else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text!r}: the value is no YAML ({str(error).splitlines()[0]})") from None
    if isinstance(parsed, str) and _SCIENTIFIC.fullmatch(parsed):
        parsed = float(parsed)  # YAML 1.1 reads 1e-4 as text
    return key.strip(), parsed


def sendable(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides as a parameter of a pipeline can hold them; ``load_profile`` reads both."""
    return {name: _replaced(value, None, _NULL) for name, value in overrides.items()}


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge of mappings: values of ``top`` win; lists are replaced, not joined."""
    out = copy.deepcopy(dict(base))
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge(out[key], value) if both else copy.deepcopy(value)
    return out


def _replaced(value: Any, old: Any, new: Any) -> Any:
    """The same value, ``old`` become ``new`` at any depth."""
    if isinstance(value, Mapping):
        return {key: _replaced(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, old, new) for inner in value]
    return new if value is old or (isinstance(old, str) and value == old) else value


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nest(keys[1:], value)}
