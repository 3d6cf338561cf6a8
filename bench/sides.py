"""The sides of a comparison, each in a process of its own that sleeps while the others run.

In one process they would not be independent: OpenMP lets its threads spin at barriers only while there are no more
of them than cores, so a runtime with threads of its own makes plain modules beside it up to twice as slow.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch

from bench.cases import modules
from bench.timing import Action, block_median_us
from spacetime import Runtime, zoo


class Side:
    """`make(*arguments)` gives the action to time; it is called in the new process, so all of it must pickle."""

    def __init__(self, make: Callable[..., Action], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def why_not(self) -> str | None:
        """Wait until it is made; the reason if that failed."""
        reason: str | None = self._pipe.recv()
        return reason

    def require(self) -> None:
        """Wait until it is made."""
        reason = self.why_not()
        if reason is not None:
            raise RuntimeError(f"a side of the comparison cannot be made: {reason}")

    def block_median_us(self, rounds: int) -> float:
        """The median of a block of rounds, timed where they run."""
        self._pipe.send(rounds)
        median_us: float = self._pipe.recv()
        return median_us

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(BrokenPipeError):  # a side that could not be made has ended already
            self._pipe.send(0)
        self._process.join()


def _serve(pipe: Connection, make: Callable[..., Action], arguments: tuple[Any, ...]) -> None:
    try:
        action = make(*arguments)
    except Exception as error:  # something optional is missing, or refuses this model
        pipe.send(f"{type(error).__name__}: {error}".partition("\n")[0])
        return
    pipe.send(None)
    while rounds := pipe.recv():
        pipe.send(block_median_us(action, rounds))


def plain(model: str, count: int) -> Action:
    """Plain modules, one after another, on all cores; one row each."""
    torch.set_grad_enabled(False)
    members, args = list(modules(model, count)), zoo.example(model, rows=1)

    def one_after_another() -> None:
        for module in members:
            module(*args)

    one_after_another()
    return one_after_another


def tenants(model: str, count: int, warm_up_rounds: int, warm_up_s: float) -> Action:
    """The same as tenants of one runtime: all submitted, then all awaited. Warmed up, for the cost model to settle."""
    runtime, args = Runtime(), zoo.example(model, rows=1)
    residents = [
        runtime.add(module, zoo.example(model), f"{model}/{i}") for i, module in enumerate(modules(model, count))
    ]

    def together() -> None:
        for future in [resident.submit(*args) for resident in residents]:
            future.result()

    end_s = time.monotonic() + warm_up_s
    for _ in range(warm_up_rounds):
        together()
        if time.monotonic() > end_s:
            break
    return together
