"""An example by name, as a tokenizer returns it: the same tenant as with the example by position, or a clear error."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spacetime as st
from tests.runtime.models import X, assert_equal, assert_three_parts, plain, tiny
from tests.runtime.test_named_inputs import EXPECTED, IDS, MASK, Encoder


class BatchEncoding(UserDict[str, Tensor]):
    """What a tokenizer of Hugging Face returns: a mapping, but no dict."""


class Decoder(Encoder):
    """Its mask comes behind an option, as in GPT-2."""

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, past: Any = None, attention_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        assert past is None and not options and attention_mask is not None
        return super().forward(input_ids, attention_mask)


class KeywordOnly(Encoder):
    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input_ids, attention_mask)


class Anything(Encoder):
    def forward(self, **inputs: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(inputs["input_ids"], inputs["attention_mask"])


NAMED = {"attention_mask": MASK, "input_ids": IDS}  # not in the order of forward


def test_every_way_to_say_what_the_inputs_are_makes_the_same_tenant() -> None:
    with st.Runtime() as rt:
        handles = [
            rt.add(Encoder(), (IDS, MASK), "by position"),
            rt.add(Encoder(), NAMED, "by name"),
            rt.add(Encoder(), BatchEncoding(NAMED), "of a tokenizer"),
            rt.add(Decoder(), NAMED, "behind an option"),
            rt.add(KeywordOnly(), NAMED, "by name only"),
        ]
        (cohort,) = rt.explain().cohorts
        assert len(cohort.tenants) == len(handles)
        for handle in handles:
            assert_equal(handle(**NAMED), EXPECTED)
            assert_equal(handle(**BatchEncoding(NAMED)), EXPECTED)
            assert_equal(handle(IDS, attention_mask=MASK), EXPECTED)
            assert_equal(handle(IDS, MASK), EXPECTED)  # in the order of forward


@pytest.mark.parametrize("exact", [False, True])
def test_a_forward_that_takes_any_name_has_the_order_of_the_example(exact: bool) -> None:
    with st.Runtime() as rt:
        handle = rt.add(Anything(), NAMED, "t", exact=exact)
        assert_equal(handle(input_ids=IDS, attention_mask=MASK), EXPECTED)
        assert_equal(handle(MASK, IDS), EXPECTED)


def test_lengths_may_vary_by_name() -> None:
    ids, mask = torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7)
    varying = {"attention_mask": {1: (2, 8)}, "input_ids": {1: (2, 8)}}
    with st.Runtime() as rt:
        handle = rt.add(Decoder(), NAMED, "t", dynamic=varying)
        assert rt.explain().varying, "it has programs of several lengths"
        assert_equal(handle(input_ids=ids, attention_mask=mask), plain(Encoder(), ids, mask))


def test_what_is_none_in_the_example_shares_launches_and_may_be_said_in_calls() -> None:
    with st.Runtime() as rt:
        rt.add(Encoder(), (IDS, MASK), "plain")
        handles = [
            rt.add(Decoder(), (IDS, None, MASK), "by position"),
            rt.add(Decoder(), NAMED | {"past": None}, "named"),
        ]
        assert len(rt.explain().cohorts[0].tenants) == 3 and not rt.explain().opaque
        for handle in handles:
            assert_equal(handle(IDS, None, MASK), EXPECTED)
            assert_equal(handle(IDS, MASK), EXPECTED)
            assert_equal(handle(IDS, past=None, attention_mask=MASK), EXPECTED)
            assert_equal(handle.submit(IDS, None, attention_mask=MASK).result(), EXPECTED)
            with pytest.raises(st.InputError, match="takes 2 inputs"):
                handle(IDS, MASK, MASK)
            with pytest.raises(st.InputError, match="past cannot be given by name"):
                handle(IDS, past=MASK, attention_mask=MASK)
            with pytest.raises(st.InputError):
                handle(None, None, MASK)


def test_an_example_of_nothing_but_none_is_the_modules_own_affair() -> None:
    with st.Runtime() as rt, pytest.raises(st.CaptureError, match="fails on its own example"):
        rt.add(Encoder(), (None, None), "t")


def test_none_with_exact_kernels() -> None:
    with st.Runtime() as rt:
        handle = rt.add(Decoder(), {"input_ids": IDS, "attention_mask": MASK, "past": None}, "t", exact=True)
        assert_equal(handle(IDS, None, MASK), EXPECTED)


def test_a_drop_in_takes_the_same_names() -> None:
    with st.Runtime() as rt:
        module = Decoder()
        drop_in = st.wrap(module, runtime=rt, example=NAMED, name="t")
        assert_equal(drop_in(**NAMED), EXPECTED)
        assert set(drop_in.state_dict()) == {f"module.{key}" for key in module.state_dict()}
        with pytest.raises(st.InputError, match="past cannot be given by name here"):
            drop_in(input_ids=IDS, past=MASK)


def test_a_program_is_captured_of_them() -> None:
    program = st.capture(Encoder(), (IDS, MASK))
    for module in (Encoder(), Decoder(), KeywordOnly()):
        assert st.capture(module, NAMED).signature == program.signature
    with pytest.raises(st.CaptureError, match=r"^Encoder: the example lacks 'attention_mask'"):
        st.capture(Encoder(), {"input_ids": IDS})


TAKES = "forward calls its inputs input_ids, attention_mask, types, scale"


@pytest.mark.parametrize(
    ("example", "what", "facts", "next_step"),
    [
        (
            {"ids": IDS, "attention_mask": MASK},
            "the example names 'ids', which forward does not take",
            TAKES,
            "a tuple",
        ),
        ({1: IDS, **NAMED}, "the example names 1, which", TAKES, "a tuple"),
        (
            {"input_ids": IDS},
            "the example lacks 'attention_mask'",
            f"{TAKES}; the example names input_ids",
            "**example",
        ),
        ({}, "the example lacks 'input_ids', 'attention_mask'", "names none", "**example"),
        ((), "the example is empty", "a dict of inputs by name", 'example={"x": tensor}'),
        ([IDS, MASK], "the example is a list", "a dict of inputs by name", 'example={"x": tensor}'),
        (IDS, "the example is a Tensor", "a tuple of positional inputs", "example=(tensor,)"),
    ],
)
def test_other_examples_are_refused(example: Any, what: str, facts: str, next_step: str) -> None:
    with st.Runtime() as rt:
        with pytest.raises(st.CaptureError) as caught:
            rt.add(Encoder(), example, "t")
        assert_three_parts(caught.value, f"tenant 't': {what}", facts, next_step)
        assert rt.tenants() == ()


class Collecting(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=-1)


def test_a_forward_without_names_takes_none() -> None:
    with st.Runtime() as rt, pytest.raises(st.CaptureError) as caught:
        rt.add(Collecting().eval(), {"x": X}, "t")
    assert_three_parts(caught.value, "names 'x', which forward", "forward names no inputs", "a tuple of positional")


def test_what_stands_around_the_module_leaves_no_trace() -> None:
    module = tiny()
    before = plain(module, X)
    with st.Runtime() as rt:
        rt.add(KeywordOnly(), NAMED, "t")
        rt.add(module, {"input": X}, "sequence")
        rt.remove("t")
        rt.remove("sequence")
    assert torch.equal(plain(module, X), before)
