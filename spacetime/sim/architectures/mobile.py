"""Networks of depthwise convolutions: MobileNetV2, ShuffleNetV2, EfficientNet. Used by sim/architectures; no torch."""

from __future__ import annotations

from spacetime.ir import Program, Rows
from spacetime.sim.architectures.builder import Builder, Value
from spacetime.sim.architectures.classic import image
from spacetime.sim.architectures.residual import conv_norm

# Expansion, channels, blocks, stride of the first block: table 2 of the MobileNetV2 paper.
MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

# Channels, blocks: table 5 of the ShuffleNetV2 paper, width 1.0. The first block of a stage halves the image.
SHUFFLENET_STAGES = ((116, 4), (232, 8), (464, 4))

# Expansion, window, stride of the first block, channels, blocks: table 1 of the EfficientNet paper.
EFFICIENTNET_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)

LAST_CHANNELS = 1280


def _relu6(b: Builder, x: Value) -> Value:
    return b.pointwise("hardtanh", x, max_val=6.0, min_val=0.0)


def mobilenet_v2(*, side: int = 224, classes: int = 1000) -> Program:
    b = Builder()
    x = _relu6(b, conv_norm(b, "stem", image(b, side), 32, 3, stride=2))
    for stage, (expansion, channels, blocks, first_stride) in enumerate(MOBILENET_STAGES):
        for block in range(blocks):
            with b.scope("features", stage, block):
                x = _inverted_residual(b, x, channels, 1 if block else first_stride, expansion)
    x = _relu6(b, conv_norm(b, "last", x, LAST_CHANNELS, 1))
    return b.program(b.linear("classifier", b.flatten(b.adaptive_avg_pool(x)), classes))


def _inverted_residual(b: Builder, x: Value, channels: int, stride: int, expansion: int) -> Value:
    """Widen, filter each channel on its own, narrow; add the input back where the shape allows."""
    wide = x.size(1) * expansion
    body = x if expansion == 1 else _relu6(b, conv_norm(b, "expand", x, wide, 1))
    body = _relu6(b, conv_norm(b, "depthwise", body, wide, 3, stride=stride, groups=wide))
    body = conv_norm(b, "project", body, channels, 1)
    return b.add(x, body) if stride == 1 and x.size(1) == channels else body


def shufflenet_v2(*, side: int = 224, classes: int = 1000) -> Program:
    """ShuffleNetV2 at width 1.0. The shuffle itself is a view to capture/, and so it is here."""
    b = Builder()
    x = b.pointwise("relu", conv_norm(b, "conv1", image(b, side), 24, 3, stride=2))
    x = b.max_pool(x, 3, 2, padding=1)
    for stage, (channels, blocks) in enumerate(SHUFFLENET_STAGES, start=2):
        for block in range(blocks):
            with b.scope(f"stage{stage}", block):
                x = _shuffled(b, x, channels) if block else _halved(b, x, channels)
    x = b.pointwise("relu", conv_norm(b, "conv5", x, 1024, 1))
    return b.program(b.linear("fc", b.image_mean(x), classes))


def _halved(b: Builder, x: Value, channels: int) -> Value:
    """Both branches see all channels, at half the image size."""
    with b.scope("branch1"):
        one = conv_norm(b, "depthwise", x, x.size(1), 3, stride=2, groups=x.size(1))
        one = b.pointwise("relu", conv_norm(b, "pointwise", one, channels // 2, 1))
    return b.cat(one, _branch(b, x, channels // 2, stride=2), dim=1)


def _shuffled(b: Builder, x: Value, channels: int) -> Value:
    """Half of the channels pass, the other half is filtered; both are views of the shuffled input."""
    half = (Rows(1), channels // 2, x.size(2), x.size(3))
    passed, filtered = b.view(x, *half), b.view(x, *half)
    return b.cat(passed, _branch(b, filtered, channels // 2, stride=1), dim=1)


def _branch(b: Builder, x: Value, channels: int, stride: int) -> Value:
    with b.scope("branch2"):
        x = b.pointwise("relu", conv_norm(b, "narrow", x, channels, 1))
        x = conv_norm(b, "depthwise", x, channels, 3, stride=stride, groups=channels)
        return b.pointwise("relu", conv_norm(b, "pointwise", x, channels, 1))


def efficientnet_b0(*, side: int = 224, classes: int = 1000) -> Program:
    b = Builder()
    x = b.pointwise("silu", conv_norm(b, "stem", image(b, side), 32, 3, stride=2))
    for stage, (expansion, window, first_stride, channels, blocks) in enumerate(EFFICIENTNET_STAGES, start=1):
        for block in range(blocks):
            with b.scope("features", stage, block):
                x = _mbconv(b, x, channels, 1 if block else first_stride, expansion, window)
    x = b.pointwise("silu", conv_norm(b, "last", x, LAST_CHANNELS, 1))
    return b.program(b.linear("classifier", b.flatten(b.adaptive_avg_pool(x)), classes))


def _mbconv(b: Builder, x: Value, channels: int, stride: int, expansion: int, window: int) -> Value:
    """An inverted residual whose wide middle is gated by squeeze and excitation."""
    wide = x.size(1) * expansion
    body = x if expansion == 1 else b.pointwise("silu", conv_norm(b, "expand", x, wide, 1))
    body = b.pointwise("silu", conv_norm(b, "depthwise", body, wide, window, stride=stride, groups=wide))
    body = conv_norm(b, "project", _excited(b, body, squeezed=x.size(1) // 4), channels, 1)
    return b.add(body, x) if stride == 1 and x.size(1) == channels else body


def _excited(b: Builder, x: Value, squeezed: int) -> Value:
    with b.scope("excitation"):
        gate = b.pointwise("silu", b.conv("fc1", b.adaptive_avg_pool(x), squeezed, 1))
        gate = b.pointwise("sigmoid", b.conv("fc2", gate, x.size(1), 1))
        return b.pointwise("mul", gate, x)
