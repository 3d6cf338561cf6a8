"""A whole program answers what its modules answer, for any mix of tenants and rows, and any width of registers."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from math import inf
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

from spacetime import zoo
from spacetime.backends.executables import Call, CohortExecutable
from spacetime.capture import slab
from spacetime.capture.selfcheck import TOLERANCE, deviation, magnitude
from spacetime.device import Partition
from spacetime.kernels.vector.host import Host, has_threads, host
from spacetime.kernels.whole.compiled import LONG_STAGE, SPLIT_STAGE
from spacetime.kernels.whole.program import MOST_VECTORS, WholeProgram
from spacetime.plan import Lane, RequestView, Segment
from spacetime.runtime.prepare import Preparer
from tests.kernels.hosts import hosts, on_every_host
from tests.kernels.whole.programs import Random, executable_of, whole_of

pytestmark = pytest.mark.skipif(host() is None, reason="the processor has no fused multiply-add")

Requests = list[tuple[Tensor, ...]]


def agree(whole: WholeProgram, modules: list[nn.Module], slots: list[int], requests: Requests) -> None:
    with torch.no_grad():
        results, backwards = whole.run(slots, requests), whole.run(slots, requests)  # every other run is backwards
        assert all(map(torch.equal, pytree.tree_leaves(results), pytree.tree_leaves(backwards)))
        for slot, request, leaves in zip(slots, requests, results, strict=True):
            expected = pytree.tree_leaves(modules[slot](*request))
            for leaf, reference in zip(leaves, expected, strict=True):
                assert leaf.shape == reference.shape
                scale = magnitude(reference)
                assert deviation(leaf, reference, scale) <= TOLERANCE[torch.float32]


@cache
def zoo_tenants(model: str) -> tuple[list[nn.Module], CohortExecutable]:
    """Three of them."""
    modules = [zoo.build(model, seed) for seed in range(3)]
    return modules, executable_of(modules, zoo.example(model))


@cache
def random_tenants(structure: int) -> tuple[list[nn.Module], CohortExecutable, tuple[int, ...]]:
    """Three of one structure, and the shape of a row."""
    shape = (3, 5 + 7 * structure) if structure % 3 == 0 else (5 + 7 * structure,)
    modules: list[nn.Module] = [Random(structure, seed, shape[-1], depth=8).eval() for seed in range(3)]
    return modules, executable_of(modules, (torch.randn(3, *shape),)), shape


@on_every_host
@pytest.mark.parametrize("structure", range(6))
@settings(max_examples=4)
@given(data=st.data())
def test_any_program(on: Host, structure: int, data: st.DataObject) -> None:
    modules, executable, shape = random_tenants(structure)
    whole = whole_of(executable, on)
    slots = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=5), label="slots")
    rows = [data.draw(st.integers(1, 6), label="rows") for _ in slots]
    agree(whole, modules, slots, [(torch.randn(count, *shape),) for count in rows])


@on_every_host
@pytest.mark.parametrize("model", ["mlp", "gru_cell", "lstm_cell", "gru", "lstm", "recommender", "tied_lm"])
def test_the_small_models_of_the_zoo(on: Host, model: str) -> None:
    modules, executable = zoo_tenants(model)
    whole = whole_of(executable, on)
    for slots, rows in (([1], [1]), ([0, 2, 1], [1, 1, 1]), ([2, 0], [3, 1]), ([1, 1, 0], [2, 1, 5])):
        agree(whole, modules, slots, [zoo.example(model, rows=count) for count in rows])


@pytest.mark.skipif(not has_threads(), reason="PyTorch does not use GNU's OpenMP here")
@pytest.mark.parametrize("num_requests", [1, 2, 3, 5])
@pytest.mark.parametrize("model", ["wide", "lstm_cell", "gru"])
def test_more_threads_give_the_same_bits(model: str, num_requests: int) -> None:
    """Whether they share the requests, or the outputs of every stage."""
    if model == "wide":
        wide = [nn.Sequential(nn.Linear(1100, 1100), nn.Tanh(), nn.Linear(1100, 1003)) for _ in range(3)]
        whole = whole_of(executable_of(wide, (torch.randn(2, 1100),)), hosts()[0])
        requests = [(torch.randn(1 + index % 2, 1100),) for index in range(num_requests)]
    else:
        whole = whole_of(zoo_tenants(model)[1], hosts()[0])
        requests = [zoo.example(model, rows=1 + index % 2) for index in range(num_requests)]
    limits = {"wide": (LONG_STAGE, inf), "lstm_cell": (SPLIT_STAGE, LONG_STAGE), "gru": (0, SPLIT_STAGE)}
    assert limits[model][0] <= whole.script.work_per_stage < limits[model][1]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(whole.run([index % 3 for index in range(num_requests)], requests))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, pytree.tree_leaves(found[0]), pytree.tree_leaves(other)))


@pytest.mark.skipif(not has_threads(), reason="PyTorch does not use GNU's OpenMP here")
def test_a_lone_request_wakes_nobody_on_a_worker() -> None:
    whole = whole_of(zoo_tenants("lstm_cell")[1], hosts()[0])
    asked: list[int] = []
    kernel = whole._kernel

    def watched(num_requests: int, num_threads: int, *tables: int) -> None:
        asked.append(num_threads)
        kernel(num_requests, num_threads, *tables)

    whole._kernel = watched
    one, two = [zoo.example("lstm_cell", rows=1)], [zoo.example("lstm_cell", rows=1)] * 2
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole.run([0], one)
        with ThreadPoolExecutor(1) as worker:
            worker.submit(torch.set_num_threads, 2).result()
            worker.submit(whole.run, [0], one).result()
            worker.submit(whole.run, [0, 1], two).result()
    finally:
        torch.set_num_threads(before)
    assert asked == [2, 1, 2]


def small() -> list[nn.Module]:
    return [Random(3, seed, 9, depth=5).eval() for seed in range(3)]


def test_results_have_memory_of_their_own() -> None:
    whole = whole_of(executable_of(small(), (torch.randn(2, 9),)), hosts()[0])
    results = whole.run([0, 1, 0], [(torch.randn(2, 9),) for _ in range(3)])
    leaves = [leaf for request in results for leaf in request]
    assert len({leaf.untyped_storage().data_ptr() for leaf in leaves}) == len(leaves)
    assert all(leaf.untyped_storage().nbytes() == leaf.nbytes for leaf in leaves)


def test_inputs_are_read_as_they_lie() -> None:
    modules = small()
    whole = whole_of(executable_of(modules, (torch.randn(2, 9),)), hosts()[0])
    wide = torch.randn(9, 8)
    agree(whole, modules, [2, 1, 0], [(wide.t(),), (torch.randn(4, 18)[:, ::2],), (torch.randn(5, 9)[3:],)])


def test_weights_that_move_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slab, "_RESERVE", 1)
    example = (torch.randn(2, 9),)
    modules = small()
    executable = executable_of(modules[:2], example)
    whole = whole_of(executable, hosts()[0])
    agree(whole, modules, [0, 1], [example, example])
    agree(whole, modules, [1, 0], [example, example])  # a mix that is not asked for again
    old = StorageWeakRef(executable.cohort.layers[0].stack.untyped_storage())
    recorded = [[(tensor,) for tensor in _weights(executable, modules[2])]]
    executable.join("2", recorded[0])
    agree(whole, modules, [0, 1], [example, example])
    agree(whole, modules, [2, 0, 1], [example, example, example])
    gc.collect()
    assert old.expired(), "no mix keeps memory that weights have left"
    executable.cohort.leave("0")
    agree(whole, modules, [2, 1], [example, example])


def test_weights_in_another_cohorts_slab_are_found_where_they_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slab, "_RESERVE", 1)
    preparer, example = Preparer(), (torch.randn(2, 128),)
    backbone = nn.Linear(128, 128).state_dict()

    def tenant(name: str, *head: nn.Module) -> tuple[nn.Sequential, CohortExecutable]:
        module = nn.Sequential(nn.Linear(128, 128), *head).eval()
        module[0].load_state_dict(backbone)
        executable = preparer.prepare(name, module, example, exact=False).executable
        assert isinstance(executable, CohortExecutable)
        return module, executable

    _, owner = tenant("first", nn.Tanh())
    guest, executable = tenant("guest", nn.ReLU(), nn.Linear(128, 3))
    whole = whole_of(executable, hosts()[0])
    assert not all(layer.is_stacked() for layer in executable.cohort.layers)
    agree(whole, [guest], [0], [example])
    before = owner.cohort.layers[0].stack.data_ptr()
    for seed in range(3):
        torch.manual_seed(seed)
        backbone = nn.Linear(128, 128).state_dict()
        tenant(f"other{seed}", nn.Tanh())
    assert owner.cohort.layers[0].stack.data_ptr() != before
    guest[0].weight.data.mul_(2)  # the old place still holds what it held
    agree(whole, [guest], [0], [example])


def _weights(executable: Any, module: nn.Module) -> list[Tensor]:
    """In the order of the program, by name."""
    parameters = dict(module.named_parameters())
    return [parameters[weight.name] for weight in executable.cohort.captured.weights]


def test_not_a_number_and_infinity_stay_with_their_row() -> None:
    modules: list[nn.Module] = [nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.LayerNorm(40)) for _ in range(2)]
    whole = whole_of(executable_of(modules, (torch.randn(2, 8),)), hosts()[0])
    bad = torch.randn(3, 8)
    bad[1, 3] = float("nan")
    good = torch.randn(2, 8)
    with torch.no_grad():
        (first,), (second,) = whole.run([0, 1], [(bad,), (good,)])
        torch.testing.assert_close(first, modules[0](bad), equal_nan=True)
        torch.testing.assert_close(second, modules[1](good))
    assert first[1].isnan().all() and not first[[0, 2]].isnan().any()


def test_requests_of_many_rows_are_left_to_blas() -> None:
    whole = whole_of(executable_of(small(), (torch.randn(2, 9),)), hosts()[0])
    assert whole.takes(MOST_VECTORS) and not whole.takes(MOST_VECTORS + 1)
    steps: list[nn.Module] = [nn.Sequential(nn.Linear(4, 6), nn.ReLU())]
    sequences = whole_of(executable_of(steps, (torch.randn(2, 8, 4),)), hosts()[0])
    assert sequences.most_rows == MOST_VECTORS // 8


@pytest.mark.parametrize(
    ("module", "example", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), (torch.randn(2, 3, 5, 5),), "conv"),
        (nn.Linear(4, 4).double(), (torch.randn(2, 4, dtype=torch.float64),), "plain floats"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softplus()), (torch.randn(2, 4),), "softplus"),
        (nn.Linear(4, 4), (torch.randn(2, MOST_VECTORS + 1, 4),), "BLAS"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Unflatten(1, (2, 2)), nn.LayerNorm((2, 2))),
            (torch.randn(2, 4),),
            "norm",
        ),
    ],
)
def test_what_is_not_whole_says_why(module: nn.Module, example: tuple[Tensor, ...], reason: str) -> None:
    whole = executable_of([module], example).whole
    assert isinstance(whole, str) and reason in whole


class Lookups(nn.Module):
    """Embeddings of several ids per row, products of what they give, and picks by an index that is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.register_buffer("picked", torch.tensor([5, 0, 3, 3]))
        self.out = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        found = self.table(ids)
        scores = torch.matmul(found, found.transpose(1, 2)).flatten(1)
        logits: Tensor = self.out(scores.index_select(1, self.picked))
        return logits


def lookups() -> tuple[list[nn.Module], CohortExecutable]:
    modules: list[nn.Module] = []
    for seed in range(2):
        torch.manual_seed(seed)
        modules.append(Lookups())
    return modules, executable_of(modules, (torch.tensor([[1, 2, 3], [4, 5, 6]]),))


@on_every_host
def test_lookups(on: Host) -> None:
    modules, executable = lookups()
    whole = whole_of(executable, on)
    agree(whole, modules, [1, 0, 1], [(torch.randint(0, 11, (rows, 3)),) for rows in (1, 3, 2)])
    agree(whole, modules, [0], [(torch.tensor([[0, 10, 10]]),)])


@pytest.mark.parametrize("bad", [11, -1, 1 << 40, -(1 << 63)])
def test_an_index_that_does_not_exist_fails_for_its_own_request(bad: int) -> None:
    modules, executable = lookups()
    good, wrong = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 3], [0, bad, 0]])
    whole = whole_of(executable, hosts()[0])
    assert whole.run([0, 1], [(good,), (wrong,)]) is None
    requests = tuple(RequestView(index, str(index), rows, 0) for index, rows in enumerate((1, 2)))
    lane = Lane("cohort", requests, (Segment(Partition(1, 1, 1)),), fused=True)
    first, second = executable.run(lane, [Call((good,), (good,)), Call((wrong,), (wrong,))])
    assert isinstance(second.error, IndexError) and first.error is None
    with torch.no_grad():
        torch.testing.assert_close(first.value, modules[0](good))


def test_inputs_unlike_the_example_are_not_read() -> None:
    whole = whole_of(executable_of(small(), (torch.randn(2, 9),)), hosts()[0])
    good = (torch.randn(2, 9),)
    for bad in (torch.randn(2, 8), torch.randn(2, 9).double(), torch.randn(2, 9, 2)):
        assert whole.run([0, 1], [good, (bad,)]) is None


def test_a_processor_without_vector_kernels_says_so() -> None:
    cohort = executable_of(small(), (torch.randn(2, 9),)).cohort
    whole = WholeProgram.of(cohort.fused, cohort.layers, [torch.randn(2, 9)], None)
    assert isinstance(whole, str) and "processor" in whole


def test_the_default_type_of_new_tensors_does_not_matter() -> None:
    modules, before = small(), torch.get_default_dtype()
    whole = whole_of(executable_of(modules, (torch.randn(2, 9),)), hosts()[0])
    request = (torch.randn(2, 9),)
    try:
        torch.set_default_dtype(torch.float64)
        agree(whole, modules, [0], [request])
    finally:
        torch.set_default_dtype(before)
