"""Convolutional networks without residuals: AlexNet, VGG, U-Net. Part of the zoo; imports torch only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

# Channels and convolutions of the five stages; every stage ends with a 2x2 pooling.
VGG16_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
VGG19_STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


def classifier(features: int, hidden: int, classes: int) -> nn.Sequential:
    """The three linear layers at the end of AlexNet and VGG."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(hidden, classes),
    )


class AlexNet(nn.Module):
    """AlexNet (the one-tower version, 2014) for images of 224x224."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
        )
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.classifier = classifier(256 * 6 * 6, 4096, classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.features(image)))
        return logits


class Vgg(nn.Module):
    """VGG (2014). ImageNet: 224x224 images, `pooled_side` 7, `hidden` 4096; for 32x32 images 1 and 512."""

    def __init__(
        self, stages: Sequence[tuple[int, int]], pooled_side: int = 7, hidden: int = 4096, classes: int = 1000
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 3
        for channels, convolutions in stages:
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.ReLU()]
                channels_in = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(pooled_side)
        self.classifier = classifier(channels_in * pooled_side**2, hidden, classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.features(image)))
        return logits


def double_conv(channels_in: int, channels: int) -> nn.Sequential:
    """The building block of U-Net: twice 3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """U-Net (2015): an encoder and a decoder of `depth` levels joined by skips; logits for every pixel."""

    def __init__(self, base: int = 64, depth: int = 4, classes: int = 2) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(depth + 1)]
        steps = list(pairwise(widths))
        self.stem = double_conv(3, base)
        self.pool = nn.MaxPool2d(2)
        self.encoders = nn.ModuleList(double_conv(narrow, wide) for narrow, wide in steps)
        self.upsamplers = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, 2, stride=2) for narrow, wide in steps[::-1])
        # A decoder reads the upsampled features next to the skip of the same width.
        self.decoders = nn.ModuleList(double_conv(2 * narrow, narrow) for narrow, _ in steps[::-1])
        self.head = nn.Conv2d(base, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stem(image)
        skips: list[Tensor] = []
        for encoder in self.encoders:
            skips.append(features)
            features = encoder(self.pool(features))
        for upsampler, decoder in zip(self.upsamplers, self.decoders, strict=True):
            features = decoder(torch.cat([skips.pop(), upsampler(features)], dim=1))
        logits: Tensor = self.head(features)
        return logits
