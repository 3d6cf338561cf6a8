"""Architectures without torch: equal, kernel by kernel, to what capture finds; with the published sizes."""

from __future__ import annotations

import doctest
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spacetime.capture.families import op_name
from spacetime.capture.lowerings import fuse
from spacetime.errors import OptionError
from spacetime.ir import Kernel, Program, Rows
from spacetime.sim import architectures
from spacetime.sim.architectures import builder, classic, mobile, names, program, recurrent, residual, transformers
from spacetime.sim.architectures.builder import BATCH_NORM, Builder, Value
from spacetime.sim.architectures.folding import folded
from tests.capture.tenants import capture, zoo_capture
from tests.slow import LONG_EXPORTS, mostly

# The architectures at the sizes that the zoo has.
LIKE_THE_ZOO: dict[str, Callable[[], Program]] = {
    "mlp": classic.mlp,
    "alexnet": classic.alexnet,
    "vgg19": lambda: classic.vgg(classic.VGG19_STAGES, side=32, pooled_side=1, hidden=512),
    "resnet18": lambda: residual.resnet(residual.RESNET18_BLOCKS, bottlenecks=False, side=64),
    "resnet50": lambda: residual.resnet(residual.RESNET50_BLOCKS, bottlenecks=True, side=64),
    "mobilenet_v2": lambda: mobile.mobilenet_v2(side=64),
    "vit": lambda: transformers.vit(side=32, patch=4, width=192, depth=6, heads=3, classes=10, eps=1e-5),
    "bert": lambda: transformers.bert(tokens=32, width=256, depth=4, heads=4, vocabulary=2000, eps=1e-5),
    "tied_lm": lambda: transformers.gpt2(
        tokens=16, width=128, depth=2, heads=4, vocabulary=1000, max_tokens=128, activation=transformers.gelu
    ),
    "gru": recurrent.gru,
    "lstm": recurrent.lstm,
}

# Parameters and 10^9 multiply-adds of one image as torchvision's documentation has them.
TORCHVISION = {
    "alexnet": (61_100_840, 0.714),
    "vgg16": (138_357_544, 15.47),
    "vgg19": (143_667_240, 19.632),
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 4.089),
    "resnet101": (44_549_160, 7.801),
    "resnet152": (60_192_808, 11.514),
    "resnext101": (88_791_336, 16.414),
    "densenet201": (20_013_928, 4.291),
    "squeezenet": (1_235_496, 0.349),
    "shufflenet": (2_278_604, 0.145),
    "mobilenet_v2": (3_504_872, 0.301),
    "efficientnet_b0": (5_288_548, 0.386),
    "vit_b16": (86_567_656, 17.564),
}

# Parameters of the published checkpoints, without task heads.
LANGUAGE_MODELS = {"bert": 109_482_240, "distilbert": 66_362_880, "albert": 11_683_584, "gpt2": 124_439_808}


def num_parameters(built: Program) -> int:
    """Running statistics are weights of the program, but nobody counts them as parameters."""
    statistics = {index for kernel in built.kernels if kernel.op == BATCH_NORM for index in kernel.weights[2:]}
    return sum(spec.size(1) for index, spec in enumerate(built.weights) if index not in statistics)


def multiply_adds(built: Program) -> float:
    return sum(kernel.flops_per_row for kernel in built.kernels if kernel.kind != "other") / 2


def comparable(kernel: Kernel) -> Kernel:
    """Names are for people, and a program for the simulator lies on no torch device."""
    return replace(kernel, name="", attributes=kernel.attributes.replace("device=device(type='cpu'),", ""))


def assert_same_work(built: Program, captured: Program) -> None:
    for one, other in zip(built.kernels, captured.kernels, strict=False):
        assert comparable(one) == comparable(other)
    assert len(built.kernels) == len(captured.kernels)
    assert (built.inputs, built.outputs, built.weights) == (captured.inputs, captured.outputs, captured.weights)


@pytest.mark.parametrize("name", mostly(LIKE_THE_ZOO, slow=LONG_EXPORTS))
def test_a_program_is_what_capture_finds_in_the_module(name: str) -> None:
    assert_same_work(LIKE_THE_ZOO[name](), zoo_capture(name).program)


class Image(nn.Module):
    """The operations on images that no module of the zoo has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc1 = nn.Conv2d(8, 2, 1)
        self.fc2 = nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.conv(x)))
        x = torch.sigmoid(self.fc2(F.silu(self.fc1(F.adaptive_avg_pool2d(x, 1))))) * x
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        passed, filtered = x.chunk(2, dim=1)
        rows, channels, height, width = x.shape
        x = torch.cat((passed, F.relu(filtered)), dim=1).view(rows, 2, channels // 2, height, width)
        x = x.transpose(1, 2).contiguous().view(rows, channels, height, width)
        return F.avg_pool2d(x, 2, 2).mean([2, 3])


def image() -> Program:
    b = Builder()
    x = b.input(Rows(1), 4, 19, 19)
    x = b.pointwise("silu", b.batch_norm("norm", b.conv("conv", x, 8, 3, stride=2, padding=1, groups=2, bias=False)))
    x = b.max_pool(mobile._excited(b, x, squeezed=2), 3, 2, ceil=True)
    passed, filtered = (b.view(x, Rows(1), 4, 5, 5) for _ in range(2))
    x = b.cat(passed, b.pointwise("relu", filtered), dim=1)
    return b.program(b.image_mean(b.avg_pool(b.view(x, Rows(1), 8, 5, 5), 2)))


class Attention(nn.Module):
    """Attention and GELU as ALBERT runs them, an operation at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(8, 8) for _ in range(4))
        self.attention_norm = nn.LayerNorm(8)
        self.widen = nn.Linear(8, 32)
        self.narrow = nn.Linear(32, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        penalty = (1.0 - mask[:, None, None, :].to(torch.float32)) * -10000.0
        query, key, value = (
            layer(states).view(-1, 5, 2, 4).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(4) + penalty
        mixed = torch.softmax(scores, dim=-1) @ value
        states = self.attention_norm(states + self.output(mixed.transpose(1, 2).flatten(2)))
        wide = self.widen(states)
        wide = 0.5 * wide * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (wide + 0.044715 * torch.pow(wide, 3.0))))
        return self.norm(states + self.narrow(wide))


def attention() -> Program:
    b = Builder()
    states, mask = b.input(Rows(1), 5, 8), b.input(Rows(1), 5, dtype="int64")
    return b.program(
        transformers._post_norm_block(
            b,
            states,
            transformers._penalty(b, mask),
            2,
            1e-5,
            mix=transformers._mixed_by_parts,
            activation=transformers.gelu_by_parts,
        )
    )


@pytest.mark.parametrize(
    ("build", "module", "inputs"),
    [
        (image, Image(), (torch.randn(2, 4, 19, 19),)),
        (attention, Attention(), (torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.int64))),
    ],
    ids=["image", "attention"],
)
def test_operations_that_the_zoo_lacks_are_what_capture_finds(
    build: Callable[[], Program], module: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    assert_same_work(build(), capture(module.eval(), inputs).program)


@pytest.mark.parametrize("name", TORCHVISION)
def test_image_models_have_the_published_sizes(name: str) -> None:
    parameters, billions = TORCHVISION[name]
    assert num_parameters(program(name)) == parameters
    assert multiply_adds(program(name)) / 1e9 == pytest.approx(billions, rel=0.004)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models_have_the_published_sizes(name: str) -> None:
    assert num_parameters(program(name)) == LANGUAGE_MODELS[name]


@pytest.mark.parametrize(("name", "depth"), [("bert", 12), ("distilbert", 6), ("albert", 12)])
def test_language_models_do_the_arithmetic_of_their_blocks(name: str, depth: int) -> None:
    """Per token: 12 width^2 in the products of a block, 2 tokens x width in its attention."""
    blocks = 128 * depth * (12 * 768**2 + 2 * 128 * 768)
    around = {"bert": 768**2, "distilbert": 0, "albert": 768**2 + 128 * 128 * 768}[name]  # pooler, embeddings
    assert multiply_adds(program(name)) == blocks + around


def test_shared_weights_are_held_once_and_read_at_every_use() -> None:
    albert = program("albert")
    queries = [kernel for kernel in albert.kernels if kernel.name == "block.query"]
    assert len(queries) == 12
    assert {kernel.weights for kernel in queries} == {queries[0].weights}
    assert {kernel.weight_bytes for kernel in queries} == {4 * (768 * 768 + 768)}
    held, read = sum(4 * spec.size(1) for spec in albert.weights), albert.bytes(0)
    assert read > 6 * held


# -- the Space-Time shapes -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(512, 1, 512), (256, 128, 1152), (256, 256, 256), (3, 1, 2)])
def test_a_gemm_is_one_kernel_whose_weights_belong_to_the_tenant(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    (kernel,) = program(f"gemm_{m}x{n}x{k}").kernels
    assert (kernel.kind, kernel.flops(1), kernel.weight_bytes) == ("gemm", 2 * m * n * k, 4 * m * k)
    assert kernel.outputs[0].size(1) == m * n
    fused = kernel.bytes(7, num_weight_sets=7)  # seven tenants with a request each
    assert fused == 7 * kernel.bytes(1) == 7 * 4 * (m * k + k * n + m * n)


# -- names and signatures ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet19", "", "gemm_0x1x1", "gemm_1x1", "gemm_1x1x1x1", "gemm_-1x1x1", "Resnet18"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(OptionError, match=repr(name)) as caught:
        program(name)
    assert all(known in caught.value.facts for known in names())
    assert "gemm_MxNxK" in caught.value.next_step


@pytest.mark.parametrize("name", names())
def test_every_program_is_in_order_and_survives_json(name: str) -> None:
    for built in (program(name), program(name, folded=True)):
        assert Program.from_json(built.to_json()) == built
        assert [kernel.index for kernel in built.kernels] == list(range(len(built.kernels)))
        assert all(dep < kernel.index for kernel in built.kernels for dep in kernel.deps)
        assert {index for kernel in built.kernels for index in kernel.weights} <= set(range(len(built.weights)))
        read = {dep for kernel in built.kernels for dep in kernel.deps}
        unread = [kernel for kernel in built.kernels if kernel.index not in read]
        assert 1 <= len(unread) <= len(built.outputs)
        assert all(kernel.flops_per_row > 0 and kernel.bytes_per_row > 0 for kernel in built.kernels)


def test_programs_are_built_once_and_the_same_every_time() -> None:
    assert program("resnet18") is program("resnet18")
    assert program.__wrapped__("resnet18") == program("resnet18")
    # Files name programs by signature: it must not change from one process to the next.
    assert program("gemm_512x1x512").signature == "f48903c7591d7e8b"


def test_every_architecture_has_a_signature_of_its_own() -> None:
    assert len(set(names())) == len(names())
    assert len({program(name).signature for name in names()}) == len(names())


def layers(width: int = 8, *, name: str = "a", stride: int = 1, tied: bool = False, swapped: bool = False) -> Program:
    b = Builder()
    x = b.conv(f"{name}.0", b.input(Rows(1), 3, 8, 8), width, 3, stride=stride, padding=1)
    first = b.conv(f"{name}.1", x, width, 1)
    second = b.conv(f"{name}.1" if tied else f"{name}.2", x if swapped else first, width, 1)
    return b.program(b.add(first, second))


def test_signatures_follow_the_work_and_not_the_names() -> None:
    assert layers(name="one").signature == layers(name="other").signature
    different = [layers(), layers(9), layers(stride=2), layers(tied=True), layers(swapped=True)]
    assert len({built.signature for built in different}) == len(different)


def test_one_path_is_one_weight_of_one_shape() -> None:
    b = Builder()
    assert b.parameter("w", 2, 3) is b.parameter("w", 2, 3)
    with pytest.raises(AssertionError, match="w is a weight of shape"):
        b.parameter("w", 3, 2)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda b, x: b.conv("c", x, 4, 11),
        lambda b, x: b.add(x, b.view(x, Rows(1), 3, 8, 4)),
    ],
    ids=["a window larger than the image", "shapes that do not broadcast"],
)
def test_layers_that_do_not_fit_are_refused(mistake: Callable[[Builder, Value], Value]) -> None:
    b = Builder()
    with pytest.raises(AssertionError):
        mistake(b, b.input(Rows(1), 3, 8, 8))


# -- folding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly(["resnet18", "mobilenet_v2", "alexnet", "bert"], slow=LONG_EXPORTS))
def test_folding_leaves_the_kernels_that_a_fused_lane_has(name: str) -> None:
    steps = Counter(step.target if step.is_slot else op_name(step.target) for step in fuse(zoo_capture(name)).steps)
    kernels = Counter(kernel.op for kernel in folded(LIKE_THE_ZOO[name]()).kernels)
    slot_form = {"conv2d": "conv", BATCH_NORM: "affine"}
    for op in ("conv2d", BATCH_NORM, "linear", "relu", "hardtanh", "max_pool2d", "layer_norm", "gelu"):
        assert kernels[op] == steps[slot_form.get(op, op)], op


@pytest.mark.parametrize("name", names())
def test_folding_saves_traffic_and_launches_but_no_arithmetic(name: str) -> None:
    plain, after = program(name), program(name, folded=True)
    assert after.flops(1) == plain.flops(1)
    assert (after.inputs, after.outputs, after.weights) == (plain.inputs, plain.outputs, plain.weights)
    used = [{index for kernel in built.kernels for index in kernel.weights} for built in (plain, after)]
    assert used[0] == used[1]
    if any(kernel.kind == "conv" for kernel in plain.kernels) and name != "vit_b16":
        assert after.bytes(1) < plain.bytes(1)
        assert len(after.kernels) < len(plain.kernels)
    else:
        assert after == plain


def test_a_folded_convolution_costs_what_it_reads_and_writes() -> None:
    b = Builder()
    x = residual.conv_norm(b, "c", b.input(Rows(1), 3, 8, 8), 4, 3)
    plain = b.program(b.pointwise("relu", x))
    (kernel,) = folded(plain).kernels
    assert kernel.bytes_per_row == 4 * (3 * 64 + 4 * 64)
    assert kernel.weight_bytes == 4 * (4 * 3 * 9 + 2 * 4)
    assert kernel.flops_per_row == 2 * 4 * 64 * 27 + 2 * 4 * 64
    assert (kernel.op, kernel.weights, kernel.deps) == ("conv2d", (0, 1, 2, 3, 4), ())


def test_a_result_with_two_readers_is_written_before_its_activation() -> None:
    b = Builder()
    x = b.conv("c", b.input(Rows(1), 3, 8, 8), 3, 1)
    plain = b.program(b.add(b.pointwise("relu", x), x))
    assert folded(plain).kernels == plain.kernels


@pytest.mark.parametrize("module", [architectures, builder])
def test_the_examples_in_the_documentation_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
