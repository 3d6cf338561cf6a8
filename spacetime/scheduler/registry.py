"""Policies by name. One registration line per policy; the package, the runtime and the simulator look them up here."""

from __future__ import annotations

from collections.abc import Callable

from spacetime.errors import OptionError
from spacetime.scheduler.protocols import Policy

_policies: dict[str, Policy] = {}


def policy(name: str) -> Callable[[Policy], Policy]:
    """Register a function `(Snapshot, CostModel) -> Plan` under a name of its own."""

    def register(function: Policy) -> Policy:
        if name in _policies:
            raise OptionError(f"policy {name!r} exists already", f"known: {_known()}", "choose another name")
        _policies[name] = function
        return function

    return register


def get_policy(name_or_policy: str | Policy) -> Policy:
    """The policy of that name; a function is taken as it is."""
    if callable(name_or_policy):
        return name_or_policy
    if name_or_policy not in _policies:
        raise OptionError(
            f"policy {name_or_policy!r} does not exist", f"known: {_known()}", "register it with @st.policy"
        )
    return _policies[name_or_policy]


def policy_name(function: Policy) -> str:
    """What to call a policy in messages and tables: its registered name, or the function's."""
    registered = (name for name, known in _policies.items() if known is function)
    return next(registered, getattr(function, "__name__", repr(function)))


def policy_names() -> tuple[str, ...]:
    """Every registered name, sorted."""
    return tuple(sorted(_policies))


def _known() -> str:
    return ", ".join(policy_names())
