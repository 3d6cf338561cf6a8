"""Kernels as functions: compiled when they are first asked for, and kept. These are few, whatever the programs are."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import llvmlite.binding as llvm  # type: ignore[import-untyped]
from llvmlite import ir
from numba.core.compiler_lock import global_compiler_lock

from spacetime.kernels.vector.call import ARGUMENTS, Body, define
from spacetime.kernels.vector.depthwise import depthwise
from spacetime.kernels.vector.host import Host, has_threads
from spacetime.kernels.vector.panel import panel
from spacetime.kernels.vector.product import product

Kernel = Callable[..., None]  # ARGUMENTS, as integers; the interpreter's lock is free while it runs


def few_pixels(on: Host) -> Kernel:
    """The product for one pixel or two per row: more channels at a time."""
    channels = min(on.lanes, on.pixels * on.channels // 2)
    return _compiled(on, "product", on.pixels * on.channels // channels, channels)


def many_pixels(on: Host) -> Kernel:
    return _compiled(on, "product", on.pixels, on.channels)


def small_windows(on: Host, channels: int) -> Kernel:
    """The panel: two registers of channels, or one where there are no more."""
    tiles = on.pixels * on.channels
    return _compiled(on, "panel", tiles // 2, 2) if channels > on.lanes else _compiled(on, "panel", tiles * 3 // 4, 1)


def one_per_channel(on: Host, height: int, width: int) -> Kernel:
    return _compiled(on, "depthwise", height, width)


_BODIES: dict[str, Callable[[int, int], Body]] = {"product": product, "depthwise": depthwise, "panel": panel}


def _compiled(on: Host, kind: str, first: int, second: int) -> Kernel:
    with global_compiler_lock:
        return _compile(on, kind, first, second)


@cache
def _compile(on: Host, kind: str, first: int, second: int) -> Kernel:
    name = f"{kind}_{first}x{second}"
    module = ir.Module(name)
    define(module, name, _BODIES[kind](first, second), on.lanes, threads=has_threads())
    return function_of(on, module, name, len(ARGUMENTS))


def function_of(on: Host, module: ir.Module, name: str, num_arguments: int) -> Kernel:
    """The module's function of this name, compiled; it takes so many integers. Its code goes with it."""
    module.triple = llvm.get_process_triple()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=on.cpu, features=on.features, opt=3)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(parsed, builder)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * num_arguments)
    function = prototype(engine.get_function_address(name))
    function.engine = engine  # type: ignore[attr-defined]  # it owns the code
    return function
