"""What the doctor finds, as values. Used by doctor.py and doctor_gpu.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spacetime.values import Value


@dataclass(frozen=True, slots=True)
class Check(Value):
    """One capability. FAIL: spacetime does not work as promised. MISSING: it works, with `instead`."""

    name: str
    status: Literal["PASS", "FAIL", "MISSING"]
    reason: str
    instead: str = ""
