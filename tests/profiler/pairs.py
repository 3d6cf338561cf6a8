"""Profiles to compare: modelled ones of the zoo, and the same with slower linear layers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import spacetime as st
from spacetime import zoo


@cache
def modelled(model: str = "mlp", device: str = "model:h200", rows: tuple[int, ...] = (1,)) -> st.Profile:
    return st.profile(st.capture(zoo.build(model), zoo.example(model)), device, rows=rows)


def slower(profile: st.Profile, factor: float) -> st.Profile:
    """The same with every linear layer taking so many times as long."""
    return replace(
        profile,
        measurements=tuple(
            replace(each, samples_us=tuple(us * (factor if each.op == "linear" else 1) for us in each.samples_us))
            for each in profile.measurements
        ),
    )
