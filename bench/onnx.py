"""onnxruntime as a side of a comparison. Optional: whoever makes it must expect that it cannot be made."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from bench.timing import Action
from spacetime import zoo
from spacetime.backends.cores import available_cores
from spacetime.backends.threads import confine


def sessions(model: str, count: int) -> Action:
    """`count` sessions of one model, dealt out to a pinned thread per core; one row each, a session on one thread.

    They are loaded from one export: each has its own copy of the weights, and equal ones take the same time.
    """
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    args = zoo.example(model, rows=1)
    exported = export(zoo.build(model), args)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    made = [onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"]) for _ in range(count)]
    feed = {given.name: arg.numpy() for given, arg in zip(made[0].get_inputs(), args, strict=True)}
    cores = available_cores()
    shares = [made[first :: len(cores)] for first in range(len(cores))]
    pools = [ThreadPoolExecutor(1, initializer=confine, initargs=([core],)) for core in cores]

    def run(share: Sequence[Any]) -> None:
        for session in share:
            session.run(None, feed)

    def side_by_side() -> None:
        for future in [pool.submit(run, share) for pool, share in zip(pools, shares, strict=True)]:
            future.result()

    side_by_side()
    return side_by_side


def export(module: nn.Module, args: tuple[Tensor, ...]) -> bytes:
    """The model as ONNX, for exactly these shapes."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of every optional package it does without
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, args, dynamo=True, verbose=False)
    assert program is not None
    return bytes(program.model_proto.SerializeToString())
