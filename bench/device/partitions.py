"""Stages on partitions: are they where they claim to be, does everything stay inside, what do they cost?"""

from __future__ import annotations

import time

import torch

from bench.device.findings import INFO, PASS, Notes
from bench.device.gpu import Census, grant_of, open_partitions, scattered, stream_of, time_us, worst
from spacetime.backends.cuda.driver import CudaDriver
from spacetime.backends.cuda.green import menu
from spacetime.errors import SpacetimeError

TOLERATED_EXTRA_SMS = 2  # the guide allows dynamic parallelism to borrow some


def resources(notes: Notes) -> None:
    """SM counts, groups for splits by 8 and by 2, what the driver grants for every size asked."""
    torch.cuda.init()
    driver = CudaDriver()
    torch.zeros(1, device="cuda")
    everything = driver.sm_resource(0)
    notes.note("SMs", INFO, units=driver.num_units(everything))
    for size in (2, 4, 8, 16, 32, 64):
        with notes.trying(f"split by {size}"):
            split = driver.split(everything, size)
            remainder = 0 if split.remainder is None else driver.num_units(split.remainder)
            sizes = [driver.num_units(group) for group in split.groups]
            notes.note(f"split by {size}", INFO, groups=len(sizes), sizes=sorted(set(sizes)), remainder=remainder)


def census(notes: Notes) -> None:
    """Every partition of the menu, some unions and the whole: which SMs do their kernels really run on?"""
    start_s = time.monotonic()
    contexts = open_partitions()
    notes.note("menu", INFO, contexts=len(menu(contexts.num_atoms)), seconds=round(time.monotonic() - start_s, 3))
    census = Census()
    atoms_of: dict[int, set[int]] = {}
    for atom in range(contexts.num_atoms):
        atoms_of[atom] = census.sms(stream_of(contexts, 1 << atom))
    sizes = [len(sms) for sms in atoms_of.values()]
    together = set().union(*atoms_of.values())
    notes.check(
        "atoms are disjoint", sum(sizes) == len(together), sizes=sizes, sms=sorted(map(sorted, atoms_of.values()))
    )
    odd = [part[-1] for mask in (0b101, 0b1001_0001, 0b0101_0101_0101) if (part := scattered(contexts, mask))]
    unions = [*menu(contexts.num_atoms), *odd]
    bad = []
    for mask in unions:
        expected = set().union(*(sms for atom, sms in atoms_of.items() if mask >> atom & 1))
        found = census.sms(stream_of(contexts, mask))
        extra = len(found - expected)
        is_whole = mask == (1 << contexts.num_atoms) - 1
        if (extra > TOLERATED_EXTRA_SMS and not is_whole) or expected - found:
            bad.append(f"{mask:#x}: {len(found)} SMs, {extra} outside, {len(expected - found)} unused")
    notes.check("every partition is confined", not bad, "; ".join(bad[:5]), partitions=len(unions), wrong=len(bad))
    whole = (1 << contexts.num_atoms) - 1
    notes.note("the whole", INFO, sms=len(census.sms(stream_of(contexts, whole))), of=contexts.num_units)
    notes.note("the primary context", INFO, sms=len(census.sms(torch.cuda.Stream())))


def confinement(notes: Notes) -> None:
    """Do torch's own kernels stay inside? Their time on 1, 2, 4, 8 and all atoms must scale, and results be equal."""
    contexts = open_partitions()
    sizes = [size for size in (1, 2, 4, 8, 15, contexts.num_atoms) if size <= contexts.num_atoms]
    a, b = (torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    image = torch.randn(16, 64, 112, 112, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    conv = torch.nn.Conv2d(64, 64, 3, padding=1, device="cuda", dtype=torch.bfloat16).to(
        memory_format=torch.channels_last
    )
    copied = torch.empty(1 << 28, device="cuda", dtype=torch.uint8)
    other = torch.empty_like(copied)
    works = {
        "matmul 4096 bf16": lambda: torch.mm(a, b),
        "conv 3x3 64 bf16": lambda: conv(image),
        "copy 256 MiB": lambda: other.copy_(copied),
    }
    with torch.no_grad():
        for name, work in works.items():
            with notes.trying(name):
                times = {}
                for size in sizes:
                    stream = stream_of(contexts, (1 << size) - 1)
                    with torch.cuda.stream(stream):
                        times[size * contexts.units_per_atom] = round(time_us(work, repeats=7, warm_up=2), 1)
                units, us = list(times), list(times.values())
                scaled = us[0] / us[1]
                notes.check(
                    f"{name} is confined",
                    name.startswith("copy") or scaled > 1.6,
                    us_by_units=times,
                    first_doubling=round(scaled, 2),
                    units=units,
                )


def numerics(notes: Notes) -> None:
    """Results at every size of the menu against the whole device and float64."""
    contexts = open_partitions()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False  # torch allows it
    x, w = torch.randn(37, 1000, device="cuda"), torch.randn(513, 1000, device="cuda")
    slab, rows = torch.randn(24, 256, 512, device="cuda"), torch.randn(24, 3, 512, device="cuda")
    image = torch.randn(3, 32, 28, 28, device="cuda")
    kernel = torch.randn(48, 32, 3, 3, device="cuda")
    works = {
        "linear": (lambda: x @ w.T, x.double() @ w.double().T),
        "bmm": (lambda: torch.bmm(rows, slab.transpose(1, 2)), torch.bmm(rows.double(), slab.double().transpose(1, 2))),
        "conv2d": (
            lambda: torch.nn.functional.conv2d(image, kernel),
            torch.nn.functional.conv2d(image.double(), kernel.double()),
        ),
        "softmax": (lambda: x.softmax(-1), x.double().softmax(-1)),
    }
    torch.cuda.synchronize()
    for name, (work, reference) in works.items():
        found = {}
        for mask in menu(contexts.num_atoms):
            stream = stream_of(contexts, mask)
            with torch.cuda.stream(stream):
                result = work()
            torch.cuda.synchronize()
            found[mask] = worst(result, reference)
        largest = max(found.values())
        wrong = [f"{mask:#x}: {value:.1e}" for mask, value in found.items() if value > 1e-5]
        notes.check(f"{name} on every partition", not wrong, "; ".join(wrong[:5]), worst=largest, partitions=len(found))


def many_contexts(notes: Notes) -> None:
    """Create contexts until something gives way: time and memory of each, and the first error."""
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    driver = CudaDriver()
    split = driver.split(driver.sm_resource(0), 8)
    made = []
    free_before = torch.cuda.mem_get_info()[0]
    marks = {1, 2, 4, 8, 16, 31, 64, 128, 256}
    start_s = time.monotonic()
    for number in range(1, 257):
        try:
            context = driver.create_context(0, [split.groups[number % len(split.groups)]])
            stream = driver.create_stream(context, 0)
        except SpacetimeError as error:
            notes.note("first refusal", INFO, str(error), contexts=number - 1)
            break
        made.append((context, stream))
        if number in marks:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
                torch.ones(8, device="cuda").add_(1)
            torch.cuda.synchronize()
            used = (free_before - torch.cuda.mem_get_info()[0]) / number / 2**20
            seconds = (time.monotonic() - start_s) / number
            notes.note(f"{number} contexts", INFO, mib_each=round(used, 2), ms_each=round(seconds * 1000, 2))
    for context, stream in made:
        driver.destroy_stream(stream)
        driver.destroy_context(context)
    notes.note("destroyed", PASS, contexts=len(made))


def unions(notes: Notes) -> None:
    """Unions that are on no menu: are they made, and how long does that take?"""
    contexts = open_partitions()
    times, smaller = [], []
    for mask in scattered(contexts, 0b100101)[:8]:
        start_s = time.monotonic()
        grant = grant_of(contexts, mask)
        times.append(round((time.monotonic() - start_s) * 1000, 2))
        if grant.atoms != mask:
            smaller.append(f"{mask:#x} became {grant.atoms:#x}")
    facts = "; ".join([*smaller, *map(str, contexts.refused.values())]).replace("\n", " ")[:300]
    notes.check("unions are made", not smaller, facts, ms=times)


__all__ = ["census", "confinement", "many_contexts", "numerics", "resources", "unions"]
