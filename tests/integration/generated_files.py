"""What the tests of `generate` put in and look at."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdflow.export import generate as generate_module


def write_picture(path: Path) -> None:
    """64x48 px of coloured squares."""
    squares = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(np.kron(squares, np.ones((8, 8, 1), np.uint8))).save(path)


def frames_of_videos(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The frames of each video from now on, as they are before they become an MP4."""
    frames: list[np.ndarray] = []
    encode = generate_module.encode_mp4
    monkeypatch.setattr(generate_module, "encode_mp4", lambda made, fps: frames.append(made) or encode(made, fps))
    return frames
