"""A cost model that knows: the analytic model itself, without learning. For studies of what learning costs."""

from __future__ import annotations

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.scheduler.prior import Prior
from spacetime.scheduler.tables import KernelTimes


class OracleCosts:
    """A LearningCostModel that has nothing to learn: what a lane takes alone, without noise and stragglers."""

    def __init__(self) -> None:
        self._priors: dict[str, Prior] = {}
        self._times: dict[tuple[str, int, int, bool], KernelTimes] = {}

    def register(self, cohort: str, program: Program | None, device: Device) -> None:
        self._priors[cohort] = Prior(program, device, None)

    def lane_us(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool = True) -> float:
        return self._find(cohort).lane_us(tenants, rows, units, fused)

    def kernel_times(self, cohort: str, *, tenants: int, rows: int, fused: bool = True) -> KernelTimes:
        key = (cohort, tenants, rows, fused)
        times = self._times.get(key)
        if times is None:
            times = self._times[key] = KernelTimes(self._find(cohort).kernels_us(tenants, rows, fused))
        return times

    def observe(self, cohort: str, *, tenants: int, rows: int, units: int, fused: bool, duration_us: int) -> None:
        """It knows already."""

    def retire(self, cohort: str) -> None:
        """A simulation ends with its tenants."""

    def _find(self, cohort: str) -> Prior:
        if cohort not in self._priors:
            known = ", ".join(sorted(self._priors)) or "none"
            raise OptionError(f"cohort {cohort!r} has no costs", f"known: {known}", "register it before it is used")
        return self._priors[cohort]
