"""What a tenant accepts, and that what fitted once is looked at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from spacetime.errors import InputError
from spacetime.runtime.contract import MOST_KINDS, InputContract

EXAMPLE = (torch.ones(2, 4), torch.ones(2, 3, dtype=torch.int64))


def contract_for(example: tuple[Any, ...] = EXAMPLE, *, strict: bool = True) -> InputContract:
    return InputContract.of("t", example, strict=strict, device="cpu")


def inputs(rows: int) -> tuple[Tensor, ...]:
    return torch.zeros(rows, 4), torch.zeros(rows, 3, dtype=torch.int64)


def test_a_call_with_its_rows_and_bytes() -> None:
    contract, args = contract_for(), inputs(3)
    for _ in range(2):  # judged, then known
        call, rows, num_bytes = contract.accept(args)
        assert (call.args, call.tensors) == (args, args)
        assert (rows, num_bytes) == (3, sum(tensor.nbytes for tensor in args))


def test_what_fitted_once_is_not_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    contract = contract_for()
    contract.accept(inputs(3))

    def judge(self: InputContract, args: tuple[Any, ...]) -> None:
        raise AssertionError("it was judged again")

    monkeypatch.setattr(InputContract, "_judge", judge)
    assert contract.accept(inputs(3))[1] == 3
    with pytest.raises(AssertionError, match="judged again"):
        contract.accept(inputs(4))


@pytest.mark.parametrize(
    "args",
    [
        (torch.zeros(3, 4), torch.zeros(3, 3)),
        (torch.zeros(3, 5), torch.zeros(3, 3, dtype=torch.int64)),
        (torch.zeros(3, 4), torch.zeros(2, 3, dtype=torch.int64)),
        (torch.zeros(3, 4, 1), torch.zeros(3, 3, dtype=torch.int64)),
        (torch.zeros(3, 4),),
        (*inputs(3), torch.zeros(3, 4)),
        (torch.zeros(0, 4), torch.zeros(0, 3, dtype=torch.int64)),
        (torch.zeros(3, 4, device="meta"), torch.zeros(3, 3, dtype=torch.int64)),
        (torch.zeros(3, 4), [[0, 0, 0]] * 3),
        (torch.zeros(3, 4).to_sparse(), torch.zeros(3, 3, dtype=torch.int64)),
        (torch.zeros(3, 4).to_mkldnn(), torch.zeros(3, 3, dtype=torch.int64)),
        (FakeTensorMode().from_tensor(torch.zeros(3, 4)), torch.zeros(3, 3, dtype=torch.int64)),
        (torch.nested.nested_tensor([torch.zeros(4)] * 3, layout=torch.jagged), torch.zeros(3, 3, dtype=torch.int64)),
    ],
    ids="dtype shape rows dimensions too-few too-many no-rows device no-tensor sparse oneDNN fake nested".split(),
)
def test_what_does_not_fit_is_refused_every_time_whatever_fitted_before(args: tuple[Any, ...]) -> None:
    contract = contract_for()
    contract.accept(inputs(3))
    for _ in range(2):
        with pytest.raises(InputError, match="tenant 't'"):
            contract.accept(args)
    assert len(contract.known) == 1


def test_a_subclass_of_tensors_is_a_tensor() -> None:
    contract = contract_for((torch.ones(2, 4),))
    parameter = nn.Parameter(torch.ones(5, 4))
    call, rows, num_bytes = contract.accept((parameter,))
    assert call.tensors[0] is parameter
    assert (rows, num_bytes) == (5, parameter.nbytes)


def test_only_so_many_kinds_are_remembered_and_all_are_accepted() -> None:
    contract = contract_for()
    for rows in (*range(1, MOST_KINDS + 10), 1, MOST_KINDS + 9):
        assert contract.accept(inputs(rows))[1] == rows
    assert len(contract.known) == MOST_KINDS


def test_an_opaque_module_judges_for_itself() -> None:
    contract = contract_for(strict=False)
    for args in ((torch.zeros(7),), (torch.zeros(7, 9, dtype=torch.bool), "anything")):
        call, rows, num_bytes = contract.accept(args)
        assert (call.args, rows, num_bytes) == (args, 7, args[0].nbytes)


def test_nested_inputs_have_the_structure_of_the_example() -> None:
    contract = contract_for(({"x": torch.ones(2, 4)},))
    for _ in range(2):
        call, rows, _ = contract.accept(({"x": torch.zeros(3, 4)},))
        assert rows == 3 and len(call.tensors) == 1
    assert not contract.known
    with pytest.raises(InputError, match="structure"):
        contract.accept((torch.zeros(3, 4),))
