"""MobileNetV2: depthwise convolutions and ReLU6. Part of the zoo; imports torch only."""

from __future__ import annotations

from torch import Tensor, nn

# Expansion, channels, blocks, stride of the first block: table 2 of the paper.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM_CHANNELS = 32
LAST_CHANNELS = 1280


def conv_norm_relu6(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Widen, filter each channel on its own, narrow; add the input back where the shape allows."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.body = nn.Sequential(
            nn.Identity() if expansion == 1 else conv_norm_relu6(channels_in, wide, 1),
            conv_norm_relu6(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.adds_input = stride == 1 and channels_in == channels

    def forward(self, features: Tensor) -> Tensor:
        filtered: Tensor = self.body(features)
        return features + filtered if self.adds_input else filtered


class MobileNetV2(nn.Module):
    """MobileNetV2 (2018) at width 1.0. Any image size from 32x32."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm_relu6(3, STEM_CHANNELS, 3, stride=2)]
        channels_in = STEM_CHANNELS
        for expansion, channels, blocks, first_stride in STAGES:
            for stride in [first_stride] + [1] * (blocks - 1):
                layers.append(InvertedResidual(channels_in, channels, stride, expansion))
                channels_in = channels
        layers.append(conv_norm_relu6(channels_in, LAST_CHANNELS, 1))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(LAST_CHANNELS, classes))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.features(image)).flatten(1))
        return logits
