"""The threads of PyTorch's own OpenMP pool, from inside a kernel: as many as there are share the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir  # type: ignore[import-untyped]

from spacetime.kernels.vector.emitter import INT, WORD, Emitter, Value, int_of
from spacetime.kernels.vector.host import BARRIER, PARALLEL, THREAD, THREADS

Share = Callable[[Emitter, Sequence[Value], Value, Value], None]  # (emitter, words, thread, threads): its share


def launch(e: Emitter, name: str, words: Sequence[Value], threads: Value | None, share: Share) -> None:
    """End the function in which `e` writes: `share` of the words on each of so many threads. None: on this one."""
    b, function = e.b, _share(e, name, len(words), share)
    frame = b.alloca(INT, len(words))
    for place, value in enumerate(words):
        b.store(value, b.gep(frame, [int_of(place)]))
    if threads is not None:
        together, alone = b.append_basic_block("together"), b.append_basic_block("alone")
        b.cbranch(b.icmp_signed(">", threads, int_of(1)), together, alone)
        b.position_at_end(together)
        types = [INT.as_pointer(), INT.as_pointer(), WORD, WORD]
        start = e.extern(PARALLEL, ir.VoidType(), types)
        thunk = b.bitcast(_thread(e, f"{name}_thread", function), INT.as_pointer())
        b.call(start, [thunk, frame, b.trunc(threads, WORD), WORD(0)])
        b.ret_void()
        b.position_at_end(alone)
    b.call(function, [frame, int_of(0), int_of(1)])
    b.ret_void()


def barrier(e: Emitter) -> None:
    """Wait for the other threads of the launch."""
    e.b.call(e.extern(BARRIER, ir.VoidType(), []), [])


def _share(outer: Emitter, name: str, num_words: int, share: Share) -> ir.Function:
    kind = ir.FunctionType(ir.VoidType(), [INT.as_pointer(), INT, INT])
    function = ir.Function(outer.module, kind, f"{name}_share")
    frame, thread, threads = function.args
    e = Emitter(outer.module, ir.IRBuilder(function.append_basic_block("entry")), outer.lanes)
    share(e, [e.b.load(e.b.gep(frame, [int_of(place)])) for place in range(num_words)], thread, threads)
    e.b.ret_void()
    return function


def _thread(outer: Emitter, name: str, share: ir.Function) -> ir.Function:
    """What OpenMP starts on each thread: as many as it gives, which may be fewer than were asked for."""
    function = ir.Function(outer.module, ir.FunctionType(ir.VoidType(), [INT.as_pointer()]), name)
    [frame] = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    number, count = (outer.extern(asked, WORD, []) for asked in (THREAD, THREADS))
    b.call(share, [frame, b.zext(b.call(number, []), INT), b.zext(b.call(count, []), INT)])
    b.ret_void()
    return function
