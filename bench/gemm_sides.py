"""The ways to compute a round of products that bench/gemm.py compares. Each is a function behind one protocol.

A `Build` makes the action of one round for so many products, everything allocated and captured beforehand; it raises
`Unavailable` where it cannot run. An action leaves its results in work.out, or returns them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bench.gemm_work import Work
from bench.sides import Unavailable
from bench.timing import Action
from spacetime.backends.cores import available_cores
from spacetime.backends.threads import confine
from spacetime.capture.layer import Layer
from spacetime.kernels import batched_gemm, triton
from spacetime.kernels.rowmap import RowMap
from spacetime.kernels.slot_linear import slot_linear

Build = Callable[[Work, int], Action]

NUM_BRANCHES = 16
NEEDS_GPU = "there is no GPU"


def one_after_another(work: Work, count: int) -> Action:
    """One stream, a launch per product."""
    turns = work.turns(count)

    def run_round() -> None:
        _multiply(work, next(turns), range(count))

    return run_round


def _multiply(work: Work, first: int, share: Sequence[int]) -> None:
    xs, outs, weights = work.xs, work.outs, work.transposed
    for r in share:
        torch.mm(xs[r], weights[first + r], out=outs[r])


# -- side by side ----------------------------------------------------------------------------------------------------


def space_only(work: Work, count: int) -> Action:
    """All at once and uncontrolled: a stream per product on a GPU, a thread per core on a CPU."""
    return _on_streams(work, count) if work.device.type == "cuda" else _on_threads(work, count)


def _on_threads(work: Work, count: int) -> Action:
    pools, turns = _threads(), work.turns(count)
    shares = [range(count)[first :: len(pools)] for first in range(len(pools))]

    def run_round() -> None:
        first = next(turns)
        futures: list[Future[None]] = [
            pool.submit(_multiply, work, first, share) for pool, share in zip(pools, shares, strict=True)
        ]
        for future in futures:
            future.result()

    return run_round


@cache
def _threads() -> list[ThreadPoolExecutor]:
    """A pinned thread per core, one intra-op thread each."""
    return [ThreadPoolExecutor(1, initializer=confine, initargs=([core],)) for core in available_cores()]


def _on_streams(work: Work, count: int) -> Action:
    streams, turns = [torch.cuda.Stream() for _ in range(count)], work.turns(count)
    begin, ends = torch.cuda.Event(), [torch.cuda.Event() for _ in range(count)]

    def run_round() -> None:
        _branch(work, next(turns), [[r] for r in range(count)], streams, begin, ends)

    return run_round


def _branch(
    work: Work,
    first: int,
    shares: Sequence[Sequence[int]],
    streams: Sequence[torch.cuda.Stream],
    begin: torch.cuda.Event,
    ends: Sequence[torch.cuda.Event],
) -> None:
    """Each share on a stream of its own, between two points of the current one."""
    current = torch.cuda.current_stream()
    begin.record(current)
    for share, stream, end in zip(shares, streams, ends, strict=True):
        stream.wait_event(begin)
        with torch.cuda.stream(stream):
            _multiply(work, first, share)
        end.record(stream)
        current.wait_event(end)


# -- CUDA graphs -----------------------------------------------------------------------------------------------------


def chained_graph(work: Work, count: int) -> Action:
    """A graph per window, its products one after another."""
    return _replayed(work, count, lambda first: _multiply(work, first, range(count)))


def branched_graph(work: Work, count: int) -> Action:
    """A graph per window, its products dealt out to branches."""
    _require_gpu(work)
    width = min(NUM_BRANCHES, count)
    streams = [torch.cuda.Stream() for _ in range(width)]
    shares = [range(count)[branch::width] for branch in range(width)]

    def capture(first: int) -> None:
        _branch(work, first, shares, streams, torch.cuda.Event(), [torch.cuda.Event() for _ in streams])

    return _replayed(work, count, capture)


def _replayed(work: Work, count: int, capture: Callable[[int], None]) -> Action:
    _require_gpu(work)
    graphs, pool = {}, torch.cuda.graph_pool_handle()  # one pool: they never run at the same time
    for first in work.windows(count):
        graphs[first] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[first], pool=pool):
            capture(first)
    turns = work.turns(count)

    def run_round() -> None:
        graphs[next(turns)].replay()

    return run_round


# -- one launch for all, as libraries have it ------------------------------------------------------------------------


def bmm(work: Work, count: int) -> Action:
    turns, x, out = work.turns(count), work.x[:count], work.out[:count]
    stacks = {first: work.weights[first : first + count].transpose(1, 2) for first in work.windows(count)}

    def run_round() -> None:
        torch.bmm(x, stacks[next(turns)], out=out)

    return run_round


def grouped_mm(work: Work, count: int) -> Action:
    """torch._grouped_mm: all rows in one matrix, a table says where each product's begin."""
    turns, n = work.turns(count), work.shape.n
    x = work.x[:count].reshape(count * n, -1)
    ends = torch.arange(1, count + 1, dtype=torch.int32, device=work.device) * n
    stacks = {first: work.weights[first : first + count].transpose(1, 2) for first in work.windows(count)}

    def run_round() -> Tensor:
        y: Tensor = torch._grouped_mm(x, stacks[next(turns)], offs=ends)
        return y.view(count, n, -1)

    return run_round


def cublas_batched(work: Work, count: int) -> Action:
    """cublasGemmBatchedEx over pointers that a kernel fills in from a table of slots: kernels/batched_gemm.py."""
    reason = batched_gemm.missing()
    if reason is not None:
        raise Unavailable(reason)
    _require_gpu(work)
    handle = batched_gemm.Handle()
    handle.bind(torch.cuda.current_stream(), torch.empty(32 << 20, dtype=torch.uint8, device=work.device))
    slots = {first: _int32(work, range(first, first + count)) for first in work.windows(count)}
    active = _int32(work, [count])
    pointers = torch.zeros(3 * count, dtype=torch.int64, device=work.device)
    scratch = torch.empty_like(work.out[0])
    turns, x, out = work.turns(count), work.x[:count], work.out[:count]

    def run_round() -> None:
        handle.linear(x, work.weights, slots[next(turns)], active, out, pointers, scratch)

    return run_round


# -- ours ------------------------------------------------------------------------------------------------------------


class _Weights(Layer):
    """All weights as one layer of a cohort, where they are: a slab would copy them."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__("weights")
        self._weights = weights
        self.entries = list(range(len(weights)))
        self.sharing = 1

    @property
    def stack(self) -> Tensor:
        return self._weights

    def is_stacked(self, first: int = 0, number: int | None = None) -> bool:
        return True

    def entry(self, index: int) -> Tensor:
        return self._weights[index]


def ours_all(work: Work, count: int) -> Action:
    """slot_linear as a fused program calls it when every tenant of a cohort has a row: one batched launch."""
    return _slots(work, count, list(range(count)))


def ours_subset(work: Work, count: int) -> Action:
    """slot_linear for rows of an arbitrary subset: here the tenants in another order than their weights lie."""
    return _slots(work, count, [*range(1, count, 2), *range(0, count, 2)])


def _slots(work: Work, count: int, order: Sequence[int]) -> Action:
    layer, turns = _Weights(work.weights), work.turns(count)
    rows = {first: RowMap(tuple(first + r for r in order), (1,) * count) for first in work.windows(count)}
    for row_map in rows.values():
        row_map.layout(layer)  # built once per mix of tenants, not per lane
    x = work.x[:count] if order == sorted(order) else work.x[torch.tensor(order, device=work.device)]
    back = torch.tensor(sorted(range(count), key=order.__getitem__), device=work.device)

    def run_round() -> Tensor:
        return slot_linear(rows[next(turns)], x, layer, None)

    return run_round if order == sorted(order) else Reordered(run_round, back)


class Told:
    """A round with something to say about it."""

    def __init__(self, run_round: Action, note: str) -> None:
        self._run_round, self.note = run_round, note

    def __call__(self) -> object:
        return self._run_round()


class Reordered:
    """A round whose results come in another order; `ordered` puts them right, for the check and off the clock."""

    def __init__(self, run_round: Callable[[], Tensor], back: Tensor) -> None:
        self._run_round, self._back = run_round, back

    def __call__(self) -> Tensor:
        return self._run_round()

    def ordered(self, out: Tensor) -> Tensor:
        return out[self._back]


def ours_triton(work: Work, count: int) -> Action:
    """The Triton kernel, precision and config that a fused program takes for this shape on this GPU."""
    _require_triton(work)
    from spacetime.kernels.triton import choose, slot_linear
    from spacetime.kernels.triton.target import Target

    target, launches = Target.of(work.device), {}

    def workspace(words: int, arrivals: int) -> Tensor:
        return torch.zeros(words, dtype=torch.int32, device=work.device)

    for first in work.windows(count):
        operands = _operands(work, count, first)
        plan = choose.linear_plan(slot_linear.describe(operands, precision=_precision(work)), target)
        launches[first] = plan.launch(operands, target, workspace)
    turns = work.turns(count)

    def run_round() -> None:
        launches[next(turns)].run()

    return Told(run_round, f"{plan.kernel.NAME}, {plan.shape.precision}")


def ours_triton_grouped(work: Work, count: int) -> Action:
    """Triton's grouped_linear: a persistent launch on all units over a table of tiles."""
    _require_triton(work)
    from spacetime.kernels.triton import choose, grouped_linear
    from spacetime.kernels.triton.target import Target

    target, launches, kept = Target.of(work.device), {}, []
    for first in work.windows(count):
        layers = grouped_linear.Operands((_operands(work, count, first),))
        shape = grouped_linear.describe(layers, ["none"], target.num_units, _precision(work))
        config = choose.config_for(grouped_linear, shape, target)
        prepared = grouped_linear.prepare(shape, config, layers)
        kept.append(prepared)  # a launch has addresses only
        launches[first] = grouped_linear.launch(shape, config, prepared, target)
    turns = work.turns(count)

    def run_round() -> None:
        assert kept
        launches[next(turns)].run()

    return run_round


def _operands(work: Work, count: int, first: int) -> Any:
    from spacetime.kernels.triton.launch import Slotted
    from spacetime.kernels.triton.slot_linear import Operands

    entries = _int32(work, range(first, first + count))
    return Operands(work.x[:count], Slotted(work.weights, entries), _int32(work, [count]), work.out[:count])


def _precision(work: Work) -> str:
    return "tf32" if work.dtype == "tf32" else "ieee"


def _int32(work: Work, values: Sequence[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32, device=work.device)


def _require_gpu(work: Work) -> None:
    if work.device.type != "cuda":
        raise Unavailable(NEEDS_GPU)


def _require_triton(work: Work) -> None:
    _require_gpu(work)
    reason = triton.missing()
    if reason is not None:
        raise Unavailable(reason)


# By the name that results have them under.
BASELINES: dict[str, Build] = {
    "one after another": one_after_another,
    "space-only": space_only,
    "chained graph": chained_graph,
    f"{NUM_BRANCHES}-branch graph": branched_graph,
    "bmm": bmm,
    "cublasGemmBatchedEx": cublas_batched,
    "grouped_mm": grouped_mm,
}
OURS: dict[str, Build] = {
    "ours: slot_linear": ours_all,
    "ours: slot_linear, any subset": ours_subset,
    "ours: Triton": ours_triton,
    "ours: Triton, grouped": ours_triton_grouped,
}
SIDES: dict[str, Build] = BASELINES | OURS
