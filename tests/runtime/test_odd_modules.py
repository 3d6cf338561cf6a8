"""Modules as people write them, outside of the zoo: they fuse and stay right, or run whole and explain() says why."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spacetime as st
from spacetime.runtime import prepare
from tests.capture.sketches import Part, draw, sketch
from tests.runtime.models import EXAMPLE, PATIENCE_S, X, assert_equal, assert_three_parts, plain, tiny

IMAGES = draw(((3, 6, 6),), 2, seed=0)
CONV: dict[str, Part] = {"conv": lambda: nn.Conv2d(3, 5, 3), "head": lambda: nn.Linear(80, 4)}


@pytest.fixture
def rt() -> Iterator[st.Runtime]:
    with st.Runtime(device="cpu") as made:
        yield made


def by_view(m: Any, x: Tensor) -> Tensor:
    """As in every tutorial: view() takes a convolution's output only in the usual memory order."""
    y: Tensor = m.head(m.conv(x).view(x.shape[0], -1))
    return y


def by_reshape(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.head(m.conv(x).reshape(x.shape[0], -1))
    return y


@pytest.mark.parametrize("policy", ["streams", "space_time"])
def test_code_that_needs_the_usual_order_of_memory_has_it(policy: str) -> None:
    modules = [sketch(by_view, CONV, seed) for seed in range(3)]
    expected = [plain(module, *IMAGES) for module in modules]
    with st.Runtime(device="cpu", policy=policy) as rt:
        tenants = [rt.add(module, IMAGES, f"t{index}") for index, module in enumerate(modules)]
        futures = [tenant.submit(*IMAGES) for tenant in tenants]
        for future, module, reference in zip(futures, modules, expected, strict=True):
            assert_equal(future.result(PATIENCE_S), reference)
            assert_equal(plain(module, *IMAGES), reference)
        (cohort,) = rt.explain().cohorts
        assert cohort.keeps_order and "their code takes no other" in str(rt.explain())


def test_code_that_takes_any_order_has_the_fast_one(rt: st.Runtime) -> None:
    module, unlike = sketch(by_reshape, CONV), sketch(by_view, CONV, seed=1)
    expected = plain(unlike, *IMAGES)
    rt.add(module, IMAGES, "any")
    tenant = rt.add(unlike, IMAGES, "usual")
    assert not rt.explain().cohorts[0].keeps_order
    assert module.get_submodule("conv").weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[operator]
    (report,) = rt.explain().opaque  # it does the same, so its cohort is the other's, whose order it does not take
    assert report.tenant == "usual" and "in the order that its cohort has them in" in report.reason
    assert_equal(tenant(*IMAGES), expected)


@pytest.mark.parametrize("policy", ["streams", "space_time"])
def test_images_come_out_in_the_usual_order(policy: str) -> None:
    module = nn.Conv2d(3, 5, 3).eval()
    with st.Runtime(device="cpu", policy=policy) as rt:
        tenant = rt.add(module, IMAGES, "images")
        for _ in range(5):
            assert tenant(*IMAGES).view(2, -1).shape == (2, 80)


def hooked(seed: int) -> nn.Module:
    module = tiny(seed)
    module[0].register_forward_hook(lambda *_: None)
    return module


def clamped(m: Any, x: Tensor) -> Tensor:
    return x.clamp_(0)


def by_item(m: Any, x: Tensor) -> Tensor:
    scaled: Tensor = x * m.scale.item()
    return scaled


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (hooked, "forward hooks (of 0)"),
        (lambda seed: sketch(clamped, {}, seed), "the module writes its inputs"),
        (lambda seed: sketch(by_item, {"scale": (1,)}, seed), "takes a number out of a tensor"),
    ],
)
def test_what_a_fused_program_would_leave_out_runs_whole(
    rt: st.Runtime, make: Callable[[int], nn.Module], why: str
) -> None:
    module = make(0)
    example = (X.clone(),)
    tenant = rt.add(module, example, "odd")
    assert torch.equal(example[0], X), "adding it has changed the example"
    (report,) = rt.explain().opaque
    assert why in report.reason
    assert torch.equal(tenant(X.clone()), plain(module, X.clone()))


def test_hooks_are_called_for_every_request(rt: st.Runtime) -> None:
    module, seen = tiny(), list[Tensor]()
    module[0].register_forward_hook(lambda part, args, output: seen.append(output))
    tenant = rt.add(module, EXAMPLE, "watched")
    seen.clear()
    for _ in range(3):
        tenant(X)
    assert len(seen) == 3


def test_weights_that_a_lazy_module_has_yet_to_make(rt: st.Runtime) -> None:
    with pytest.raises(st.CaptureError) as caught:
        rt.add(nn.LazyLinear(3).eval(), EXAMPLE, "lazy")
    assert_three_parts(caught.value, "weight has no shape yet", "lazy module", "call module(*example) once")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (3, 0)])
def test_rows_without_entries(rt: st.Runtime, shape: tuple[int, ...]) -> None:
    make = sketch(lambda m, x: m.linear(x), {"linear": lambda: nn.Linear(shape[-1], 5)})
    modules = [make, sketch(lambda m, x: m.linear(x), {"linear": lambda: nn.Linear(shape[-1], 5)}, seed=1)]
    tenants = [rt.add(module, draw((shape,), 2, seed=0), f"t{index}") for index, module in enumerate(modules)]
    assert len(rt.explain().cohorts) == 1
    for _ in range(3):
        requests = [(tenant, draw((shape,), 1 + index, seed=1)) for index, tenant in enumerate(tenants)]
        futures = [tenant.submit(*inputs) for tenant, inputs in requests]
        for future, module, (_, inputs) in zip(futures, modules, requests, strict=True):
            assert_equal(future.result(PATIENCE_S), plain(module, *inputs))


def test_torchscript_runs_whole(rt: st.Runtime) -> None:
    script: Callable[..., nn.Module] = torch.jit.script
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tenant = rt.add(script(tiny()), EXAMPLE, "script")
    assert "TorchScript" in rt.explain().opaque[0].reason
    assert_equal(tenant(X), plain(tiny(), X))


def test_what_torch_export_has_made_is_in_no_mode(rt: st.Runtime) -> None:
    """Its parts say that they are in training, and its eval() raises an exception. A hook of it checks its inputs."""
    exported = torch.export.export(tiny(), EXAMPLE, dynamic_shapes=({0: torch.export.Dim("rows", max=64)},))
    tenant = rt.add(exported.module(), EXAMPLE, "exported")
    assert "forward hooks (of itself)" in rt.explain().opaque[0].reason
    assert_equal(tenant(X), plain(tiny(), X))


@pytest.mark.parametrize("policy", ["streams", "space_time"])
def test_who_is_put_in_training_mode_gets_an_error_or_the_right_answer(policy: str) -> None:
    """The fused program is of the mode in which the module came; the module itself would drop half of it out."""
    modules = [
        sketch(lambda m, x: m.head(m.drop(x)), {"drop": lambda: nn.Dropout(0.5), "head": lambda: nn.Linear(4, 3)}, seed)
        for seed in range(2)
    ]
    expected, refused = [plain(module, X) for module in modules], 0
    with st.Runtime(device="cpu", policy=policy) as rt:
        tenants = [rt.add(module, EXAMPLE, f"t{index}") for index, module in enumerate(modules)]
        modules[0].train()
        for _ in range(10):
            ours, theirs = [tenant.submit(X) for tenant in tenants]
            assert_equal(theirs.result(PATIENCE_S), expected[1])
            error = ours.exception(PATIENCE_S)
            if error is None:
                assert_equal(ours.result(), expected[0])
            else:
                assert_three_parts(error, "'t0': the module was put in training mode", "serves inference", "eval()")
                refused += 1
        assert refused == 10 or policy != "streams"
        modules[0].eval()
        assert_equal(tenants[0](X), expected[0])


def test_a_refusal_is_remembered(rt: st.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    exports: list[nn.Module] = []

    def export(module: nn.Module, example: tuple[Any, ...]) -> Any:
        exports.append(module)
        return original(module, example)

    original = prepare.export
    monkeypatch.setattr(prepare, "export", export)
    for index in range(3):
        rt.add(sketch(lambda m, x: m.linear(x).softmax(0), {"linear": lambda: nn.Linear(4, 4)}), EXAMPLE, f"t{index}")
    assert len(exports) == 1
    assert {report.reason for report in rt.explain().opaque} == {"softmax (softmax): works along the rows"}


def test_tenants_are_judged_beside_each_other(rt: st.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong only where a batch has rows of several is found before it is served."""

    def crossed(layout: Any, x: Tensor, weight: Any, bias: Any, per_row: int) -> Tensor:
        return F.linear(x, weight.entry(layout.first.entry))

    kernel = import_module("spacetime.kernels.slot_linear")  # the package has a function of this name
    monkeypatch.setattr(kernel, "_batched", crossed)
    monkeypatch.setattr(kernel, "_one_by_one", crossed)
    modules = [tiny(seed) for seed in range(2)]
    tenants = [rt.add(module, EXAMPLE, f"t{index}") for index, module in enumerate(modules)]
    (report,) = rt.explain().opaque
    assert report.tenant == "t1" and "self-check failed: beside the rows of 't0'" in report.reason
    for tenant, module in zip(tenants, modules, strict=True):
        assert_equal(tenant(X), plain(module, X))
