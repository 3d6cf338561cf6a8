"""Programs in the form for GPUs, bound on a CPU: what add() compiles before lanes come, and what explain() says."""

from __future__ import annotations

import pytest
import torch

import spacetime as st
from spacetime.backends.executables import CohortExecutable
from spacetime.capture import cohort as cohorts
from spacetime.capture.on_gpu import on_gpu
from spacetime.kernels import AnyRows, bound
from spacetime.runtime.explain import cohort_report
from spacetime.runtime.prepare import WARM_ROWS, Preparer
from spacetime.trace import Trace
from tests.backends.cuda.any_cohort import AnyCohort
from tests.backends.cuda.lanes import rows
from tests.runtime.models import EXAMPLE, X, assert_equal, plain, tiny


@pytest.fixture
def gpu_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cohorts whose programs have the form for GPUs; on a CPU their kernels are plain torch."""
    fuse = cohorts.fuse
    monkeypatch.setattr(cohorts, "fuse", lambda captured: on_gpu(fuse(captured), captured.proof))


def test_kernels_of_a_cohort_are_compiled_for_the_usual_lanes() -> None:
    cohort = AnyCohort()
    cohort.executable.warm([rows(2)], WARM_ROWS)
    assert cohort.ran == list(WARM_ROWS)


def test_what_does_not_fit_into_memory_is_not_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def full(run: object, tensors: object, counts: list[int]) -> None:
        tried.extend(counts)
        if counts[0] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bound, "warm", full)
    AnyCohort().executable.warm([rows(2)], WARM_ROWS)
    assert tried == [2, 4, 8]


def test_a_program_for_cpus_has_nothing_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "warm", lambda *_: pytest.fail("there is nothing"))
    with st.Runtime("cpu") as rt:
        rt.add(tiny(), EXAMPLE, "t")
        assert all(not kernel.kernel for cohort in rt.explain().cohorts for kernel in cohort.kernels)
        assert "->" not in str(rt.explain())


@pytest.mark.usefixtures("gpu_form")
def test_the_first_of_a_cohort_has_its_kernels_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    run_any = AnyRows.__init__

    def noted(self: AnyRows, total: int, words: torch.Tensor) -> None:
        counts.append(total)
        run_any(self, total, words)

    monkeypatch.setattr(AnyRows, "__init__", noted)
    with st.Runtime("cpu") as rt:
        rt.add(tiny(0), EXAMPLE, "first")
        assert counts == list(WARM_ROWS)
        rt.add(tiny(1), EXAMPLE, "second")
        assert counts == list(WARM_ROWS), "they are there"


@pytest.mark.usefixtures("gpu_form")
def test_kernels_that_do_not_compile_leave_the_tenant_opaque(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: CohortExecutable, *_: object) -> None:
        raise RuntimeError("PTXAS error")

    monkeypatch.setattr(CohortExecutable, "warm", broken)
    module = tiny()
    prepared = Preparer().prepare("t", module, EXAMPLE, exact=False)
    assert (
        prepared.cohort is None and "kernels for lanes of several tenants fail: RuntimeError: PTXAS" in prepared.reason
    )
    assert_equal(module(X), plain(tiny(), X))


@pytest.mark.usefixtures("gpu_form")
def test_explain_says_which_kernel_ran_and_why_it_was_plain() -> None:
    with st.Runtime("cpu") as rt:
        rt.add(tiny(), EXAMPLE, "t")(X)
        explanation = rt.explain()
        (cohort,) = explanation.cohorts
        linear = [kernel for kernel in cohort.kernels if kernel.op == "linear"]
        assert [(kernel.kernel, kernel.plain_because) for kernel in linear] == [
            ("plain torch", "Triton has no kernels for cpu")
        ] * 2
        assert str(explanation).count("-> plain torch: Triton has no kernels for cpu") == 2
        assert type(explanation).from_json(explanation.to_json()) == explanation


def test_a_kernel_that_has_not_run_says_nothing() -> None:
    cohort = AnyCohort()
    assert all(kernel.kernel == "" for kernel in cohort_report(cohort.executable, Trace(())).kernels)
