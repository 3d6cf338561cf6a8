"""Models as the command line names them: files of ONNX and torch.export, factories, the zoo. Imported by verbs."""

from __future__ import annotations

import importlib
import inspect
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spacetime import zoo
from spacetime.cli.known import KINDS
from spacetime.errors import OptionError

EXAMPLE_ROWS = 2


@dataclass(frozen=True)
class NamedModel:
    """A module, and inputs that fit it."""

    name: str
    module: nn.Module
    example: tuple[Any, ...]
    beside: tuple[str, ...] = ()  # files that its file names, from its folder


def load_model(source: str, sizes: Mapping[str, int] | None = None) -> NamedModel:
    """The model behind a name; an `OptionError` says why there is none. `sizes`: of dynamic dimensions, by name."""
    if source.lower().endswith(".onnx"):
        return _load_onnx(_existing(source), sizes or {})
    if sizes:
        facts = f"{source} is no ONNX file: its example has the sizes"
        raise OptionError("--size is for ONNX files", facts, "leave it out, or change the example")
    if source.lower().endswith(".pt2"):
        return _load_exported(_existing(source))
    module, colon, attribute = source.partition(":")
    if not (colon and module and attribute):
        next_step = f"zoo:{source}, if you mean that one" if source in zoo.ZOO else "name one of these kinds"
        raise OptionError(f"{source!r} names no model", f"a model is {KINDS}", next_step)
    if module == "zoo":
        return NamedModel(attribute, zoo.build(attribute), zoo.example(attribute, EXAMPLE_ROWS))
    return _from_factory(source, module, attribute)


@contextmanager
def quiet_torch() -> Iterator[None]:
    """What torch prints and logs about a refusal is in its error, too, which becomes ours; TORCH_LOGS shows it."""
    if os.environ.get("TORCH_LOGS"):
        yield
        return
    printed, disabled = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(printed):
            yield
    finally:
        logging.disable(disabled)
    sys.stderr.write(printed.getvalue())  # nothing was refused: these are somebody's warnings


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        problem = "a directory" if path.is_dir() else "no regular file" if path.exists() else "not there"
        facts = f"{path.resolve()} is {problem}"
        raise OptionError(f"the model {source} cannot be read", facts, "name a file")
    return path


def _load_onnx(path: Path, sizes: Mapping[str, int]) -> NamedModel:
    from spacetime.profiler.onnx import load_onnx

    model = load_onnx(path, sizes)
    return NamedModel(path.stem, model.module, model.example(EXAMPLE_ROWS), model.beside)


# -- torch.export ----------------------------------------------------------------------------------------------------


def _load_exported(path: Path) -> NamedModel:
    try:
        with quiet_torch():
            program = torch.export.load(path)
    except Exception as error:  # torch raises whatever its readers raise
        facts = "torch finds no program in it" if "warnings above" in str(error) else _said(error)
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
    if module.endswith(".py") or not all(part.isidentifier() for part in module.split(".")):
        facts = f"{module!r} is no name that Python can import"
        next_step = f"{package_name(module)}:{attribute}, in the folder that it starts from"
        raise OptionError(f"{source!r} names no factory", facts, next_step)
    with _current_directory_importable():
        try:
            found: Any = importlib.import_module(module)
        except ImportError as error:
            next_step = "run in the folder that has it, or install it"
            raise OptionError(f"{module} cannot be imported", _said(error), next_step) from error
        except (Exception, SystemExit) as error:  # whatever its own lines raise
            next_step = "mend it; `python -m` runs it with the traceback"
            raise OptionError(f"{module} cannot be imported", _said(error, module), next_step) from error
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


def package_name(path: str) -> str:
    """What Python calls the module in a file.

    >>> package_name("./models/mine.py")
    'models.mine'
    """
    parts = path.removesuffix(".py").replace("\\", "/").split("/")
    return ".".join(part for part in parts if part not in ("", ".", "..")) or "package.module"


def _made(source: str, found: Any) -> Any:
    if isinstance(found, nn.Module) or not isinstance(found, Callable):  # type: ignore[arg-type]
        return found
    needed = _needed(found)
    if needed:
        facts = f"it cannot be called without {', '.join(needed)}"
        next_step = "write a function without arguments that returns (module, example), and name that"
        raise OptionError(f"{source} needs arguments", facts, next_step)
    try:
        return found()
    except (Exception, SystemExit) as error:  # whatever its own lines raise
        raise OptionError(f"{source} failed", _said(error, found.__module__), "mend it, then try again") from error


def _needed(found: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # of something built in: calling it will tell
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in parameters if each.default is each.empty and each.kind not in optional]


def _said(error: BaseException, module: str = "") -> str:
    """The first line of an error, and where in that module it was raised."""
    lines = str(error).strip().splitlines() or ["no message"]
    file = getattr(sys.modules.get(module), "__file__", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {lines[0]}{where}"


def _called(source: str, attribute: str, found: Any) -> NamedModel:
    made = _made(source, found)
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
