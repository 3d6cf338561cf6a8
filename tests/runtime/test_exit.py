"""The end of the program, and of runtimes that nobody has closed: threads end, requests end, nothing crashes."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
from weakref import WeakSet, ref

import pytest
import torch

import spacetime as st
from spacetime.scheduler import driver
from tests.runtime.models import EXAMPLE, PATIENCE_S, Gate, X, assert_equal, plain, tiny


def wait_for_the_end_of_all_but(threads: set[threading.Thread]) -> None:
    for thread in ours() - threads:
        thread.join(PATIENCE_S)
    assert ours() <= threads


def ours() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("spacetime")}


def test_a_runtime_that_nobody_has_a_name_for_serves_what_waits_and_ends() -> None:
    before = ours()
    module = tiny()
    expected = plain(module, X)
    rt = st.Runtime("cpu")
    reference, tenant = ref(rt), rt.add(module, EXAMPLE, "tenant")
    del rt
    assert_equal(tenant(X), expected)  # a handle keeps it
    futures = [tenant.submit(X) for _ in range(5)]
    del tenant
    gc.collect()
    assert reference() is None
    for future in futures:
        assert_equal(future.result(PATIENCE_S), expected)
    wait_for_the_end_of_all_but(before)
    assert len({p.untyped_storage().data_ptr() for p in module.parameters()}) == 4, "memory of their own"
    assert torch.equal(plain(module, X), expected)


def test_a_closed_runtime_is_not_ended_again() -> None:
    before = ours()
    rt = st.Runtime("cpu")
    rt.close()
    rt._driver.let_go()
    assert not rt._driver._inbox
    del rt
    gc.collect()
    wait_for_the_end_of_all_but(before)


@pytest.fixture
def only_mine(monkeypatch: pytest.MonkeyPatch) -> WeakSet[driver.Driver]:
    """Runtimes of other tests go on."""
    mine = WeakSet[driver.Driver]()
    monkeypatch.setattr(driver, "_drivers", mine)
    return mine


def test_at_the_end_of_the_program_lanes_end_and_what_waits_is_rejected(only_mine: WeakSet[driver.Driver]) -> None:
    before = ours()
    rt, gate = st.Runtime("cpu", policy="time_slice"), Gate()
    blocker, tenant = rt.add(gate, EXAMPLE, "gate"), rt.add(tiny(), EXAMPLE, "tenant")
    assert list(only_mine) == [rt._driver]
    gate.close()
    running = blocker.submit(X)
    assert gate.entered.wait(PATIENCE_S)
    waiting = [tenant.submit(X) for _ in range(3)]
    end = threading.Thread(target=driver._end_all)
    end.start()
    assert all(isinstance(future.exception(PATIENCE_S), st.RejectedError) for future in waiting)
    assert end.is_alive() and not running.done(), "it waits for the lane"
    gate.open()
    end.join(PATIENCE_S)
    assert torch.equal(running.result(PATIENCE_S), X + 1)
    wait_for_the_end_of_all_but(before)
    with pytest.raises(st.ClosedError, match="not accepted"):
        tenant(X)
    rt.close()


def test_a_lane_that_does_not_end_does_not_hold_up_the_program(
    only_mine: WeakSet[driver.Driver], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(driver, "EXIT_S", 0.05)
    with st.Runtime("cpu") as rt:
        gate = Gate()
        blocker = rt.add(gate, EXAMPLE, "gate")
        gate.close()
        running = blocker.submit(X)
        assert gate.entered.wait(PATIENCE_S)
        with caplog.at_level(logging.WARNING, "spacetime"):
            driver._end_all()
        assert "is cut off" in caplog.text and not running.done()
        gate.open()
        assert torch.equal(running.result(PATIENCE_S), X + 1)


ABRUPT = """
import threading, torch, sys, spacetime as st
from torch import nn
rt = st.Runtime("cpu")
models = [nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 8)).eval() for _ in range(2)]
tenants = [rt.add(model, (torch.zeros(1, 64),), str(number)) for number, model in enumerate(models)]
futures = [tenant.submit(torch.ones(8, 64)) for _ in range(2000) for tenant in tenants]
sys.exit(3)
"""


@pytest.mark.slow
def test_a_program_that_ends_with_requests_under_way_ends_as_it_wanted_to() -> None:
    """It used to be aborted: threads were cut off in the middle of native code."""
    command = [sys.executable, "-W", "ignore", "-c", ABRUPT]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stderr) == (3, "")
