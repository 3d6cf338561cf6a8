"""Requests and tenant options."""

from __future__ import annotations

from fractions import Fraction
from math import inf, nan
from typing import Any

import numpy as np
import pytest

from spacetime.errors import InputError, OptionError, RejectedError
from spacetime.scheduler.request import TenantSpec, limit_us, make_request


def test_deadline_follows_from_the_objective() -> None:
    assert make_request(TenantSpec("a", "c", slo_us=500), 1, 2, None, 100).view.deadline_us == 600
    assert make_request(TenantSpec("a", "c"), 1, 2, None, 100).view.deadline_us is None


def test_a_request_has_rows() -> None:
    with pytest.raises(InputError, match="request of 0 rows"):
        make_request(TenantSpec("a", "c"), 1, 0, None, 0)


COUNTS = ("max_concurrency", "max_queue", "min_units", "slo_us", "timeout_us")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[(option, value) for option in COUNTS for value in (0, -1, 0.5, "20", nan, inf)],
        *[(option, None) for option in COUNTS[:3]],
        *[("weight", value) for value in (0, -1.0, "heavy", nan, inf, None)],
        *[("priority", value) for value in ("high", 0.5, nan, None)],
        ("late", "drop"),
        ("late", None),
    ],
)
def test_options_that_mean_nothing_are_refused(option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"tenant 'a': {option} is {value!r}") as caught:
        TenantSpec("a", "c", **{option: value})
    assert caught.value.facts and "leave it out" in caught.value.next_step


def test_numbers_of_other_kinds_become_pythons() -> None:
    options: dict[str, Any] = {"weight": np.float32(2), "priority": np.int8(-1), "max_queue": np.int64(9)}
    spec = TenantSpec("a", "c", **options)
    assert {option: getattr(spec, option) for option in options} == options
    assert [type(getattr(spec, option)) for option in options] == [float, int, int]


def test_limits_are_given_in_milliseconds() -> None:
    given: list[float | None] = [None, 20, 0.001, 1.5, Fraction(1, 2)]
    assert [limit_us("a", "slo_ms", value) for value in given] == [None, 20_000, 1, 1500, 500]
    for wrong in (0, -1, 0.0004, nan, inf, 1e306, "20", [1]):
        with pytest.raises(OptionError) as caught:
            limit_us("a", "slo_ms", wrong)  # type: ignore[arg-type]
        assert caught.value.what == f"tenant 'a': slo_ms is {wrong!r}"
        assert "milliseconds" in caught.value.facts and caught.value.next_step


def test_a_cancelled_request_is_neither_begun_nor_rejected() -> None:
    request = make_request(TenantSpec("a", "c"), 1, 1, None, 0)
    assert request.future.cancel()
    assert not request.reject(RejectedError("no"))
    assert request.future.cancelled()


def test_lateness_is_an_option_with_an_objective() -> None:
    with pytest.raises(OptionError, match=r"late is 'drop'(.|\n)*known: serve, reject"):
        TenantSpec("a", "c", slo_us=5, late="drop")
    with pytest.raises(OptionError, match=r"late='reject' without an objective(.|\n)*pass slo_ms"):
        TenantSpec("a", "c", late="reject")
    assert [spec.expires for spec in (TenantSpec("a", "c", slo_us=5), TenantSpec("a", "c", timeout_us=5))] == [
        False,
        True,
    ]
    assert TenantSpec("a", "c", slo_us=5, late="reject").expires


def test_input_bytes_and_cancellation_are_known() -> None:
    request = make_request(TenantSpec("a", "c"), 1, 1, None, 0, input_bytes=12)
    assert request.input_bytes == 12 and not request.is_cancelled
    request.future.cancel()
    assert request.is_cancelled and not request.begin()
