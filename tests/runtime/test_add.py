"""add(): what fuses, what does not and why; what is refused, and how it is said."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import spacetime as st
from spacetime.capture import slab
from spacetime.capture.selfcheck import magnitude
from spacetime.zoo import SMALL, build, example
from tests.runtime.models import (
    EXAMPLE,
    PATIENCE_S,
    Branching,
    Counting,
    RowMixing,
    TwoFaced,
    X,
    assert_equal,
    assert_three_parts,
    plain,
    tiny,
)
from tests.slow import mostly


@pytest.fixture
def rt() -> Iterator[st.Runtime]:
    with st.Runtime(device="cpu") as made:
        yield made


def reason(rt: st.Runtime, name: str) -> str:
    return {report.tenant: report.reason for report in rt.explain().opaque}[name]


@pytest.mark.parametrize("name", ["mlp", "gru_cell", "recommender"])
def test_equal_architectures_share_a_cohort(rt: st.Runtime, name: str) -> None:
    modules = [build(name, seed=seed) for seed in range(3)]
    inputs = [example(name, rows=1 + seed, seed=seed) for seed in range(3)]
    expected = [plain(module, *args) for module, args in zip(modules, inputs, strict=True)]
    tenants = [rt.add(module, example(name), f"t{i}") for i, module in enumerate(modules)]
    futures = [tenant.submit(*args) for tenant, args in zip(tenants, inputs, strict=True)]
    scales = [max(map(magnitude, expected))]
    for future, reference in zip(futures, expected, strict=True):
        assert_equal(future.result(PATIENCE_S), reference, scales)
    (cohort,) = rt.explain().cohorts
    assert cohort.tenants == ("t0", "t1", "t2") and not rt.explain().opaque
    assert rt.tenants() == ("t0", "t1", "t2")


def test_different_architectures_are_cohorts_of_their_own(rt: st.Runtime) -> None:
    rt.add(tiny(), EXAMPLE, "narrow")
    rt.add(nn.Linear(4, 3).eval(), EXAMPLE, "other")
    assert [cohort.tenants for cohort in rt.explain().cohorts] == [("narrow",), ("other",)]


def test_one_row_is_enough_of_an_example(rt: st.Runtime) -> None:
    module = tiny()
    tenant = rt.add(module, (X[:1],), "one")
    assert_equal(tenant(X), plain(module, X))
    assert len(rt.explain().cohorts) == 1


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (RowMixing(), "mean (mean): a result that depends on the rows"),
        (Counting(), "writes its own state"),
        (Branching(), "torch.export refused"),
        (TwoFaced(), "self-check failed: output 0 deviates"),
    ],
)
def test_what_cannot_share_runs_whole_and_the_reason_is_told(rt: st.Runtime, module: nn.Module, why: str) -> None:
    tenant = rt.add(module.eval(), EXAMPLE, "odd")
    reference = pytree.tree_map(torch.clone, plain(module, X))
    result = tenant(X)
    if isinstance(module, Counting):
        reference += 1  # it counts its calls; adding it has left no trace
    assert torch.equal(result, reference)
    assert why in reason(rt, "odd")
    assert rt.explain().cohorts == ()


def test_adding_a_module_that_counts_leaves_its_count_alone(rt: st.Runtime) -> None:
    module = Counting().eval()
    rt.add(module, EXAMPLE, "counting")
    assert module.calls.item() == 0


@pytest.mark.parametrize("name", mostly(SMALL, slow=("mobilenet_v2", "unet", "resnet18", "vit")))
def test_exact_is_bit_equal(rt: st.Runtime, name: str) -> None:
    module, args = build(name), example(name, rows=3, seed=1)
    expected = pytree.tree_leaves(plain(module, *args))
    tenant = rt.add(module, example(name), name, exact=True)
    for result, reference in zip(pytree.tree_leaves(tenant(*args)), expected, strict=True):
        assert torch.equal(result, reference)
    assert "exact=True" in reason(rt, name)


# -- what is refused ------------------------------------------------------------------------------------


def refuse(
    rt: st.Runtime, kind: type[Exception], module: Any, example: Any = EXAMPLE, name: Any = "bad", **options: Any
) -> Exception:
    """The error; and nothing of the attempt stays behind."""
    before = rt.tenants(), str(rt.explain())
    with pytest.raises(kind) as caught:
        rt.add(module, example, name, **options)
    assert (rt.tenants(), str(rt.explain())) == before
    return caught.value


def test_a_module_in_training_mode(rt: st.Runtime) -> None:
    module = tiny()
    module[2].train()
    assert_three_parts(
        refuse(rt, st.CaptureError, module), "is in training mode", "1 modules, the first is '2'", "eval()"
    )


def test_what_is_no_module(rt: st.Runtime) -> None:
    error = refuse(rt, st.CaptureError, torch.relu)
    assert_three_parts(error, "'bad' is a builtin_function", "a tenant is a torch.nn.Module", "wrap")


def test_weights_on_another_device(rt: st.Runtime) -> None:
    error = refuse(rt, st.CaptureError, nn.Linear(4, 3, device="meta").eval())
    assert_three_parts(error, "weight is on meta", "the runtime is on cpu", "move it to cpu")


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_that_is_none(rt: st.Runtime, name: Any) -> None:
    assert_three_parts(refuse(rt, st.OptionError, tiny(), name=name), repr(name), "non-empty strings", "another")


def test_a_name_that_no_report_could_print(rt: st.Runtime) -> None:
    error = refuse(rt, st.OptionError, tiny(), name="cat\ud800")
    assert_three_parts(error, "'cat\\ud800'", "cannot be printed", "another")


def test_a_nested_example(rt: st.Runtime) -> None:
    nested = torch.nested.nested_tensor([X[0], X[1, :2]], layout=torch.jagged)
    error = refuse(rt, st.CaptureError, tiny(), example=(nested,))
    assert_three_parts(error, "input 0 of the example is nested", "no common shape", "dynamic")


@pytest.mark.parametrize("name", ["模型 🐈", "two\nlines\t\x00", "[red]x[/red]", "x" * 10_000])
def test_any_other_name(name: str) -> None:
    with st.Runtime(device="cpu") as rt:
        rt.add(tiny(), EXAMPLE, name, exact=True)(X)
        assert rt.stats()[name]["completed"] == 1
        assert rt.trace().to_perfetto() and json.loads(rt.trace().to_chrome())
        assert json.loads(rt.explain().to_json())["opaque"][0]["tenant"] == name and str(rt.explain())


def test_a_module_made_in_inference_mode_says_what_to_do(rt: st.Runtime) -> None:
    with torch.inference_mode():
        module = tiny()
    tenant = rt.add(module, EXAMPLE, "inference")
    (report,) = rt.explain().opaque
    assert "weights were made under torch.inference_mode()" in report.reason and "torch.no_grad()" in report.reason
    assert_equal(tenant(X), plain(tiny(), X))


def test_a_duplicate_name(rt: st.Runtime) -> None:
    module = tiny()
    tenant = rt.add(module, EXAMPLE, "twin")
    error = refuse(rt, st.OptionError, tiny(1), name="twin")
    assert_three_parts(error, "'twin' exists already", "1 tenants are resident", "remove('twin') first")
    assert_equal(tenant(X), plain(module, X))


@pytest.mark.parametrize(
    ("example", "facts"), [(X, "positional inputs"), ((), "positional inputs"), (None, "positional")]
)
def test_an_example_that_is_no_tuple(rt: st.Runtime, example: Any, facts: str) -> None:
    assert_three_parts(refuse(rt, st.CaptureError, tiny(), example), "the example is ", facts, "example=(tensor,)")


def test_an_example_without_rows(rt: st.Runtime) -> None:
    error = refuse(rt, st.CaptureError, tiny(), (X[:0],))
    assert_three_parts(error, "input 0 of the example has no rows", "(0, 4)", "one row or more")


@pytest.mark.parametrize("exact", [False, True])
def test_an_example_that_the_module_does_not_take(rt: st.Runtime, exact: bool) -> None:
    error = refuse(rt, st.CaptureError, tiny(), (X[:, :2],), exact=exact)
    assert_three_parts(error, "fails on its own example", "RuntimeError: mat1 and mat2", "module(*example) accepts")


def test_unknown_names() -> None:
    with pytest.raises(TypeError, match="colour"):
        st.Runtime(colour="red")  # type: ignore[call-arg]
    with st.Runtime() as rt, pytest.raises(TypeError, match="colour"):
        rt.add(tiny(), EXAMPLE, "t", colour="red")  # type: ignore[call-arg]
    with pytest.raises(st.OptionError) as unknown_policy:
        st.Runtime(policy="fifo")
    assert_three_parts(unknown_policy.value, "'fifo' does not exist", "space_time", "@st.policy")
    with pytest.raises(st.OptionError) as unknown_device:
        st.Runtime(device="tpu:0")
    assert_three_parts(unknown_device.value, "'tpu:0' does not exist", "known: auto, cpu", "not supported")


def test_a_closed_runtime() -> None:
    rt = st.Runtime()
    rt.close()
    assert_three_parts(refuse(rt, st.ClosedError, tiny()), "cannot be added", "is closed", "another Runtime")


def test_a_refused_module_keeps_its_memory_and_can_be_added_elsewhere(rt: st.Runtime) -> None:
    module = tiny()
    pointers = [parameter.data_ptr() for parameter in module.parameters()]
    refuse(rt, st.OptionError, module, weight=-1.0)
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    assert len({parameter.untyped_storage().data_ptr() for parameter in module.parameters()}) == len(pointers)
    tenant = rt.add(module, EXAMPLE, "good")
    assert_equal(tenant(X), plain(module, X))
    assert all(torch.equal(tensor, state[key]) for key, tensor in module.state_dict().items())


# -- beside traffic -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["space_time", "time_slice", "streams"])
def test_tenants_come_and_go_while_others_run(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs grow and shrink under running lanes; every answer stays right."""
    monkeypatch.setattr(slab, "_RESERVE", 1)
    residents = [build("recommender", seed=seed) for seed in range(2)]
    inputs = [example("recommender", rows=4, seed=seed) for seed in range(2)]
    expected = [plain(module, *args) for module, args in zip(residents, inputs, strict=True)]
    stop = threading.Event()
    wrong: list[BaseException] = []

    def traffic(tenant: st.Tenant, args: tuple[Tensor, ...], reference: Tensor) -> None:
        try:
            while not stop.is_set():
                assert_equal(tenant(*args), reference)
        except BaseException as error:
            wrong.append(error)

    with st.Runtime(policy=policy) as rt:
        tenants = [rt.add(module, example("recommender"), f"resident{i}") for i, module in enumerate(residents)]
        assert len(rt.explain().cohorts) == 1, "or no slab would be moved"
        threads = [threading.Thread(target=traffic, args=each) for each in zip(tenants, inputs, expected, strict=True)]
        for thread in threads:
            thread.start()
        try:
            for round_ in range(3):
                guests = {f"guest{i}": build("recommender", seed=10 * round_ + i) for i in range(6)}
                for name, module in guests.items():
                    reference = plain(module, *inputs[0])
                    assert_equal(rt.add(module, example("recommender"), name)(*inputs[0]), reference)
                for name in guests:
                    rt.remove(name)
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE_S)
        assert not wrong and not any(thread.is_alive() for thread in threads)
        assert rt.tenants() == ("resident0", "resident1")
