"""These tests run in Triton's interpreter, in a process of their own: ../test_interpreted.py starts it.

TRITON_INTERPRET must be set before triton is imported and changes every kernel of the process, so without it nothing
here is collected. By hand: TRITON_INTERPRET=1 pytest tests/kernels/triton/interpreted
"""

from __future__ import annotations

import os
from typing import Any

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETING else ["test_*.py"]


def patch_bf16() -> None:
    """The interpreter multiplies bf16 by their bit patterns, and rounds towards zero where a GPU rounds to nearest."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    plain_dot, plain_cast = builder.create_dot, builder.cast_impl

    def as_float(handle: Any) -> Any:
        is_bf16 = handle.dtype.scalar == tl.bfloat16
        return (handle.data.astype(np.uint32) << 16).view(np.float32) if is_bf16 else handle.data

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if tl.bfloat16 not in (a.dtype.scalar, b.dtype.scalar):
            return plain_dot(self, a, b, d, *rest)
        product = np.matmul(as_float(a), as_float(b), dtype=d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    def create_fp_trunc(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar != tl.float32 or to.scalar != tl.bfloat16:
            return plain_cast(self, source, to)
        bits = np.ascontiguousarray(source.data, dtype=np.float32).view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return interpreter.TensorHandle(np.where(np.isnan(source.data), np.uint16(0x7FC0), rounded), tl.bfloat16)

    builder.create_dot, builder.create_fp_trunc = create_dot, create_fp_trunc


def patch_index() -> None:
    """Triton 3.6 makes an int of an array with one element, as in `range(n)`; numpy 2.4 and later refuse that."""
    from triton.runtime import interpreter

    plain = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        plain(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


if INTERPRETING:
    patch_bf16()
    patch_index()
