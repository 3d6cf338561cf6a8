"""When the driver's thread is woken: for requests that nobody pumps, for policies that wait, and not otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, as_completed, wait
from typing import Any

import pytest

from spacetime.backends.null import NullBackend
from spacetime.plan import Lane, Plan, Snapshot
from spacetime.scheduler import driver as module
from spacetime.scheduler.alarm import Alarm, SleeperAlarm, make_alarm
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.driver import HABIT, PATIENT_US, UNATTENDED_US, Driver, Result
from spacetime.scheduler.loop import Scheduler
from spacetime.scheduler.protocols import CostModel, Outcome, Policy
from spacetime.scheduler.registry import get_policy
from spacetime.scheduler.request import TenantSpec, make_request
from tests.scheduler.harness import Echo

SPEC = TenantSpec("a", "cohort")
PATIENCE_S = 30  # a hang fails the test instead of the suite
SUBMITTED, POLICY = module._SUBMITTED, module._POLICY


class HandAlarm:
    """An alarm that rings when the test says so, and notes what it was set to. Set to nought it rings at once."""

    def __init__(self, num_bells: int) -> None:
        self.set_to: list[int | None] = [None] * num_bells
        self.times: list[list[int]] = [[] for _ in range(num_bells)]
        self._rings = threading.Semaphore(0)

    def set(self, bell: int, after_us: int, not_before_us: int | None = None) -> None:
        self.set_to[bell] = after_us
        self.times[bell].append(after_us)
        if after_us <= 0:
            self._rings.release()

    def cancel(self, bell: int) -> None:
        self.set_to[bell] = None

    def ring(self) -> None:
        self._rings.release()

    def wait(self) -> None:
        self._rings.acquire()

    def close(self) -> None:
        pass


class House:
    """A driver, its backend, its alarm."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, policy: str | Policy = "space_time", **options: Any) -> None:
        self.backend, self.num_requests = NullBackend(**options), 0
        self.made: list[HandAlarm] = []
        monkeypatch.setattr(module, "make_alarm", self.make)
        self.driver = make_driver(self.backend, policy)
        (self.alarm,) = self.made

    def make(self, num_bells: int) -> HandAlarm:
        self.made.append(HandAlarm(num_bells))
        return self.made[-1]

    def submit(self, *, assisted: bool = False) -> Result[Any]:
        self.num_requests += 1
        result: Result[Any] = Result(self.driver)
        payload = self.num_requests
        request = make_request(SPEC, self.num_requests, 1, payload, self.backend.now_us(), result)
        self.driver.submit(request, assisted=assisted)
        return result

    def until(self, happens: Callable[[], bool]) -> None:
        """Wait for it without a hand in it."""
        never = threading.Event()
        for _ in range(1000 * PATIENCE_S):
            if happens():
                return
            never.wait(0.001)
        raise AssertionError("nothing happens")

    def settle(self) -> None:
        """The driver's thread has done what it was woken for."""
        self.driver.call(lambda scheduler: None)


def make_driver(backend: NullBackend, policy: str | Policy) -> Driver:
    costs = OnlineCosts()
    costs.register("cohort", None, backend.device)
    driver = Driver(lambda post: Scheduler(backend, get_policy(policy), costs, post))
    driver.call(lambda scheduler: scheduler.add_tenant(SPEC, Echo()))
    return driver


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    house = House(monkeypatch)
    yield house
    house.driver.close()
    assert house.backend.closed


def test_what_nobody_awaits_is_served_together_when_the_alarm_rings(house: House) -> None:
    results = [house.submit() for _ in range(5)]
    assert house.alarm.times[SUBMITTED] == [UNATTENDED_US], "once for all of them"
    assert not any(result.done() for result in results)
    house.alarm.ring()
    house.until(lambda: len(house.backend.lanes) > 0)
    assert [lane.num_rows for lane in house.backend.lanes] == [5]


def test_who_waits_pumps_and_silences_the_alarm(house: House) -> None:
    results = [house.submit() for _ in range(3)]
    assert [result.result() for result in results] == [1, 2, 3]
    assert house.alarm.set_to[SUBMITTED] is None
    assert [lane.num_rows for lane in house.backend.lanes] == [3]
    assert house.submit().result(PATIENCE_S) == 4, "with a time-out as well"
    assert house.alarm.times[SUBMITTED] == [UNATTENDED_US] * 2


def test_who_waits_right_away_sets_no_alarm(house: House) -> None:
    assert house.submit(assisted=True).result() == 1
    assert house.submit(assisted=True).plan() is None
    assert house.alarm.times[SUBMITTED] == []
    assert [lane.num_rows for lane in house.backend.lanes] == [1, 1]


def test_other_ways_to_wait_ring_at_once(house: House) -> None:
    assert house.submit().exception(PATIENCE_S) is None
    results = [house.submit() for _ in range(3)]
    assert not wait(results, PATIENCE_S, ALL_COMPLETED).not_done
    assert len(list(as_completed([house.submit() for _ in range(3)], PATIENCE_S))) == 3
    assert wait([house.submit()], PATIENCE_S, FIRST_COMPLETED).done
    called_back = threading.Event()
    house.submit().add_done_callback(lambda _: called_back.set())
    assert called_back.wait(PATIENCE_S)
    house.settle()
    assert house.alarm.times[SUBMITTED] == [UNATTENDED_US, 0] * 5


def test_patience_grows_while_everybody_waits_and_ends_with_the_first_who_does_not(house: House) -> None:
    for _ in range(HABIT):
        house.submit().result()
    assert set(house.alarm.times[SUBMITTED]) == {UNATTENDED_US}
    house.submit().result()
    assert house.alarm.times[SUBMITTED][-1] == PATIENT_US
    assert house.submit().exception(PATIENCE_S) is None  # it rings
    house.settle()
    house.submit().result()
    assert house.alarm.times[SUBMITTED][-1] == UNATTENDED_US


def test_a_policy_that_waits_is_asked_again_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_us: list[int] = []

    def patient(snapshot: Snapshot, costs: CostModel) -> Plan:
        asked_us.append(snapshot.now_us)
        if snapshot.now_us < 5_000:
            return Plan(wake_at_us=5_000)
        return get_policy("time_slice")(snapshot, costs)

    house = House(monkeypatch, patient)
    first = house.submit(assisted=True)
    first.plan()
    (after_us,) = house.alarm.times[POLICY]
    assert 4_900 <= after_us < 5_000
    house.submit(assisted=True).plan()
    assert len(house.alarm.times[POLICY]) == 1, "it is set to this time already"
    house.alarm.ring()  # too early: the virtual clock stands still
    house.until(lambda: len(house.alarm.times[POLICY]) == 2)
    house.backend.advance(6_000)
    house.alarm.ring()
    assert first.exception(PATIENCE_S) is None
    house.settle()
    assert house.alarm.set_to[POLICY] is None
    assert len(asked_us) >= 4
    house.driver.close()


def test_a_close_that_waits_for_lanes_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, latency_us=1_000)
    running = house.submit(assisted=True)
    running.plan()
    closer = threading.Thread(target=house.driver.close, daemon=True)
    closer.start()
    house.until(lambda: 0 in house.alarm.times[SUBMITTED])
    closer.join(0.05)
    assert closer.is_alive() and not running.done()
    assert len(house.alarm.times[SUBMITTED]) < 5, "it is woken again and again"
    house.backend.advance(2_000)
    closer.join(PATIENCE_S)
    assert not closer.is_alive() and running.result(0) == 1


# -- with alarms that ring by themselves -----------------------------------------------------------------------


class Served:
    """Counts what it runs, and says when everything has."""

    def __init__(self, num_expected: int) -> None:
        self.num_missing = num_expected
        self.all_served = threading.Event()

    def run(self, lane: Lane, payloads: Sequence[Any]) -> list[Outcome]:
        self.num_missing -= len(payloads)
        if self.num_missing <= 0:
            self.all_served.set()
        return [Outcome(payload) for payload in payloads]


@pytest.fixture(params=[make_alarm, SleeperAlarm], ids=["this system's", "the sleeper's"])
def each_alarm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(num_bells: int) -> Alarm:
        alarm: Alarm = request.param(num_bells)
        return alarm

    monkeypatch.setattr(module, "make_alarm", make)


@pytest.mark.usefixtures("each_alarm")
def test_thousands_of_submits_from_many_threads_need_nobody_who_waits() -> None:
    num_threads, num_each = 8, 250
    backend, served = NullBackend(), Served(num_threads * num_each)
    driver = make_driver(backend, "space_time")
    driver.call(lambda scheduler: scheduler.replace_tenant(SPEC, served))
    started = threading.Barrier(num_threads)

    def submit(worker: int) -> None:
        started.wait(PATIENCE_S)
        for i in range(num_each):
            driver.submit(make_request(SPEC, worker * num_each + i, 1, i, backend.now_us(), Result(driver)))

    threads = [threading.Thread(target=submit, args=(worker,)) for worker in range(num_threads)]
    for thread in threads:
        thread.start()
    assert served.all_served.wait(PATIENCE_S), f"{served.num_missing} requests wait for ever"
    for thread in threads:
        thread.join(PATIENCE_S)
    driver.close()
    assert backend.closed and served.num_missing == 0


@pytest.mark.usefixtures("each_alarm")
def test_single_requests_that_nobody_awaits_are_served_one_after_another() -> None:
    backend, served = NullBackend(), Served(0)
    driver = make_driver(backend, "space_time")
    driver.call(lambda scheduler: scheduler.replace_tenant(SPEC, served))
    for i in range(2 * HABIT):
        served.num_missing = 1
        served.all_served.clear()
        driver.submit(make_request(SPEC, i, 1, i, backend.now_us(), Result(driver)))
        assert served.all_served.wait(PATIENCE_S)
    driver.close()


@pytest.mark.usefixtures("each_alarm")
def test_a_waiting_policy_is_woken_though_nothing_happens() -> None:
    num_asked = 0

    def third_time(snapshot: Snapshot, costs: CostModel) -> Plan:
        nonlocal num_asked
        num_asked += 1
        if num_asked < 3:
            return Plan(wake_at_us=snapshot.now_us + 500)
        return get_policy("time_slice")(snapshot, costs)

    backend = NullBackend()
    driver = make_driver(backend, third_time)
    result: Result[Any] = Result(driver)
    driver.submit(make_request(SPEC, 1, 1, "served", backend.now_us(), result))
    assert result.result(PATIENCE_S) == "served"
    driver.close()
