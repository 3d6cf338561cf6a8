"""What the kernels share: who a row belongs to, activations, the epilogue. Device code; imported by sources/ only."""

# mypy: ignore-errors
# Triton compiles these functions from their text; their types are not Python's.

import triton
import triton.language as tl


@triton.jit
def entry_of(table, num_active, r):
    """The slot that row r uses; -1 where the row is idle. What lies beyond num_active is never looked at."""
    return tl.load(table + r, mask=r < tl.load(num_active), other=-1)


@triton.jit
def weights_of(w, entry, w_slot, MULTIPLE: tl.constexpr):
    """Where the weights of an entry start: int32 counts entries of w, int64 is an address, and w tells its type only.

    MULTIPLE: of elements, what an entry starts at a multiple of; 1 leaves that to what is known of w_slot.
    """
    if entry.dtype == tl.int64:
        start = tl.multiple_of(entry.to(w.dtype), 16)
    elif MULTIPLE > 1:
        start = w + tl.multiple_of(entry.to(tl.int64) * w_slot, MULTIPLE)
    else:
        start = w + entry.to(tl.int64) * w_slot
    return start


@triton.jit
def per_output(values, entries, values_slot, r, columns, num_columns):
    """A row's vector over output columns, as fp32: its bias, scale or shift."""
    entry = tl.load(entries + r).to(tl.int64)
    return tl.load(values + entry * values_slot + columns, mask=columns < num_columns, other=0.0).to(tl.float32)


@triton.jit
def activate(v, ACTIVATION: tl.constexpr):
    """Written with `where`, not `maximum`: a NaN must come out as a NaN, as it does in PyTorch."""
    if ACTIVATION == "relu":
        v = tl.where(v < 0.0, 0.0, v)
    elif ACTIVATION == "relu6":
        v = tl.where(v < 0.0, 0.0, tl.where(v > 6.0, 6.0, v))
    elif ACTIVATION == "gelu":
        v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        v = v / (1.0 + tl.exp(-1.5957691216057308 * (v + 0.044715 * v * v * v)))
    elif ACTIVATION == "silu":
        v = v / (1.0 + tl.exp(-v))
    return v


@triton.jit
def finish(
    acc,
    bias,
    bias_entry,
    res,
    y,
    r,
    om,
    on,
    M,
    N,
    bias_slot,
    res_row,
    y_row,
    N_MULTIPLE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """y = activation(acc + bias + res) for one tile [om, on] of row r."""
    mask = (om < M)[:, None] & (on < N)[None, :]
    if bias is not None:
        acc += per_output(bias, bias_entry, bias_slot, r, on, N)[None, :]
    if res is not None:
        at = tl.multiple_of(r.to(tl.int64) * res_row, N_MULTIPLE) + om[:, None] * N + on[None, :]
        acc += tl.load(res + at, mask=mask, other=0.0).to(tl.float32)
    at = tl.multiple_of(r.to(tl.int64) * y_row, N_MULTIPLE) + om[:, None] * N + on[None, :]
    tl.store(y + at, activate(acc, ACTIVATION).to(y.dtype.element_ty), mask=mask)
