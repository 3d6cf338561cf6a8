"""Programs for several lengths of a tenant's inputs, and the proof that padding does not show. Used by prepare.py."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from spacetime.backends.executables import Call, CohortExecutable
from spacetime.backends.families import LengthsExecutable
from spacetime.capture.export import Unfusible, at_least_two_rows, export
from spacetime.capture.lengths import Cut, Lengths
from spacetime.capture.program import build_program
from spacetime.capture.rows import prove
from spacetime.capture.selfcheck import problem
from spacetime.errors import CaptureError

Args = tuple[Any, ...]


def make_programs(
    main: CohortExecutable, lengths: Lengths, module: nn.Module, example: Args, modules: Mapping[str, nn.Module]
) -> LengthsExecutable:
    """Once per architecture and bounds: slow, like any first capture, and once more for every length."""
    executable = LengthsExecutable(main, lengths, modules)
    args = tuple(pytree.tree_map(at_least_two_rows, example))
    for step in lengths.steps[:-1]:
        _results(module, lengths.resized(args, step), step)
        try:
            exported = export(module, lengths.resized(args, step))
            executable.add_program(step, build_program(exported, prove(exported)))
        except Unfusible as why:
            executable.reasons[step] = str(why)
    executable.cut, executable.why_not_padded = _padding(module, args, lengths)
    return executable


def check(executable: LengthsExecutable, name: str, module: nn.Module, example: Args) -> str | None:
    """What is wrong with a tenant's results at some length; None if nothing is."""
    lengths = executable.lengths
    for length in sorted({*executable.programs, *_between(lengths)} - {lengths.most}):
        if lengths.step(length) not in executable.programs or (length not in lengths.steps and executable.cut is None):
            continue
        args, outputs = lengths.resized(example, length), None
        try:
            answer = executable.answer(name, Call.of(args)).value
            if length in executable.programs:  # which large batches go through, whatever answered now
                outputs = executable.programs[length].flat_outputs(name, Call.of(args).tensors)
        except torch.OutOfMemoryError:
            raise  # it says nothing about the results
        except Exception as error:
            return f"length {length}: {type(error).__name__}: {error}"
        expected = _results(module, args, length)
        trouble = problem(pytree.tree_leaves(answer), expected)
        if trouble is None and outputs is not None:
            trouble = problem(outputs, expected)
        if trouble is not None:
            return f"length {length}: {trouble}"
    return None


def _padding(module: nn.Module, example: Args, lengths: Lengths) -> tuple[Cut | None, str]:
    """How to cut padding off again; None, and the reason, where it changes what is left."""
    found: Cut | None = None
    for length in _between(lengths):
        step, args = lengths.step(length), lengths.resized(example, length)
        results, padded = _results(module, args, length), _results(module, lengths.padded(args, step), step)
        found = Cut.find(results, padded, (length, step))
        if found is None:
            return None, f"outputs for lengths {length} and {step} differ in more than their length"
        trouble = problem(found(padded, length), results)
        if trouble is not None:
            return None, f"padding {length} to {step} changes the results: {trouble}"
    return found, "" if found else "every length has a program"


def _between(lengths: Lengths) -> list[int]:
    """Lengths that are padded: the first above the least, and the one that is padded most."""
    steps = lengths.steps
    gaps = [(before + 1, after) for before, after in pairwise(steps) if before + 1 < after]
    return sorted({gaps[0][0], gaps[-1][0]}) if gaps else []


def _results(module: nn.Module, args: Args, length: int) -> list[Any]:
    try:
        with torch.no_grad():
            return pytree.tree_leaves(module(*args))
    except torch.OutOfMemoryError:
        raise  # it says nothing about the module
    except Exception as error:
        raise length_error(length, error) from error


def length_error(length: int, error: BaseException) -> CaptureError:
    return CaptureError(
        f"the module fails for inputs of length {length}",
        f"{type(error).__name__}: {error}",
        "declare every input that has this length in dynamic=, and bounds that the module takes",
    )
