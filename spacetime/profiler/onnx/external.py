"""Tensors of an ONNX file, and the files beside it that hold the large ones. Used by profiler/onnx/ only.

A location is a relative path inside the folder of the model. A file may come from a stranger, so a path that
leads out of the folder, also by a link, is refused before it is opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spacetime.errors import CaptureError, OptionError
from spacetime.profiler.inside import inside
from spacetime.profiler.onnx.operators.shapes import torch_dtype

_EXTERNAL = 1  # TensorProto.DataLocation


def check_locations(path: Path, tensors: Iterable[Any]) -> int:
    """Check where the data of all tensors lie; the bytes they will take in memory."""
    total = 0
    for tensor in tensors:
        if tensor.data_location == _EXTERNAL:
            _, _, num_bytes = _place(path, tensor)
            total += num_bytes
    return total


def locations_of(graph: Any) -> tuple[str, ...]:
    """Of all data that are not in the file itself, as it has them, each once."""
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
    entries = [entry for tensor in tensors if tensor.data_location == _EXTERNAL for entry in tensor.external_data]
    return tuple(dict.fromkeys(entry.value for entry in entries if entry.key == "location"))


def read_tensor(path: Path, tensor: Any) -> Tensor:
    """The tensor in memory of its own."""
    _check_shape(path, tensor)
    if tensor.data_location == _EXTERNAL:
        return _read_external(path, tensor)
    dtype = torch_dtype(tensor.data_type)
    from onnx import numpy_helper

    array = np.array(numpy_helper.to_array(tensor))
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _read_external(path: Path, tensor: Any) -> Tensor:
    file, offset, num_bytes = _place(path, tensor)
    dtype = torch_dtype(tensor.data_type)
    with file.open("rb") as stream:
        stream.seek(offset)
        data = bytearray(stream.read(num_bytes))
    if len(data) != num_bytes:
        raise _short(path, tensor, file, offset, num_bytes)
    if not data:
        return torch.empty(tuple(tensor.dims), dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(tuple(tensor.dims))


def _place(path: Path, tensor: Any) -> tuple[Path, int, int]:
    """File, offset and length of the data, checked."""
    _check_shape(path, tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    file = inside(path, tensor.name, entries.get("location", ""))
    expected = math.prod(tensor.dims) * torch_dtype(tensor.data_type).itemsize
    offset, num_bytes = _number(path, tensor, entries, "offset", 0), _number(path, tensor, entries, "length", expected)
    if num_bytes != expected:
        raise CaptureError(
            f"{path}: the external data of {tensor.name!r} have the wrong size",
            f"shape {list(tensor.dims)} takes {expected} bytes, the entry says {num_bytes}",
            "copy or export the model again",
        )
    if offset + num_bytes > file.stat().st_size:
        raise _short(path, tensor, file, offset, num_bytes)
    return file, offset, num_bytes


def _check_shape(path: Path, tensor: Any) -> None:
    if any(size < 0 for size in tensor.dims):
        facts = f"its shape is {list(tensor.dims)}"
        raise CaptureError(f"{path}: the constant {tensor.name!r} cannot be read", facts, "export the file again")


def _number(path: Path, tensor: Any, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not text.isdecimal():
        raise CaptureError(
            f"{path}: the external data of {tensor.name!r} are described wrongly",
            f"{key} is {text!r}, not a number",
            "copy or export the model again",
        )
    return int(text)


def _short(path: Path, tensor: Any, file: Path, offset: int, num_bytes: int) -> OptionError:
    return OptionError(
        f"{path}: the external data of {tensor.name!r} are incomplete",
        f"{file.name} has {file.stat().st_size} bytes; bytes {offset} to {offset + num_bytes} are needed",
        "copy the data file again",
    )
