"""RAFT (Teed and Deng, 2020), the large network, for weights under the parameter names of torchvision's release.

Shapes: B pairs of frames, C channels, H and W of the frames, h = H/8 and w = W/8 of the features, L levels, K = 2r+1
places on the side of a correlation window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 8  # of the features; frames are padded to a multiple of it
MIN_SIDE_PX = 128  # below it the coarsest of the four correlation levels has a single cell
_LEVELS, _RADIUS, _HIDDEN, _CONTEXT = 4, 4, 128, 128


class ConvNorm(nn.Sequential):
    """A convolution that keeps the size (but for its stride), a norm if there is one, and ReLU if wanted."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        norm: type[nn.Module] | None = None,
        relu: bool = True,
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2)]
        layers += [norm(c_out)] if norm else []
        layers += [nn.ReLU()] if relu else []
        super().__init__(*layers)


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut; the first may halve the size."""

    def __init__(self, c_in: int, c_out: int, norm: type[nn.Module], stride: int) -> None:
        super().__init__()
        self.convnormrelu1 = ConvNorm(c_in, c_out, 3, stride, norm)
        self.convnormrelu2 = ConvNorm(c_out, c_out, 3, 1, norm)
        self.downsample = ConvNorm(c_in, c_out, 1, stride, norm, relu=False) if stride > 1 else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.downsample(x_BCHW) + self.convnormrelu2(self.convnormrelu1(x_BCHW)))


class Encoder(nn.Module):
    """Frames [B, 3, H, W] to features [B, 256, h, w]."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.convnormrelu = ConvNorm(3, 64, 7, 2, norm)
        self.layer1 = nn.Sequential(ResidualBlock(64, 64, norm, 1), ResidualBlock(64, 64, norm, 1))
        self.layer2 = nn.Sequential(ResidualBlock(64, 96, norm, 2), ResidualBlock(96, 96, norm, 1))
        self.layer3 = nn.Sequential(ResidualBlock(96, 128, norm, 2), ResidualBlock(128, 128, norm, 1))
        self.conv = nn.Conv2d(128, 256, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(self.layer3(self.layer2(self.layer1(self.convnormrelu(x_BCHW)))))


class MotionEncoder(nn.Module):
    """Correlations around the present flow, and that flow, to 128 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.convcorr1 = ConvNorm(_LEVELS * (2 * _RADIUS + 1) ** 2, 256, 1)
        self.convcorr2 = ConvNorm(256, 192, 3)
        self.convflow1 = ConvNorm(2, 128, 7)
        self.convflow2 = ConvNorm(128, 64, 3)
        self.conv = ConvNorm(192 + 64, 128 - 2, 3)

    def forward(self, flow_B2hw: Tensor, correlation_BChw: Tensor) -> Tensor:
        seen = self.convcorr2(self.convcorr1(correlation_BChw))
        moved = self.convflow2(self.convflow1(flow_B2hw))
        return torch.cat([self.conv(torch.cat([seen, moved], 1)), flow_B2hw], 1)


class ConvGRU(nn.Module):
    """A gated recurrent unit whose matrices are convolutions."""

    def __init__(self, inputs: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.convz, self.convr, self.convq = (
            nn.Conv2d(_HIDDEN + inputs, _HIDDEN, kernel, padding=padding) for _ in range(3)
        )

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        both = torch.cat([hidden, x], 1)
        keep, reset = torch.sigmoid(self.convz(both)), torch.sigmoid(self.convr(both))
        return (1 - keep) * hidden + keep * torch.tanh(self.convq(torch.cat([reset * hidden, x], 1)))


class RecurrentBlock(nn.Module):
    """One unit along rows, one along columns."""

    def __init__(self) -> None:
        super().__init__()
        self.convgru1 = ConvGRU(_CONTEXT + 128, (1, 5))
        self.convgru2 = ConvGRU(_CONTEXT + 128, (5, 1))

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        return self.convgru2(self.convgru1(hidden, x), x)


class FlowHead(nn.Module):
    """Hidden state to a step of the flow, in cells of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(_HIDDEN, 256, 3, padding=1), nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(hidden)))


class UpdateBlock(nn.Module):
    """One step of the iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.motion_encoder, self.recurrent_block, self.flow_head = MotionEncoder(), RecurrentBlock(), FlowHead()

    def forward(self, hidden: Tensor, context: Tensor, correlation: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.recurrent_block(hidden, torch.cat([context, self.motion_encoder(flow, correlation)], 1))
        return hidden, self.flow_head(hidden)


class MaskPredictor(nn.Module):
    """Hidden state to the weights with which each fine pixel mixes its nine coarse neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.convrelu, self.conv = ConvNorm(_HIDDEN, 256, 3), nn.Conv2d(256, 9 * STRIDE**2, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return 0.25 * self.conv(self.convrelu(hidden))


class RAFT(nn.Module):
    """Flow from one frame to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_encoder, self.context_encoder = Encoder(nn.InstanceNorm2d), Encoder(nn.BatchNorm2d)
        self.update_block, self.mask_predictor = UpdateBlock(), MaskPredictor()

    def forward(self, earlier_B3HW: Tensor, later_B3HW: Tensor, iterations: int) -> Tensor:
        """Flow in px, [B, 2, H, W] (x to the right, y down).

        Args:
            earlier_B3HW: values in -1 to 1; sides multiples of 8 and at least 128.
            later_B3HW: as the earlier.
            iterations: steps of refinement.
        """
        pyramid = _correlations(self.feature_encoder(earlier_B3HW), self.feature_encoder(later_B3HW))
        hidden, context = self.context_encoder(earlier_B3HW).split([_HIDDEN, _CONTEXT], 1)
        hidden, context = torch.tanh(hidden), F.relu(context)
        start_B2hw = _coordinates(hidden)
        flow_B2hw = torch.zeros_like(start_B2hw)
        for _ in range(iterations):
            seen = _look_up(pyramid, start_B2hw + flow_B2hw)
            hidden, step = self.update_block(hidden, context, seen, flow_B2hw)
            flow_B2hw = flow_B2hw + step
        return _upsample(flow_B2hw, self.mask_predictor(hidden))


def _coordinates(like_BChw: Tensor) -> Tensor:
    """Column and row of each cell, [B, 2, h, w]."""
    batch, _, height, width = like_BChw.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).to(like_BChw)[None].expand(batch, -1, -1, -1)


def _correlations(earlier_BChw: Tensor, later_BChw: Tensor) -> list[Tensor]:
    """Every cell's products with all cells of the later frame, at L sizes: each [B*h*w, 1, h/2^l, w/2^l]."""
    batch, channels, height, width = earlier_BChw.shape
    products = earlier_BChw.flatten(2).transpose(1, 2) @ later_BChw.flatten(2) / channels**0.5
    pyramid = [products.reshape(batch * height * width, 1, height, width)]
    for _ in range(_LEVELS - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return pyramid


def _look_up(pyramid: list[Tensor], at_B2hw: Tensor) -> Tensor:
    """The correlations in a window around a place in the later frame, [B, L*K*K, h, w]; x changes slowest."""
    batch, _, height, width = at_B2hw.shape
    steps = torch.arange(-_RADIUS, _RADIUS + 1, device=at_B2hw.device, dtype=at_B2hw.dtype)
    window_KK2 = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
    centres = at_B2hw.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    found = []
    for level, volume in enumerate(pyramid):
        places = centres / 2**level + window_KK2
        sides = torch.tensor([volume.shape[3] - 1, volume.shape[2] - 1], device=places.device, dtype=places.dtype)
        seen = F.grid_sample(volume, 2 * places / sides - 1, align_corners=True)
        found.append(seen.reshape(batch, height, width, -1))
    return torch.cat(found, -1).permute(0, 3, 1, 2).contiguous()


def _upsample(flow_B2hw: Tensor, mask_BMhw: Tensor) -> Tensor:
    """Flow [B, 2, H, W]: each fine pixel is a weighted mean of the nine coarse ones around it."""
    batch, _, height, width = flow_B2hw.shape
    weights = mask_BMhw.reshape(batch, 1, 9, STRIDE, STRIDE, height, width).softmax(2)
    around = F.unfold(STRIDE * flow_B2hw, 3, padding=1).reshape(batch, 2, 9, 1, 1, height, width)
    fine = (weights * around).sum(2).permute(0, 1, 4, 2, 5, 3)
    return fine.reshape(batch, 2, STRIDE * height, STRIDE * width)
