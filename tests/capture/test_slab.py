"""Slabs: what goes in comes out, equal content is stored once, and nobody's content moves under another's hands."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spacetime.capture.layer import Layer
from spacetime.capture.slab import Slab


def content(seed: int, shape: tuple[int, ...] = (3, 4)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.tuples(st.sampled_from(("adopt", "release", "compact")), st.integers(0, 5)), max_size=30))
def test_any_sequence_of_adoptions_and_releases_keeps_contents(steps: list[tuple[str, int]]) -> None:
    slab = Slab(content(0))
    users: dict[int, int] = {}  # by seed of the content
    entry: dict[int, int] = {}
    for step, seed in steps:
        if step == "adopt":
            entry[seed] = slab.adopt(content(seed))
            users[seed] = users.get(seed, 0) + 1
        elif step == "compact":
            with patch.multiple("spacetime.capture.slab", _RESERVE=1, _SPARSE=1):
                slab.compact()
        elif users.get(seed):
            slab.release(entry[seed])
            users[seed] -= 1
        present = [seed for seed in users if users[seed]]
        assert slab.num_entries == len(present) == len({entry[seed] for seed in present})
        for other in present:
            assert torch.equal(slab.view(entry[other]), content(other))
            assert torch.equal(slab.stack[entry[other]], content(other))
            assert slab.users(entry[other]) == users[other]


def test_growing_keeps_what_is_there_and_old_memory_readable() -> None:
    slab = Slab(content(0))
    slab.adopt(content(0))
    old = slab.view(0)
    for seed in range(1, 9):
        slab.adopt(content(seed))
    assert old.data_ptr() != slab.view(0).data_ptr()
    assert torch.equal(old, content(0))
    assert torch.equal(slab.view(0), content(0))


def test_a_slab_that_most_have_left_moves_into_fresh_memory() -> None:
    slab = Slab(content(0))
    entries = [slab.adopt(content(seed)) for seed in range(100)]
    old = slab.view(entries[70])
    for seed in range(100):
        if seed not in (3, 70):
            slab.release(entries[seed])
    before = slab.compact()
    assert before is not None and before.untyped_storage().data_ptr() == old.untyped_storage().data_ptr()
    assert before.untyped_storage().data_ptr() != slab.stack.untyped_storage().data_ptr()
    assert torch.equal(old, content(70)), "lanes that run may still read it"
    for seed in (3, 70):
        assert torch.equal(slab.view(entries[seed]), content(seed)), "numbers of entries stay"
    assert slab.compact() is None, "there is nothing left to give back"
    again = [slab.adopt(content(seed)) for seed in range(200, 350)]
    assert all(torch.equal(slab.view(entry), content(seed)) for entry, seed in zip(again, range(200, 350), strict=True))


def test_a_slab_that_is_in_use_stays_where_it_is() -> None:
    slab = Slab(content(0))
    entries = [slab.adopt(content(seed)) for seed in range(20)]
    stack = slab.stack
    for entry in entries[:14]:
        slab.release(entry)
        assert slab.compact() is None
    assert slab.stack is stack


def test_without_memory_for_both_a_slab_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    slab = Slab(content(0))
    for entry in [slab.adopt(content(seed)) for seed in range(20)][1:]:
        slab.release(entry)

    def refuse(capacity: int) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(slab, "_allocate", refuse)
    assert slab.compact() is None
    assert torch.equal(slab.view(0), content(0))


def test_a_released_entry_is_used_again() -> None:
    slab = Slab(content(0))
    entries = [slab.adopt(content(seed)) for seed in range(3)]
    stack = slab.stack
    slab.release(entries[1])
    assert slab.adopt(content(7)) == entries[1]
    assert slab.stack is stack


def test_large_contents_that_differ_between_the_samples_are_told_apart() -> None:
    zeros = torch.zeros(100_000)
    nearly = zeros.clone()
    nearly[7] = 1.0
    slab = Slab(zeros)
    assert slab.adopt(zeros) != slab.adopt(nearly)


def test_weights_that_are_not_numbers_are_kept_but_never_shared() -> None:
    broken = torch.tensor([1.0, float("nan")])
    slab = Slab(broken)
    one, other = slab.adopt(broken), slab.adopt(broken)
    assert one != other
    assert slab.view(one).isnan().tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4, 5)])
def test_any_type_and_shape_can_be_stored(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (content(1, shape) > 0).to(dtype)
    slab = Slab(tensor)
    view = slab.view(slab.adopt(tensor))
    assert torch.equal(view, tensor)
    assert (view.dtype, view.shape) == (dtype, shape)
    assert slab.entry_bytes == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_entries_have_the_order_of_their_kernel_and_leave_in_their_own(
    channels_last: bool, order: torch.memory_format
) -> None:
    tensor = content(1, (4, 3, 2, 2)).contiguous(memory_format=order)
    slab = Slab(tensor, channels_last=channels_last)
    view = slab.view(slab.adopt(tensor))
    assert torch.equal(view, tensor)
    assert view.is_contiguous(memory_format=torch.channels_last if channels_last else order)
    copy = slab.copy_out(0)
    assert torch.equal(copy, tensor)
    assert copy.stride() == tensor.stride()
    assert copy.untyped_storage().data_ptr() != view.untyped_storage().data_ptr()


def test_a_layer_maps_slots_to_entries() -> None:
    layer = Layer("weight")
    layer.put(2, content(0))
    layer.put(0, content(1))
    layer.put(1, content(0))
    assert layer.entries == [1, 0, 0]
    assert layer.is_shared(1)
    assert not layer.is_shared(0)
    layer.drop(2)
    assert layer.entries == [1, 0, -1]
    assert torch.equal(layer.of_slot(1), content(0))
    assert not layer.is_shared(1)


def test_contents_that_come_and_go_leave_nothing_in_the_index() -> None:
    slab = Slab(content(0))
    slab.adopt(content(0))
    for seed in range(1, 50):
        slab.release(slab.adopt(content(seed)))
    assert len(slab._by_fingerprint) == 1 and slab.stack.shape[0] == 8, "places are used again"
