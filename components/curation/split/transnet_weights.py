"""Published TransNetV2 weights into safetensors, once: ``python -m svdflow.curation.split.transnet_weights``.

The PyTorch port's weights are a pickle. It is read only when its sha256 is the one that the user names, and then with
PyTorch's reader that knows tensors and nothing else, so that no code in it can run. Weights of the TensorFlow model go
through their authors' own script first, which makes that pickle.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from pickle import UnpicklingError

from ...common.errors import BadInputError, SvdflowError
from ...common.identity import file_sha256


def convert_weights(source: Path, sha256: str, target: Path) -> str:
    """Write the weights as safetensors.

    Args:
        source: the ``.pth`` file.
        sha256: which it must have.
        target: the safetensors file to write.

    Returns:
        The sha256 of the file written, for ``split.transnet_sha256``.

    Raises:
        BadInputError: another file than the named one, more than tensors in it, or no parameters of this network.
    """
    import torch
    from safetensors.torch import save_file

    from .transnet import TransNetV2

    if not source.is_file():
        raise BadInputError(f"{source}: there is no such file")
    if (found := file_sha256(source)) != sha256.lower():
        raise BadInputError(f"{source}: its sha256 is {found}, not the one named: not read")
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
        network = TransNetV2()
        network.load_state_dict(state)
    except (UnpicklingError, RuntimeError, TypeError, AttributeError, EOFError, ValueError) as error:
        raise BadInputError(f"{source}: no TransNetV2 weights ({str(error).splitlines()[0]})") from error
    partial = target.with_name(f"{target.name}.partial")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, partial)
    partial.replace(target)
    return file_sha256(target)


def main(arguments: list[str]) -> int:
    """Convert the weights that are named; 0 when they are written."""
    parser = argparse.ArgumentParser(prog="python -m svdflow.curation.split.transnet_weights")
    parser.add_argument("source", type=Path, help="transnetv2-pytorch-weights.pth")
    parser.add_argument("sha256", help="that the source must have")
    parser.add_argument("target", type=Path, help="the safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        digest = convert_weights(options.source, options.sha256, options.target)
    except SvdflowError as error:
        print(f"svdflow: {error}", file=sys.stderr)
        return 1
    print(f"{options.target}: set split.transnet_weights to it, and split.transnet_sha256 to {digest}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
