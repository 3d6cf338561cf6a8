"""What a measurement is, as values: where it was taken, of which kernel, how. The store keeps them; no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from spacetime.profiler.curves import Point
from spacetime.values import Value, encode

UNCONFINED = "unconfined"  # of a GPU, among the versions: why it has no partitions
SCHEMA = 1  # of the lines in a store; profiles/schema.json describes them


@dataclass(frozen=True, slots=True)
class Environment(Value):
    """Everything that may change a latency. Measurements of different environments are never mixed."""

    device: str  # as Device.name
    kind: str  # "cpu" | "cuda" | "hip" | "model"
    num_units: int
    driver: str  # kernel or driver version; of a modelled device the version of the model
    versions: tuple[tuple[str, str], ...]  # library -> version, sorted

    @property
    def id(self) -> str:
        """Short and stable: equal environments have equal ids."""
        text = json.dumps(encode(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def unconfined(self) -> str:
        """Why only the whole device could be measured; "" where it has partitions, or cores."""
        return dict(self.versions).get(UNCONFINED, "")

    def differences(self, other: Environment) -> tuple[str, ...]:
        """What differs, one line each, the device first: "torch: 2.12 here, 2.13 there"."""
        mine, theirs = self._facts(), other._facts()
        return tuple(
            f"{name}: {mine.get(name, 'absent')} here, {theirs.get(name, 'absent')} there"
            for name in mine | theirs
            if mine.get(name) != theirs.get(name)
        )

    def _facts(self) -> dict[str, str]:
        named = {"device": self.device, "kind": self.kind, "num_units": str(self.num_units), "driver": self.driver}
        return named | dict(self.versions)


@dataclass(frozen=True, slots=True)
class Key(Value):
    """One kernel at one batch size on one number of units. `kernel` is ir.Kernel.key: operation, shapes, attributes."""

    kernel: str
    rows: int
    units: int
    # "run": as a whole run of the program leaves the caches. "warm": as the last call of the kernel left them.
    # "cold": swept before each call. "model": the model knows no caches, all traffic goes to memory.
    cache: str = "run"


@dataclass(frozen=True, slots=True)
class Measurement(Value):
    """Latencies of one key, and how they were taken."""

    key: Key
    op: str
    dtype: str
    samples_us: tuple[float, ...]
    calls: int  # in a row behind each sample, which is their mean: quick kernels need many for the clock
    overhead_us: float  # of each call, by the loop that times it; contained in the samples
    num_disturbed: int  # samples left out because other work on the machine interrupted them
    method: str  # "measured" | "modelled"
    date: str  # YYYY-MM-DD

    @property
    def point(self) -> Point:
        return Point(self.key.units, self.samples_us)
