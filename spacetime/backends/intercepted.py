"""Modules that cannot be captured, sharing launches all the same: their calls meet while they run. Used by the runtime.

A fused lane runs the modules of all its requests at once, in turns (meeting.py); a plain one runs them one after
another. Which is faster the cost model finds out: on a CPU only modules whose time is mostly launches gain.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from spacetime.backends.executables import Call, PlainExecutable
from spacetime.backends.meeting import MetCall, meet
from spacetime.capture.arena import Arena, Place
from spacetime.plan import Lane
from spacetime.scheduler.protocols import Outcome


class InterceptedExecutable:
    """All tenants of one structure (capture/arena.py)."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.arena = Arena()
        self.num_calls_saved = 0  # launches that were not made because calls met
        self._counting = threading.Lock()
        self._modules = modules
        self._plain = PlainExecutable(modules)
        self._outgrown: dict[int, list[Tensor]] = {}  # by thread that runs a lane: see join()

    def join(self, name: str, module: nn.Module) -> None:
        """Take a tenant in while others run. A slab that grows moves weights that lanes may read: they hold it."""
        before = self.arena.stacks()
        self.arena.join(name, module)
        for outgrown in list(self._outgrown.values()):
            outgrown.extend(before)

    def run(self, lane: Lane, payloads: Sequence[Call]) -> Sequence[Outcome]:
        thread = threading.get_ident()
        self._outgrown[thread] = []
        try:
            return self._run_together(lane, payloads) if lane.fused else self._plain.run(lane, payloads)
        finally:
            del self._outgrown[thread]

    def _run_together(self, lane: Lane, payloads: Sequence[Call]) -> Sequence[Outcome]:
        """Requests of one tenant keep their order: its module may hold state."""
        outcomes: list[Outcome] = [Outcome()] * len(payloads)
        indices_of: dict[str, list[int]] = {}
        for index, request in enumerate(lane.requests):
            indices_of.setdefault(request.tenant, []).append(index)

        def serve(module: nn.Module, indices: list[int]) -> None:
            for index in indices:
                try:
                    outcomes[index] = Outcome(module(*payloads[index].args))
                except Exception as error:
                    outcomes[index] = Outcome(error=error)

        bodies = [
            lambda module=self._modules[name], indices=indices: serve(module, indices)
            for name, indices in indices_of.items()
        ]
        with torch.no_grad():
            num_saved = meet(bodies, self._launch)
        with self._counting:  # lanes run on threads of their own
            self.num_calls_saved += num_saved
        return outcomes

    def _launch(self, calls: Sequence[MetCall]) -> Sequence[Tensor]:
        """Calls of one key. Rows that use the same weight are one call; a linear over a row of slab entries is one."""
        places = [self._place(call) for call in calls]
        if all(place == places[0] for place in places) and places[0] is not None:
            return _one_weight(calls)
        if calls[0].function is torch.nn.functional.linear and _is_block(calls, places):
            return _batched(calls, [place for place in places if place is not None])
        return [call.alone() for call in calls]

    def _place(self, call: MetCall) -> tuple[Place, Place | None] | None:
        weight = self.arena.find(call.weight)
        bias = None if call.bias is None else self.arena.find(call.bias)
        if weight is None or (call.bias is not None and bias is None):
            return None
        return weight, bias


Places = Sequence[tuple[Place, Place | None] | None]


def _one_weight(calls: Sequence[MetCall]) -> Sequence[Tensor]:
    if len(calls) == 1:
        return [calls[0].alone()]
    first = calls[0]
    rows = torch.cat([call.x for call in calls])
    together: Tensor = first.function(rows, first.weight, first.bias, *first.options)
    rows_of = [call.x.shape[0] for call in calls]
    parts: Sequence[Tensor] = torch.ops.aten.split_with_sizes_copy.default(together, rows_of)
    return parts


def _is_block(calls: Sequence[MetCall], places: Places) -> bool:
    """Equal rows over consecutive entries of one layer: what a batched GEMM takes without copying a weight."""
    if None in places or any(call.x.shape != calls[0].x.shape for call in calls):
        return False
    known = sorted([place for place in places if place is not None], key=lambda place: place[0].entry)
    return all(_follows(before, after) for before, after in pairwise(known))


def _follows(before: tuple[Place, Place | None], after: tuple[Place, Place | None]) -> bool:
    pairs = zip(before, after, strict=True)
    return all(
        (a is None and b is None) or (a is not None and b is not None and a.layer is b.layer and a.entry + 1 == b.entry)
        for a, b in pairs
    )


def _batched(calls: Sequence[MetCall], places: Sequence[tuple[Place, Place | None]]) -> Sequence[Tensor]:
    order = sorted(range(len(calls)), key=lambda index: places[index][0].entry)
    weight, bias = places[order[0]]
    number, wide = len(calls), calls[0].x.shape[-1]
    x = torch.stack([calls[index].x for index in order]).view(number, -1, wide)
    weights = weight.layer.stack[weight.entry : weight.entry + number].transpose(1, 2)
    if bias is None:
        y = torch.bmm(x, weights)
    else:
        y = torch.baddbmm(bias.layer.stack[bias.entry : bias.entry + number].unsqueeze(1), x, weights)
    results: list[Tensor] = [y] * number
    for position, index in enumerate(order):
        # Memory of its own: a slice would show its neighbours' rows to whoever asks its storage.
        results[index] = y[position].clone().view(*calls[index].x.shape[:-1], -1)
    return results
