"""Partitions where the driver has them, plain streams with the reason where it has not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spacetime.backends.cuda.driver import DriverError
from spacetime.backends.cuda.gpu import Facts
from spacetime.backends.cuda.green import WHOLE_STREAMS, GreenContexts
from spacetime.backends.cuda.streams import PlainStreams, open_partitions
from spacetime.device import Partition
from spacetime.errors import PartitionError
from tests.backends.cuda.fake_driver import FakeDriver
from tests.backends.cuda.fake_gpu import FakeGpu

WHOLE = Partition(1, 132, 132)


def facts(kind: str = "cuda") -> Facts:
    return Facts("Fake", kind, 132, 1 << 37, 50 << 20, None, None)


def now(function: Callable[[], None]) -> None:
    function()


def test_green_contexts_where_they_are() -> None:
    driver = FakeDriver()
    found = open_partitions(FakeGpu(driver), facts(), now, lambda: driver)
    assert isinstance(found, GreenContexts) and found.confines and found.reason == ""
    assert (found.num_units, found.units_per_atom) == (132, 8)
    found.close()


def refuse() -> FakeDriver:
    raise DriverError("this driver has no green contexts", "it supports CUDA 12.2, they need 12.4", "update it")


def split_unevenly() -> FakeDriver:
    class Uneven(FakeDriver):
        def num_units(self, resource: frozenset[int]) -> int:
            return len(resource) + (0 in resource and len(resource) == 8)

    return Uneven()


@pytest.mark.parametrize(
    ("kind", "driver", "reason"),
    [
        ("cuda", refuse, "this driver has no green contexts: it supports CUDA 12.2"),
        ("cuda", lambda: FakeDriver(most_contexts=3), "cuGreenCtxCreate failed: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuda", split_unevenly, "split into groups of [8, 9] SMs"),
        ("hip", FakeDriver, "green contexts are NVIDIA's"),
    ],
)
def test_plain_streams_with_the_reason_where_they_are_not(
    kind: str, driver: Callable[[], FakeDriver], reason: str
) -> None:
    found = open_partitions(FakeGpu(), facts(kind), now, driver)
    assert isinstance(found, PlainStreams) and not found.confines
    assert reason in found.reason
    assert found.num_units == found.units_per_atom == 132, "one atom: nobody is promised what he does not get"


def test_other_errors_are_not_swallowed() -> None:
    def broken() -> FakeDriver:
        raise KeyError("a defect of ours")

    with pytest.raises(KeyError):
        open_partitions(FakeGpu(), facts(), now, broken)


def test_plain_streams_are_shared_evenly() -> None:
    gpu = FakeGpu()
    streams = PlainStreams(gpu, 132, "why")
    before = list(gpu.created)
    grants = [streams.acquire(WHOLE) for _ in range(2 * WHOLE_STREAMS)]
    assert sorted(grants.count(grant) for grant in set(grants)) == [2] * WHOLE_STREAMS
    assert grants[0].units == 132 and gpu.created == before
    streams.release(grants[3])
    assert streams.acquire(WHOLE).stream == grants[3].stream, "the one with the fewest lanes"


def test_captures_have_streams_of_their_own() -> None:
    gpu = FakeGpu()
    streams = PlainStreams(gpu, 132, "why")
    lanes = {streams.acquire(WHOLE).stream for _ in range(WHOLE_STREAMS)}
    first, second = streams.lease(1), streams.lease(1)
    assert first is not None and second is not None
    assert len({first.stream, second.stream} | lanes) == WHOLE_STREAMS + 2
    streams.give_back(first)
    assert streams.lease(1) == first
    streams.close()


def test_atoms_off_the_device_are_refused_everywhere() -> None:
    driver = FakeDriver()
    found = open_partitions(FakeGpu(driver), facts(), now, lambda: driver)
    with pytest.raises(PartitionError):
        found.acquire(Partition(1 << 20, 8, 8))
    with pytest.raises(PartitionError):
        found.lease(0)
