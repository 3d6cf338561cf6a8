"""On which SMs do the kernels of a partition really run? Used by the doctor, in a process of its own, and by bench/.

A green context says how many SMs it was granted; a kernel that writes down %smid proves where it ran. The kernel's
spin is bounded, so it always ends. Needs cupy to compile it.

python -m spacetime.backends.cuda.census [DEVICE]    the survey of all partitions of the menu, as JSON
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from spacetime.backends.cuda.driver import CudaDriver
from spacetime.backends.cuda.green import GreenContexts, menu
from spacetime.device import Partition
from spacetime.errors import SpacetimeError
from spacetime.values import Value

KERNEL = r"""
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
TOLERATED_EXTRA_SMS = 2  # the guide allows dynamic parallelism to borrow some


class CensusError(SpacetimeError, RuntimeError):
    """The kernel cannot be made here."""


@dataclass(frozen=True, slots=True)
class Survey(Value):
    """What was found on one device. No problems: every partition is confined to SMs of its own."""

    num_atoms: int
    units_per_atom: int
    num_partitions: int  # that were looked at, the whole device among them
    whole_sms: int  # that kernels of the whole device were seen on
    problems: tuple[str, ...]


class Census:
    """The kernel. `launch` puts it on a stream, and may be captured; `sms` waits for it."""

    def __init__(self, device: int = 0) -> None:
        try:
            cupy: Any = import_module("cupy")  # optional: it brings a compiler for kernels
        except ImportError as error:
            raise CensusError("the census needs cupy", str(error), "pip install cupy-cuda13x") from error
        self._cupy = cupy
        self._device = torch.device("cuda", device)
        self._kernel = cupy.RawKernel(KERNEL, "census")
        self._num_blocks = 4 * torch.cuda.get_device_properties(device).multi_processor_count

    def launch(self, stream: torch.cuda.Stream, seen: torch.Tensor) -> None:
        memory = self._cupy.cuda.UnownedMemory(seen.data_ptr(), MOST_SMS * 4, seen)
        pointer = self._cupy.cuda.MemoryPointer(memory, 0)
        array = self._cupy.ndarray((MOST_SMS,), dtype=self._cupy.uint32, memptr=pointer)
        with self._cupy.cuda.Device(self._device.index), self._cupy.cuda.ExternalStream(stream.cuda_stream):
            self._kernel((self._num_blocks,), (128,), (array, SPIN_NS))

    def sms(self, stream: torch.cuda.Stream) -> set[int]:
        """The SMs that the stream's kernels run on."""
        seen = self.fresh()
        torch.cuda.synchronize(self._device)
        self.launch(stream, seen)
        torch.cuda.synchronize(self._device)
        return self.read(seen)

    def fresh(self) -> torch.Tensor:
        return torch.zeros(MOST_SMS, dtype=torch.int32, device=self._device)

    def read(self, seen: torch.Tensor) -> set[int]:
        return {index for index, count in enumerate(seen.tolist()) if count}


def survey(num_atoms: int, units_per_atom: int, sms_of: Callable[[int], set[int]]) -> Survey:
    """`sms_of` tells where kernels of a partition (a mask of atoms) were seen; asked once for each of the menu."""
    atoms = [sms_of(1 << atom) for atom in range(num_atoms)]
    problems = [
        f"atoms {first} and {second} share SMs {sorted(atoms[first] & atoms[second])}"
        for second in range(num_atoms)
        for first in range(second)
        if atoms[first] & atoms[second]
    ]
    whole, masks = (1 << num_atoms) - 1, menu(num_atoms)
    everything = atoms[0]
    for mask in masks:
        if mask.bit_count() == 1 and mask != whole:
            found, expected = atoms[mask.bit_length() - 1], units_per_atom
            if len(found) != expected:
                problems.append(f"atom {mask.bit_length() - 1} has {len(found)} SMs, {expected} were granted")
            continue
        found = sms_of(mask)
        inside = {sm for atom in range(num_atoms) if mask >> atom & 1 for sm in atoms[atom]}
        if mask == whole:
            everything = found
        elif len(found - inside) > TOLERATED_EXTRA_SMS:
            problems.append(f"partition {mask:#x} ran on {len(found - inside)} SMs outside of it")
        if inside - found:
            problems.append(f"partition {mask:#x} left {len(inside - found)} of its {len(inside)} SMs unused")
    return Survey(num_atoms, units_per_atom, len(masks), len(everything), tuple(problems))


def take(device: int = 0) -> Survey:
    """The survey of a real device."""
    torch.cuda.init()
    torch.zeros(1, device=torch.device("cuda", device))  # the primary context exists from here on
    census, contexts = Census(device), GreenContexts(CudaDriver(), device, _at_once)

    def sms_of(mask: int) -> set[int]:
        units = mask.bit_count() * contexts.units_per_atom
        grant = contexts.acquire(Partition(mask, units, units))
        return census.sms(torch.cuda.ExternalStream(grant.stream, device=torch.device("cuda", device)))

    return survey(contexts.num_atoms, contexts.units_per_atom, sms_of)


def _at_once(function: Callable[[], None]) -> None:
    function()


def main(arguments: list[str]) -> None:
    """Exits with 2 when there can be no census here."""
    try:
        print(take(int(arguments[0]) if arguments else 0).to_json())
    except SpacetimeError as error:
        print(f"{error.what}: {error.facts}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
