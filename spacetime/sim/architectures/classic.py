"""Convolutional networks without residuals, and a stack of linear layers. Used by sim/architectures only; no torch.

Layers are called as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence

from spacetime.ir import Program, Rows
from spacetime.sim.architectures.builder import Builder, Value

# Channels and convolutions of the five stages; every stage ends with a 2x2 pooling.
VGG16_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
VGG19_STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))

# Squeezed and expanded channels of the fire modules of SqueezeNet 1.1; the stages are separated by poolings.
FIRES = (((16, 64), (16, 64)), ((32, 128), (32, 128)), ((48, 192), (48, 192), (64, 256), (64, 256)))


def image(b: Builder, side: int) -> Value:
    return b.input(Rows(1), 3, side, side)


def _conv_relu(
    b: Builder, name: str, x: Value, channels: int, kernel: int, *, stride: int = 1, padding: int = 0
) -> Value:
    return b.pointwise("relu", b.conv(name, x, channels, kernel, stride=stride, padding=padding))


def _classifier(b: Builder, x: Value, hidden: int, classes: int) -> Value:
    """The three linear layers at the end of AlexNet and VGG."""
    x = b.pointwise("relu", b.linear("classifier.0", b.flatten(x), hidden))
    x = b.pointwise("relu", b.linear("classifier.1", x, hidden))
    return b.linear("classifier.2", x, classes)


def alexnet(*, side: int = 224, classes: int = 1000) -> Program:
    """The one-tower version of 2014."""
    b = Builder()
    x = _conv_relu(b, "conv1", image(b, side), 64, 11, stride=4, padding=2)
    x = _conv_relu(b, "conv2", b.max_pool(x, 3, 2), 192, 5, padding=2)
    x = b.max_pool(x, 3, 2)
    for index, channels in enumerate((384, 256, 256), start=3):
        x = _conv_relu(b, f"conv{index}", x, channels, 3, padding=1)
    x = b.adaptive_avg_pool(b.max_pool(x, 3, 2), 6)
    return b.program(_classifier(b, x, 4096, classes))


def vgg(
    stages: Sequence[tuple[int, int]],
    *,
    side: int = 224,
    pooled_side: int = 7,
    hidden: int = 4096,
    classes: int = 1000,
) -> Program:
    b = Builder()
    x = image(b, side)
    for stage, (channels, convolutions) in enumerate(stages, start=1):
        for index in range(1, convolutions + 1):
            x = _conv_relu(b, f"conv{stage}_{index}", x, channels, 3, padding=1)
        x = b.max_pool(x, 2, 2)
    return b.program(_classifier(b, b.adaptive_avg_pool(x, pooled_side), hidden, classes))


def squeezenet(*, side: int = 224, classes: int = 1000) -> Program:
    """SqueezeNet 1.1: fire modules squeeze the channels, then expand them by 1x1 and 3x3 convolutions."""
    b = Builder()
    x = _conv_relu(b, "stem", image(b, side), 64, 3, stride=2)
    for stage, fires in enumerate(FIRES):
        x = b.max_pool(x, 3, 2, ceil=True)
        for index, (squeezed, expanded) in enumerate(fires):
            with b.scope("fire", stage, index):
                x = _conv_relu(b, "squeeze", x, squeezed, 1)
                one = _conv_relu(b, "expand1x1", x, expanded, 1)
                three = _conv_relu(b, "expand3x3", x, expanded, 3, padding=1)
                x = b.cat(one, three, dim=1)
    x = b.adaptive_avg_pool(_conv_relu(b, "classifier", x, classes, 1))
    return b.program(b.flatten(x))


def mlp(*, width: int = 256, depth: int = 4, classes: int = 10) -> Program:
    """`depth` hidden layers of one width, then a classifier: the zoo's."""
    b = Builder()
    x = b.input(Rows(1), width)
    for index in range(depth):
        x = b.pointwise("relu", b.linear(f"hidden.{index}", x, width))
    return b.program(b.linear("head", x, classes))


def gemm(outputs: int, columns: int, contracted: int) -> Program:
    """One matrix product, M x N x K of the Space-Time paper, as a tenant's whole program.

    The tenant owns the M x K weights; one row is one request: its N columns of K entries. R tenants with a request
    each are R rows with R sets of weights, which fused are one batched product.
    """
    b = Builder()
    x = b.input(Rows(1), columns, contracted)
    return b.program(b.linear("gemm", x, outputs, bias=False))
