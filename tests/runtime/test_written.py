"""Weights are frozen while their module is a tenant: explain() says whose are not what they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import spacetime as st
from tests.runtime.models import EXAMPLE, X, tiny


@pytest.fixture
def rt() -> Iterator[st.Runtime]:
    with st.Runtime(device="cpu") as made:
        yield made


def load(module: nn.Module) -> None:
    module.load_state_dict(tiny(9).state_dict())


def assign(module: nn.Module) -> None:
    module.load_state_dict(tiny(9).state_dict(), assign=True)


def move(module: nn.Module) -> None:
    module.to(torch.float64)


def replace(module: nn.Module) -> None:
    module.get_parameter("0.weight").data = torch.zeros(8, 4)


def optimise(module: nn.Module) -> None:
    plain_result: torch.Tensor = module(X)
    plain_result.sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()


@pytest.mark.parametrize("write", [load, assign, move, replace, optimise])
def test_who_has_written_to_a_tenant_reads_it_in_explain(rt: st.Runtime, write: Callable[[nn.Module], None]) -> None:
    modules = [tiny(seed) for seed in range(10)]  # slabs grow: that their weights move is no write
    for seed, module in enumerate(modules):
        rt.add(module, EXAMPLE, f"t{seed}")(X)
    rt.remove("t1")
    assert rt.explain().written == () and "written to" not in str(rt.explain())
    write(modules[3])
    (report,) = rt.explain().written
    assert report.tenant == "t3" and report.weights[0] == "0.weight" and report.others == ()
    assert len(report.weights) == (1 if write is replace else 4)
    assert "written to t3: 0.weight" in str(rt.explain())
    assert json.loads(rt.explain().to_json())["written"][0]["tenant"] == "t3"
    rt.remove("t3")
    assert rt.explain().written == ()


def test_it_names_whose_weights_are_the_same_memory(rt: st.Runtime) -> None:
    """Equal weights are stored once, so a write reaches all who have them."""
    ours, theirs = tiny(), tiny()
    theirs[2] = tiny(1)[2]
    for name, module in (("ours", ours), ("theirs", theirs), ("unlike", tiny(2))):
        rt.add(module, EXAMPLE, name)
    with torch.no_grad():
        ours[0].bias.add_(1)
    (report,) = rt.explain().written
    assert (report.tenant, report.weights, report.others) == ("ours", ("0.bias",), ("theirs",))
    assert "the same memory has weights of theirs" in str(report)


def test_what_is_folded_is_watched_as_well(rt: st.Runtime) -> None:
    """A convolution's weights with its normalisation folded in lie in a slab; the module keeps its own."""
    modules = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval() for _ in range(2)]
    for index, module in enumerate(modules):
        rt.add(module, (torch.zeros(1, 3, 5, 5),), f"t{index}")
    assert rt.explain().written == ()
    modules[1].load_state_dict(modules[0].state_dict())
    (report,) = rt.explain().written
    assert report.tenant == "t1" and {"0.weight", "1.running_mean"} <= set(report.weights)
