"""Runtime(record=True) and Runtime(profile=...): journals that replay, profiles of this machine and of others."""

from __future__ import annotations

from dataclasses import replace

import pytest

import spacetime as st
from spacetime.device import Device
from spacetime.ir import Program
from spacetime.kernels.vector.host import host
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.journal import replay
from spacetime.scheduler.tables import LatencyTable
from tests.runtime.models import EXAMPLE, PATIENCE_S, X, assert_equal, plain, tiny


def test_a_recorded_runtime_replays() -> None:
    with st.Runtime("cpu", "time_slice", record=True) as rt:
        tenants = [rt.add(tiny(), EXAMPLE, f"t{i}") for i in range(2)]
        for future in [tenant.submit(X) for tenant in tenants * 3]:
            future.result(PATIENCE_S)
        journal = rt.journal()
    found = replay(journal)
    assert found.difference is None and len(found.plans) > 0


def test_a_journal_of_the_beginning_stops_growing_and_replays() -> None:
    with st.Runtime("cpu", "time_slice", record=25) as rt:
        tenant = rt.add(tiny(), EXAMPLE, "t")
        for _ in range(3):
            tenant(X)
        early = rt.journal()
        for _ in range(20):
            tenant(X)
        journal = rt.journal()
    assert len(journal.entries) == 25 and journal.is_full and not early.is_full
    assert journal.entries[: len(early.entries)] == early.entries, "it is the beginning, not the end, that is kept"
    found = replay(journal)
    assert found.difference is None and len(found.plans) >= 3


@pytest.mark.parametrize("record", [False, 0])
def test_without_recording_there_is_no_journal(record: bool | int) -> None:
    with st.Runtime("cpu", record=record) as rt, pytest.raises(st.OptionError, match="keeps no journal"):
        rt.journal()


def test_a_profile_of_this_machine_is_used_and_another_is_refused() -> None:
    module = tiny()
    profile = st.profile(st.capture(module, EXAMPLE), budget_s=0.02, units=[1])
    with st.Runtime("cpu", profile=profile) as rt:
        assert_equal(rt.add(module, EXAMPLE, "t")(X), plain(module, X))
    elsewhere = replace(profile, environment=replace(profile.environment, device="another cpu"))
    with pytest.raises(st.OptionError, match="not of this machine") as caught:
        st.Runtime("cpu", profile=elsewhere)
    assert "another cpu there" in str(caught.value)


def test_a_program_that_is_one_call_is_not_judged_by_the_times_of_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    profile, tables = st.profile(st.capture(tiny(), EXAMPLE), budget_s=0.02, units=[1]), []
    register = OnlineCosts.register

    def spy(
        costs: OnlineCosts, cohort: str, program: Program, device: Device, table: LatencyTable | None = None
    ) -> None:
        tables.append(table)
        register(costs, cohort, program, device, table)

    monkeypatch.setattr(OnlineCosts, "register", spy)
    with st.Runtime("cpu", profile=profile) as rt:
        rt.add(tiny(), EXAMPLE, "one call")
        rt.add(tiny(1), EXAMPLE, "as it is", exact=True)
    assert tables == ([None, profile.table] if host() else [profile.table, profile.table])
