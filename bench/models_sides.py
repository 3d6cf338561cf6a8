"""The ways to serve R models that bench/models.py compares. Each is a class behind one protocol, made in its process.

`serve(order)` takes one request of every tenant, in this order and all at the same moment, and says by tenant after how
many us the thread that sent them had its result, in its hands and by its own clock: what computes elsewhere hands each
result over as cheaply as it can. `ready_us` is what it took to make each tenant ready, `note` what else is to be known.
`Unavailable`, or whatever a library raises, is the reason why a side cannot be made.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from bench.models_subjects import example, variants
from bench.onnx import export
from bench.sides import Unavailable
from bench.timing import Action
from spacetime import Runtime
from spacetime.backends.cores import available_cores
from spacetime.backends.threads import confine

Args = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is served: tenant i gets requests of rows[i] rows."""

    model: str
    rows: tuple[int, ...]
    device: str
    dtype: str

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def modules(self) -> list[nn.Module]:
        return list(variants(self.model, self.count, self.device, self.dtype))

    def inputs(self) -> list[Args]:
        return [example(self.model, rows, self.device, self.dtype, seed) for seed, rows in enumerate(self.rows)]


class Serving(Protocol):
    ready_us: list[float]

    def serve(self, order: Sequence[int]) -> list[float]: ...


def _timed_us(make: Callable[[], Any]) -> tuple[Any, float]:
    start_ns = time.perf_counter_ns()
    made = make()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return made, (time.perf_counter_ns() - start_ns) / 1e3


# -- one after another -----------------------------------------------------------------------------------------------


class Sequential:
    """A call per tenant, one after another."""

    def __init__(self, subject: Subject, calls: Sequence[Action], ready_us: list[float], note: str = "") -> None:
        self.ready_us, self.note = ready_us, note
        self._calls, self._on_gpu = calls, subject.on_gpu
        self._events = [torch.cuda.Event() for _ in range(subject.count)] if self._on_gpu else []

    def serve(self, order: Sequence[int]) -> list[float]:
        return self._on_device(order) if self._on_gpu else self._on_host(order)

    def _on_host(self, order: Sequence[int]) -> list[float]:
        done_us = [0.0] * len(order)
        start_ns = time.perf_counter_ns()
        for tenant in order:
            self._calls[tenant]()
            done_us[tenant] = (time.perf_counter_ns() - start_ns) / 1e3
        return done_us

    def _on_device(self, order: Sequence[int]) -> list[float]:
        start_ns = time.perf_counter_ns()
        for tenant in order:
            self._calls[tenant]()
            self._events[tenant].record()
        return _awaited_us(self._events, order, start_ns)


def _awaited_us(events: Sequence[torch.cuda.Event], order: Sequence[int], start_ns: int) -> list[float]:
    """Until the host knows of each result, as it asks for them in their order."""
    done_us = [0.0] * len(order)
    for tenant in order:
        events[tenant].synchronize()
        done_us[tenant] = (time.perf_counter_ns() - start_ns) / 1e3
    return done_us


def eager(subject: Subject) -> Serving:
    """Plain modules."""
    calls = _calls(subject, subject.modules())
    return Sequential(subject, calls, [_timed_us(call)[1] for call in calls])


def compiled(subject: Subject) -> Serving:
    """torch.compile, each tenant by itself, as a user would: equal modules share what was compiled for the first."""
    _allow_recompiles()
    calls = _calls(subject, [torch.compile(module, dynamic=False) for module in subject.modules()])
    ready_us = [_timed_us(call)[1] for call in calls]
    return Sequential(subject, calls, ready_us, _compiled_so_far())


def _compiled_so_far() -> str:
    from torch._dynamo.utils import counters

    number = int(counters["stats"].get("unique_graphs", 0))
    return (
        f"graphs compiled in this process, for all its tenants: {number}" if number else "it compiles nothing of this"
    )


def _calls(subject: Subject, modules: Sequence[Callable[..., Any]]) -> list[Action]:
    return [_call(module, args) for module, args in zip(modules, subject.inputs(), strict=True)]


def _call(module: Callable[..., Any], args: Args) -> Action:
    return partial(module, *args)


def _allow_recompiles() -> None:
    """By default the ninth variant of a graph runs uncompiled, without a word."""
    import torch._dynamo

    for name in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, 4096)


# -- CUDA graphs -----------------------------------------------------------------------------------------------------


def graphs(subject: Subject) -> Serving:
    """A CUDA graph per tenant, replayed one after another."""
    captured, ready_us = _captured(subject)
    return Sequential(subject, [graph.replay for graph in captured], ready_us)


def _captured(subject: Subject) -> tuple[list[torch.cuda.CUDAGraph], list[float]]:
    if not subject.on_gpu:
        raise Unavailable("there is no GPU")
    found = [
        _timed_us(partial(_capture, _call(module, args)))
        for module, args in zip(subject.modules(), subject.inputs(), strict=True)
    ]
    return [graph for graph, _ in found], [us for _, us in found]


def _capture(call: Action) -> torch.cuda.CUDAGraph:
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        call()
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


class GraphsOnStreams:
    """A CUDA graph per tenant, each on a stream of its own."""

    def __init__(self, subject: Subject) -> None:
        self._graphs, self.ready_us = _captured(subject)
        self._streams = [torch.cuda.Stream() for _ in self._graphs]
        self._events = [torch.cuda.Event() for _ in self._graphs]

    def serve(self, order: Sequence[int]) -> list[float]:
        start_ns = time.perf_counter_ns()
        for tenant in order:
            stream = self._streams[tenant]
            with torch.cuda.stream(stream):
                self._graphs[tenant].replay()
            self._events[tenant].record(stream)
        return _awaited_us(self._events, order, start_ns)


# -- torch.func ------------------------------------------------------------------------------------------------------


def vmapped(subject: Subject) -> Serving:
    """torch.func.vmap over stacked weights."""
    return Stacked(subject, lambda function: function)


def vmapped_compiled(subject: Subject) -> Serving:
    """The same, compiled as one."""
    _allow_recompiles()
    return Stacked(subject, lambda function: torch.compile(function, fullgraph=True, dynamic=False))


class Stacked:
    """All tenants in one call. Requests are stacked in the round, as they come one by one."""

    def __init__(self, subject: Subject, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        if len(set(subject.rows)) > 1:
            raise Unavailable("requests have different numbers of rows, and vmap takes equal ones")
        self._inputs, self._on_gpu = subject.inputs(), subject.on_gpu
        _, us = _timed_us(lambda: self._prepare(subject.modules(), wrap))
        self.ready_us = [us / subject.count] * subject.count

    def _prepare(self, modules: list[nn.Module], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._parameters, self._buffers = stack_module_state(modules)
        skeleton = copy.deepcopy(modules[0]).to("meta")
        modules.clear()

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], *args: Tensor) -> Any:
            return functional_call(skeleton, (parameters, buffers), args)

        self._all = wrap(torch.func.vmap(one))
        self._run(range(len(self._inputs)))

    def _run(self, order: Sequence[int]) -> Any:
        stacked = [torch.stack([self._inputs[tenant][i] for tenant in order]) for i in range(len(self._inputs[0]))]
        return self._all(self._parameters, self._buffers, *stacked)

    def serve(self, order: Sequence[int]) -> list[float]:
        """In the tenants' own order always: that of the weights."""
        start_ns = time.perf_counter_ns()
        self._run(range(len(order)))
        if self._on_gpu:
            torch.cuda.synchronize()
        return [(time.perf_counter_ns() - start_ns) / 1e3] * len(order)


# -- threads ---------------------------------------------------------------------------------------------------------


class OnThreads:
    """Tenants dealt out to a pinned thread per core, one intra-op thread each: a CPU's way to be shared in space.

    A share of the tenants is one task of its thread, and results come back through a queue written in C: a future per
    request would cost more than some of these models take.
    """

    def __init__(self, calls: Sequence[Action], ready_us: list[float]) -> None:
        self.ready_us = ready_us
        self._calls = calls
        self._pools = [ThreadPoolExecutor(1, initializer=confine, initargs=([core],)) for core in available_cores()]

    def serve(self, order: Sequence[int]) -> list[float]:
        done_us = [0.0] * len(order)
        ended: SimpleQueue[int | Exception] = SimpleQueue()
        start_ns = time.perf_counter_ns()

        def run(share: Sequence[int]) -> None:
            try:
                with torch.no_grad():
                    for tenant in share:
                        self._calls[tenant]()
                        ended.put(tenant)
            except Exception as error:
                ended.put(error)

        number = len(self._pools)
        for first, pool in enumerate(self._pools):
            pool.submit(run, order[first::number])
        for _ in order:
            tenant = ended.get()
            if isinstance(tenant, Exception):
                raise tenant
            done_us[tenant] = (time.perf_counter_ns() - start_ns) / 1e3
        return done_us

    def close(self) -> None:
        for pool in self._pools:
            pool.shutdown()


def eager_threads(subject: Subject) -> Serving:
    """Plain modules, a thread per core."""
    _require_cpu(subject)
    return OnThreads(_calls(subject, subject.modules()), [0.0] * subject.count)


def onnxruntime(subject: Subject) -> Serving:
    """A session per tenant. All are loaded from one export per number of rows: equal weights take the same time."""
    _require_cpu(subject)
    import onnxruntime as ort  # type: ignore[import-untyped, unused-ignore]

    inputs, module = subject.inputs(), next(variants(subject.model, 1, subject.device, subject.dtype))
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    exported: dict[int, bytes] = {}
    calls, ready_us = [], []
    for rows, args in zip(subject.rows, inputs, strict=True):
        session, us = _timed_us(partial(_session, ort, options, exported, module, rows, args))
        feed = {given.name: arg.numpy() for given, arg in zip(session.get_inputs(), args, strict=True)}
        calls.append(partial(session.run, None, feed))
        ready_us.append(us)
    return OnThreads(calls, ready_us)


def _session(ort: Any, options: Any, exported: dict[int, bytes], module: nn.Module, rows: int, args: Args) -> Any:
    if rows not in exported:
        exported[rows] = export(module, args)
    return ort.InferenceSession(exported[rows], options, providers=["CPUExecutionProvider"])


def _require_cpu(subject: Subject) -> None:
    if subject.on_gpu:
        raise Unavailable("it is compared on the CPU only")


# -- ours ------------------------------------------------------------------------------------------------------------


class Ours:
    """Tenants of one runtime under space_time, served as a server does it that waits: all submitted, then awaited.

    Results are taken in the order of the requests, so whatever ends out of turn counts as late as it is noticed.
    """

    def __init__(self, subject: Subject) -> None:
        self._runtime, self._inputs = Runtime(subject.device), subject.inputs()
        self._tenants, self.ready_us = [], []
        # Not of several rows each, and of two at least: the example says only what a row looks like.
        rows = example(subject.model, 2, subject.device, subject.dtype)
        for index, module in enumerate(subject.modules()):
            tenant, us = _timed_us(partial(self._runtime.add, module, rows, f"{subject.model}/{index}"))
            self._tenants.append(tenant)
            self.ready_us.append(us)
        opaque = self._runtime.explain().opaque
        self.note = f"{len(opaque)} tenants run alone: {opaque[0].reason}" if opaque else ""

    def serve(self, order: Sequence[int]) -> list[float]:
        done_us = [0.0] * len(order)
        start_ns = time.perf_counter_ns()
        futures = [self._tenants[tenant].submit(*self._inputs[tenant]) for tenant in order]
        for tenant, future in zip(order, futures, strict=True):
            future.result()
            done_us[tenant] = (time.perf_counter_ns() - start_ns) / 1e3
        return done_us

    def close(self) -> None:
        self._runtime.close()


class OursCalledBack(Ours):
    """The same for a server that has itself called back: lanes run on the runtime's threads, and results come there."""

    def serve(self, order: Sequence[int]) -> list[float]:
        done_us = [0.0] * len(order)
        ended: SimpleQueue[tuple[int, Future[Any]]] = SimpleQueue()
        start_ns = time.perf_counter_ns()
        for tenant in order:
            future = self._tenants[tenant].submit(*self._inputs[tenant])
            future.add_done_callback(lambda future, tenant=tenant: ended.put((tenant, future)))
        for _ in order:
            tenant, future = ended.get()
            future.result()
            done_us[tenant] = (time.perf_counter_ns() - start_ns) / 1e3
        return done_us


# By the name that results have them under.
OURS, OURS_CALLED_BACK = "ours", "ours, callbacks"
OF_OURS = (OURS, OURS_CALLED_BACK)
EAGER = "eager"
SIDES: dict[str, Callable[[Subject], Serving]] = {
    EAGER: eager,
    "eager, a thread per core": eager_threads,
    "graph per tenant, sequential": graphs,
    "graph per tenant, streams": GraphsOnStreams,
    "torch.compile per tenant": compiled,
    "vmap": vmapped,
    "vmap, compiled": vmapped_compiled,
    "onnxruntime": onnxruntime,
    OURS_CALLED_BACK: OursCalledBack,
    OURS: Ours,
}
ONLY_ON_GPU = ("graph per tenant, sequential", "graph per tenant, streams")
COMPILED = ("torch.compile per tenant", "vmap, compiled")
ONLY_ON_CPU = ("eager, a thread per core", "onnxruntime")
