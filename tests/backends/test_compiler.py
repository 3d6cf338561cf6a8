"""The generated function: readable, one line per step, and no value lives longer than it is needed."""

from __future__ import annotations

import ast

import pytest
import torch

from spacetime.backends.compiler import compile_program, source
from spacetime.capture.cohort import Cohort
from spacetime.kernels import RowMap
from spacetime.zoo import SMALL, build, example
from tests.capture.tenants import weights_of, zoo_capture
from tests.slow import LONG_EXPORTS, mostly


@pytest.fixture(scope="module", params=mostly(SMALL, slow=(*LONG_EXPORTS, "resnet18", "vit", "gru")))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def cohort(name: str) -> Cohort:
    captured = zoo_capture(name)
    made = Cohort(captured)
    made.join("tenant", weights_of(captured, build(name)))
    return made


def body(cohort: Cohort) -> list[ast.stmt]:
    (function,) = ast.parse(source(cohort.fused, cohort.layers)).body
    assert isinstance(function, ast.FunctionDef)
    return function.body


def test_a_step_is_a_line(cohort: Cohort) -> None:
    lines = [line for line in body(cohort) if isinstance(line, ast.Assign)]
    assert len(lines) == 1 + len(cohort.fused.steps)  # the first line counts the rows


def test_values_are_dropped_right_after_their_last_use(cohort: Cohort) -> None:
    """No value is read after it was dropped; whatever is not returned and was read is dropped where it is read last."""
    statements = body(cohort)
    returned = {node.id for node in ast.walk(statements[-1]) if isinstance(node, ast.Name)}
    last_read: dict[str, int] = {}
    dropped: dict[str, int] = {}
    for index, statement in enumerate(statements):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                last_read[node.id] = index
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Del):
                dropped[node.id] = index
    values = {name for name in last_read if name[0] in "iv" and name.lstrip("inv").isdigit()}
    assert dropped.keys() == values - returned
    for name, index in dropped.items():
        between = statements[last_read[name] + 1 : index]
        assert all(isinstance(statement, ast.Delete) for statement in between), name


def test_the_source_compiles_and_runs(name: str, cohort: Cohort) -> None:
    run = compile_program(cohort.fused, cohort.layers).run
    with torch.no_grad():
        outputs = run(RowMap((0,), (3,)), *example(name, rows=3))
    dims = cohort.fused.output_row_dims
    assert [output.shape[dim] for output, dim in zip(outputs, dims, strict=True)] == [3] * len(outputs)
