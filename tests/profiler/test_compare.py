"""Two profiles as one value: what changed most, what both have, and which are not compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spacetime.errors import OptionError
from spacetime.profiler.compare import compared
from tests.profiler.pairs import modelled, slower


def test_a_profile_equals_itself() -> None:
    profile = modelled()
    found = compared(profile, profile, force=False)
    assert found.num_same_knees == len(found.kernels) == len({layer.key for layer in profile.layers})
    assert {change.ratio for change in (*found.kernels, *found.models)} == {1.0}
    assert (found.num_only_before, found.num_only_after, found.differences) == (0, 0, ())


def test_what_changed_most_comes_first() -> None:
    profile = modelled()
    found = compared(profile, slower(profile, 3.0), force=False)
    linear = [change for change in found.kernels if change.op == "linear"]
    assert found.kernels[: len(linear)] == tuple(linear)
    assert [change.ratio for change in linear] == pytest.approx([3.0] * len(linear))
    assert 1.0 < found.models[0].ratio < 3.0


def test_only_common_rows_are_compared() -> None:
    found = compared(modelled(rows=(1, 2)), modelled(rows=(2, 4)), force=False)
    assert {change.rows for change in (*found.kernels, *found.models)} == {2}


def test_different_models_share_kernels_but_are_no_whole() -> None:
    profile = modelled()
    measured = {layer.key for layer in profile.program[:2]}
    shorter = replace(
        profile,
        signature="another",
        program=profile.program[:2],
        measurements=tuple(each for each in profile.measurements if each.key.kernel in measured),
    )
    found = compared(profile, shorter, force=False)
    assert len(found.kernels) == len(measured) and found.models == ()
    assert found.num_only_before == len({layer.key for layer in profile.program}) - len(measured)
    assert found.num_only_after == 0


def test_profiles_without_anything_in_common_are_refused() -> None:
    with pytest.raises(OptionError, match="nothing in common"):
        compared(modelled(), modelled("unet"), force=False)
    with pytest.raises(OptionError, match="nothing in common"):
        compared(modelled(rows=(1,)), modelled(rows=(2,)), force=False)
