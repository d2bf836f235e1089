"""A tiny feature network in a TorchScript archive, called as FVD's I3D is."""

from pathlib import Path

import numpy as np
import torch

SIDE = 8


class TinyVideoNetwork(torch.nn.Module):
    """Means and temporal differences of colours, mixed by fixed numbers; five features."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.register_buffer("mix", torch.randn(5, 6, generator=generator))

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        frames = x.shape[2]
        if frames < 4:
            raise RuntimeError("fewer than four frames")
        if resize:
            x = torch.nn.functional.interpolate(x, size=[frames, 8, 8], mode="trilinear", align_corners=False)
        if rescale:
            x = x / 127.5 - 1
        told = torch.cat([x.mean([2, 3, 4]), (x[:, :, 1:] - x[:, :, :-1]).abs().mean([2, 3, 4])], 1) @ self.mix.T
        if return_features:
            return told
        return told.softmax(1)


def save_tiny_network(path: Path) -> Path:
    """Write it."""
    torch.jit.script(TinyVideoNetwork().eval()).save(str(path))
    return path


def tiny_features(videos_NFHWC: np.ndarray) -> np.ndarray:
    """What it gives, by NumPy and the network's own numbers; videos of 8x8 px, which it need not resize."""
    x = videos_NFHWC.astype(np.float64) / 127.5 - 1
    told = np.concatenate([x.mean((1, 2, 3)), np.abs(np.diff(x, axis=1)).mean((1, 2, 3))], 1)
    return told @ TinyVideoNetwork().mix.double().numpy().T
