"""Cohorts: tenants come and go in any order; parameters live in the slabs meanwhile and return unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spacetime.capture import cohort as cohort_module
from spacetime.capture.cohort import Cohort, Sharing
from spacetime.capture.program import Captured
from spacetime.zoo import build, example
from tests.capture.sketches import draw
from tests.capture.tenants import capture, leaves_of, lies_in, named_tensors, weights_of, zoo_capture

INPUTS = draw(((3, 4, 4),), 2, seed=0)


class Net(nn.Module):
    """One of each: convolution with a norm behind it, a norm alone, linears that share a weight, a frozen buffer."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.own = nn.Linear(4, 5)
        self.register_buffer("offset", torch.randn(5))
        self.own.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        scores: Tensor = self.own(self.two(self.one(x).tanh()))
        return scores + self.offset


def net(seed: int, head: int = 0) -> Net:
    """Nets of one seed are equal but for the head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Net().eval()
        with torch.no_grad():
            for tensor in (*module.norm.parameters(), *module.norm.buffers()):
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5)
        torch.manual_seed(1000 + head)
        nn.init.normal_(module.own.weight)
    return module


@cache
def captured() -> Captured:
    return capture(net(0), INPUTS)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(module).items()}


def is_in_a_stack(cohort: Cohort, tensor: Tensor) -> bool:
    return any(lies_in(tensor, layer.stack) for layer in cohort.layers if layer.entries)


def in_slabs(cohort: Cohort) -> list[int]:
    """Weights of the program that live in a slab, rather than only in values computed from them."""
    return [operand.weight for operand in cohort.fused.operands if operand.weight is not None]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), max_size=16))
def test_any_order_of_joining_and_leaving_keeps_every_tenant(names: list[int]) -> None:
    """A name that is present leaves, one that is absent joins; names share seeds and heads in parts."""
    cohort = Cohort(captured())
    present: dict[int, Net] = {}
    before: dict[int, dict[str, Tensor]] = {}
    for name in names:
        if name in present:
            cohort.leave(str(name))
            _check_is_free(cohort, present.pop(name), before[name])
        else:
            module = net(seed=name % 2, head=name % 3)
            before[name] = state(module)
            cohort.join(str(name), weights_of(captured(), module))
            present[name] = module
        for other, module in present.items():
            _check_is_held(cohort, str(other), module, before[other])
        _check_accounts(cohort, present)


def _check_is_held(cohort: Cohort, name: str, module: Net, before: dict[str, Tensor]) -> None:
    member = cohort.members[name]
    held = set(in_slabs(cohort))
    for index, tensors in enumerate(member.weights):
        for tensor in tensors:
            assert is_in_a_stack(cohort, tensor) == (index in held)
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, "who saves it saves nobody else's weights"
    for layer, operand in zip(cohort.layers, cohort.fused.operands, strict=True):
        if operand.weight is not None:
            (tensor,) = member.weights[operand.weight]
            assert tensor.data_ptr() == layer.of_slot(member.slot).data_ptr()
    assert module.two.weight is module.one.weight
    assert list(module.state_dict()) == list(net(0).state_dict())
    for key, tensor in named_tensors(module).items():
        assert torch.equal(tensor, before[key]), key
    assert not module.own.bias.requires_grad
    assert module.conv.weight.requires_grad


def _check_is_free(cohort: Cohort, module: Net, before: dict[str, Tensor]) -> None:
    for key, tensor in named_tensors(module).items():
        assert torch.equal(tensor, before[key]), key
        assert tensor.stride() == before[key].stride(), key
        assert not is_in_a_stack(cohort, tensor), key
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), key
    assert module.two.weight is module.one.weight


def _check_accounts(cohort: Cohort, present: dict[int, Net]) -> None:
    slots = [member.slot for member in cohort.members.values()]
    assert len(set(slots)) == len(slots)
    for layer, operand in zip(cohort.layers, cohort.fused.operands, strict=True):
        if not present:
            continue
        differs_by = 3 if operand.name == "own.weight" else 2
        assert layer.slab.num_entries == len({name % differs_by for name in present}), operand.name
    if present:
        assert cohort.resident_bytes() == sum(
            layer.slab.num_entries * layer.of_slot(slots[0]).nbytes for layer in cohort.layers
        )


def test_a_leaver_may_be_changed_without_touching_whoever_takes_its_place() -> None:
    cohort = Cohort(captured())
    first, second, third = net(0), net(1), net(2)
    for name, module in (("first", first), ("second", second)):
        cohort.join(name, weights_of(captured(), module))
    slot = cohort.members["first"].slot
    cohort.leave("first")
    cohort.join("third", weights_of(captured(), third))
    assert cohort.members["third"].slot == slot
    reference = [leaves_of(module, INPUTS)[0] for module in (second, third)]
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(float("nan"))
    for module, expected in zip((second, third), reference, strict=True):
        assert torch.equal(leaves_of(module, INPUTS)[0], expected)


def test_shared_layers_are_counted_for_those_who_share() -> None:
    cohort = Cohort(captured())
    for name, module in (("a", net(0, head=0)), ("b", net(0, head=1)), ("c", net(1, head=2))):
        cohort.join(name, weights_of(captured(), module))
    held = len(in_slabs(cohort))
    assert [cohort.shared_layers(name) for name in "abc"] == [held - 1, held - 1, 0]
    cohort.leave("a")
    assert cohort.shared_layers("b") == 0


def test_layers_shared_alike_have_the_same_number() -> None:
    cohort = Cohort(captured())
    for name, module in (("a", net(0, head=0)), ("b", net(0, head=1))):
        cohort.join(name, weights_of(captured(), module))
    numbers = {operand.name: layer.sharing for operand, layer in zip(cohort.fused.operands, cohort.layers, strict=True)}
    head = numbers.pop("own.weight")
    assert len(set(numbers.values())) == 1
    assert head not in numbers.values()


@pytest.fixture(params=["mlp", "gru", "bert", "tied_lm"])
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    yield str(request.param)


def test_tenants_of_the_zoo_cost_little_more_than_their_weights(name: str) -> None:
    cohort = Cohort(zoo_capture(name))
    modules = [build(name, seed) for seed in range(2)]
    for index, module in enumerate(modules):
        cohort.join(str(index), weights_of(zoo_capture(name), module))
    weights = sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))
    outside = sum(
        tensor.nbytes
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
        if not is_in_a_stack(cohort, tensor)
    )
    assert cohort.resident_bytes() + outside <= 1.15 * weights


def test_a_module_that_has_left_has_the_signature_it_came_with(name: str) -> None:
    module = build(name)
    cohort = Cohort(zoo_capture(name))
    cohort.join("tenant", weights_of(zoo_capture(name), module))
    cohort.leave("tenant")
    strides = {key: tensor.stride() for key, tensor in named_tensors(build(name)).items()}
    assert {key: tensor.stride() for key, tensor in named_tensors(module).items()} == strides
    assert all(leaf.isfinite().all() for leaf in leaves_of(module, example(name)))


def test_numbers_of_ways_to_share_are_few_and_never_mean_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort_module, "MOST_WAYS", 4)
    sharing, meant = Sharing(), dict[int, tuple[int, ...]]()
    for index in range(50):
        for way in ((0,), (0, index), (index, 0)):
            assert meant.setdefault(sharing.number(way), way) == way
    assert len(sharing._numbers) <= 4
    assert sharing.number((7, 7)) == sharing.number((7, 7))
