"""Residual networks: ResNet-18, 34, 50 and 152. Part of the zoo; imports torch only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


def conv_norm(channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the image size (at stride 1), and its batch norm."""
    convolution = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


class Residual(nn.Module):
    """`relu(body(x) + shortcut(x))`; the shortcut is a projection where the shape changes."""

    def __init__(self, body: nn.Module, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        same_shape = stride == 1 and channels_in == channels_out
        self.body = body
        self.shortcut = nn.Identity() if same_shape else conv_norm(channels_in, channels_out, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.body(features) + self.shortcut(features))


def basic(channels_in: int, channels: int, stride: int) -> Residual:
    """Two 3x3 convolutions: the block of ResNet-18 and 34."""
    body = nn.Sequential(
        conv_norm(channels_in, channels, 3, stride),
        nn.ReLU(),
        conv_norm(channels, channels, 3),
    )
    return Residual(body, channels_in, channels, stride)


def bottleneck(channels_in: int, channels: int, stride: int) -> Residual:
    """1x1, 3x3, 1x1 with four times wider ends: the block of ResNet-50 and deeper."""
    body = nn.Sequential(
        conv_norm(channels_in, channels, 1),
        nn.ReLU(),
        conv_norm(channels, channels, 3, stride),
        nn.ReLU(),
        conv_norm(channels, 4 * channels, 1),
    )
    return Residual(body, channels_in, 4 * channels, stride)


class ResNet(nn.Module):
    """ResNet (2015): a stem, four stages of residual blocks, a linear classifier. Any image size from 32x32."""

    def __init__(self, blocks_per_stage: Sequence[int], bottlenecks: bool, classes: int = 1000) -> None:
        super().__init__()
        make_block, expansion = (bottleneck, 4) if bottlenecks else (basic, 1)
        self.stem = nn.Sequential(conv_norm(3, 64, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
        channels_in = 64
        stages: list[nn.Module] = []
        for stage, blocks in enumerate(blocks_per_stage):
            channels = 64 * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layers: list[nn.Module] = []
            for stride in strides:
                layers.append(make_block(channels_in, channels, stride))
                channels_in = channels * expansion
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels_in, classes)

    def forward(self, image: Tensor) -> Tensor:
        features = self.pool(self.stages(self.stem(image)))
        logits: Tensor = self.head(features.flatten(1))
        return logits


def resnet18() -> ResNet:
    return ResNet((2, 2, 2, 2), bottlenecks=False)


def resnet34() -> ResNet:
    return ResNet((3, 4, 6, 3), bottlenecks=False)


def resnet50() -> ResNet:
    return ResNet((3, 4, 6, 3), bottlenecks=True)


def resnet152() -> ResNet:
    return ResNet((3, 8, 36, 3), bottlenecks=True)
