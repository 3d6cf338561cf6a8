"""Kernels for CPUs in explicit vector instructions, compiled in memory by LLVM (llvmlite, which numba brings).

A convolution reads the weights of every tenant once, where they are: no packed copy, no reordering per call, bias,
BatchNorm and activation inside, and one call for all tenants of a batch. That is what pays for few rows, where weights
are most of the traffic. `host.py` says what the processor has, `emitter.py` writes loops, `product.py` and
`depthwise.py` are the kernels, `library.py` compiles them, once per process. Used by kernels/vector_conv.py.
"""

from __future__ import annotations
