"""The sides of a comparison, each in a process of its own that sleeps while the others run.

In one process they would not be independent: OpenMP lets its threads spin at barriers only while there are no more
of them than cores, so a runtime with threads of its own makes plain modules beside it up to twice as slow.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch
import torch.multiprocessing  # tensors in shared memory can go through a pipe

from bench.cases import modules
from bench.timing import Action, block_median_us
from spacetime import Runtime, zoo
from spacetime.backends.threads import release_team

LATE = "not ready"


class Unavailable(Exception):
    """A side of a comparison cannot be made here; the message says why."""


class Remote:
    """An object in another process. `make(*arguments)` makes it there, so all of it must pickle."""

    def __init__(self, make: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None) -> None:
        self._pipe, theirs = _context().Pipe()
        start = (theirs, make, arguments, dict(environment or {}))
        self._process = _context().Process(target=_serve, args=start, daemon=True)
        self._process.start()
        theirs.close()

    def why_not(self, limit_s: float | None = None) -> str | None:
        """Wait until it is made; the reason if that failed, or took longer than `limit_s`: then it is given up."""
        try:
            self._answer(limit_s)
        except Unavailable as why:
            return str(why)
        return None

    def require(self) -> None:
        """Wait until it is made."""
        reason = self.why_not()
        if reason is not None:
            raise RuntimeError(f"a side of the comparison cannot be made: {reason}")

    def call(self, method: str, *arguments: Any, limit_s: float | None = None) -> Any:
        """Run a method of it there; `Unavailable` if it raises."""
        self.ask(method, *arguments)
        return self.answer(limit_s)

    def ask(self, method: str, *arguments: Any) -> None:
        """Begin a call; `answer` ends it. Several processes can be asked at a time."""
        try:
            self._pipe.send((method, arguments))
        except BrokenPipeError as error:
            raise Unavailable("its process has ended") from error

    def answer(self, limit_s: float | None = None) -> Any:
        return self._answer(limit_s)

    def _answer(self, limit_s: float | None) -> Any:
        if not self._pipe.poll(limit_s):
            self.kill()
            raise Unavailable(f"{LATE} in {limit_s:.0f} s")
        try:
            reason, value = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join()
            raise Unavailable(f"its process ended with code {self._process.exitcode}") from error
        if reason is not None:
            raise Unavailable(reason)
        return value

    def kill(self) -> None:
        """End the process and those it has started, a compiler for one."""
        if self._process.pid is not None and self._process.is_alive():
            with suppress(ProcessLookupError):  # it has not come as far as having a group
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(BrokenPipeError, OSError):  # one that could not be made has ended already
            self._pipe.send(None)
        self._process.join(timeout=None if kind is None else 1)
        if self._process.is_alive():
            self.kill()
        self._pipe.close()


class Side(Remote):
    """`make(*arguments)` gives the action to time."""

    def __init__(self, make: Callable[..., Action], *arguments: Any) -> None:
        super().__init__(_Timed, make, *arguments)

    def block_median_us(self, rounds: int, least_us: float = 0.0) -> float:
        """The median of a block of rounds, timed where they run."""
        median_us: float = self.call("block_median_us", rounds, least_us)
        return median_us


class _Timed:
    def __init__(self, make: Callable[..., Action], *arguments: Any) -> None:
        self._action = make(*arguments)

    def block_median_us(self, rounds: int, least_us: float) -> float:
        return block_median_us(self._action, rounds, least_us)


class _Start:
    """How processes start."""

    afresh = False


@contextmanager
def started_afresh(wanted: bool) -> Iterator[None]:
    """Processes are new ones: they start in seconds instead of a moment, and serve as users' do.

    In a fork of a process that has imported torch the runtime's calls take longer (measured: 239 instead of 121 us for
    a lone MLP), so forks are for looking whether a bench runs.
    """
    _Start.afresh = wanted
    try:
        yield
    finally:
        _Start.afresh = False


def _context() -> Any:
    return multiprocessing.get_context("spawn") if _Start.afresh else _fork_server()


@cache
def _fork_server() -> Any:
    """Children of a server that has imported everything and computed nothing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.sides", "torch._dynamo", "torch.export"])
    return context


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    os.setpgid(0, 0)  # what it starts ends with it
    os.environ.update(environment)
    with suppress(BrokenPipeError):  # whoever asked has ended
        _answer_calls(pipe, make, arguments)


def _answer_calls(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        made = make(*arguments)
    except Exception as error:  # something optional is missing, or refuses this model
        pipe.send((reason_of(error), None))
        return
    pipe.send((None, None))
    while (asked := _next(pipe)) is not None:
        method, values = asked
        answer: tuple[str | None, Any]
        try:
            answer = (None, getattr(made, method)(*values))
        except Exception as error:
            answer = (reason_of(error), None)
        release_team()  # it would spin for some milliseconds more, into the turn of the next side
        pipe.send(answer)
    close = getattr(made, "close", None)
    if close is not None:
        close()


def _next(pipe: Connection) -> tuple[str, tuple[Any, ...]] | None:
    try:
        asked: tuple[str, tuple[Any, ...]] | None = pipe.recv()
    except EOFError:  # whoever asked has ended
        return None
    return asked


def reason_of(error: Exception) -> str:
    """One line for people."""
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, Unavailable) else f"{type(error).__name__}: {text}"


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
    runtime, args = Runtime("cpu"), zoo.example(model, rows=1)
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
