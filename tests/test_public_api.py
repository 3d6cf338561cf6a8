"""The public names are exact: nothing leaks out of `spacetime`, nothing goes missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import subprocess
import sys

import pytest

import spacetime as st

PUBLIC = {
    "__version__",
    # the runtime
    "Runtime",
    "Tenant",
    "Explanation",
    "wrap",
    "capture",
    "profile",
    "policy",
    "simulate",
    # values
    "Program",
    "Plan",
    "Lane",
    "Segment",
    "Snapshot",
    "CostModel",
    "Device",
    "Partition",
    "Workload",
    "Trace",
    "Profile",
    # errors
    "SpacetimeError",
    "OptionError",
    "InputError",
    "CaptureError",
    "PartitionError",
    "PlanError",
    "AdmissionError",
    "RejectedError",
    "ClosedError",
}


def test_all_lists_exactly_the_public_names() -> None:
    assert sorted(st.__all__) == sorted(PUBLIC)


def test_the_namespace_holds_the_public_names_and_its_submodules_only() -> None:
    submodules = {module.name for module in pkgutil.iter_modules(st.__path__)}
    visible = {name for name in dir(st) if not name.startswith("_")}
    assert visible - submodules == PUBLIC - submodules - {"__version__"}


def test_a_public_name_outlives_the_import_of_a_submodule_of_the_same_name() -> None:
    shared = [module.name for module in pkgutil.iter_modules(st.__path__) if module.name in PUBLIC]
    for name in shared:
        importlib.import_module(f"spacetime.{name}")
    assert [name for name in PUBLIC if inspect.ismodule(getattr(st, name))] == []


def without_torch(code: str) -> None:
    """In a process of its own, in which importing torch fails."""
    lines = f"import sys; sys.modules['torch'] = None\n{code}"
    subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True, timeout=60)


def test_importing_the_package_and_its_values_takes_no_torch() -> None:
    without_torch("import spacetime as st; st.Plan, st.Workload, st.Program, st.Profile, st.policy, st.OptionError")


def test_a_sub_package_that_was_imported_first_does_not_take_a_functions_name() -> None:
    without_torch("import spacetime.capture; assert 'capture' not in vars(spacetime)")


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'spacetime' has no attribute 'nonesuch'"):
        st.nonesuch  # type: ignore[attr-defined]  # noqa: B018


def test_the_installed_version_is_the_one_in_the_sources() -> None:
    assert importlib.metadata.version("spacetime-gpu") == st.__version__
