"""The exception tree. Bottom layer: everybody may import it, it imports nothing.

SpacetimeError
  OptionError          (ValueError)    an option, a name or a policy that does not exist, or exists twice
  InputError           (ValueError)    a tensor that does not fit its tenant: arity, shape, dtype, device, rows
  CaptureError         (ValueError)    a module that cannot be a tenant as it is
  PartitionError       (ValueError)    units that the device cannot grant
  PlanError            (RuntimeError)  a policy returned a plan that must not touch a device
  AdmissionError       (RuntimeError)  a tenant that was not accepted: its SLO, the load, or memory forbid it
  RejectedError        (RuntimeError)  a request that was not run, with the reason
  ClosedError          (RuntimeError)  the runtime is closed

Every message says what failed, the facts (numbers), and the next step, one line each.
"""

from __future__ import annotations


class SpacetimeError(Exception):
    """Base of everything spacetime raises on purpose.

    >>> print(OptionError("policy 'fifo' does not exist", "known: time_slice", "register it with @st.policy"))
    policy 'fifo' does not exist
      known: time_slice
      register it with @st.policy
    """

    def __init__(self, what: str, facts: str = "", next_step: str = "") -> None:
        super().__init__(what, facts, next_step)
        self.what = what
        self.facts = facts
        self.next_step = next_step

    def __str__(self) -> str:
        return "\n  ".join(line for line in (self.what, self.facts, self.next_step) if line)


class OptionError(SpacetimeError, ValueError):
    """An option, a name or a policy that does not exist, or exists twice."""


class InputError(SpacetimeError, ValueError):
    """A tensor that does not fit its tenant: arity, shape, dtype, device, rows."""


class CaptureError(SpacetimeError, ValueError):
    """A module that cannot be a tenant as it is."""


class PartitionError(SpacetimeError, ValueError):
    """Units that the device cannot grant."""


class PlanError(SpacetimeError, RuntimeError):
    """A policy returned a plan that must not touch a device."""


class AdmissionError(SpacetimeError, RuntimeError):
    """A tenant that was not accepted: its SLO, the load, or memory forbid it."""


class RejectedError(SpacetimeError, RuntimeError):
    """A request that was not run, with the reason."""


class ClosedError(SpacetimeError, RuntimeError):
    """The runtime is closed."""
