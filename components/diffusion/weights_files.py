"""Weights on disk: safetensors only, one or several files, read and written one tensor at a time.

A pickled checkpoint can run any program when it is read, so none ever is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..common.errors import BadInputError
from .json_files import read_json

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_FORGOTTEN = ("position_ids",)  # written by older libraries, a plain count
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# what a folder may hold; the first where its configuration names no class
UNETS = ("UNetSpatioTemporalConditionModel", "UNet2DConditionModel", "InterpolationUNet")
AUTOENCODERS = ("AutoencoderKLTemporalDecoder", "AutoencoderKL")
IMAGE_ENCODERS = ("CLIPVisionModelWithProjection",)


def find_weights(directory: Path, stem: str) -> tuple[list[Path], str | None]:
    """The files that hold a part's weights: whole or in shards, in full precision or else the ``fp16`` variant.

    Args:
        directory: of the part.
        stem: ``diffusion_pytorch_model`` or ``model``.

    Returns:
        The files, and the variant's name (None for full precision).

    Raises:
        BadInputError: there is none, only a pickled one, or a shard is missing.
    """
    for variant in (None, "fp16"):
        dotted = f".{variant}" if variant else ""
        whole = directory / f"{stem}{dotted}.safetensors"
        if whole.is_file():
            return [whole], variant
        for index in (f"{stem}.safetensors.index{dotted}.json", f"{stem}{dotted}.safetensors.index.json"):
            if (directory / index).is_file():
                return _shards(directory / index), variant
    pickled = next((p.name for p in sorted(directory.glob("*")) if p.suffix in _PICKLED), None)
    found = f" ({pickled} is pickled and can run any program when read)" if pickled else ""
    raise BadInputError(f"{directory / stem}.safetensors: missing; only safetensors weights are read{found}")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{index}: no index of shards ({type(error).__name__}: {error})") from None
    paths = [index.parent / name for name in names]
    for path in paths:
        if path.parent != index.parent or not path.is_file():
            raise BadInputError(f"{path}: missing; {index.name} names it")
    return paths


def refuse_pickle(path: Path) -> None:
    """Take a file for weights only if it is a safetensors file.

    Raises:
        BadInputError: it is missing, or a pickled checkpoint, whatever its name.
    """
    if not path.is_file():
        raise BadInputError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(2)
    if path.suffix in _PICKLED or start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise BadInputError(
            f"{path}: a pickled checkpoint can run any program when it is read, so only safetensors files are; "
            "take the release's .safetensors, or convert it on a machine that you can lose"
        )


class TensorFiles:
    """The tensors of some safetensors files; each is read when asked for, and is in memory once.

    Raises:
        BadInputError: a file is missing, damaged or pickled, or a tensor lies in two of them.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        from safetensors import SafetensorError, safe_open

        self.where = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} files)"
        self.metadata: dict[str, str] = {}
        self._files: dict[str, Any] = {}
        self._open = ExitStack()
        for path in paths:
            refuse_pickle(path)
            try:
                file = self._open.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError, ValueError) as error:
                raise BadInputError(f"{path}: damaged, or no safetensors file ({str(error)[:200]})") from None
            self.metadata.update(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if name in self._files:
                    raise BadInputError(f"{path}: tensor {name} lies in another of the files too")
                self._files[name] = file

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *_: Any) -> None:
        self._open.close()
        self._files = {}

    def names(self) -> list[str]:
        """All tensors' names, sorted."""
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def read(self, name: str) -> torch.Tensor:
        """A tensor in memory of its own: mapped files are not aligned as memory is, and round differently."""
        return self._files[name].get_tensor(name).clone()


def build_filled(
    build: Callable[[], ModuleT],
    tensors: Mapping[str, tuple[tuple[int, ...], Callable[[], torch.Tensor]]],
    where: str,
    dtype: torch.dtype = torch.float32,
) -> ModuleT:
    """A module with exactly these tensors, for inference; its random start is never made.

    Args:
        build: makes the module.
        tensors: of each name the shape, and how to read it.
        where: what an error names.
        dtype: of the module.

    Raises:
        BadInputError: a tensor is missing, unknown or of another shape; the message names them.
    """
    with torch.device("meta"):
        module = build()
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: shape for name, (shape, _) in tensors.items() if name.rpartition(".")[2] not in _FORGOTTEN}
    check_tensors(expected, given, where)
    owners = dict(module.named_modules())
    for name in expected:
        owner, _, leaf = name.rpartition(".")
        tensor = tensors[name][1]().to(dtype)
        if leaf in owners[owner]._parameters:
            owners[owner]._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
        else:
            owners[owner]._buffers[leaf] = tensor
    for owner_name, owned in owners.items():
        for leaf, buffer in owned._buffers.items():
            if buffer is not None and buffer.is_meta:
                if leaf not in _FORGOTTEN:
                    raise RuntimeError(f"{type(module).__name__} has a buffer {owner_name}.{leaf} that no file holds")
                owned._buffers[leaf] = torch.arange(buffer.shape[-1]).expand(buffer.shape)
    return module.eval()


def check_tensors(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse other tensors than expected.

    Raises:
        BadInputError: names the first few that are missing, unknown or of another shape.
    """
    missing = sorted(expected.keys() - given.keys())
    unknown = sorted(given.keys() - expected.keys())
    other = sorted(name for name in expected.keys() & given.keys() if expected[name] != given[name])
    faults = [
        f"{len(names)} tensors {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for what, names in (("are missing", missing), ("are unknown", unknown))
        if names
    ]
    if other:
        name = other[0]
        faults.append(f"{len(other)} tensors have another shape: {name} is {given[name]}, not {expected[name]}")
    if faults:
        raise BadInputError(f"{where}: damaged or of another architecture ({'; '.join(faults)})")


def load_network(folder: Path, stem: str, classes: tuple[str, ...]) -> Any:
    """A network in a folder of its own, as diffusers and transformers write it: float32, for inference.

    Args:
        folder: with ``config.json`` and the weights.
        stem: of the weights' file name.
        classes: what it may be (UNETS, AUTOENCODERS, IMAGE_ENCODERS).

    Raises:
        BadInputError: it is missing, damaged, pickled, or of another class; tensors at fault are named.
    """
    import diffusers
    import transformers

    config = read_json(folder / "config.json")
    name = config.get("_class_name") or (config.get("architectures") or classes)[0]
    if name not in classes:
        raise BadInputError(f"{folder}: holds a {name}; {' or '.join(classes)} is expected")
    paths, _ = find_weights(folder, stem)

    def build() -> Any:
        if name in IMAGE_ENCODERS:
            return getattr(transformers, name)(transformers.CLIPVisionConfig.from_dict(config))
        if name == "InterpolationUNet":
            from .interpolation import InterpolationUNet

            return InterpolationUNet.from_config(config)
        return getattr(diffusers, name).from_config(config)

    try:
        with TensorFiles(paths) as files:
            tensors = {
                _present_name(given): (files.shape(given), partial(files.read, given)) for given in files.names()
            }
            return build_filled(build, tensors, str(folder)).requires_grad_(False)
    except Exception as error:  # of a damaged configuration the libraries make whatever they make
        if str(error).startswith(f"{folder}: damaged"):
            raise
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise BadInputError(f"{folder}: damaged or of another architecture ({reason})") from error


def _present_name(name: str) -> str:
    """An attention layer of an old autoencoder (Stable Diffusion 2.1's among them) as diffusers calls it now."""
    head, attention, tail = name.partition(".attentions.0.")
    old, _, leaf = tail.partition(".")
    return f"{head}{attention}{_OLD_ATTENTION[old]}.{leaf}" if old in _OLD_ATTENTION else name


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor that is made when its turn to be written comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]


def write_safetensors(path: Path, tensors: Iterable[TensorToWrite], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file tensor by tensor, whole or not at all; never more than one of them in memory.

    Raises:
        ValueError: a tensor comes out in another shape than announced.
    """
    ordered = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))  # so that every one is aligned to its type
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for tensor in ordered:
        end = offset + tensor.dtype.itemsize * int(torch.Size(tensor.shape).numel())
        header[tensor.name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".partial")
    try:
        with unfinished.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in ordered:
                value = tensor.make().detach().to("cpu", tensor.dtype).contiguous()
                if tuple(value.shape) != tensor.shape:
                    raise ValueError(f"{tensor.name}: {tuple(value.shape)} instead of {tensor.shape}")
                file.write(value.reshape(-1).view(torch.uint8).numpy().data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
