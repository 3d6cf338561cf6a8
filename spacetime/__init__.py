"""spacetime: a batch whose rows belong to different models.

Many PyTorch models share one device at the granularity of single kernels. `Runtime` is the entrance.

Public names are imported when they are first asked for. torch takes seconds to import, and not everything needs it:
`spacetime --help`, a table of a model that is known, the simulator.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from spacetime._version import __version__

if TYPE_CHECKING:
    from spacetime.api import capture, profile
    from spacetime.device import Device, Partition
    from spacetime.errors import (
        AdmissionError,
        CaptureError,
        ClosedError,
        InputError,
        OptionError,
        PartitionError,
        PlanError,
        RejectedError,
        SpacetimeError,
    )
    from spacetime.ir import Program
    from spacetime.plan import Lane, Plan, Segment, Snapshot
    from spacetime.profiler.profile import Profile
    from spacetime.runtime.explain import Explanation
    from spacetime.runtime.runtime import Runtime, wrap
    from spacetime.runtime.tenant import Tenant
    from spacetime.scheduler.protocols import CostModel
    from spacetime.scheduler.registry import policy
    from spacetime.sim.simulate import simulate
    from spacetime.trace import Trace
    from spacetime.workload import Workload

__all__ = [
    "AdmissionError",
    "CaptureError",
    "ClosedError",
    "CostModel",
    "Device",
    "Explanation",
    "InputError",
    "Lane",
    "OptionError",
    "Partition",
    "PartitionError",
    "Plan",
    "PlanError",
    "Profile",
    "Program",
    "RejectedError",
    "Runtime",
    "Segment",
    "Snapshot",
    "SpacetimeError",
    "Tenant",
    "Trace",
    "Workload",
    "__version__",
    "capture",
    "policy",
    "profile",
    "simulate",
    "wrap",
]

_NAMES_IN = {
    "api": "capture profile",
    "device": "Device Partition",
    "errors": "AdmissionError CaptureError ClosedError InputError OptionError PartitionError PlanError RejectedError "
    "SpacetimeError",
    "ir": "Program",
    "plan": "Lane Plan Segment Snapshot",
    "profiler.profile": "Profile",
    "runtime.explain": "Explanation",
    "runtime.runtime": "Runtime wrap",
    "runtime.tenant": "Tenant",
    "scheduler.protocols": "CostModel",
    "scheduler.registry": "policy",
    "sim.simulate": "simulate",
    "trace": "Trace",
    "workload": "Workload",
}
_HOME = {name: home for home, names in _NAMES_IN.items() for name in names.split()}


class _Namespace(ModuleType):
    """This module, once it knows where its names are."""

    def __getattr__(self, name: str) -> Any:
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{home}"), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        """Python puts a sub-package here when it was imported; `capture` stays the function's name."""
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """Public names, and the sub-modules that were imported: not what this file needs."""
        parts = (name for name, value in vars(self).items() if getattr(value, "__name__", "") == f"{__name__}.{name}")
        return sorted({*__all__, *parts, *(name for name in vars(self) if name.startswith("__"))})


sys.modules[__name__].__class__ = _Namespace
