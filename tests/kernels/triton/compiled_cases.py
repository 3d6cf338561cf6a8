"""The configurations that are compiled for every target: the shapes of the project's networks and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from spacetime.kernels.triton import (
    grouped_linear,
    row_entries,
    slot_conv2d,
    slot_depthwise,
    slot_embedding,
    slot_gemv,
    slot_layernorm,
    slot_linear,
)
from spacetime.kernels.triton.convolution import Shape as Convolution
from spacetime.kernels.triton.grouped_linear import Tables
from spacetime.kernels.triton.launch import Launch
from spacetime.kernels.triton.slot_linear import Shape as Linear
from spacetime.kernels.triton.target import Target


@dataclass(frozen=True)
class Case:
    """A kernel and a shape; `on_tensor_cores` and `is_wide` are what its machine code must show."""

    kernel: Any
    shape: Any
    on_tensor_cores: bool = False
    is_wide: bool = True

    def launch(self, target: Target, config: Any = None) -> Launch:
        kernel, shape = self.kernel, self.shape
        config = kernel.default(shape, target) if config is None else config
        words = kernel.workspace_words(shape, config)
        operands = kernel.sample(shape, "meta", slots=4, words=words)
        if kernel is grouped_linear:
            tables = Tables(torch.empty(9, 24, dtype=torch.int64), torch.empty(99, 4, dtype=torch.int32))
            operands = grouped_linear.Operands(operands.layers, tables)
        launch: Launch = kernel.launch(shape, config, operands, target)
        return launch


FULL = {"bias": True, "residual": True, "activation": "relu"}
THREE: dict[str, Any] = {"padding": (1, 1), **FULL}

# In every test run: each kernel in each form that compiles to something different.
CORE = {
    "linear bf16 m=1": Case(slot_linear, Linear(20, 1, 1024, 1024, "bf16", **FULL), on_tensor_cores=True),
    "linear bf16 m=8 split": Case(slot_linear, Linear(2, 8, 512, 2048, "bf16", bias=True), on_tensor_cores=True),
    "linear bf16 m=128": Case(
        slot_linear, Linear(16, 128, 3072, 768, "bf16", bias=True, activation="gelu"), on_tensor_cores=True
    ),
    "linear fp32": Case(slot_linear, Linear(120, 256, 256, 256, "fp32", **FULL)),
    "linear tf32x3": Case(slot_linear, Linear(120, 256, 128, 1152, "fp32", "tf32x3", bias=True), on_tensor_cores=True),
    "gemv fp32 m=1": Case(slot_gemv, Linear(20, 1, 512, 512, "fp32", **FULL)),
    "gemv bf16 m=1": Case(slot_gemv, Linear(20, 1, 4096, 4096, "bf16", bias=True)),
    "conv 3x3 bf16": Case(
        slot_conv2d, Convolution(16, 1, (56, 56), 64, 64, (3, 3), "bf16", **THREE), on_tensor_cores=True
    ),
    "conv 3x3 fp32": Case(slot_conv2d, Convolution(16, 1, (28, 28), 128, 128, (3, 3), "fp32", scale=True, **THREE)),
    "depthwise fp32": Case(slot_depthwise, Convolution(8, 1, (28, 28), 96, 96, (3, 3), "fp32", groups=96, **THREE)),
    "embedding bf16": Case(slot_embedding, slot_embedding.Shape(16, 128, 30522, 768, "bf16")),
    "layernorm bf16": Case(slot_layernorm, slot_layernorm.Shape(16, 128, 768, "bf16", residual=True)),
    "grouped bf16": Case(
        grouped_linear,
        grouped_linear.Shape((Linear(4, 32, 512, 512, "bf16", **FULL), Linear(2, 64, 256, 1024, "bf16")), 64),
        on_tensor_cores=True,
    ),
    "entries of rows": Case(row_entries, row_entries.Shape(128, 62, 64), is_wide=False),
}
# With the rest, `pytest -m slow`: other types, depths, strides and sizes.
MORE = {
    "gemv fp32 m=8": Case(slot_gemv, Linear(20, 8, 512, 512, "fp32", bias=True)),
    "linear bf16 m=32": Case(slot_linear, Linear(16, 32, 768, 768, "bf16", **FULL), on_tensor_cores=True),
    "linear fp16 m=16": Case(slot_linear, Linear(64, 16, 1024, 1024, "fp16", **FULL), on_tensor_cores=True),
    "linear bf16 m=200": Case(slot_linear, Linear(4, 200, 1000, 512, "bf16", bias=True), on_tensor_cores=True),
    "linear bf16, odd k": Case(slot_linear, Linear(16, 128, 128, 200, "bf16", bias=True), on_tensor_cores=True),
    "linear tf32 m=4": Case(slot_linear, Linear(20, 4, 512, 512, "fp32", "tf32", bias=True), on_tensor_cores=True),
    "linear tf32 m=32": Case(slot_linear, Linear(20, 32, 512, 512, "fp32", "tf32", bias=True), on_tensor_cores=True),
    "linear tf32": Case(slot_linear, Linear(20, 256, 256, 256, "fp32", "tf32", **FULL), on_tensor_cores=True),
    "linear fp32 m=16": Case(slot_linear, Linear(20, 16, 512, 512, "fp32", bias=True, activation="silu")),
    "linear fp32 m=256 deep": Case(slot_linear, Linear(120, 256, 128, 1152, "fp32")),
    "gemv fp16 m=4": Case(slot_gemv, Linear(64, 4, 1000, 512, "fp16", bias=True, activation="gelu_tanh")),
    "gemv bf16 m=8": Case(slot_gemv, Linear(64, 8, 4096, 1024, "bf16", bias=True)),
    "gemv fp32, odd": Case(slot_gemv, Linear(64, 1, 10, 100, "fp32", bias=True), is_wide=False),
    "conv 7x7 c3 bf16": Case(
        slot_conv2d,
        Convolution(16, 1, (224, 224), 3, 64, (7, 7), "bf16", stride=(2, 2), padding=(3, 3), bias=True),
        on_tensor_cores=True,
        is_wide=False,
    ),
    "conv 7x7 c8 bf16": Case(
        slot_conv2d,
        Convolution(16, 1, (224, 224), 8, 64, (7, 7), "bf16", stride=(2, 2), padding=(3, 3), bias=True),
        on_tensor_cores=True,
    ),
    "conv 1x1 bf16": Case(
        slot_conv2d, Convolution(16, 1, (14, 14), 256, 1024, (1, 1), "bf16", scale=True, **FULL), on_tensor_cores=True
    ),
    "conv 3x3 512 bf16": Case(
        slot_conv2d, Convolution(16, 1, (7, 7), 512, 512, (3, 3), "bf16", **THREE), on_tensor_cores=True
    ),
    "conv groups fp16": Case(
        slot_conv2d, Convolution(16, 1, (14, 14), 256, 256, (3, 3), "fp16", groups=8, **THREE), on_tensor_cores=True
    ),
    "conv tf32": Case(
        slot_conv2d,
        Convolution(16, 1, (28, 28), 128, 128, (3, 3), "fp32", precision="tf32", **THREE),
        on_tensor_cores=True,
    ),
    "depthwise bf16": Case(
        slot_depthwise, Convolution(8, 1, (14, 14), 576, 576, (5, 5), "bf16", groups=576, padding=(2, 2), scale=True)
    ),
    "embedding fp32": Case(slot_embedding, slot_embedding.Shape(16, 1, 1000, 64, "fp32"), is_wide=False),
    "layernorm fp32 sum": Case(
        slot_layernorm, slot_layernorm.Shape(16, 128, 4096, "fp32", residual=True, total=True, bias=False)
    ),
    "layernorm fp32, odd": Case(slot_layernorm, slot_layernorm.Shape(16, 5, 100, "fp32"), is_wide=False),
    "grouped fp32 m=1": Case(
        grouped_linear,
        grouped_linear.Shape((Linear(4, 1, 512, 512, "fp32", **FULL), Linear(2, 1, 256, 64, "fp32")), 9),
    ),
}
