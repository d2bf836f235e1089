"""Features of whole videos by a network in a TorchScript archive, as the I3D that FVD is computed with.

Such an archive is a program. It is loaded only when its content has a digest that is pinned here or that the user
gives, and the bytes that were hashed are the ones that are loaded.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import BadInputError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

I3D = "I3D (i3d_torchscript.pt of StyleGAN-V)"
# as stated by its publisher's mirror and by many who hold it against what they downloaded; 51,235,320 bytes
I3D_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
CALLED_WITH = {"rescale": True, "resize": True, "return_features": True}  # [P, E.4]
_MAX_BYTES, _MAX_MEMBERS = 2 << 30, 20_000


@dataclass(frozen=True)
class NetworkFile:
    """An archive that may be loaded.

    Attributes:
        path: where it lies.
        sha256: what its content must have.
    """

    path: Path
    sha256: str

    @staticmethod
    def of(path: Path | str, sha256: str | None, setting: str) -> NetworkFile:
        """With the digest given, or else the pinned one.

        Args:
            path: of the archive.
            sha256: of its content, from whoever vouches for it; None or empty for the I3D that is pinned here.
            setting: names the digest in messages.

        Raises:
            ConfigError: this is no sha256.
            BadInputError: there is no such file.
        """
        digest = (sha256 or I3D_SHA256).strip().lower()
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ConfigError(f"{setting}: {sha256!r} is no sha256 (64 hex digits)")
        if not Path(path).is_file():
            raise BadInputError(f"{path}: there is no such feature network; FVD takes {I3D}")
        return NetworkFile(Path(path), digest)

    @property
    def is_i3d(self) -> bool:
        """Whether it is the network that FVD stands on."""
        return self.sha256 == I3D_SHA256

    @property
    def name(self) -> str:
        """What the network is called in results."""
        return I3D if self.is_i3d else self.path.stem

    @property
    def figure(self) -> str:
        """What a Fréchet distance on its features is called: ``fvd`` on I3D's alone."""
        return "fvd" if self.is_i3d else "frechet_" + re.sub(r"\W+", "_", self.path.stem).strip("_").lower()

    def check(self) -> None:
        """Refuse now what ``load`` would refuse, before work is done for it.

        Raises:
            BadInputError: the content is another, or is no archive of a sound size.
        """
        self._verified()

    def load(self, device: Any) -> VideoNetwork:
        """The network, ready to be used.

        Raises:
            BadInputError: the content is another, or is no TorchScript archive of a sound size.
        """
        import torch

        data = self._verified()
        try:
            module = torch.jit.load(io.BytesIO(data), map_location=device)
        except (RuntimeError, ValueError) as error:
            raise BadInputError(f"{self.path}: torch cannot load it ({_first_line(error)})") from error
        return VideoNetwork(self, module.eval(), device)

    def _verified(self) -> bytes:
        size = self.path.stat().st_size
        if size > _MAX_BYTES:
            raise BadInputError(f"{self.path}: {size} bytes are more than a feature network has ({_MAX_BYTES})")
        data = self.path.read_bytes()
        if (found := hashlib.sha256(data).hexdigest()) != self.sha256:
            what = "the I3D pinned here" if self.is_i3d else "the digest given"
            raise BadInputError(
                f"{self.path}: its sha256 is {found}, not {self.sha256} ({what}). An archive is a program: not loaded; "
                "if you trust this one, give its own digest"
            )
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = archive.infolist()
        except zipfile.BadZipFile as error:
            raise BadInputError(f"{self.path}: is no TorchScript archive ({error})") from error
        if len(members) > _MAX_MEMBERS or sum(member.file_size for member in members) > _MAX_BYTES:
            raise BadInputError(f"{self.path}: unpacks to more than {_MAX_BYTES} bytes or {_MAX_MEMBERS} files")
        if not any("/code/" in member.filename for member in members):
            raise BadInputError(f"{self.path}: is no TorchScript archive: it holds no code (weights alone do not run)")
        return data


@dataclass(frozen=True)
class VideoNetwork:
    """A loaded network; features come as float64."""

    file: NetworkFile
    module: Any
    device: Any

    def features(self, videos_NFHWC: np.ndarray) -> np.ndarray:
        """Features of videos of one size, float64 [N, D].

        Args:
            videos_NFHWC: uint8 [N, F, H, W, 3]. The network is given float [N, 3, F, H, W] from 0 to 255, which it
                brings to its own range (``rescale``) and size (``resize``).

        Raises:
            BadInputError: the network does not take such videos, or gives no finite rows, or memory does not hold it.
        """
        import torch

        from ..diffusion.device import within_memory

        frames, height, width = videos_NFHWC.shape[1:4]
        with within_memory(f"the features of {len(videos_NFHWC)} videos of {frames} frames of {width}x{height} px"):
            x_NFHW3 = torch.from_numpy(np.ascontiguousarray(videos_NFHWC)).to(self.device)
            out = self._called(x_NFHW3.permute(0, 4, 1, 2, 3).float())
        if not isinstance(out, torch.Tensor) or out.ndim != 2 or len(out) != len(videos_NFHWC):
            raise BadInputError(f"{self.file.path}: gives no row of features for each video")
        if not bool(torch.isfinite(out).all()):
            raise BadInputError(f"{self.file.path}: gives features that are not finite")
        return out.double().cpu().numpy()

    def _called(self, x_N3FHW: Tensor) -> Any:
        import torch

        frames, height, width = x_N3FHW.shape[2:]
        try:
            with torch.inference_mode():
                return self.module(x_N3FHW, **CALLED_WITH)
        except (RuntimeError, torch.jit.Error) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise BadInputError(
                f"{self.file.path}: does not take {frames} frames of {width}x{height} px with "
                f"{', '.join(f'{name}={value}' for name, value in CALLED_WITH.items())} ({_first_line(error)})"
            ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
