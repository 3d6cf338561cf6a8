"""What Runtime() and add() are given, before anything is made of it. Only the runtime imports it."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

import torch

from spacetime.device import Device
from spacetime.errors import OptionError
from spacetime.profiler.environment import environment_of
from spacetime.profiler.profile import Profile
from spacetime.profiler.table import MeasuredTable
from spacetime.scheduler.protocols import Backend
from spacetime.scheduler.recorder import Recorder

MOST_NAMED = 8  # tenants, in an error


def check_flags(**flags: Any) -> None:
    """What is true of "no" as well would be taken for yes."""
    for option, value in flags.items():
        if not isinstance(value, bool):
            raise OptionError(f"{option} is {value!r}", "it must be True or False", "correct it, or leave it out")


def no_tenant(name: str, known: Collection[str]) -> OptionError:
    """Of many tenants only those whose names are most like it."""
    alike = sorted(known) if len(known) <= MOST_NAMED else get_close_matches(str(name), known, MOST_NAMED, cutoff=0.0)
    others = f", and {len(known) - len(alike)} more" if len(alike) < len(known) else ""
    facts = f"known: {', '.join(alike) or 'none'}{others}"
    return OptionError(f"tenant {name!r} does not exist", facts, "name one of these")


def recorder_of(record: Any) -> Recorder | None:
    """For everything, for so many entries, or none."""
    if isinstance(record, int) and record >= 0:
        return None if record is False or record == 0 else Recorder(None if record is True else record)
    facts = "it must be True, False, or how many entries to keep"
    raise OptionError(f"record is {record!r}", facts, "correct it, or leave it out")


def check_profile(profile: Any) -> None:
    if profile is not None and not isinstance(profile, Profile):
        facts = f"it is a {type(profile).__name__}, not a profile"
        raise OptionError(f"profile is {profile!r}", facts, "pass what st.profile() or st.Profile.load() returned")


def table_of(profile: Profile, device: Device, unconfined: str) -> MeasuredTable:
    """The profile's latencies, if they are this device's."""
    differences = environment_of(device, unconfined).differences(profile.environment)
    if differences:
        raise OptionError(
            f"the profile is of {profile.device!r}, not of this machine", "; ".join(differences), "profile here again"
        )
    return profile.table


def chosen(device: Any) -> str | Backend:
    """The device's name, or the backend that was brought."""
    if isinstance(device, torch.device):
        return str(device)
    if isinstance(device, str) or callable(getattr(device, "start", None)):
        return device  # type: ignore[no-any-return]
    facts = "a device is named by a string"
    raise OptionError(f"device is {device!r}", facts, 'pass "auto", "cpu", "cuda:0", "hip:0", or a backend')
