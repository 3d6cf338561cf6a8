"""Networks that add or join what earlier layers found: ResNet, DenseNet. Used by sim/architectures only; no torch.

Layers are called as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence

from spacetime.ir import Program
from spacetime.sim.architectures.builder import Builder, Value
from spacetime.sim.architectures.classic import image

RESNET18_BLOCKS = (2, 2, 2, 2)
RESNET50_BLOCKS = (3, 4, 6, 3)  # and ResNet-34
RESNET101_BLOCKS = (3, 4, 23, 3)
RESNET152_BLOCKS = (3, 8, 36, 3)
DENSENET201_BLOCKS = (6, 12, 48, 32)

BOTTLENECK_EXPANSION = 4


def conv_norm(
    b: Builder, name: str, x: Value, channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> Value:
    """A convolution that keeps the image size (at stride 1), and its batch norm."""
    x = b.conv(name, x, channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return b.batch_norm(f"{name}.norm", x)


def _stem(b: Builder, side: int) -> Value:
    x = b.pointwise("relu", conv_norm(b, "conv1", image(b, side), 64, 7, stride=2))
    return b.max_pool(x, 3, 2, padding=1)


def _residual(b: Builder, x: Value, body: Value, stride: int) -> Value:
    """relu(body + shortcut); the shortcut is a projection where the shape changes."""
    channels = body.size(1)
    same_shape = stride == 1 and x.size(1) == channels
    shortcut = x if same_shape else conv_norm(b, "downsample", x, channels, 1, stride=stride)
    return b.pointwise("relu", b.add(body, shortcut))


def _basic(b: Builder, x: Value, channels: int, stride: int) -> Value:
    body = b.pointwise("relu", conv_norm(b, "conv1", x, channels, 3, stride=stride))
    return _residual(b, x, conv_norm(b, "conv2", body, channels, 3), stride)


def _bottleneck(b: Builder, x: Value, channels: int, stride: int, groups: int, group_width: int) -> Value:
    """1x1, 3x3, 1x1; ResNeXt widens the middle and splits it into groups."""
    width = channels * group_width * groups // 64
    body = b.pointwise("relu", conv_norm(b, "conv1", x, width, 1))
    body = b.pointwise("relu", conv_norm(b, "conv2", body, width, 3, stride=stride, groups=groups))
    return _residual(b, x, conv_norm(b, "conv3", body, channels * BOTTLENECK_EXPANSION, 1), stride)


def resnet(
    blocks_per_stage: Sequence[int],
    *,
    bottlenecks: bool,
    groups: int = 1,
    group_width: int = 64,
    side: int = 224,
    classes: int = 1000,
) -> Program:
    """ResNet (2015); with groups: ResNeXt (2017)."""
    b = Builder()
    x = _stem(b, side)
    for stage, blocks in enumerate(blocks_per_stage):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            with b.scope(f"layer{stage + 1}", block):
                channels = 64 * 2**stage
                if bottlenecks:
                    x = _bottleneck(b, x, channels, stride, groups, group_width)
                else:
                    x = _basic(b, x, channels, stride)
    return b.program(b.linear("fc", b.flatten(b.adaptive_avg_pool(x)), classes))


def densenet(blocks: Sequence[int], *, growth: int = 32, side: int = 224, classes: int = 1000) -> Program:
    """DenseNet-BC (2017): every layer reads all layers of its block; norms come before their convolutions."""
    b = Builder()
    x = _stem(b, side)
    for block, layers in enumerate(blocks, start=1):
        with b.scope(f"denseblock{block}"):
            x = _dense_block(b, x, layers, growth)
        if block < len(blocks):
            with b.scope(f"transition{block}"):
                x = b.avg_pool(b.conv("conv", _norm_relu(b, "norm", x), x.size(1) // 2, 1, bias=False), 2)
    x = b.flatten(b.adaptive_avg_pool(_norm_relu(b, "norm5", x)))
    return b.program(b.linear("classifier", x, classes))


def _dense_block(b: Builder, x: Value, layers: int, growth: int) -> Value:
    found = [x]
    for layer in range(1, layers + 1):
        with b.scope(f"denselayer{layer}"):
            joined = b.cat(*found, dim=1)
            narrow = b.conv("conv1", _norm_relu(b, "norm1", joined), 4 * growth, 1, bias=False)
            found.append(b.conv("conv2", _norm_relu(b, "norm2", narrow), growth, 3, padding=1, bias=False))
    return b.cat(*found, dim=1)


def _norm_relu(b: Builder, name: str, x: Value) -> Value:
    return b.pointwise("relu", b.batch_norm(name, x))
