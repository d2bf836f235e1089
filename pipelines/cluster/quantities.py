"""Kubernetes' names and quantities, checked before the backend sees them: a malformed size makes its driver panic."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

# Less what one of the two does not know: for kfp a thousand bytes are K, for Kubernetes k.
_BYTES = {"": 1, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18} | {
    unit: 2 ** (10 * power) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)
}
_LABEL_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DNS_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"


def size_bytes(text: str) -> int:
    """Bytes of a size such as ``16Gi``.

    Raises:
        ValueError: it is none, or not a whole number.
    """
    match = re.fullmatch(r"([1-9]\d{0,17})(Ki|[MGTPE]i?)?", text)
    if not match:
        raise ValueError(f"{text!r} is no size; write it as 16Gi or 500M")
    return int(match[1]) * _BYTES[match[2] or ""]


def _size(text: str) -> str:
    size_bytes(text)
    return text


def _cpu(text: str) -> str:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?|\d{1,9}m", text) or not text.strip("0.m"):
        raise ValueError(f"{text!r} is no number of processors; write it as 2, 0.5 or 500m")
    return text


def _environment_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError(f"{text!r} is no name of an environment variable")
    return text


def _dns_name(text: str) -> str:
    if len(text) > 253 or not re.fullmatch(_DNS_NAME, text):
        raise ValueError(f"{text!r} is no Kubernetes name: lower-case letters, digits, '-' and '.'")
    return text


def _label_key(text: str) -> str:
    prefix, slash, name = text.rpartition("/")
    if not re.fullmatch(_LABEL_NAME, name) or (slash and not re.fullmatch(_DNS_NAME, prefix)):
        raise ValueError(f"{text!r} is no label key; write it as name or example.com/name")
    return text


def _label_value(text: str) -> str:
    if text and not re.fullmatch(_LABEL_NAME, text):
        raise ValueError(f"{text!r} is no label value: at most 63 letters, digits, '-', '_' and '.'")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/") or ":" in text or ".." in text.split("/"):
        raise ValueError(f"{text!r} is no absolute path")
    return text


Size = Annotated[str, AfterValidator(_size)]
Cpu = Annotated[str, AfterValidator(_cpu)]
EnvironmentName = Annotated[str, AfterValidator(_environment_name)]
DnsName = Annotated[str, AfterValidator(_dns_name)]
LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, AfterValidator(_label_value)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
