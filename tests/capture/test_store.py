"""The store: large weights of unlike programs lie in one place, whoever comes and goes; everybody keeps their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spacetime.backends.executables import CohortExecutable
from spacetime.capture import slab
from spacetime.capture.cohort import Cohort
from spacetime.capture.fuse import Step
from spacetime.capture.layer import Layer
from spacetime.capture.program import Captured
from spacetime.capture.selfcheck import problem
from spacetime.capture.store import LEAST_BYTES, Store, read_by_entry
from spacetime.kernels import RowMap
from tests.capture.sketches import draw
from tests.capture.tenants import capture, leaves_of, lies_in, named_tensors, weights_of

INPUTS = draw(((3, 4, 4),), 2, seed=0)
HEADS = (2, 5)  # classes: an architecture each
SHAREABLE = ("body.conv.weight", "body.one.weight", "body.two.weight", "head.weight")


class Body(nn.Module):
    """Two linears of one shape, so that contents may meet inside of a program, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        result: Tensor = self.two(self.one(x).tanh())
        return result


class Headed(nn.Module):
    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x))
        return result


def headed(kind: int, seed: int, body: nn.Module | None = None) -> Headed:
    """Modules of one seed have one body; in seed 2 its linears are equal. Heads are of one seed as well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Headed(Body() if body is None else body, HEADS[kind]).eval()
        if seed == 2:
            module.body.two.load_state_dict(module.body.one.state_dict())
    return module


@cache
def captured(kind: int) -> Captured:
    return capture(headed(kind, 0), INPUTS)


class House:
    """Two cohorts and one store; slabs that grow all the time."""

    def __init__(self) -> None:
        self.store = Store(least_bytes=1)
        self.executables = [CohortExecutable(Cohort(captured(kind), store=self.store), {}) for kind in range(2)]
        self.present: dict[str, Headed] = {}
        self.kinds: dict[str, int] = {}
        self.before: dict[str, dict[str, Tensor]] = {}

    def add(self, name: str, kind: int, module: Headed) -> None:
        self.present[name], self.kinds[name] = module, kind
        self.before[name] = {key: tensor.detach().clone() for key, tensor in named_tensors(module).items()}
        self.executables[kind].join(name, weights_of(captured(kind), module))

    def remove(self, name: str) -> Headed:
        self.executables[self.kinds[name]].cohort.leave(name)
        return self.present.pop(name)

    def slabs(self) -> list[slab.Slab]:
        layers = [layer for executable in self.executables for layer in executable.cohort.layers if layer.entries]
        return [layer.slab for layer in layers if layer.name in SHAREABLE]

    def check(self) -> None:
        """Everybody has the weights they came with, and every content lies in one place."""
        contents = set[tuple[object, ...]]()
        for name, module in self.present.items():
            for key, tensor in named_tensors(module).items():
                assert torch.equal(tensor, self.before[name][key]), (name, key)
                if key in SHAREABLE:
                    contents.add((key == "body.conv.weight", tensor.shape, *tensor.detach().flatten().tolist()))
        assert sum(found.num_stored for found in self.slabs()) == len(contents) == self.store.num_contents
        for executable in self.executables:
            cohort = executable.cohort
            for member in cohort.members.values():
                for layer, operand in zip(cohort.layers, cohort.fused.operands, strict=True):
                    if layer.name in SHAREABLE and operand.weight is not None:
                        (tensor,) = member.weights[operand.weight]
                        assert tensor.data_ptr() == layer.of_slot(member.slot).data_ptr()

    def check_answers(self) -> None:
        """A lane of all members of a cohort answers as they do."""
        for executable in self.executables:
            members = sorted(executable.cohort.members.values(), key=lambda member: member.slot)
            if members:
                slots = tuple([member.slot for member in members])
                with torch.no_grad():
                    batch = torch.cat([INPUTS[0]] * len(members))
                    (result,) = executable.run_any(RowMap(slots, (2,) * len(slots)), [batch])
                for member, own in zip(members, result.split(2), strict=True):
                    assert problem([own], leaves_of(self.present[member.name], INPUTS)) is None


@pytest.fixture
def house() -> Iterator[House]:
    with patch.object(slab, "_RESERVE", 1):
        yield House()


@settings(max_examples=8)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 1)), max_size=12))
def test_any_order_of_joining_and_leaving_stores_every_content_once(steps: list[tuple[int, int, int]]) -> None:
    """Who is present leaves, who is not joins: an architecture, a seed of the weights, and one of two alike."""
    with patch.object(slab, "_RESERVE", 1), patch.object(slab, "_SPARSE", 1):  # compact wherever somebody has left
        house = House()
        for kind, seed, twin in steps:
            name = f"{kind}/{seed}/{twin}"
            if name in house.present:
                module = house.remove(name)
                for key, tensor in named_tensors(module).items():
                    assert torch.equal(tensor, house.before[name][key])
                    assert not any(lies_in(tensor, found.stack) for found in house.slabs()), key
                for executable in house.executables:
                    executable.cohort.compact()
            else:
                house.add(name, kind, headed(kind, seed))
            house.check()
        house.check_answers()
        for name in list(house.present):
            house.remove(name)
        assert house.store.num_contents == 0


def test_who_leaves_first_hands_the_weights_to_the_other(house: House) -> None:
    house.add("a", 0, headed(0, 0))
    house.add("b", 1, headed(1, 0))
    there, here = (executable.cohort for executable in house.executables)
    common = 4 * (4 * 3 * 9 + 2 * 16)
    assert here.guest_bytes() == {there.program.signature: common} and there.guest_bytes() == {}
    assert there.resident_bytes() - here.resident_bytes() == common + 4 * (HEADS[0] - HEADS[1]) * 5
    assert there.shared_layers("a") == 3
    house.remove("a")
    assert here.guest_bytes() == {} and here.shared_layers("b") == 0
    assert len(house.store.take_vacated()) == 3 and house.store.take_vacated() == []
    house.check()


def test_a_slab_that_grows_moves_the_parameters_of_guests(house: House) -> None:
    house.add("a", 0, headed(0, 0))
    module = headed(1, 0)
    house.add("b", 1, module)
    address = module.body.one.weight.data_ptr()
    house.add("c", 0, headed(0, 1))
    assert module.body.one.weight.data_ptr() != address
    house.check()


def test_modules_that_are_one_object_in_parts_stay_so(house: House) -> None:
    body = Body().eval()
    house.add("a", 0, headed(0, 0, body))
    house.add("b", 1, headed(1, 0, body))
    house.check()
    house.remove("a")
    house.check()
    house.check_answers()
    house.remove("b")
    assert torch.equal(body.one.weight, house.before["a"]["body.one.weight"])


def test_members_with_weights_of_their_own_are_still_one_batched_product(house: House) -> None:
    for index in range(3):
        house.add(f"a{index}", 0, headed(0, index))
        house.add(f"b{index}", 1, headed(1, index + 3))
    for executable in house.executables:
        layers = {layer.name: layer for layer in executable.cohort.layers}
        layer = layers["body.one.weight"]
        rows = RowMap((0, 1, 2), (2, 2, 2))
        assert rows.layout(layer).block and layer.is_stacked(0, 3)


def test_what_lies_elsewhere_is_not_read_from_the_stack() -> None:
    store, weight, other = Store(least_bytes=1), torch.randn(4, 4), torch.randn(4, 4)
    one, two = (Layer("weight", store=store, owner=owner) for owner in ("one", "two"))
    one.put(0, weight)
    two.put(0, other)
    two.put(1, weight)
    assert two.entries == [0, 1] and two.is_stacked(0, 1) and not two.is_stacked(0, 2)
    assert two.entry(1).data_ptr() == one.entry(0).data_ptr()
    one.drop(0)
    assert two.is_stacked(0, 2) and torch.equal(two.stack[1], weight)
    assert one.slab.num_entries == 0


@pytest.mark.parametrize("change", ["dtype", "order", "content", "small"])
def test_what_is_not_shared(change: str) -> None:
    store = Store()
    side = 8 if change == "small" else 128
    weight = torch.randn(4, 4, side, side // 2) if change == "order" else torch.randn(side, side)
    assert change == "small" or weight.nbytes >= LEAST_BYTES
    other = weight.double() if change == "dtype" else weight.clone()
    if change == "content":
        other[0, 1] += 1
    one, two = Layer("one", store=store), Layer("two", store=store, channels_last=change == "order")
    one.put(0, weight)
    two.put(0, other)
    assert two.slab.num_stored == 1 and not two.is_shared(0)


def test_without_a_store_every_cohort_keeps_its_own(house: House) -> None:
    house.add("a", 0, headed(0, 0))
    cohort = Cohort(captured(1))
    cohort.join("b", weights_of(captured(1), headed(1, 0)))
    assert cohort.guest_bytes() == {} and house.executables[0].cohort.shared_layers("a") == 0


def test_only_what_kernels_read_entry_by_entry_may_lie_elsewhere() -> None:
    """Biases, norms and other weights that are gathered by row stay in their own stack."""
    program = Cohort(captured(0)).fused
    assert {program.operands[index].name for index in read_by_entry(program)} == set(SHAREABLE)
    weight = next(step.operands[0] for step in program.steps if step.target == "linear")
    both = replace(program, steps=(*program.steps, Step("more", "gather", operands=(weight,))))
    assert read_by_entry(program) - read_by_entry(both) == {weight.index if weight else -1}
