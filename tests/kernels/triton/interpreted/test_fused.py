"""Fused programs in the form for GPUs, their kernels interpreted, against the plain modules; any mix, one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spacetime.backends.compiler import compile_program
from spacetime.capture.on_gpu import on_gpu
from spacetime.capture.program import Captured
from spacetime.kernels import AnyRows, MixError
from spacetime.kernels.bound import choices, entry_table, warm
from spacetime.kernels.bound.operation import ONE_FOR_ALL
from spacetime.kernels.bound.owners import EntryTable, FaultError, MakeOwners
from spacetime.kernels.rowmap import HEADER, RowMap, faults_in, fill, num_words, slots_in
from spacetime.kernels.triton import slot_conv2d
from spacetime.kernels.triton.blocks import largest_divisor, power_of_two
from spacetime.kernels.triton.launch import Launch
from spacetime.zoo import build, example
from spacetime.zoo.mlp import Mlp
from spacetime.zoo.resnet import basic, conv_norm
from spacetime.zoo.transformers import BertEncoder, VisionTransformer
from tests.capture.sketches import Part, draw, sketch
from tests.capture.tenants import Tenants, capture, largest_deviation, leaves_of
from tests.kernels.layers import layer

Inputs = tuple[Tensor, ...]
GARBAGE = 10**6  # no slot, no token


class Convolutions(nn.Module):
    """A stem, a residual block with a projection, a depthwise convolution, a norm alone, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 16, 3), nn.ReLU6())
        self.block = basic(16, 20, 2)
        self.depthwise = nn.Sequential(nn.Conv2d(20, 20, 3, padding=1, groups=20), nn.SiLU(), nn.MaxPool2d(2))
        self.norm = nn.BatchNorm2d(20)
        self.head = nn.Linear(20, 5)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.depthwise(self.block(self.stem(image)))).mean((2, 3)))
        return logits


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = make()
        for each in module.modules():
            if isinstance(each, nn.BatchNorm2d | nn.LayerNorm):
                nn.init.uniform_(each.weight, 0.5, 1.0)
                nn.init.normal_(each.bias, std=0.1)
            if isinstance(each, nn.BatchNorm2d) and each.running_mean is not None and each.running_var is not None:
                each.running_mean.normal_(std=0.1)
                each.running_var.uniform_(0.5, 1.5)
    return module.eval()


def floats(*shape: int) -> Callable[[int, int], Inputs]:
    return lambda rows, seed: (torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed)),)


def tokens(rows: int, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2000, (rows, 6), generator=generator)
    return ids, (ids > 1000).long(), (torch.arange(6) < 2 + torch.randint(5, (rows, 1), generator=generator)).long()


def zoo(name: str) -> tuple[Callable[[int], nn.Module], Callable[[int, int], Inputs]]:
    return lambda seed: build(name, seed), lambda rows, seed: example(name, rows, seed)


def small(make: Callable[[], nn.Module], inputs: Callable[[int, int], Inputs]) -> Any:
    return lambda seed: seeded(make, seed), inputs


MODELS: dict[str, Any] = {
    "mlp": small(lambda: Mlp(width=40, depth=2, classes=7), floats(40)),
    "convolutions": small(Convolutions, floats(3, 6, 5)),
    "bert": small(lambda: BertEncoder(width=16, depth=1, heads=2, max_tokens=8), tokens),
    "vit": small(lambda: VisionTransformer(side=12, width=12, depth=1, heads=2, classes=4), floats(3, 12, 12)),
}
ZOO = {
    "mlp": zoo("mlp"),
    "bert": zoo("bert"),
    "resnet18": (lambda seed: build("resnet18", seed), floats(3, 32, 32)),
}
KERNELS = {
    "mlp": {"slot_gemv"},
    "convolutions": {"slot_conv2d", "slot_depthwise", "slot_gemv", "plain torch"},
    "bert": {"slot_embedding", "slot_layernorm", "slot_gemv", "plain torch"},
    "vit": {"slot_conv2d", "slot_layernorm", "slot_linear", "slot_gemv", "plain torch"},
}
TENANTS = 4


class Served:
    """Four tenants of an architecture in one cohort. The last shares the weights of the first, but for its head."""

    def __init__(self, make: Callable[[int], nn.Module], inputs: Callable[[int, int], Inputs]) -> None:
        modules = [make(seed % 3) for seed in range(TENANTS)]
        with torch.no_grad():
            list(modules[3].parameters())[-1].add_(0.5)
        self.captured: Captured = capture(make(0), inputs(2, 0))
        self.inputs = inputs
        self.tenants = Tenants(self.captured, modules)
        self.layers = self.tenants.cohort.layers
        self.compiled = compile_program(on_gpu(self.tenants.cohort.fused, self.captured.proof), self.layers)
        self.tenants._run = self.compiled.run

    def own(self, slots: Sequence[int], rows: Sequence[int]) -> list[Inputs]:
        return [self.inputs(count, 10 * slot + count) for slot, count in zip(slots, rows, strict=True)]

    def plain(self, slots: Sequence[int], inputs: Sequence[Inputs]) -> list[list[Tensor]]:
        return [leaves_of(self.tenants.modules[slot], own) for slot, own in zip(slots, inputs, strict=True)]

    def check(self, slots: Sequence[int], rows: Sequence[int]) -> None:
        inputs = self.own(slots, rows)
        assert largest_deviation(self.tenants.fused(slots, inputs), self.plain(slots, inputs)) <= 1e-5

    def check_any(self, total: int, words: Tensor, slots: Sequence[int], rows: Sequence[int]) -> None:
        """The batch of a graph: `total` rows, of which the first belong to somebody."""
        inputs = self.own(slots, rows)
        batch = [with_garbage(torch.cat(column), total) for column in zip(*inputs, strict=True)]
        with torch.no_grad():
            outputs = self.compiled.run(AnyRows(total, words), *batch)
        fused = [list(leaves) for leaves in zip(*(out[: sum(rows)].split(list(rows)) for out in outputs), strict=True)]
        assert largest_deviation(fused, self.plain(slots, inputs)) <= 1e-5


def with_garbage(batch: Tensor, total: int) -> Tensor:
    """More rows, which nobody may look at."""
    garbage = float("nan") if batch.dtype.is_floating_point else GARBAGE
    return torch.cat([batch, torch.full((total - batch.shape[0], *batch.shape[1:]), garbage, dtype=batch.dtype)])


@cache
def served(name: str) -> Served:
    return Served(*MODELS[name])


@pytest.mark.parametrize("name", MODELS)
def test_ragged_mixes_and_subsets_equal_the_plain_modules(name: str) -> None:
    model = served(name)
    for slots, rows in (((0, 1, 2, 3), (1, 2, 1, 1)), ((3, 1), (2, 1))):
        model.check(slots, rows)
    assert {choice.kernel for choice in choices(model.compiled.kernels)} == KERNELS[name]


@pytest.mark.parametrize("name", MODELS)
def test_one_batch_serves_any_mix_after_one_small_copy(name: str) -> None:
    """What a graph does: the same words in memory, refilled; idle rows, garbage where nobody's rows are."""
    model, total = served(name), 6
    words, host = (torch.zeros(num_words(total), dtype=torch.int32) for _ in range(2))
    for slots, rows in (((3,), (2,)), ((2, 0), (1, 3))):
        fill(host, slots, rows)
        slots_in(host)[sum(rows) :: 2], slots_in(host)[sum(rows) + 1 :: 2] = GARBAGE, 1
        words.copy_(host)
        model.check_any(total, words, slots, rows)
        assert not faults_in(words).any()


def with_large_tiles(shape: Any, target: Any) -> slot_conv2d.Config:
    """The interpreter takes as long for a small block as for a large one."""
    channels = shape.channels // shape.groups
    return slot_conv2d.Config(64, power_of_two(shape.out_channels, high=512), largest_divisor(channels, 512), 4, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_models_of_the_zoo_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "resnet18":
        default = slot_conv2d.default
        monkeypatch.setattr(
            slot_conv2d, "default", lambda *a: (with_large_tiles if a[0].channels % 16 == 0 else default)(*a)
        )
    model = Served(*ZOO[name])
    model.check((0, 3, 1), (1, 2, 1))
    words = torch.zeros(num_words(4), dtype=torch.int32)
    fill(words, (2, 3), (1, 1))
    model.check_any(4, words, (2, 3), (1, 1))


def test_bf16() -> None:
    model = Served(lambda seed: seeded(lambda: Mlp(width=40, depth=1), seed).bfloat16(), bf16_rows)
    inputs = model.own((0, 1, 2), (1, 2, 1))
    assert largest_deviation(model.tenants.fused((0, 1, 2), inputs), model.plain((0, 1, 2), inputs)) <= 2e-2
    assert {choice.kernel for choice in choices(model.compiled.kernels)} == {"slot_gemv"}


def bf16_rows(rows: int, seed: int) -> Inputs:
    return tuple(tensor.bfloat16() for tensor in floats(40)(rows, seed))


UNFIT: dict[str, tuple[Any, dict[str, Part], tuple[int, ...], str]] = {
    "conv1d": (lambda m, x: m.a(x), {"a": lambda: nn.Conv1d(6, 4, 3)}, (6, 8), "conv1d: kernels know conv2d"),
    "named padding": (
        *(lambda m, x: m.a(x), {"a": lambda: nn.Conv2d(3, 4, 3, padding="same")}, (3, 6, 6)),
        "padding 'same': kernels take numbers",
    ),
    "float64": (
        *(lambda m, x: m.a(x.double()), {"a": lambda: nn.Linear(8, 4).double()}, (8,)),
        "torch.float64: kernels take fp32, bf16, fp16",
    ),
    "norm over two": (
        *(lambda m, x: m.a(x), {"a": lambda: nn.LayerNorm((6, 8))}, (6, 8)),
        "a norm over 2 dimensions; the kernel does the last one",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_no_kernel_takes_runs_plain_says_why_and_cannot_serve_any_mix(name: str) -> None:
    function, parts, row, reason = UNFIT[name]
    model = Served(lambda seed: sketch(function, parts, seed), lambda rows, seed: draw((row,), rows, seed))
    model.check((0, 1, 2), (1, 2, 1))
    assert {choice.reason for choice in choices(model.compiled.kernels)} == {reason}
    with pytest.raises(MixError) as refused:
        model.compiled.run(AnyRows(2, torch.zeros(num_words(2), dtype=torch.int32)), *model.inputs(2, 0))
    assert reason in str(refused.value)
    assert warm(model.compiled.run, model.inputs(2, 0), [4]) == reason


def test_steps_first_and_merged_rows() -> None:
    """Rows in another dimension, and several entries of a dimension for each row."""

    def function(m: Any, x: Tensor) -> Tensor:
        steps = torch.relu(m.norm(m.linear(x.transpose(0, 1)) * m.scale)) + 1.0
        merged: Tensor = m.linear(steps.transpose(0, 1).reshape(-1, 8)).view(-1, 6, 8)
        return merged

    parts: dict[str, Part] = {"linear": lambda: nn.Linear(8, 8), "scale": (8,), "norm": lambda: nn.LayerNorm(8)}
    model = Served(lambda seed: sketch(function, parts, seed), lambda rows, seed: draw(((6, 8),), rows, seed))
    model.check((0, 1, 2), (1, 3, 2))
    words = torch.zeros(num_words(5), dtype=torch.int32)
    fill(words, (2, 0), (1, 2))
    model.check_any(5, words, (2, 0), (1, 2))


def test_warming_runs_every_kernel_on_idle_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ran = served("bert"), []
    plain = Launch.run
    monkeypatch.setattr(Launch, "run", lambda self: (ran.append(self.grid), plain(self))[1])
    assert warm(model.compiled.run, model.inputs(1, 0), [2, 4]) is None
    kernels = [choice.kernel for choice in choices(model.compiled.kernels) if choice.kernel != "plain torch"]
    assert len(ran) == 2 * (len(kernels) + 1), "the owners are a launch as well"
    assert {grid[1] for grid in ran} >= {2, 4}


def test_a_lone_tenant_runs_plain_and_says_why() -> None:
    model = Served(*MODELS["mlp"])
    model.check((1,), (3,))
    assert {choice.reason for choice in choices(model.compiled.kernels)} == {ONE_FOR_ALL}


def test_layers_that_two_tenants_share_are_one_call() -> None:
    model = Served(*MODELS["mlp"])
    model.check((0, 3), (1, 1))
    kernels = [choice.kernel for choice in choices(model.compiled.kernels)]
    assert kernels == ["plain torch"] * 2 + ["slot_gemv"], "only their heads differ"


def test_a_token_outside_its_table_fails_the_lane_and_marks_its_row() -> None:
    model = served("bert")
    inputs = model.own((0, 1, 2), (1, 2, 1))
    inputs[1][0][1, 4] = GARBAGE
    with pytest.raises(FaultError, match=r"rows \[2\] of 4"):
        model.tenants.fused((0, 1, 2), inputs)
    words = torch.zeros(num_words(4), dtype=torch.int32)
    fill(words, (0, 1, 2), (1, 2, 1))
    with pytest.raises(FaultError):
        model.compiled.run(AnyRows(4, words), *(torch.cat(column) for column in zip(*inputs, strict=True)))
    assert faults_in(words)[:4].tolist() == [0, 0, 1, 0]


def test_tables_follow_who_joins_and_who_leaves() -> None:
    weight = layer((0, 1, 0, 2), 3)
    bias = layer((0, 0, 0, 1), 2)
    make = MakeOwners([weight, bias])

    def entries(slots: tuple[int, ...], rows: tuple[int, ...]) -> list[list[int]]:
        owners = make(RowMap(slots, rows))
        assert owners.num_active.item() == sum(rows)
        return [table.tolist() for table in owners._entries]

    idle = [-1] * 12
    assert entries((3, 0, 2), (1, 2, 1)) == [[2, 0, 0, 0, *idle], [1, 0, 0, 0, *idle]]
    for each in (weight, bias):
        each.drop(1)
    assert entries((1, 3), (1, 3))[0] == [-1, 2, 2, 2, *idle], "nobody's rows are idle"
    for each, shape in ((weight, 3), (bias, 2)):
        each.put(1, torch.full((shape,), 9.0))
    assert entries((1, 3), (1, 3)) == [[1, 2, 2, 2, *idle], [2, 1, 1, 1, *idle]]


def test_a_table_that_grows_leaves_the_old_one_to_who_reads_it() -> None:
    weight = layer((0, 1, 2, 3), 2)
    table = EntryTable([layer((0, 1, 2, 3), 2), weight, layer((0, 1, 2, 3), 2)])
    before = table.current()
    weight.put(4, torch.ones(2))
    assert table.current() is before and before[1, :6].tolist() == [0, 1, 2, 3, 4, -1]
    weight.put(70, torch.zeros(2))
    after = table.current()
    assert after.shape[1] > 70 and after[1, 70] == 5 and before[1, :5].tolist() == [0, 1, 2, 3, 4]
    assert table.current() is after, "nothing has changed"


def test_a_program_tells_its_table() -> None:
    table = entry_table(served("mlp").compiled.kernels)
    assert table is not None and table.current() is table.current()
    assert entry_table([]) is None


def test_words_start_with_the_number_of_rows() -> None:
    owners = MakeOwners([layer((0, 1), 2)])(RowMap((1,), (2,)))
    assert owners.num_active.storage_offset() == 0 and slots_in(torch.zeros(num_words(2))).storage_offset() == HEADER
