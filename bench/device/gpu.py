"""What the stages share on the GPU: timing with events, streams on partitions, the census of SMs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from spacetime.backends.cuda.driver import CudaDriver
from spacetime.backends.cuda.green import GreenContexts
from spacetime.device import Partition


def at_once(function: Callable[[], None]) -> None:
    """Stages want wanted partitions now."""
    function()


def open_partitions() -> GreenContexts:
    torch.cuda.init()
    torch.zeros(1, device="cuda")  # the primary context exists from here on
    return GreenContexts(CudaDriver(), 0, at_once)


def partition(atoms: int, units_per_atom: int = 8) -> Partition:
    return Partition(atoms, atoms.bit_count() * units_per_atom, atoms.bit_count() * units_per_atom)


def stream_of(contexts: GreenContexts, atoms: int) -> torch.cuda.ExternalStream:
    return torch.cuda.ExternalStream(contexts.acquire(partition(atoms, contexts.units_per_atom)).stream)


def time_us(function: Callable[[], Any], *, repeats: int = 30, warm_up: int = 5, inner: int = 1) -> float:
    """Median device time of a call on the current stream, by events; `inner` calls between two events."""
    for _ in range(warm_up):
        function()
    torch.cuda.synchronize()
    samples = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(inner):
            function()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1000 / inner)
    return statistics.median(samples)


CENSUS = r"""
extern "C" __global__ void census(unsigned int* seen, long long spin_ns) {
  unsigned int sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  if (threadIdx.x == 0) atomicAdd(&seen[sm], 1u);
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - start < spin_ns);
}
"""
MOST_SMS = 256
SPIN_NS = 50_000


class Census:
    """A kernel that records on which SMs its blocks ran. The spin is bounded, so it always ends."""

    def __init__(self) -> None:
        import cupy  # only this machine has it

        self._cupy = cupy
        self._kernel = cupy.RawKernel(CENSUS, "census")
        self._num_blocks = 4 * torch.cuda.get_device_properties(0).multi_processor_count

    def launch(self, stream: torch.cuda.Stream, seen: torch.Tensor) -> None:
        array = self._cupy.ndarray(
            (MOST_SMS,),
            dtype=self._cupy.uint32,
            memptr=self._cupy.cuda.MemoryPointer(self._cupy.cuda.UnownedMemory(seen.data_ptr(), MOST_SMS * 4, seen), 0),
        )
        with self._cupy.cuda.ExternalStream(stream.cuda_stream):
            self._kernel((self._num_blocks,), (128,), (array, SPIN_NS))

    def sms(self, stream: torch.cuda.Stream) -> set[int]:
        """The SMs that the stream's kernels run on."""
        seen = self.fresh()
        torch.cuda.synchronize()
        self.launch(stream, seen)
        torch.cuda.synchronize()
        return self.read(seen)

    def fresh(self) -> torch.Tensor:
        return torch.zeros(MOST_SMS, dtype=torch.int32, device="cuda")

    def read(self, seen: torch.Tensor) -> set[int]:
        return {index for index, count in enumerate(seen.tolist()) if count}


def worst(result: torch.Tensor, reference: torch.Tensor) -> float:
    """max |result - reference| / max |reference|, in float64."""
    exact = reference.double()
    return float((result.double() - exact).abs().max() / exact.abs().max())


def geomean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values)
