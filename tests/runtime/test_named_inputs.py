"""Inputs by name, as models of Hugging Face are called: they mean the same, or are refused by a clear error."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spacetime as st
from tests.runtime.models import EXAMPLE, PATIENCE_S, X, assert_equal, assert_three_parts, plain, tiny

IDS, MASK = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])


class Encoder(nn.Module):
    """Embeds and pools; options behind the inputs, as is usual."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.table, self.head = nn.Embedding(8, 4), nn.Linear(4, 2)
        self.eval()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, types: Tensor | None = None, *, scale: float = 1.0
    ) -> Tensor:
        embedded = self.table(input_ids) * attention_mask.unsqueeze(-1)
        result: Tensor = self.head(embedded.sum(1)) * scale
        return result


@pytest.fixture(scope="module")
def encoder() -> Iterator[st.Tenant]:
    with st.Runtime() as rt:
        yield rt.add(Encoder(), (IDS, MASK), "encoder")


EXPECTED = plain(Encoder(), IDS, MASK)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((), {"input_ids": IDS, "attention_mask": MASK}),
        ((), {"attention_mask": MASK, "input_ids": IDS}),
        ((IDS,), {"attention_mask": MASK}),
        ((IDS, MASK), {}),
    ],
)
def test_names_stand_for_positions(encoder: st.Tenant, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    assert_equal(encoder(*args, **named), EXPECTED)
    assert_equal(encoder.submit(*args, **named).result(PATIENCE_S), EXPECTED)
    assert_equal(asyncio.run(encoder.asubmit(*args, **named)), EXPECTED)


@pytest.mark.parametrize(
    ("args", "named", "which"),
    [
        ((), {"ids": IDS, "attention_mask": MASK}, "ids"),
        ((), {"attention_mask": MASK}, "attention_mask"),  # the one before it is missing
        ((IDS,), {"input_ids": IDS}, "input_ids"),  # twice
        ((IDS, MASK), {"scale": 2.0}, "scale"),  # not by position
        ((), {"input_ids": IDS, "scale": 2.0, "attention_mask": MASK}, "scale"),
        ((IDS, MASK), {"self": 2.0}, "self"),
    ],
)
def test_other_names_are_refused(encoder: st.Tenant, args: tuple[Any, ...], named: dict[str, Any], which: str) -> None:
    for call in (encoder, encoder.submit, lambda *args, **named: asyncio.run(encoder.asubmit(*args, **named))):
        with pytest.raises(st.InputError) as caught:
            call(*args, **named)
        facts = f"forward calls its inputs input_ids, attention_mask, types; {len(args)} were given by position"
        assert_three_parts(
            caught.value, f"tenant 'encoder': {which} cannot be given by name here", facts, "of the example"
        )


def test_names_of_what_the_example_has_not_are_refused(encoder: st.Tenant) -> None:
    with pytest.raises(
        st.InputError, match=r"takes 2 inputs of the example's structure, got 3(.|\n)*module\(\*example"
    ):
        encoder(input_ids=IDS, attention_mask=MASK, types=IDS)


class Collecting(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=-1)


def test_a_forward_without_names_takes_none() -> None:
    with st.Runtime() as rt:
        tenant = rt.add(Collecting().eval(), (X, X), "t")
        assert torch.equal(tenant(X, X), torch.cat([X, X], dim=-1))
        with pytest.raises(st.InputError) as caught:
            tenant(X, x=X)
        assert_three_parts(
            caught.value, "x cannot be given by name", "forward names no inputs; 1 were", "none left out"
        )


def test_a_drop_in_takes_names_too() -> None:
    with st.Runtime() as rt:
        drop_in = st.wrap(Encoder(), runtime=rt, example=(IDS, MASK), name="encoder")
        assert_equal(drop_in(attention_mask=MASK, input_ids=IDS), EXPECTED)
        sequence = st.wrap(tiny(), runtime=rt, example=EXAMPLE, name="sequence")
        assert_equal(sequence(input=X), plain(tiny(), X))
