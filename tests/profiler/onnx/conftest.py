"""Exports made once for all tests of the importer, in whichever process they run."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.profiler.onnx.models import MODELS

Export = Callable[[str, str, int], Path]


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """export(model, "dynamo" | "script", opset): the file, written by torch's newer or older exporter."""
    pytest.importorskip("onnx")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers of this run
    folder /= "exports"
    folder.mkdir(exist_ok=True)

    def run(name: str, exporter: str, opset: int) -> Path:
        path = folder / f"{name}-{exporter}-{opset}.onnx"
        if not path.exists():
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                unfinished = path.with_name(f"{os.getpid()}-{path.name}")
                write(name, exporter, opset, unfinished)
                unfinished.rename(path)  # others see it whole, or not at all
        return path

    return run


def write(name: str, exporter: str, opset: int, path: Path) -> None:
    module, inputs = MODELS[name].build(), MODELS[name].inputs(2)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    if exporter == "dynamo":
        pytest.importorskip("onnxscript")
        rows = torch.export.Dim("rows", min=1, max=4096)
        dynamic = tuple({0: rows} for _ in inputs)
        torch.onnx.export(module, inputs, path, dynamo=True, opset_version=opset, dynamic_shapes=dynamic, verbose=False)
        return
    names = [f"x{index}" for index in range(len(inputs))]
    axes = {each: {0: "rows"} for each in names}
    torch.onnx.export(
        module, inputs, str(path), dynamo=False, opset_version=opset, input_names=names, dynamic_axes=axes
    )
