"""An idle runtime blocks: it costs no CPU time, and it wakes."""

from __future__ import annotations

import threading
import time

import pytest

import spacetime as st
from tests.runtime.models import EXAMPLE, PATIENCE_S, X, assert_equal, plain, tiny


@pytest.mark.parametrize("policy", ["space_time", "time_slice"])
def test_an_idle_runtime_uses_no_cpu_and_still_answers(policy: str) -> None:
    module = tiny()
    expected = plain(module, X)
    with st.Runtime(policy=policy) as rt:
        tenant = rt.add(module, EXAMPLE, "t")
        for _ in range(3):
            assert_equal(tenant.submit(X).result(PATIENCE_S), expected)
        never = threading.Event()
        before_s = time.process_time()
        never.wait(0.3)  # a busy loop would use up most of it; other work on the machine does not count
        used_s = time.process_time() - before_s
        assert used_s < 0.05 * 0.3
        assert_equal(tenant.submit(X).result(PATIENCE_S), expected)
