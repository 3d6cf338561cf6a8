"""Models as the command line names them: files of ONNX and torch.export, factories, the zoo. Imported by verbs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spacetime import zoo
from spacetime.errors import OptionError

EXAMPLE_ROWS = 2
KINDS = "MODEL.onnx, MODEL.pt2, package.module:factory, or zoo:NAME"


@dataclass(frozen=True)
class NamedModel:
    """A module, and inputs that fit it."""

    name: str
    module: nn.Module
    example: tuple[Any, ...]


def load_model(source: str) -> NamedModel:
    """The model behind a name; an `OptionError` says why there is none."""
    if source.endswith(".onnx"):
        return _load_onnx(_existing(source))
    if source.endswith(".pt2"):
        return _load_exported(_existing(source))
    module, colon, attribute = source.partition(":")
    if not (colon and module and attribute):
        raise OptionError(f"{source!r} names no model", f"a model is {KINDS}", "name one of these kinds")
    if module == "zoo":
        return NamedModel(attribute, zoo.build(attribute), zoo.example(attribute, EXAMPLE_ROWS))
    return _from_factory(source, module, attribute)


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        facts = f"{path.resolve()} is {'a directory' if path.is_dir() else 'not there'}"
        raise OptionError(f"the model {source} cannot be read", facts, "name a file")
    return path


def _load_onnx(path: Path) -> NamedModel:
    from spacetime.profiler.onnx import load_onnx

    model = load_onnx(path)
    return NamedModel(path.stem, model.module, model.example(EXAMPLE_ROWS))


# -- torch.export ----------------------------------------------------------------------------------------------------


def _load_exported(path: Path) -> NamedModel:
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises whatever its readers raise
        facts = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
        next_step = f"write it with torch.export.save, under torch {torch.__version__} if it was written by another"
        raise OptionError(f"{path} is no exported program", facts, next_step) from error
    if program.example_inputs is None:
        raise OptionError(f"{path} has no example inputs", "its file was stripped of them", "export the module again")
    args, kwargs = program.example_inputs
    if kwargs:
        facts = f"it takes {', '.join(kwargs)} by name"
        raise OptionError(f"{path} takes keyword arguments", facts, "export the module with positional inputs")
    _check_rows_are_dynamic(path, program)
    # Its guards hold the range of rows that it was exported for; capturing has a range of its own.
    return NamedModel(path.stem, program.module(check_guards=False), tuple(args))


def _check_rows_are_dynamic(path: Path, program: torch.export.ExportedProgram) -> None:
    names = program.graph_signature.user_inputs
    inputs = [node.meta.get("val") for node in program.graph.nodes if node.name in names]
    for index, value in enumerate(inputs):
        if isinstance(value, Tensor) and value.ndim and not isinstance(value.shape[0], torch.SymInt):
            raise OptionError(
                f"{path} has a fixed number of rows",
                f"input {index} is {tuple(value.shape)}: its first dimension is {value.shape[0]}, always",
                'export it with dynamic_shapes={..., {0: torch.export.Dim("rows")}}, two rows or more in the example',
            )


# -- factories -------------------------------------------------------------------------------------------------------


def _from_factory(source: str, module: str, attribute: str) -> NamedModel:
    with _current_directory_importable():
        try:
            found: Any = importlib.import_module(module)
        except ImportError as error:
            facts = f"{type(error).__name__}: {error}"
            raise OptionError(
                f"{module} cannot be imported", facts, "run in the folder that has it, or install it"
            ) from error
        for part in attribute.split("."):
            if not hasattr(found, part):
                raise OptionError(f"{source} does not exist", f"{module} has no {attribute}", "check its spelling")
            found = getattr(found, part)
        return _called(source, attribute, found)


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    """As under `python -m`: a script's first place to look is its own folder, which has nobody's models."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _called(source: str, attribute: str, found: Any) -> NamedModel:
    made = found() if isinstance(found, Callable) and not isinstance(found, nn.Module) else found  # type: ignore[arg-type]
    module, example = made if isinstance(made, tuple) and len(made) == 2 else (made, getattr(made, "example", None))
    if not isinstance(module, nn.Module):
        facts = f"it gives a {type(made).__name__}"
        raise OptionError(
            f"{source} makes no model", facts, "return (module, example), or a module with an attribute `example`"
        )
    example = (example,) if isinstance(example, Tensor) else example
    if not isinstance(example, tuple) or not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(example)):
        facts = f"its example is {'missing' if example is None else f'a {type(example).__name__}'}"
        next_step = "return (module, example): example is a tuple of inputs with a leading row dimension"
        raise OptionError(f"{source} comes without inputs", facts, next_step)
    return NamedModel(attribute.rpartition(".")[2], module.eval(), example)
