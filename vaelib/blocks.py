"""The words of the architecture, in the order a U-Net says them.

Every block maps (B, in_channels, H, W) to (B, out_channels, H', W'). None of them knows
whether it stands in the encoder or in the decoder, and none carries anything around z.
"""

from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm (Wu & He 2018) in groups of 8 channels, or one group if 8 does not divide."""
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)


class ConvBlock(nn.Module):
    """3x3 convolution, GroupNorm, SiLU: (B, in_channels, H, W) -> (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = group_norm(out_channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Downsample(nn.Module):
    """3x3 convolution with stride 2: (B, in, H, W) -> (B, out, ceil(H/2), ceil(W/2))."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Sub-pixel convolution (Shi et al. 2016): (B, in, H, W) -> (B, out, 2H, 2W).

    A 3x3 convolution writes four channels for each output channel; PixelShuffle lays them
    out as 2x2 pixels: as many multiplications as one convolution at the larger size, but a
    kernel of its own for each of the four.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.conv(x))


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016): (B, channels, H, W), same shape out.

    The last convolution starts at zero, so the block starts as the identity.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.SiLU()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x)))
        h = self.conv2(self.act(self.norm2(h)))
        return x + h
