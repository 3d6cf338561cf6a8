"""The products of the Space-Time table: shapes, weights, and the windows of weights that take turns.

Shared by the case, its sides, tests and pytest-benchmark. Product r of a round is out[r] = x[r] @ weights[w + r].T,
where w is the first of a window: as many weights as the round has products. The next round uses the next window, so
that weights come from memory, unless a single window is wanted.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
LIMITS = {"float32": 1e-5, "tf32": 5e-3, "bfloat16": 2e-2}  # max |difference| over max |exact|
LISTED = (1, 2, 4, 8, 10, 16, 18, 20, 32, 40, 64, 80, 100, 118, 120)  # products per round
EVERY = (1, *range(2, 121))
MOST = max(LISTED)
MOST_WEIGHT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Shape:
    """Published as M x N x K: weights [m, k], and n rows of x for each."""

    m: int
    n: int
    k: int
    note: str

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k

    @property
    def num_elements(self) -> int:
        """What one product reads and writes."""
        return self.m * self.k + self.n * self.k + self.m * self.n


SHAPES = (
    Shape(512, 1, 512, "RNN matvec"),
    Shape(256, 128, 1152, "ResNet-18 conv2_2"),
    Shape(256, 256, 256, "square"),
)


class Work:
    """The tensors of one shape and type, allocated beforehand."""

    def __init__(self, shape: Shape, dtype: str, weights: Tensor, most: int = MOST, *, rotate: bool = True) -> None:
        self.shape, self.dtype, self.weights = shape, dtype, weights
        self.device = weights.device
        generator = torch.Generator().manual_seed(1)
        made = torch.randn(most, shape.n, shape.k, generator=generator)
        self.x = made.to(self.device, weights.dtype)
        self.out = torch.empty(most, shape.n, shape.m, device=self.device, dtype=weights.dtype)
        # Views once, not in the loop: what is timed is the product.
        self.xs, self.outs = list(self.x.unbind()), list(self.out.unbind())
        self.transposed = [weight.t() for weight in weights.unbind()]
        self._rotate = rotate
        self.first = 0  # of the window that was used last

    def windows(self, count: int) -> list[int]:
        """Where windows of `count` weights begin; one after another without overlap."""
        starts = list(range(0, len(self.weights) - count + 1, count))
        return starts if self._rotate else starts[:1]

    def turns(self, count: int) -> Iterator[int]:
        """Windows, for ever; `first` says which is in use."""
        for first in cycle(self.windows(count)):
            self.first = first
            yield first

    def deviation(self, out: Tensor, count: int) -> float:
        """Of the last round's first and last products from float64, relative to the largest output; inf for NaN."""
        worst = 0.0
        for r in {0, count - 1}:
            exact = self.x[r].double() @ self.weights[self.first + r].double().t()
            found = float((out[r].double() - exact).abs().max() / exact.abs().max())
            worst = max(worst, math.inf if math.isnan(found) else found)
        return worst


def num_weights(shape: Shape, dtype: str, cache_bytes: int, most: int = MOST, limit_bytes: int | None = None) -> int:
    """So many that a whole turn of windows is twice the last-level cache, as far as the limit allows."""
    each = shape.m * shape.k * DTYPES[dtype].itemsize
    wanted = -(-2 * cache_bytes // each)
    return max(most, min(wanted, (MOST_WEIGHT_BYTES if limit_bytes is None else limit_bytes) // each))


def make_weights(shape: Shape, dtype: str, device: str, number: int, seed: int = 0) -> Tensor:
    """Different weights whose products keep the size of their inputs. On a CPU in shared memory."""
    on = torch.device(device)
    weights = torch.empty(number, shape.m, shape.k, device=on, dtype=DTYPES[dtype])
    if on.type == "cpu":
        weights.share_memory_()
    generator = torch.Generator(on).manual_seed(seed)
    for part in weights.split(64):  # no second copy of all of them in float32
        part.copy_(torch.randn(part.shape, generator=generator, device=on) / shape.k**0.5)
    return weights


def sharable_bytes(device: str) -> int:
    """How large weights may be. On a CPU they lie in shared memory, which containers often have little of."""
    shared = Path("/dev/shm")
    return shutil.disk_usage(shared).free // 2 if device == "cpu" and shared.is_dir() else MOST_WEIGHT_BYTES


def cache_bytes_of(device: str) -> int:
    """The last-level cache; 0 where nobody tells."""
    if device != "cpu":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    found = [_size(path.read_text(encoding="ascii")) for path in _cpu_caches()]
    return max(found, default=0)


def _cpu_caches() -> Iterator[Path]:
    return Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")


def _size(text: str) -> int:
    """
    >>> _size("2048K")
    2097152
    """
    factor = {"K": 1 << 10, "M": 1 << 20}.get(text.strip()[-1:], 1)
    return int(text.strip().rstrip("KM")) * factor
