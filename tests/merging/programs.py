"""Random programs for the tests of merging/: few distinct kernels and any dependencies, so there is much to fuse."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from spacetime.ir import Kernel, Program, Rows, TensorSpec

OPS = (("linear", "gemm"), ("mm", "gemm"), ("relu", "other"))


def make_kernel(index: int, op: str, width: int, deps: Sequence[int], tokens: int = 1) -> Kernel:
    """Square, so that any follows any: what is fusible is decided by operation, width and tokens."""
    kind = dict(OPS)[op]
    moving = TensorSpec((Rows(1), tokens, width), "float32", 0)
    has_weights = kind != "other"
    inputs = (moving, TensorSpec((width, width), "float32")) if has_weights else (moving,)
    return Kernel(
        index=index,
        name=f"{op}{index}",
        op=op,
        kind=kind,
        inputs=inputs,
        outputs=(moving,),
        weights=(index,) if has_weights else (),
        deps=tuple(deps),
        attributes="",
        flops_per_row=2 * tokens * width * width if has_weights else tokens * width,
        bytes_per_row=8 * tokens * width,
        weight_bytes=4 * width * width if has_weights else 0,
    )


def make_program(name: str, kernels: Sequence[tuple[str, int, Sequence[int]]]) -> Program:
    made = tuple(make_kernel(index, op, width, deps) for index, (op, width, deps) in enumerate(kernels))
    return Program(name, (), (), (), made)


def chain(name: str, work: str) -> Program:
    """One kernel after another: "8 16 r8" are two linears and a relu."""
    kernels: list[tuple[str, int, tuple[int, ...]]] = []
    for index, word in enumerate(work.split()):
        op, width = ("relu", word[1:]) if word.startswith("r") else ("linear", word)
        kernels.append((op, int(width), (index - 1,) if index else ()))
    return make_program(name, kernels)


@st.composite
def programs(draw: st.DrawFn, name: str, max_kernels: int = 12) -> Program:
    """Every kernel may read from any earlier ones, or from none."""
    kernels = []
    for index in range(draw(st.integers(1, max_kernels))):
        op = draw(st.sampled_from([op for op, _ in OPS]))
        deps = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        kernels.append((op, draw(st.sampled_from([8, 16])), sorted(deps)))
    return make_program(name, kernels)


def mixes(least: int = 1, most: int = 4) -> st.SearchStrategy[list[Program]]:
    return st.integers(least, most).flatmap(lambda n: st.tuples(*[programs(f"p{i}") for i in range(n)]).map(list))
