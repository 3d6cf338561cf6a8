"""Alarms ring when they are set and not when they are cancelled; both kinds. No test measures how late they ring."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from spacetime.scheduler import alarm as module
from spacetime.scheduler.alarm import Alarm, SleeperAlarm, TimerAlarm, make_alarm

PATIENCE_S = 30  # a hang fails the test instead of the suite
A_WHILE_S = 0.05  # what rings wrongly has rung by then, mostly
LATER_US = 3_600_000_000

needs_timers = pytest.mark.skipif(module._timers() is None, reason="this system has no timerfd")


class Sleeper:
    """A thread that waits for the alarm, once."""

    def __init__(self, alarm: Alarm) -> None:
        self._thread = threading.Thread(target=alarm.wait, daemon=True)
        self._thread.start()

    def wakes(self) -> bool:
        self._thread.join(PATIENCE_S)
        return not self._thread.is_alive()

    def sleeps(self) -> bool:
        self._thread.join(A_WHILE_S)
        return self._thread.is_alive()


@pytest.fixture(params=[pytest.param(TimerAlarm, marks=needs_timers), SleeperAlarm])
def alarm(request: pytest.FixtureRequest) -> Iterator[Alarm]:
    alarm = request.param(2)
    yield alarm
    alarm.close()


@pytest.mark.parametrize("bell", [0, 1])
@pytest.mark.parametrize("after_us", [-5, 0, 1, 2_000])
def test_it_rings_once(alarm: Alarm, bell: int, after_us: int) -> None:
    alarm.set(bell, after_us)
    assert Sleeper(alarm).wakes()
    second = Sleeper(alarm)
    assert second.sleeps()
    alarm.set(bell, 0)
    assert second.wakes(), "it can be set again while somebody sleeps"


def test_what_rang_before_anybody_slept_is_heard(alarm: Alarm) -> None:
    alarm.set(0, 0)
    alarm.set(1, LATER_US)
    assert Sleeper(alarm).wakes()


def test_a_bell_that_is_cancelled_or_put_off_does_not_ring(alarm: Alarm) -> None:
    alarm.set(0, 100)
    alarm.cancel(0)
    alarm.set(1, 100)
    alarm.set(1, LATER_US)
    alarm.cancel(1)
    alarm.cancel(1)
    sleeper = Sleeper(alarm)
    assert sleeper.sleeps()
    alarm.set(1, 0)
    assert sleeper.wakes()


def test_a_bell_does_not_silence_the_other(alarm: Alarm) -> None:
    alarm.set(0, 1_000)
    alarm.cancel(1)
    assert Sleeper(alarm).wakes()


def test_not_before_is_an_offer(alarm: Alarm) -> None:
    for _ in range(3):
        alarm.set(0, 1_000, not_before_us=0)
        assert Sleeper(alarm).wakes()
        alarm.set(0, LATER_US, not_before_us=LATER_US // 2)
        sleeper = Sleeper(alarm)
        assert sleeper.sleeps()
        alarm.cancel(0)
        alarm.set(0, 0)
        assert sleeper.wakes()


def test_closing_is_final_and_may_be_repeated(alarm: Alarm) -> None:
    alarm.close()
    alarm.close()
    alarm.set(0, 0)
    alarm.set(0, 0, not_before_us=0)
    alarm.cancel(0)


def test_many_threads_may_set_and_cancel_while_it_is_closed(alarm: Alarm) -> None:
    errors: list[BaseException] = []
    started = threading.Barrier(5)

    def disturb(bell: int) -> None:
        started.wait(PATIENCE_S)
        try:
            for after_us in range(300):
                alarm.set(bell, after_us, not_before_us=after_us % 3)
                alarm.cancel(bell)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=disturb, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    started.wait(PATIENCE_S)
    alarm.close()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert not errors


@needs_timers
def test_a_muted_timer_serves_again(monkeypatch: pytest.MonkeyPatch) -> None:
    alarm = TimerAlarm(1)
    programmed: list[Any] = []
    settime: Callable[..., int] = alarm._settime

    def counted(*args: Any) -> int:
        programmed.append(args)
        return settime(*args)

    monkeypatch.setattr(alarm, "_settime", counted)
    alarm.set(0, LATER_US)
    alarm.cancel(0)
    alarm.set(0, LATER_US, not_before_us=LATER_US // 2)
    assert len(programmed) == 1, "the timer goes on, and ends in time"
    alarm.cancel(0)
    settime(alarm._bells[0], 0, module._expiry(1), None)  # as if the hour had passed
    sleeper = Sleeper(alarm)
    assert sleeper.sleeps(), "it is muted"
    alarm.set(0, LATER_US, not_before_us=0)
    assert len(programmed) == 1 and sleeper.wakes()
    alarm.set(0, LATER_US, not_before_us=LATER_US - 1)
    assert len(programmed) == 2, "it would have rung too early"
    alarm.set(0, LATER_US)
    assert len(programmed) == 3, "nobody asked for an approximation"
    alarm.close()


def test_where_there_are_no_timers_the_sleeper_minds_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_timers", lambda: None)
    assert isinstance(make_alarm(1), SleeperAlarm)
    with pytest.raises(OSError, match="no timerfd"):
        TimerAlarm(1)
