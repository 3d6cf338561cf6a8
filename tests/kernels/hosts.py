"""Processors that vector kernels are tested for."""

from __future__ import annotations

import pytest

from spacetime.kernels.vector.host import Host, host, narrow


def hosts() -> list[Host]:
    """This processor, and those with narrower registers that it can stand in for."""
    this = host()
    if this is None:
        return []
    smaller = Host(this.cpu, this.features, lanes=4, pixels=4, channels=4)
    return [this, *([narrow(this.cpu, this.features)] if this.lanes > 8 else []), smaller]


on_every_host = pytest.mark.parametrize("on", hosts(), ids=lambda on: f"{on.lanes} lanes")
