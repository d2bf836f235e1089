"""A second device without its hardware: tensors that say they lie there, refuse to meet those of main memory, and hold
the values all the same. What passes here moves its tensors as a GPU needs it, and has the processor's results.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")  # the one beside the processor that every build of torch knows; here it has values


class There(torch.Tensor):
    """A tensor on the second device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "There":
        found = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE, requires_grad=held.requires_grad,
        )  # fmt: skip
        found.held = held
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """Within it, ``tensor.to(DEVICE)`` works."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    # scalars may come along, as CUDA lets them
    if there and not moves and any(not isinstance(t, There) and t.dim() for t in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, in {func}")
    target = kwargs.get("device")
    ends_there = bool(there) if target is None else torch.device(target) == DEVICE
    if moves and func is torch.ops.aten.copy_.default:
        ends_there = isinstance(args[0], There)
    if ends_there and target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    wrapper_of = {id(tensor.held): tensor for tensor in there}
    inner_args, inner_kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, There) else leaf, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)

    def wrap(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not ends_there:
            return leaf
        return wrapper_of.get(id(leaf)) if id(leaf) in wrapper_of else There(leaf)

    return tree_map(wrap, result)
