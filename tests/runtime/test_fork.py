"""A runtime that a child process inherits says so, at once, whatever its threads were doing; the parent's serves on."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from spacetime import Runtime
from spacetime.scheduler.driver import Driver

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

EXAMPLE = (torch.ones(2, 3),)
PATIENCE_S = 30


def in_child(function: Callable[[], None]) -> str:
    """What the function says of itself in a forked process: the error it raises, or nothing. A hang ends it."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads: that is what is tested
        child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE_S)
        try:
            function()
            said = ""
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read().decode()
    assert os.waitpid(child, 0)[1] == 0, "it hung"
    return said


def test_every_request_and_call_is_refused_in_the_child() -> None:
    with Runtime(device="cpu") as rt:
        tenant = rt.add(nn.Linear(3, 3).eval(), EXAMPLE, "a")
        calls: dict[str, Callable[[], object]] = {
            "call": lambda: tenant(*EXAMPLE),
            "submit": lambda: tenant.submit(*EXAMPLE),
            "add": lambda: rt.add(nn.Linear(3, 3).eval(), EXAMPLE, "b"),
            "remove": lambda: rt.remove("a"),
            "stats": rt.stats,
            "explain": rt.explain,
        }
        for name, call in calls.items():
            said = in_child(lambda call=call: call() and None)  # type: ignore[misc]
            assert said.startswith("ClosedError") and "after the fork" in said, name
        assert tenant(*EXAMPLE).shape == (2, 3), "the parent's goes on"


def test_closing_it_in_the_child_does_nothing() -> None:
    with Runtime(device="cpu") as rt:
        tenant = rt.add(nn.Linear(3, 3).eval(), EXAMPLE, "a")
        assert in_child(rt.close) == ""
        assert tenant(*EXAMPLE).shape == (2, 3)


def test_a_request_of_the_parent_never_ends_in_the_child() -> None:
    started, go_on = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if threading.current_thread().name.startswith("spacetime-cores"):
                started.set()
                go_on.wait(PATIENCE_S)
            return x

    with Runtime(device="cpu") as rt:
        tenant = rt.add(Slow().eval(), EXAMPLE, "slow", exact=True)
        future = tenant.submit(*EXAMPLE)
        assert started.wait(PATIENCE_S)
        said = in_child(lambda: future.result() and None)
        assert said.startswith("ClosedError")
        go_on.set()
        assert future.result().shape == (2, 3)


def test_locks_that_were_held_at_the_fork_hold_up_nobody() -> None:
    with Runtime(device="cpu") as rt:
        driver: Driver = rt._driver
        with driver._pump_lock:
            assert in_child(lambda: rt.stats() and None).startswith("ClosedError")
            assert in_child(rt.close) == ""
