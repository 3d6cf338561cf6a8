"""A driver that creates nothing and writes down what it was asked to do; it refuses what the real one refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spacetime.backends.cuda.driver import DriverError, Split

Resource = frozenset[int]  # SM numbers


@dataclass
class FakeDriver:
    """`most_contexts`: the creation that fails; `granularity`: SMs are granted in multiples of it."""

    num_sms: int = 132
    granularity: int = 8
    most_contexts: int = 10_000
    calls: list[str] = field(default_factory=list)
    contexts: dict[int, Resource] = field(default_factory=dict)
    streams: dict[int, int] = field(default_factory=dict)  # stream -> context
    parked: dict[int, list[Any]] = field(default_factory=dict)
    _splits: dict[Resource, int] = field(default_factory=dict)
    _handles: int = 100

    def sm_resource(self, device: int) -> Resource:
        self.calls.append(f"resource {device}")
        return frozenset(range(self.num_sms))

    def num_units(self, resource: Resource) -> int:
        return len(resource)

    def split(self, resource: Resource, units: int) -> Split:
        size = -(-units // self.granularity) * self.granularity
        sms = sorted(resource)
        whole = len(sms) // size
        groups = tuple(frozenset(sms[index * size : (index + 1) * size]) for index in range(whole))
        remainder = frozenset(sms[whole * size :])
        for part in (*groups, remainder):
            self._splits[part] = len(self.calls)
        self.calls.append(f"split {units}")
        return Split(groups, remainder or None)

    def create_context(self, device: int, resources: Sequence[Resource]) -> int:
        is_whole = [len(resource) for resource in resources] == [self.num_sms]
        if not is_whole and len({self._splits.get(resource) for resource in resources}) != 1:
            raise DriverError("cuDevResourceGenerateDesc failed", "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION")
        if len(self.contexts) >= self.most_contexts:
            raise DriverError("cuGreenCtxCreate failed", "CUDA_ERROR_OUT_OF_MEMORY (code 2)")
        context = self._handle()
        self.contexts[context] = frozenset().union(*resources)
        self.calls.append(f"context {context}")
        return context

    def context_units(self, context: int) -> int:
        return len(self.contexts[context])

    def destroy_context(self, context: int) -> None:
        assert context not in self.streams.values(), "streams are destroyed before their context"
        del self.contexts[context]
        self.calls.append(f"destroy context {context}")

    def create_stream(self, context: int, priority: int) -> int:
        assert context in self.contexts
        stream = self._handle()
        self.streams[stream] = context
        self.calls.append(f"stream {stream}")
        return stream

    def destroy_stream(self, stream: int) -> None:
        del self.streams[stream]
        self.calls.append(f"destroy stream {stream}")

    def sms_of(self, stream: int) -> Resource:
        """The SMs that kernels on the stream may run on."""
        return self.contexts[self.streams[stream]]

    def _handle(self) -> int:
        self._handles += 1
        return self._handles
