"""Stage on first contact: every call of the driver and of torch that the backend stands on, alone and in its order.

Small and fast, so it comes before anything that needs them together: when a later stage fails, this one says which
call it was. Each probe has a finding of its own; one that breaks the context ends none of the others (restart.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from bench.device.findings import Notes
from bench.device.restart import Case, each
from spacetime.backends.cuda.driver import CudaDriver, Driver
from spacetime.backends.cuda.gpu import Gpu, TorchGpu
from spacetime.backends.cuda.green import ATOM_UNITS
from spacetime.kernels import triton as triton_kernels

Figures = dict[str, Any]
BUSY_CYCLES = 20_000_000  # about ten milliseconds
PATIENCE_S = 10


class Contact:
    """Two disjoint partitions, made with as few calls as there are: nothing here is shared with green.py.

    Without a driver two plain streams take their place: most probes ask what does not need partitions.
    """

    def __init__(self, gpu: Gpu, driver: Driver | None) -> None:
        self.gpu, self.driver = gpu, driver
        self.contexts: list[Any] = []
        if driver is None:
            self.streams = [gpu.new_stream(), gpu.new_stream()]
            return
        groups = driver.split(driver.sm_resource(gpu.index), ATOM_UNITS).groups
        half = len(groups) // 2
        self.contexts = [driver.create_context(gpu.index, part) for part in (groups[:half], groups[half:])]
        self.streams = [gpu.stream(driver.create_stream(context, 0)) for context in self.contexts]

    def under(self, work: Callable[[], Any], index: int = 0) -> Any:
        """Its result: behind what the calling thread has put on its stream, and after all of it has ended."""
        self.gpu.finish()
        stream = self.streams[index]
        with self.gpu.under(stream):
            result = work()
            event = self.gpu.event()
            event.record(stream)
        event.synchronize()
        return result


def contact(notes: Notes) -> None:
    """One finding per probe."""
    probes = first_contact(notes, TorchGpu(), CudaDriver)
    cases: list[Case] = [(name, partial(probe, probes)) for name, probe in PROBES.items()]
    each(notes, "contact", cases)


def first_contact(notes: Notes, gpu: Gpu, driver: Callable[[], Driver]) -> Contact:
    """With partitions; or without, and the finding says which call it was that refused them."""
    try:
        return Contact(gpu, driver())
    except Exception as error:  # also what is no error of ours, such as a call with another signature
        facts = f"{type(error).__name__}: {error}; the rest is asked on plain streams"
        notes.check("two disjoint partitions", False, facts.replace("\n", " "))
        return Contact(gpu, None)


# -- partitions, streams, events ---------------------------------------------------------------------------


def _facts(on: Contact) -> Figures:
    facts = on.gpu.facts()
    assert facts.flops_per_unit_us and facts.bytes_per_us, f"torch does not tell the card's clocks: {facts}"
    return {"card": str(facts), "free_bytes": on.gpu.free_bytes()}


def _whole(on: Contact) -> Figures:
    """The unsplit resource, which is what the partition of the whole device is made of."""
    assert on.driver is not None, "there are no partitions"
    context = on.driver.create_context(on.gpu.index, [on.driver.sm_resource(on.gpu.index)])
    units = on.driver.context_units(context)
    on.driver.destroy_stream(on.driver.create_stream(context, 0))
    on.driver.destroy_context(context)
    assert units == on.gpu.facts().num_units, units
    return {"units": units, "halves": [on.driver.context_units(each) for each in on.contexts]}


def _events(on: Contact) -> Figures:
    """An event of the primary context on partitions' streams, recorded again and again, in both directions."""
    counter = torch.zeros(1, device=on.gpu.torch_device)
    on.gpu.finish()
    event, back = on.gpu.event(), on.gpu.event()
    for _ in range(50):
        for stream in (on.streams[0], on.gpu.default(), on.streams[1]):
            event.record(stream)
            for other in (*on.streams, on.gpu.default()):
                event.wait(other)
            with on.gpu.under(stream):
                counter.add_(1)
            back.record(stream)
            for other in (*on.streams, on.gpu.default()):
                back.wait(other)
    on.gpu.finish()
    assert counter.item() == 150, counter.item()
    return {}


def _memory(on: Contact) -> Figures:
    """Memory of a partition's stream that a caller's stream still reads is not handed out again."""
    caller = on.gpu.new_stream()
    first = on.under(lambda: torch.ones(1 << 20, device=on.gpu.torch_device))
    address = first.data_ptr()
    with on.gpu.under(caller):
        torch.cuda._sleep(BUSY_CYCLES)
        total = first.sum()
    on.gpu.keep(first, caller)
    del first
    second = on.under(lambda: torch.zeros(1 << 20, device=on.gpu.torch_device))
    assert second.data_ptr() != address, "memory was handed out while another stream still reads it"
    caller.synchronize()  # type: ignore[attr-defined]
    assert total.item() == 1 << 20
    return {}


def _uploads(on: Contact) -> Figures:
    host = torch.arange(1 << 16, dtype=torch.float32)
    copy = on.gpu.fill(on.gpu.pinned(host.nbytes), host)
    assert copy.is_pinned(), "a view of pinned bytes does not count as pinned"
    total = on.under(lambda: on.gpu.upload(copy).double().sum())
    assert total.item() == host.double().sum().item()
    return {}


# -- libraries on a partition's stream ---------------------------------------------------------------------


def _libraries(on: Contact) -> Figures:
    """cuBLAS, cuBLASLt, cuDNN and torch's own kernels, on a thread of their own, as lanes run."""
    tensors = {dtype: torch.randn(64, 128, device=on.gpu.torch_device, dtype=dtype) for dtype in DTYPES}
    image = torch.randn(2, 8, 16, 16, device=on.gpu.torch_device)
    weight = torch.randn(8, 8, 3, 3, device=on.gpu.torch_device)
    works: dict[str, Callable[[], torch.Tensor]] = {"conv2d": lambda: torch.conv2d(image, weight, padding=1)}
    for dtype, x in tensors.items():
        works[f"mm {dtype}"] = partial(torch.mm, x, x.T)
        works[f"addmm {dtype}"] = partial(torch.nn.functional.linear, x, x, x[:, 0].contiguous())
        works[f"bmm {dtype}"] = partial(torch.bmm, x[None], x.T[None])
        works[f"softmax {dtype}"] = partial(torch.softmax, x, -1)
    problems: list[str] = []

    def lane(index: int) -> None:
        for name, work in works.items():
            try:
                if not torch.allclose(on.under(work, index), work(), rtol=1e-2, atol=1e-1):
                    problems.append(f"{name} deviates on partition {index}")
            except RuntimeError as error:
                problems.append(f"{name} on partition {index}: {str(error).partition(chr(10))[0]}")

    def lanes() -> None:
        for index in range(len(on.streams)):
            lane(index)

    _in_thread(lanes)
    assert not problems, "; ".join(problems)
    return {"calls": len(works) * len(on.streams)}


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _triton(on: Contact) -> Figures:
    """A kernel that is compiled and loaded in the primary context, launched on a partition's stream."""
    missing = triton_kernels.missing()
    assert missing is None, missing
    from spacetime.kernels.triton import slot_linear
    from spacetime.kernels.triton.target import Target
    from spacetime.kernels.triton.tune import deviation, prepared

    target = Target.of(torch.device(on.gpu.torch_device))
    shape = slot_linear.Shape(4, 8, 64, 128, "fp32")
    config = slot_linear.default(shape, target)
    operands = prepared(slot_linear, shape, config, on.gpu.torch_device)
    return {"worst": on.under(lambda: deviation(slot_linear, shape, config, operands, target))}


# -- graphs ------------------------------------------------------------------------------------------------


def _capture(on: Contact) -> Figures:
    """Captured on a background thread while a lane works, replayed on another partition, and dropped."""
    x = torch.zeros(1 << 20, device=on.gpu.torch_device)
    weight = torch.eye(256, device=on.gpu.torch_device)
    made: list[Any] = []

    def lane() -> None:
        """A few milliseconds of what lanes and callers do meanwhile: launches, allocations, events, copies, draws."""
        for _ in range(200):
            on.under(lambda: torch.mm(weight, weight).cpu(), 1)
            torch.randn(8, device=on.gpu.torch_device)

    def capture() -> None:
        on.under(lambda: torch.mm(weight, weight))  # the workspace of this thread and stream
        made.append(on.gpu.capture(on.streams[0], work))

    def work() -> None:
        x.add_(1)
        torch.mm(weight, weight)

    with ThreadPoolExecutor(1) as neighbour:
        working = neighbour.submit(lane)
        _in_thread(capture)
        working.result(PATIENCE_S)
    assert x.sum().item() == 0, "a capture runs nothing"
    for _ in range(3):
        on.under(made[0].replay, 1)
    assert x[0].item() == 3 and x.sum().item() == 3 * x.numel()
    num_bytes, reserved = made[0].num_bytes, torch.cuda.memory_reserved()
    made.clear()
    torch.cuda.empty_cache()
    return {"num_bytes": num_bytes, "given_back": reserved - torch.cuda.memory_reserved()}


def _replay_beside_capture(on: Contact) -> Figures:
    """Lanes replay their graphs while another one is captured."""
    x, y = (torch.zeros(8, device=on.gpu.torch_device) for _ in range(2))
    on.under(lambda: x.add_(0))

    def one() -> None:
        x.add_(1)

    first = on.gpu.capture(on.streams[0], one)

    def function() -> None:
        y.add_(1)
        _in_thread(lambda: on.under(first.replay, 1))
        y.add_(1)

    second = on.gpu.capture(on.streams[0], function)
    assert x[0].item() == 1 and y[0].item() == 0, "the replay ran, the capture did not"
    on.under(second.replay, 1)
    assert y[0].item() == 2
    return {}


def _failed_capture(on: Contact) -> Figures:
    """After a capture that fails, memory that `keep` was told of is given back, and random numbers can be drawn."""
    x = torch.ones(8, device=on.gpu.torch_device)
    said = ""

    def read_back() -> None:
        x.sum().item()

    try:
        on.gpu.capture(on.streams[0], read_back)
    except RuntimeError as error:
        said = str(error).partition("\n")[0]
    assert said, "reading a value back was captured"
    caller, before = on.gpu.new_stream(), torch.cuda.memory_reserved()
    for _ in range(20):
        tensor = on.under(lambda: torch.empty(1 << 22, device=on.gpu.torch_device))
        on.gpu.keep(tensor, caller)
        del tensor
        on.gpu.finish()
    grown = torch.cuda.memory_reserved() - before
    assert grown < 4 * (1 << 24), f"{grown} bytes are kept for good: the allocator waits for the end of the capture"
    torch.randn(8, device=on.gpu.torch_device)  # torch before 2.12: "Offset increment outside graph capture"
    on.under(lambda: x.add_(1))
    assert x[0].item() == 2, "nothing else is broken"
    return {"said": said, "grown": grown}


def _disturbed_capture(on: Contact) -> Figures:
    """What CUDA makes of a wait for the whole device while another thread captures: documented, not promised."""
    x = torch.zeros(8, device=on.gpu.torch_device)
    said: dict[str, str] = {"the one who waits": "nothing", "the capture": "nothing"}

    def capture() -> None:
        def function() -> None:
            x.add_(1)
            other = threading.Thread(target=wait)
            other.start()
            other.join(PATIENCE_S)
            x.add_(1)

        try:
            on.gpu.capture(on.streams[0], function)
        except RuntimeError as error:
            said["the capture"] = str(error).partition("\n")[0]

    def wait() -> None:
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            said["the one who waits"] = str(error).partition("\n")[0]

    _in_thread(capture)
    on.under(lambda: x.add_(1))
    assert x[0].item() == 1, "nothing else is broken"
    return {"said": said}


def _waits(on: Contact) -> Figures:
    """Host time of what every lane does, per call."""
    stream, event = on.streams[0], on.gpu.event()
    counter = torch.zeros(1, device=on.gpu.torch_device)

    def us(work: Callable[[], Any], repeats: int = 200) -> float:
        work()
        start_s = time.perf_counter()
        for _ in range(repeats):
            work()
        return round(1e6 * (time.perf_counter() - start_s) / repeats, 2)

    def lane() -> None:
        with on.gpu.under(stream):
            counter.add_(1)
            event.record(stream)
        event.synchronize()

    return {
        "stream_of_a_handle_us": us(lambda: on.gpu.stream(stream.cuda_stream)),
        "record_us": us(lambda: event.record(stream)),
        "wait_us": us(lambda: event.wait(on.streams[1])),
        "lane_of_one_kernel_us": us(lane),
    }


def _in_thread(work: Callable[[], Any]) -> None:
    """What it raises is raised here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


PROBES: dict[str, Callable[[Contact], Figures]] = {
    "facts of the card": _facts,
    "the unsplit device as a context": _whole,
    "events between partitions": _events,
    "inputs from pinned memory": _uploads,
    "results used on another stream": _memory,
    "libraries on a partition": _libraries,
    "a Triton kernel on a partition": _triton,
    "a capture beside a lane": _capture,
    "a replay beside a capture": _replay_beside_capture,
    "a capture that fails": _failed_capture,
    "a capture that is disturbed": _disturbed_capture,
    "host times": _waits,
}

__all__ = ["contact"]
