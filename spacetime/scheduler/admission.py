"""May a tenant come in? A prediction of its SLO, the load and memory, from figures alone. The runtime imports it.

Pure: the runtime measures and reads, this says what the figures mean. What is not known forbids nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from spacetime.errors import AdmissionError, OptionError

ADMISSIONS = ("off", "warn", "reject")
OVERLOAD = 1.05  # of the device; recent rates are a few per cent off, and a device that is just full keeps up


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a tenant needs where its lanes run, at most: weights that others have as well are counted again."""

    tenant: str
    weight_bytes: int
    resident_bytes: int  # of the tenants that are there, as far as they count against the limit
    limit_bytes: int | None  # None: not known


@dataclass(frozen=True, slots=True)
class LoadNeed:
    """What a tenant needs of the device's time."""

    tenant: str
    slo_us: int | None
    rows: int  # of its example
    best_us: float | None  # its example in a lane alone on the whole device; None: nobody knows
    num_tenants: int  # that are there
    load: float  # device time that they asked for per time, of late


def check_option(admission: str) -> None:
    if admission not in ADMISSIONS:
        facts = f"known: {', '.join(ADMISSIONS)}"
        raise OptionError(f"admission={admission!r} does not exist", facts, "name one of these, or leave it out")


def memory_problem(need: MemoryNeed, device: str) -> AdmissionError | None:
    """Before anything is copied."""
    if need.limit_bytes is None or need.weight_bytes + need.resident_bytes <= need.limit_bytes:
        return None
    others = f" beside {_megabytes(need.resident_bytes)} of other tenants" if need.resident_bytes else ""
    return AdmissionError(
        f"tenant {need.tenant!r} does not fit into the memory of {device}",
        f"it needs {_megabytes(need.weight_bytes)}{others}, there are {_megabytes(need.limit_bytes)}",
        "remove a tenant, use a smaller dtype, or take admission='off' if weights are shared with other tenants",
    )


def load_problem(need: LoadNeed, device: str) -> AdmissionError | None:
    """Before the tenant is served: can it ever make its deadlines, and is there time for it at all?"""
    if need.slo_us is not None and need.best_us is not None and need.best_us > need.slo_us:
        return AdmissionError(
            f"tenant {need.tenant!r} cannot make its SLO on {device}",
            f"its example of {need.rows} rows takes {need.best_us:.0f} us alone on the whole device, "
            f"the SLO is {need.slo_us} us",
            "raise slo_ms, pass an example of as many rows as requests have, or use a faster device",
        )
    if need.load > OVERLOAD:
        return AdmissionError(
            f"tenant {need.tenant!r} comes to an overloaded {device}",
            f"its {need.num_tenants} tenants ask for {need.load:.0%} of the device's time",
            "remove a tenant, have requests come slower, or use another device",
        )
    return None


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
