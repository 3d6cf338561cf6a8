"""Where sides of bench/gemm.py run: the object that each process keeps, and the contenders that the case asks.

On a CPU every side has a process of its own (see sides.py). On a GPU the sides of one process do not disturb each
other, so one holds them all; only processes that take turns are several.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.gemm_sides import SIDES, Reordered, Told, one_after_another
from bench.gemm_work import DTYPES, LIMITS, Shape, Work, make_weights
from bench.sides import Remote, Unavailable
from bench.timing import Action, clock_of, repeats_for

BLOCK_US = 2000.0  # of rounds, for one sample
SLICE_S = {"cpu": 0.002, "cuda": 0.03}  # of one process before the next; on a GPU, in which the driver gives turns
_BATCH_US = 500.0  # rounds between two looks at the clock
_LIMIT_S = 300.0  # of a call: what takes longer hangs

Weights = Tensor | int  # in shared memory, or how many to make


class Lab:
    """The tensors of one shape, and the actions of sides on them."""

    def __init__(self, device: str) -> None:
        torch.set_grad_enabled(False)
        if device != "cpu":
            torch.cuda.set_device(device)
        self._device = device
        self._duration_us = clock_of(device)
        self._work: Work | None = None
        self._actions: dict[str, Action] = {}
        self._share: Action | None = None
        self._batch = 1

    def open(self, shape: Shape, dtype: str, weights: Weights, most: int, rotate: bool) -> None:
        self._actions.clear()
        self._share = self._work = None
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        stack = make_weights(shape, dtype, self._device, weights) if isinstance(weights, int) else weights
        self._work = Work(shape, dtype, stack, most, rotate=rotate)

    @property
    def work(self) -> Work:
        assert self._work is not None, "open() comes first"
        return self._work

    def prepare(self, side: str, count: int) -> float:
        """Make the side's action for so many products; what a round takes, in us. A wrong result is a reason."""
        self._actions.pop(side, None)
        action = SIDES[side](self.work, count)
        found = self._checked(action, count)
        if found > LIMITS[self.work.dtype]:
            raise Unavailable(f"its result deviates by {found:.1e}, more than {LIMITS[self.work.dtype]:.0e}")
        self._actions[side] = action
        return min(self._duration_us(action) for _ in range(3))

    def _checked(self, action: Action, count: int) -> float:
        self.work.out.fill_(float("nan"))
        result = action()
        out = result if isinstance(result, Tensor) else self.work.out[:count]
        if isinstance(action, Reordered):
            out = action.ordered(out)
        return self.work.deviation(out, count)

    def note(self, side: str) -> str:
        """What the side says of itself."""
        action = self._actions[side]
        return action.note if isinstance(action, Told) else ""

    def sample(self, side: str, repeats: int) -> float:
        """us of a round, of so many in a row. What ran before may still disturb the first, so that is not counted."""
        action = self._actions[side]
        self._duration_us(action)

        def block() -> None:
            for _ in range(repeats):
                action()

        return self._duration_us(block) / repeats

    # -- a process that is given turns --------------------------------------------------------------------------------

    def take(self, count: int) -> None:
        """So many products are this process's own, one after another."""
        self._share = one_after_another(self.work, count)
        found = self._checked(self._share, count)
        if found > LIMITS[self.work.dtype]:
            raise Unavailable(f"its result deviates by {found:.1e}")
        self._batch = repeats_for(min(self._duration_us(self._share) for _ in range(3)), _BATCH_US)

    def work_for(self, start_s: float, seconds: float) -> tuple[int, float]:
        """Rounds done in a slice that begins at `start_s` of time.monotonic(), and when they ended."""
        share = self._share
        assert share is not None, "take() comes first"
        rounds, end_s = 0, max(start_s, time.monotonic()) + seconds
        while time.monotonic() < start_s:
            pass
        while not rounds or time.monotonic() < end_s:
            for _ in range(self._batch):
                share()
            if self._device != "cpu":
                torch.cuda.synchronize()
            rounds += self._batch
        return rounds, time.monotonic()

    # -- what the device can do ---------------------------------------------------------------------------------------

    def peak_gflops(self, dtype: str, samples: int) -> list[float]:
        """Of one large square product."""
        side = 1024 if self._device == "cpu" else 8192
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        a, b = (torch.randn(side, side, device=self._device).to(DTYPES[dtype]) for _ in range(2))
        out = torch.empty_like(a)
        return [2e-3 * side**3 / us for us in self._timed(lambda: torch.mm(a, b, out=out), samples)]

    def bandwidth_gb_s(self, samples: int, num_bytes: int) -> list[float]:
        """The better of reading a large tensor and copying it (which moves its bytes twice)."""
        a = torch.ones(num_bytes // 4, device=self._device)
        b = torch.empty_like(a)
        copied = [2e-3 * num_bytes / us for us in self._timed(lambda: b.copy_(a), samples)]
        read = [1e-3 * num_bytes / us for us in self._timed(lambda: torch.sum(a), samples)]
        return max(copied, read, key=lambda rates: sorted(rates)[len(rates) // 2])

    def _timed(self, action: Action, samples: int) -> list[float]:
        return [self._duration_us(action) for _ in range(samples + 2)][2:]


# -- what the case asks ----------------------------------------------------------------------------------------------


class Contender(Protocol):
    """A side of the comparison, wherever it runs. `prepare` and `sample` raise Unavailable."""

    note: str  # about what was prepared last

    def open(self, shape: Shape, dtype: str, weights: Weights, most: int, rotate: bool) -> None: ...

    def prepare(self, count: int) -> None: ...

    def sample(self) -> float:
        """us of a round of all products."""
        ...


class Single:
    """A side in one process."""

    def __init__(self, lab: Remote, side: str, *, opens: bool = True) -> None:
        self._lab, self._side, self._opens = lab, side, opens
        self.note = ""
        self._repeats = 1

    def open(self, shape: Shape, dtype: str, weights: Weights, most: int, rotate: bool) -> None:
        if self._opens:
            self._lab.call("open", shape, dtype, weights, most, rotate)

    def prepare(self, count: int) -> None:
        self._repeats = repeats_for(self._lab.call("prepare", self._side, count, limit_s=_LIMIT_S), BLOCK_US)
        self.note = self._lab.call("note", self._side)

    def sample(self) -> float:
        us: float = self._lab.call("sample", self._side, self._repeats, limit_s=_LIMIT_S)
        return us


class Several:
    """Processes that each have some of the products and compute them one after another.

    `at_once` False: they are given turns, a slice each (a CPU). True: all begin together, and the driver gives them
    turns, or none under MPS (a GPU).
    """

    def __init__(self, labs: Sequence[Remote], slice_s: float, *, at_once: bool) -> None:
        self._labs, self._slice_s, self._at_once = labs, slice_s, at_once
        self.note = ""
        self._shares: list[int] = []

    def open(self, shape: Shape, dtype: str, weights: Weights, most: int, rotate: bool) -> None:
        if isinstance(weights, int):
            weights = -(-weights // len(self._labs))
        for lab in self._labs:
            lab.ask("open", shape, dtype, weights, -(-most // len(self._labs)), rotate)
        answers(self._labs)

    def prepare(self, count: int) -> None:
        number = len(self._labs)
        self._shares = [len(range(first, count, number)) for first in range(number)]
        for lab, share in self._busy():
            lab.call("take", share)

    def _busy(self) -> list[tuple[Remote, int]]:
        return [(lab, share) for lab, share in zip(self._labs, self._shares, strict=True) if share]

    def sample(self) -> float:
        per_us = self._together() if self._at_once else self._in_turn()
        return sum(self._shares) / per_us

    def _in_turn(self) -> float:
        """Products per us."""
        start_s, products = time.monotonic(), 0
        for lab, share in self._busy():
            rounds, _ = lab.call("work_for", 0.0, self._slice_s)
            products += rounds * share
        return products / (time.monotonic() - start_s) / 1e6

    def _together(self) -> float:
        start_s = time.monotonic() + 0.005
        for lab, _ in self._busy():
            lab.ask("work_for", start_s, self._slice_s)
        busy = self._busy()
        found = zip(answers([lab for lab, _ in busy]), busy, strict=True)
        return float(sum(rounds * share / (end_s - start_s) for (rounds, end_s), (_, share) in found)) / 1e6


def answers(asked: Sequence[Remote]) -> list[Any]:
    """Of all that were asked. Each is waited for, also when an earlier one failed: the next call must not get it."""
    found: list[Any] = []
    reason: Unavailable | None = None
    for remote in asked:
        try:
            found.append(remote.answer())
        except Unavailable as why:
            reason = reason or why
    if reason is not None:
        raise reason
    return found


@contextmanager
def labs(device: str, number: int, environment: Mapping[str, str] | None = None) -> Iterator[list[Remote]]:
    """Processes, started side by side."""
    made = [Remote(Lab, device, environment=environment) for _ in range(number)]
    try:
        for lab in made:
            lab.require()
        yield made
    finally:
        for lab in made:
            lab.__exit__(None, None, None)


__all__ = ["Contender", "Lab", "Several", "Single", "answers", "labs"]
