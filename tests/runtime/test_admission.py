"""Who may come in: predicted before a tenant is accepted, from figures that must not be false alarms."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import spacetime as st
from spacetime.backends.null import NULL_DEVICE, NullBackend
from spacetime.device import Device
from spacetime.runtime import admission
from spacetime.runtime.admission import Candidate
from spacetime.runtime.memory import available_bytes, weight_bytes
from tests.runtime.models import EXAMPLE, X, assert_equal, assert_three_parts, plain, tiny

IMPOSSIBLE_MS = 1e-3  # a microsecond


def small(memory_bytes: int) -> NullBackend:
    device = Device("small", "null", num_units=8, memory_bytes=memory_bytes)
    return NullBackend(device)


def test_an_impossible_slo_is_rejected_with_the_figures() -> None:
    with st.Runtime(admission="reject") as rt:
        with pytest.raises(st.AdmissionError) as caught:
            rt.add(tiny(), EXAMPLE, "a", slo_ms=IMPOSSIBLE_MS)
        assert_three_parts(
            caught.value, "tenant 'a' cannot make its SLO on cpu", "its example of 2 rows takes", "raise slo_ms"
        )
        assert "the SLO is 1 us" in caught.value.facts
        assert rt.tenants() == () and rt.stats() == {}
        module = tiny()
        assert_equal(rt.add(module, EXAMPLE, "a", slo_ms=1e6)(X), plain(module, X))


def test_by_default_it_is_warned_of_once_and_served() -> None:
    module = tiny()
    with st.Runtime() as rt:
        with pytest.warns(RuntimeWarning, match=r"'a' cannot make its SLO(.|\n)*raise slo_ms") as caught:
            tenant = rt.add(module, EXAMPLE, "a", slo_ms=IMPOSSIBLE_MS)
        assert len(caught) == 1 and caught[0].filename == __file__
        assert_equal(tenant(X), plain(module, X))


def test_a_warning_that_is_an_error_leaves_no_tenant_behind() -> None:
    with st.Runtime() as rt, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            rt.add(tiny(), EXAMPLE, "a", slo_ms=IMPOSSIBLE_MS)
        assert rt.tenants() == ()
        rt.add(tiny(), EXAMPLE, "a")


def test_off_predicts_nothing() -> None:
    with st.Runtime(admission="off") as rt, warnings.catch_warnings():
        warnings.simplefilter("error")
        rt.add(tiny(), EXAMPLE, "a", slo_ms=IMPOSSIBLE_MS)


def test_what_can_be_made_is_accepted_fused_exact_and_opaque() -> None:
    with st.Runtime(admission="reject") as rt:
        rt.add(tiny(), EXAMPLE, "fused", slo_ms=60_000)
        rt.add(tiny(), EXAMPLE, "exact", slo_ms=60_000, exact=True)
        for _ in range(3):
            rt.stats()
        assert len(rt.tenants()) == 2


def test_a_prior_alone_rejects_nobody() -> None:
    """The null backend's clock says nothing about a real run, and no lane of the cohort was seen."""
    with st.Runtime(NullBackend(), admission="reject") as rt:
        rt.add(tiny(), EXAMPLE, "a", slo_ms=IMPOSSIBLE_MS)


def test_lanes_that_were_seen_do() -> None:
    with st.Runtime(NullBackend(latency_us=0, tick_us=50_000), "time_slice", admission="reject") as rt:
        first = rt.add(tiny(), EXAMPLE, "first")
        for _ in range(30):
            first(X)
        with pytest.raises(st.AdmissionError, match="cannot make its SLO"):
            rt.add(tiny(1), EXAMPLE, "second", slo_ms=2)


def test_an_overloaded_device_takes_nobody_else() -> None:
    backend = NullBackend(latency_us=100_000)
    with st.Runtime(backend, "time_slice", admission="reject") as rt:
        busy = rt.add(tiny(), EXAMPLE, "busy")
        futures = [busy.submit(X) for _ in range(40)]
        rt.add(tiny(1), EXAMPLE, "early")  # how long a request takes is not known yet
        for _ in range(3):
            backend.advance(100_000)
        assert rt.stats()["busy"]["load"] > 2, "forty requests of a tenth of a second within one second"
        with pytest.raises(st.AdmissionError) as caught:
            rt.add(tiny(2), EXAMPLE, "late")
        assert_three_parts(
            caught.value, "tenant 'late' comes to an overloaded null", "its 2 tenants ask for", "remove a tenant"
        )
        while not all(future.done() for future in futures):
            backend.advance(100_000)
        rt.add(tiny(2), EXAMPLE, "late")  # that was four seconds ago


def test_memory_is_checked_before_anything_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    big = nn.Linear(100, 100).eval()  # 40 kB
    example = (torch.ones(1, 100),)
    with st.Runtime(small(100_000), admission="reject") as rt:
        rt.add(big, example, "one")
        rt.add(nn.Linear(100, 100).eval(), example, "two")
        monkeypatch.setattr(rt._preparer, "prepare", None)  # it must not come to that
        with pytest.raises(st.AdmissionError) as caught:
            rt.add(nn.Linear(100, 100).eval(), example, "three")
        assert_three_parts(
            caught.value,
            "tenant 'three' does not fit into the memory of small",
            "it needs 0.0 MB beside 0.1 MB of other tenants, there are 0.1 MB",
            "remove a tenant",
        )


def test_room_that_was_given_back_can_be_had() -> None:
    example = (torch.ones(1, 100),)
    with st.Runtime(small(50_000), admission="reject") as rt:
        rt.add(nn.Linear(100, 100).eval(), example, "one")
        with pytest.raises(st.AdmissionError):
            rt.add(nn.Linear(100, 100).eval(), example, "two")
        rt.remove("one")
        rt.add(nn.Linear(100, 100).eval(), example, "two")


def test_the_cpu_has_as_much_as_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "available_bytes", lambda: 10)
    with st.Runtime(admission="reject") as rt, pytest.raises(st.AdmissionError, match="does not fit"):
        rt.add(tiny(), EXAMPLE, "a")


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(1))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def test_timing_an_example_leaves_buffers_as_they_were() -> None:
    module = Counting()
    us = admission._measure_us(Candidate("a", module, EXAMPLE), 0.0)
    assert 0 < us < 60e6 and module.calls.item() == 0


def test_weights_that_are_shared_count_once() -> None:
    one, other = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
    assert weight_bytes([one]) == weight_bytes([one, one]) == 400
    assert weight_bytes([one, other]) == 800
    other.weight = one.weight
    assert weight_bytes([nn.Sequential(one, other)]) == 400
    assert weight_bytes([]) == 0


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("max", "0", 8192), ("4096", "1000", 3096 + 500), ("4096", "9000", 0), ("1000000", "0", 8192)],
)
def test_a_container_has_what_its_limit_leaves(tmp_path: Path, limit: str, used: str, expected: int) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  100 kB\nMemAvailable:  8 kB\n")
    for name, text in (("max", limit), ("current", used), ("stat", "anon 3\ninactive_file 500\n")):
        (tmp_path / f"memory.{name}").write_text(text + "\n")
    assert available_bytes(meminfo, tmp_path) == expected


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(st.OptionError, match="admission='maybe'"):
        st.Runtime(admission="maybe")
    assert NULL_DEVICE.memory_bytes is None
