"""A frozen backbone under different heads: stored once for the whole runtime, said by explain(), safe under traffic."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import spacetime as st
from spacetime.capture import slab
from spacetime.capture.slab import Slab
from tests.runtime.models import PATIENCE_S, assert_equal, plain
from tests.slow import mostly

WIDTH = 160  # a square of floats is large enough to be shared
X = torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)
EXAMPLE = (X,)
BACKBONE_BYTES = 4 * 2 * WIDTH * WIDTH  # without the biases, which are too small


def headed(classes: int, seed: int = 0) -> nn.Module:
    """`classes` make the architecture, the seed the weights: the backbone's first."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        backbone = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        return nn.Sequential(backbone, nn.Linear(WIDTH, classes)).eval()


@pytest.fixture(autouse=True)
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs without reserve: they grow with nearly every tenant."""
    monkeypatch.setattr(slab, "_RESERVE", 1)


@pytest.fixture
def rt() -> Iterator[st.Runtime]:
    with st.Runtime("cpu") as runtime:
        yield runtime


def test_the_ledger_counts_once_what_unlike_architectures_have_in_common(rt: st.Runtime) -> None:
    rt.add(headed(2), EXAMPLE, "two")
    alone = rt.memory().resident_bytes
    rt.add(headed(3), EXAMPLE, "three")
    assert rt.memory().resident_bytes == alone + 4 * (2 * WIDTH + 3 * WIDTH + 3), "biases and a head"
    assert [memory.shared_weight_bytes for memory in rt.memory().tenants] == [BACKBONE_BYTES] * 2
    rt.remove("two")
    assert [memory.shared_weight_bytes for memory in rt.memory().tenants] == [0]
    assert rt.memory().resident_bytes == 4 * (2 * WIDTH * WIDTH + 2 * WIDTH + 3 * WIDTH + 3)


def test_explain_names_the_cohort_that_has_the_weights(rt: st.Runtime) -> None:
    rt.add(headed(2), EXAMPLE, "two")
    rt.add(headed(3), EXAMPLE, "three")
    explanation = rt.explain()
    first, second = explanation.cohorts
    assert first.shared_with == ()
    (shared,) = second.shared_with
    assert (shared.cohort, shared.weight_bytes) == (first.signature, BACKBONE_BYTES)
    assert first.resident_bytes - second.resident_bytes == BACKBONE_BYTES - 4 * (WIDTH + 1)
    assert f"0.2 MB more are shared with cohort {first.signature}" in str(explanation)
    assert type(explanation).from_json(explanation.to_json()) == explanation
    assert [kernel.sharing_tenants for kernel in second.kernels if kernel.op == "linear"] == [1, 1, 0]
    rt.remove("two")
    (left,) = rt.explain().cohorts
    assert left.shared_with == ()


def test_an_add_that_fails_half_way_leaves_the_others_weights_alone(
    rt: st.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first tenant of its architecture finds the backbone, then memory runs out."""
    module = headed(2)
    tenant = rt.add(module, EXAMPLE, "two")
    adopt, late = Slab.adopt, headed(3)
    before, data = rt.memory(), [tensor.data_ptr() for tensor in late.parameters()]

    def failing(self: Slab, tensor: Tensor) -> int:
        if tensor.shape[0] == 3:
            raise torch.OutOfMemoryError("no")
        return adopt(self, tensor)

    monkeypatch.setattr(Slab, "adopt", failing)
    with pytest.raises(st.AdmissionError):
        rt.add(late, EXAMPLE, "three")
    monkeypatch.setattr(Slab, "adopt", adopt)
    assert [tensor.data_ptr() for tensor in late.parameters()] == data
    assert rt.memory().tenants == before.tenants
    assert rt.stats()["two"]["shared_weight_bytes"] == 0
    (cohort,) = [executable.cohort for executable in rt._preparer.cohorts.values()]
    contents = [layer.slab.content(layer.entries[0]) for layer in cohort.layers]
    assert all(list(content.places) == [content.home] and len(content.readers) == 1 for content in contents)
    assert_equal(tenant(X), plain(module, X))
    assert_equal(rt.add(late, EXAMPLE, "three")(X), plain(late, X))
    rt.remove("two")
    expected = plain(headed(3), X)
    rt.remove("three")
    assert_equal(plain(late, X), expected)


@pytest.mark.parametrize("policy", mostly(["space_time", "time_slice"], slow=["time_slice"]))
def test_tenants_of_both_architectures_come_and_go_while_others_run(policy: str) -> None:
    """The resident's weights lie with the first one's cohort, and come to its own when that ends under its lanes."""
    stop = threading.Event()
    wrong: list[BaseException] = []

    def traffic(tenant: st.Tenant, reference: Tensor) -> None:
        try:
            while not stop.is_set():
                assert_equal(tenant(X), reference)
        except BaseException as error:
            wrong.append(error)

    with st.Runtime(policy=policy) as rt:
        rt.add(headed(2), EXAMPLE, "first")
        resident = headed(3)
        reference = plain(resident, X)
        tenant = rt.add(resident, EXAMPLE, "resident")
        thread = threading.Thread(target=traffic, args=(tenant, reference))
        thread.start()
        try:
            rt.remove("first")
            for _ in range(2):
                modules = {f"guest{seed}": headed(2, seed) for seed in range(3)}
                for name, module in modules.items():
                    expected = plain(module, X)
                    assert_equal(rt.add(module, EXAMPLE, name)(X), expected)
                for name in modules:
                    rt.remove(name)
        finally:
            stop.set()
            thread.join(PATIENCE_S)
        assert not wrong and not thread.is_alive()
        assert rt.tenants() == ("resident",)
    assert_equal(plain(resident, X), reference)
