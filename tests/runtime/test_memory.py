"""The memory ledger: who has which bytes, what is shared, what a lane will need, and where it shows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spacetime as st
from spacetime.backends.null import NullBackend
from spacetime.capture.slab import Slab
from spacetime.device import Device
from spacetime.ir import Kernel, Program, Rows, TensorSpec
from spacetime.kernels import prepacked_conv
from spacetime.runtime.memory import FIGURES, MemoryReport, is_out_of_memory, lane_bytes, out_of_memory
from tests.runtime.models import EXAMPLE, Counting, Gate, X, assert_equal, plain, tiny

TINY_BYTES = 4 * (4 * 8 + 8 + 8 * 3 + 3)  # two linear layers


def figures(runtime: st.Runtime, name: str) -> dict[str, int | float]:
    return {key: value for key, value in runtime.stats()[name].items() if key in FIGURES}


def test_a_tenant_has_its_weights_and_what_its_lane_will_need() -> None:
    with st.Runtime("cpu") as rt:
        rt.add(tiny(), EXAMPLE, "a")
        own = figures(rt, "a")
        lane_bytes = 4 * 2 * (4 + 8 + 8)  # of two rows: inputs, what the first layer makes, and its activation
        assert own["weight_bytes"] == TINY_BYTES and own["lane_bytes"] == lane_bytes
        assert own["peak_bytes"] == TINY_BYTES + lane_bytes
        assert own["shared_weight_bytes"] == own["buffer_bytes"] == own["graph_bytes"] == 0


def test_what_is_shared_counts_in_full_for_each_and_once_for_the_device() -> None:
    with st.Runtime("cpu") as rt:
        rt.add(tiny(0), EXAMPLE, "a")
        rt.add(tiny(0), EXAMPLE, "same")
        other = tiny(0)
        with torch.no_grad():
            other[2].bias.add_(1)
        rt.add(other, EXAMPLE, "nearly")
        assert figures(rt, "a")["shared_weight_bytes"] == TINY_BYTES
        nearly = figures(rt, "nearly")
        assert (nearly["weight_bytes"], nearly["shared_weight_bytes"]) == (12, TINY_BYTES - 12)
        assert rt.memory().resident_bytes == TINY_BYTES + 12
        rt.remove("same")
        rt.remove("nearly")
        assert figures(rt, "a")["weight_bytes"] == TINY_BYTES, "nobody is left to share with"
        report = rt.memory()
        assert (report.resident_bytes, report.peak_bytes) == (TINY_BYTES, TINY_BYTES + 12)


def test_opaque_tenants_have_theirs_and_buffers_are_told_apart() -> None:
    with st.Runtime("cpu") as rt:
        rt.add(Gate(), EXAMPLE, "nothing")
        rt.add(Counting().eval(), EXAMPLE, "counting")
        rt.add(tiny(), EXAMPLE, "exact", exact=True)
        assert set(figures(rt, "nothing").values()) == {0}
        assert figures(rt, "counting")["buffer_bytes"] == 4
        exact = figures(rt, "exact")
        assert (exact["weight_bytes"], exact["lane_bytes"]) == (TINY_BYTES, 0)


def test_batch_norm_keeps_its_statistics_beside_what_was_folded() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    with st.Runtime("cpu") as rt:
        rt.add(module, (torch.ones(1, 3, 5, 5),), "a")
        own = figures(rt, "a")
        assert own["buffer_bytes"] >= 4 * (4 + 4), "mean and variance, which no kernel reads any more"
        assert own["weight_bytes"] >= 4 * (12 + 4)


CONV_BYTES = 4 * 96 * 96 * 3 * 3  # large enough to be packed
IMAGE = (torch.ones(1, 96, 20, 20),)  # and too many pixels for the kernels that read weights where they are


def convolution(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(96, 96, 3), nn.ReLU()).eval()


@pytest.mark.skipif(not prepacked_conv.available(), reason="this build of torch has no oneDNN")
def test_packed_copies_of_weights_count_as_soon_as_they_are_made() -> None:
    with st.Runtime("cpu", prepack=True) as rt:
        for name, seed in (("a", 0), ("b", 1), ("same as b", 1)):
            tenant = rt.add(convolution(seed), IMAGE, name)
            tenant(*IMAGE)
        report = rt.memory()
        assert [memory.packed_bytes for memory in report.tenants] == [CONV_BYTES] * 3
        assert report.packed_bytes == 2 * CONV_BYTES, "of what two tenants share there is one copy"
        assert report.resident_bytes == 2 * (2 * CONV_BYTES + 4 * 96) == report.peak_bytes
        assert figures(rt, "a")["peak_bytes"] >= 2 * CONV_BYTES + 4 * 96
        assert rt.explain().cohorts[0].resident_bytes == report.resident_bytes
        rt.remove("a")
        left = rt.memory()
        assert [memory.packed_bytes for memory in left.tenants] == [CONV_BYTES] * 2
        assert left.packed_bytes == 2 * CONV_BYTES, "its copy waits for who comes next"
        rt.remove("b")
        rt.remove("same as b")
        assert rt.memory().packed_bytes == rt.memory().resident_bytes == 0


@pytest.mark.skipif(not prepacked_conv.available(), reason="this build of torch has no oneDNN")
def test_copies_that_the_programs_of_shorter_lengths_keep_count_as_well() -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(96, 96, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    with st.Runtime("cpu", prepack=True) as rt:
        tenant = rt.add(Images().eval(), (torch.ones(1, 96, 20, 20),), "a", dynamic={0: {2: (20, 40)}})
        for length in (20, 40):
            tenant(torch.ones(1, 96, length, 20))
        (own,) = rt.memory().tenants
        lengths = len(rt.explain().varying[0].programs)
        assert lengths > 1 and own.packed_bytes == rt.memory().packed_bytes == lengths * CONV_BYTES


def test_without_prepack_nothing_is_packed() -> None:
    with st.Runtime("cpu") as rt:
        rt.add(convolution(0), IMAGE, "a")(*IMAGE)
        assert rt.memory().packed_bytes == figures(rt, "a")["packed_bytes"] == 0


def test_the_report_is_a_value_and_explain_prints_it() -> None:
    with st.Runtime("cpu") as rt:
        rt.add(tiny(0), EXAMPLE, "vision")
        rt.add(tiny(1), EXAMPLE, "speech")
        explanation = rt.explain()
        report = explanation.memory
        assert type(explanation).from_json(explanation.to_json()) == explanation
        assert [memory.tenant for memory in report.tenants] == ["vision", "speech"]
        assert report.reserve_bytes > 0, "slabs have room for others"
        text = str(explanation)
        assert "memory: 0.0 MB are held" in text
        table = text.splitlines()[-3:]
        assert table[0].split() == [
            "MB",
            "weights",
            "shared",
            "packed",
            "buffers",
            "graphs",
            "lane",
            "at",
            "most",
            "tenant",
        ]
        assert [line.split()[-1] for line in table[1:]] == ["vision", "speech"]


def test_an_empty_runtime_holds_nothing() -> None:
    with st.Runtime("cpu") as rt:
        assert rt.memory() == MemoryReport((), 0, 0, 0)
        assert "memory:" not in str(rt.explain())
        rt.add(tiny(), EXAMPLE, "a")
        rt.remove("a")
        assert rt.memory().resident_bytes == 0 and rt.memory().peak_bytes == TINY_BYTES


# -- predictions ----------------------------------------------------------------------------------------


def spec(*shape: int | Rows, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(shape, dtype, 0)


def kernel(index: int, deps: tuple[int, ...], out: TensorSpec) -> Kernel:
    return Kernel(index, f"k{index}", "relu", "other", (), (out,), (), deps, "", 0, 0, 0)


def program(*kernels: Kernel) -> Program:
    return Program("signature", (spec(Rows(), 10),), (), (), kernels)


def test_values_live_until_their_last_reader_ends() -> None:
    wide, narrow = spec(Rows(), 100), spec(Rows(), 1)
    chain = program(kernel(0, (), wide), kernel(1, (0,), narrow), kernel(2, (1,), wide))
    assert lane_bytes(chain, 2) == 4 * 2 * (10 + 100 + 1), "the first wide one is gone when the second comes"
    residual = program(kernel(0, (), wide), kernel(1, (0,), wide), kernel(2, (0, 1), wide))
    assert lane_bytes(residual, 1) == 4 * (10 + 300)
    assert lane_bytes(residual, 7) == 7 * lane_bytes(residual, 1)
    half = program(kernel(0, (), spec(Rows(), 100, dtype="bfloat16")))
    assert lane_bytes(half, 1) == 40 + 200


def test_a_lane_that_does_not_fit_is_rejected_with_the_figures() -> None:
    module = nn.Sequential(nn.Linear(4, 1000), nn.ReLU(), nn.Linear(1000, 1)).eval()  # 24 kB
    device = Device("small", "null", num_units=8, memory_bytes=100_000)
    with st.Runtime(NullBackend(device), admission="reject") as rt:
        rt.add(module, EXAMPLE, "two rows")
        with pytest.raises(st.AdmissionError) as caught:
            rt.add(nn.Sequential(*(tiny(), nn.Linear(3, 1000), nn.ReLU())).eval(), (X[:1].repeat(50, 1),), "fifty")
        assert "a lane of 50 rows takes 0.4 MB beside the weights" in caught.value.facts
        assert rt.tenants() == ("two rows",)


# -- when there is none left ----------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_an_add_that_runs_out_of_memory_leaves_no_trace(fails_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    adopt, calls = Slab.adopt, 0

    def failing(self: Slab, tensor: torch.Tensor) -> int:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return adopt(self, tensor)

    first, second = tiny(0), tiny(1)
    with st.Runtime("cpu") as rt:
        for expected, existing in (([], ()), (["first"], ("first",))):  # found a cohort; join one
            monkeypatch.setattr(Slab, "adopt", failing)
            calls = 0
            before, data = rt.memory(), [tensor.data_ptr() for tensor in second.parameters()]
            with pytest.raises(
                st.AdmissionError, match=r"'second' does not fit(.|\n)*the tenants that are there go on"
            ):
                rt.add(second, EXAMPLE, "second")
            monkeypatch.setattr(Slab, "adopt", adopt)
            assert list(rt.tenants()) == expected and rt.memory().tenants == before.tenants
            assert [tensor.data_ptr() for tensor in second.parameters()] == data, "its own memory"
            assert len(rt._preparer.cohorts) == len(existing)
            for cohort in [executable.cohort for executable in rt._preparer.cohorts.values()]:
                assert all(layer.slab.num_entries == len(existing) for layer in cohort.layers)
            if not existing:
                tenant = rt.add(first, EXAMPLE, "first")
            assert_equal(tenant(X), plain(first, X))
        assert_equal(rt.add(second, EXAMPLE, "second")(X), plain(second, X))


def test_memory_that_runs_out_in_the_module_itself_is_said_to_be_that() -> None:
    class Greedy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB")

    with st.Runtime("cpu") as rt, pytest.raises(st.AdmissionError, match=r"(?s)'greedy' does not fit.*80\.00 GiB"):
        rt.add(Greedy().eval(), EXAMPLE, "greedy")


def test_other_errors_stay_what_they_are() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("no")) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(None)
    try:
        try:
            raise MemoryError
        except MemoryError as cause:
            raise ValueError("the example failed") from cause
    except ValueError as error:
        assert is_out_of_memory(error)
        assert out_of_memory("t", "cpu", error).facts == "ValueError: the example failed"
