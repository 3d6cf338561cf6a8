"""Requests and tenant options."""

from __future__ import annotations

import pytest

from spacetime.errors import InputError, OptionError, RejectedError
from spacetime.scheduler.request import TenantSpec, make_request


def test_deadline_follows_from_the_objective() -> None:
    assert make_request(TenantSpec("a", "c", slo_us=500), 1, 2, None, 100).view.deadline_us == 600
    assert make_request(TenantSpec("a", "c"), 1, 2, None, 100).view.deadline_us is None


def test_a_request_has_rows() -> None:
    with pytest.raises(InputError, match="request of 0 rows"):
        make_request(TenantSpec("a", "c"), 1, 0, None, 0)


@pytest.mark.parametrize("option", ["weight", "max_concurrency", "max_queue", "min_units", "timeout_us"])
def test_options_are_positive(option: str) -> None:
    with pytest.raises(OptionError, match=f"tenant 'a': {option} is 0"):
        TenantSpec("a", "c", **{option: 0})  # type: ignore[arg-type]


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
