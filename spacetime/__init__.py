"""spacetime: a batch whose rows belong to different models.

Many PyTorch models share one device at the granularity of single kernels. `Runtime` is the entrance.
"""

from spacetime._version import __version__
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

from spacetime.api import capture, profile  # isort: skip  # last: it takes the place of the sub-package of that name

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
