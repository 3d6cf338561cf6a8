"""The module's own code around its kernels, and its operations that are many kernels here: on planted clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import spacetime as st
from spacetime import zoo
from spacetime.profiler.around import Around, Whole, _timed, wholes
from spacetime.profiler.site import Run, Sample
from spacetime.profiler.source import Source, recall
from tests.profiler.fakes import FakeSite, law

EMPTY_US, KERNEL_US, BETWEEN_US = 40.0, 3.0, 2.0  # a call without rows; a kernel, and the code before it, then
SLOWER = 4.0  # the straight function's code among kernels that have something to do


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Steady(nn.Module):
    """Two layers; calling it takes time that the test plants."""

    def __init__(self, spend: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)
        self.spend = spend

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.spend(x)
        return self.second(self.first(x))


def source_of(module: nn.Module, example: tuple[torch.Tensor, ...]) -> Source:
    described = st.capture(module.eval(), example)
    return replace(recall(described), module=module)


class PlantedSite(FakeSite):
    """Straight runs take what is planted; the module spends its own."""

    def __init__(self) -> None:
        super().__init__((1,), law(0, 1.0))
        self.rows: list[int] = []

    def time_run(self, run: Run, num_kernels: int) -> list[Sample]:
        rows = run.args[0][-1].shape[0]  # type: ignore[attr-defined]
        self.rows.append(rows)
        slower = SLOWER if rows else 1.0
        kernels = [Sample(KERNEL_US * (100 if rows else 1), False)] * num_kernels
        return [*kernels, Sample(BETWEEN_US * num_kernels * slower, False)]


def planted(site: PlantedSite) -> Source:
    def spend(x: torch.Tensor) -> None:
        site.time_us += EMPTY_US if x.shape[0] == 0 else 1e6

    module = Steady(lambda x: None)
    found = source_of(module, (torch.rand(2, 4),))
    module.spend = spend
    return found


def test_code_is_what_no_kernel_does_without_rows_as_slow_as_among_kernels() -> None:
    """And the module's latency with rows plays no part: it would be no prediction."""
    site = PlantedSite()
    samples = planted(site).time(3, site)
    assert [sample.us for sample in samples[:-1]] == [KERNEL_US * 100] * 2
    assert samples[-1].us == pytest.approx((EMPTY_US - 2 * KERNEL_US) * SLOWER)
    assert not samples[-1].disturbed and site.time_us < 1e6
    assert site.rows == [3, 3, 0, 0]  # the first of each finds the caches as other work left them


def test_a_module_quicker_than_its_kernels_has_no_negative_code() -> None:
    site = PlantedSite()
    found = planted(site)
    found.module.spend = lambda x: None  # type: ignore[union-attr]
    assert found.time(3, site)[-1].us == 0.0


def test_interrupted_code_is_told_apart() -> None:
    site = PlantedSite()
    counts = iter(range(1000))
    site.interruptions = lambda: next(counts)  # type: ignore[method-assign]
    *kernels, code = planted(site).time(3, site)
    assert code.disturbed and not any(sample.disturbed for sample in kernels)


def test_without_its_module_a_program_has_what_a_straight_run_has() -> None:
    site = PlantedSite()
    found = replace(planted(site), module=None)
    assert not found.has_code and found.wholes == ()
    assert found.time(3, site)[-1].us == BETWEEN_US * 2 * SLOWER
    assert site.rows == [3]


def test_a_module_that_refuses_to_have_no_rows_is_left_alone() -> None:
    class Strict(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).view(x.shape[0], -1)  # ambiguous for no rows

    found = source_of(Strict(4, 2), (torch.rand(2, 4),))
    assert not found.has_code and found.wholes == ()
    assert len(found.time(2, PlantedSite())) == 2


def test_a_device_behind_the_host_hides_the_modules_code() -> None:
    found = source_of(nn.Linear(4, 2), (torch.rand(2, 4),))
    assert found.has_code and not found.without_code().has_code


# -- whole operations -------------------------------------------------------------------------------------


class Stacked(nn.Module):
    """An operation of many kernels between two others, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.sequence, self.cell = nn.Linear(3, 4), nn.GRU(4, 4, batch_first=True), nn.GRUCell(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = self.sequence(self.enter(x))[0][:, -1]
        return self.head(self.cell(self.cell(last)))


@pytest.fixture(scope="module")
def stacked() -> Source:
    return source_of(Stacked(), (torch.rand(2, 5, 3),))


def test_every_call_of_one_operation_is_found_with_its_kernels(stacked: Source) -> None:
    found = wholes(stacked._steps)
    assert found is not None
    assert [each.path for each in found] == ["sequence", "cell", "cell"]
    assert found[0].first == 1 and found[-1].last == len(stacked.kernel_nodes) - 2
    assert all(one.last + 1 == other.first for one, other in pairwise(found))
    assert wholes(source_of(zoo.build("mlp"), zoo.example("mlp"))._steps) == ()


def test_kernels_of_others_among_those_of_an_operation_leave_it_apart(stacked: Source) -> None:
    steps = [step for step in stacked._steps if step.kernel is not None]
    inside = wholes(steps)
    assert inside
    assert wholes([step for step in steps if step.kernel != inside[0].first + 1]) is None


def test_whole_operations_are_timed_where_the_module_calls_them(stacked: Source) -> None:
    site = FakeSite((1,), law(0, 1.0))
    ticks = iter(float(tick) for tick in range(100_000))
    site.now_us = lambda: next(ticks)  # type: ignore[method-assign]
    samples = stacked.time(2, site)
    assert len(samples) == len(stacked.kernel_nodes) + 1 + 3
    assert [sample.us for sample in samples[-3:]] == [1.0] * 3  # from one tick to the next
    assert stacked.wholes == tuple((each.first, each.last) for each in wholes(stacked._steps) or ())


def test_a_module_is_left_as_it_was() -> None:
    module, spans = nn.GRUCell(2, 2), list[float]()
    own = module.forward
    with pytest.raises(ZeroDivisionError), _timed(module, lambda: 1.0, spans):
        module(torch.zeros(1, 2))
        raise ZeroDivisionError
    assert spans == [0.0] and "forward" not in vars(module)
    vars(module)["forward"] = own  # somebody else's
    with _timed(module, lambda: 1.0, spans):
        assert vars(module)["forward"] is not own
    assert vars(module)["forward"] is own


def test_a_module_that_skips_an_operation_without_rows_is_left_alone(stacked: Source) -> None:
    around = stacked._around
    assert around is not None
    missing = (*around.wholes, Whole("cell", 90, 91))
    assert Around.of(around.module, around.in_spec, missing, stacked.example) is None
