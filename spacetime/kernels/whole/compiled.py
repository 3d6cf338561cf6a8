"""Script -> native function: (requests, threads, backwards, table of requests, table of weights), all as integers.

A thread takes requests and does all of each: a request's weights are read once, and its scratch memory stays in the
cache. It takes its own in order or, backwards, the last one first: who calls in turns with one and the other finds the
weights that were read last in the cache, where in order a cache that is too small for all has dropped what comes next.
Only where stages are long, and requests too few for all threads, the threads share the outputs of every stage and wait
for each other after it: threads that sleep while they wait cost more than a short stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core.compiler_lock import global_compiler_lock

from spacetime.kernels.vector.emitter import BIT, FLOAT, INT, Emitter, Value, int_of
from spacetime.kernels.vector.host import Host, has_threads
from spacetime.kernels.vector.library import Kernel, function_of
from spacetime.kernels.vector.threads import barrier, launch
from spacetime.kernels.whole.along import define_along
from spacetime.kernels.whole.attention import ADDRESSES, define_attention
from spacetime.kernels.whole.pointwise import Functions, Pass, define_pass, pass_of, share, views_of
from spacetime.kernels.whole.product import PARAMETERS, Tile, define_product
from spacetime.kernels.whole.script import (
    Along,
    Attention,
    Flags,
    Lookup,
    Place,
    Pointwise,
    Product,
    Script,
    Stage,
    View,
)

NUM_ARGUMENTS = 5
LONG_STAGE = 1 << 19  # multiplications per row, on average: 80 us of one core that reads as many weights from memory
MOST_KEPT = 64  # functions that nobody uses may be among them
SPLIT_STAGE = 1 << 17  # 20 us: for threads that spin, if they have nothing else to do
MANY_STAGES = 32  # their loops around the work are left as they are: to improve them would take as long as all the rest
ENOUGH_REQUESTS = 4  # per thread: then the last ones, which some threads wait for, are few


def compiled(on: Host, script: Script) -> Kernel:
    """Kept, if it is one of the last; else it goes with the last program that has it."""
    with global_compiler_lock:  # Numba compiles with the same library
        return _compile(on, script)


@lru_cache(MOST_KEPT)
def _compile(on: Host, script: Script) -> Kernel:
    module = ir.Module("whole")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT] * NUM_ARGUMENTS), "whole")
    e = Emitter(module, ir.IRBuilder(function.append_basic_block("entry")), on.lanes)
    stages = _Stages(module, on, script).define()
    num_requests, threads, backwards, *tables = function.args
    work = script.work_per_stage
    wanted = e.least(threads, num_requests) if work < SPLIT_STAGE else threads
    launch(
        e,
        "whole",
        [num_requests, backwards, *tables],
        wanted if has_threads() else None,
        lambda e, words, thread, threads: _divide(e, work, stages, words, thread, threads),
    )
    return function_of(on, module, "whole", NUM_ARGUMENTS)


def _divide(
    e: Emitter, work: float, stages: ir.Function, words: Sequence[Value], thread: Value, threads: Value
) -> None:
    """Requests among threads, or else every stage."""
    b, (num_requests, backwards, *tables) = e.b, words
    if work < SPLIT_STAGE:
        deal: Value = ir.Constant(BIT, 1)
    elif work < LONG_STAGE:
        deal = b.icmp_signed(">=", num_requests, threads)
    else:
        is_even = b.icmp_signed("==", b.srem(num_requests, threads), int_of(0))
        is_enough = b.icmp_signed(">=", num_requests, b.mul(threads, int_of(ENOUGH_REQUESTS)))
        deal = b.or_(is_even, is_enough)
    with b.if_else(deal) as (by_request, by_stage):
        with by_request:
            first = b.sdiv(b.mul(num_requests, thread), threads)
            last = b.sdiv(b.mul(num_requests, b.add(thread, int_of(1))), threads)
            mirrored, is_backwards = b.sub(b.add(first, last), int_of(1)), b.icmp_signed("!=", backwards, int_of(0))
            with e.loop(first, last, int_of(1)) as step:
                request = b.select(is_backwards, b.sub(mirrored, step.index), step.index)
                b.call(stages, [*tables, request, b.add(request, int_of(1)), int_of(0), int_of(1)])
        with by_stage:
            b.call(stages, [*tables, int_of(0), num_requests, thread, threads])


class _Stages:
    """stages(requests, weights, first request, last request, part, parts): all of them, in order."""

    def __init__(self, module: ir.Module, on: Host, script: Script) -> None:
        self.module, self.on, self.script = module, on, script
        tall = Tile(1, on.lanes)
        self.product = define_product(module, on.lanes, tall, Tile(on.pixels, on.channels))
        kinds = sorted({stage.kind for stage in script.stages if isinstance(stage, Along)})
        self.along = {kind: define_along(module, kind, on.lanes) for kind in kinds}
        self.passes: Functions = {
            work: define_pass(module, f"pass{number}", on.lanes, work)
            for number, work in enumerate(dict.fromkeys(map(_pass_of, script.pointwise)))
        }
        kinds_of_heads = dict.fromkeys(stage.heads for stage in script.stages if isinstance(stage, Attention))
        self.attention = {
            heads: define_attention(module, on, f"attention{number}", self.product, heads)
            for number, heads in enumerate(kinds_of_heads)
        }

    def define(self) -> ir.Function:
        e, function = self._function("stages")
        *_, parts = function.args
        shared = e.b.icmp_signed(">", parts, int_of(1))
        for number, stage in enumerate(self.script.stages):
            e.b.call(self._define(f"stage{number}", stage), function.args)
            if has_threads() and stage is not self.script.stages[-1]:
                with e.b.if_then(shared):
                    barrier(e)
        e.b.ret_void()
        return function

    def _function(self, name: str) -> tuple[Emitter, ir.Function]:
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [INT] * 6), name)
        function.linkage = "internal"
        return Emitter(self.module, ir.IRBuilder(function.append_basic_block("entry")), self.on.lanes), function

    def _define(self, name: str, stage: Stage) -> ir.Function:
        """One stage, of all requests. In functions of their own: LLVM takes twice as long with all in one."""
        e, function = self._function(name)
        function.attributes.add("noinline")
        if len(self.script.stages) > MANY_STAGES:
            function.attributes.add("optnone")
        *tables, first, last, part, parts = function.args
        with e.loop(first, last, int_of(1)) as number:
            self._emit(_Request(e, self.script, tables, number.index), stage, part, parts)
        e.b.ret_void()
        return function

    def _emit(self, request: _Request, stage: Stage, part: Value, parts: Value) -> None:
        if isinstance(stage, Product):
            self._multiply(request, stage, part, parts)
        elif isinstance(stage, Along):
            self._normalise(request, stage, part, parts)
        elif isinstance(stage, Lookup):
            self._look_up(request, stage, part, parts)
        elif isinstance(stage, Flags):
            self._flag(request, stage, part, parts)
        elif isinstance(stage, Attention):
            self._attend(request, stage, part, parts)
        else:
            self._pass(request, stage, part, parts)

    def _multiply(self, request: _Request, stage: Product, part: Value, parts: Value) -> None:
        e, weight = request.e, stage.weight
        first, last = share(e, stage.num_outputs, part, parts)
        values = {
            "x_row": int_of(request.row_floats(stage.x)),
            "x_position": int_of(stage.position_step),
            "y_row": int_of(request.row_floats(stage.y)),
            "y_position": int_of(stage.num_outputs),
            "positions": int_of(stage.positions),
            "weight_step": int_of(stage.weight_step),
            "bias": int_of(0) if stage.bias is None else request.operand(stage.bias),
            "inputs": int_of(stage.num_inputs),
            "first": first,
            "last": last,
        }

        def call(x: Value, y: Value, weight: Value, num_rows: Value) -> None:
            here = {"x": x, "y": y, "weight": weight, "total": e.product(num_rows, int_of(stage.positions))}
            e.b.call(self.product, [(values | here)[name] for name in PARAMETERS])

        if isinstance(weight, int):
            call(request.address(stage.x), request.address(stage.y), request.operand(weight), request.num_rows)
            return
        with e.loop(int_of(0), request.num_rows, int_of(1)) as row:
            x, y, own = (request.address(view, row.index) for view in (stage.x, stage.y, weight))
            call(x, y, own, int_of(1))

    def _look_up(self, request: _Request, stage: Lookup, part: Value, parts: Value) -> None:
        """What lies outside of the table is a fault, and reads the first entry."""
        e, b, number = request.e, request.e.b, int_of(stage.num_indices)
        first, last = (b.sdiv(e.product(number, end), parts) for end in (part, b.add(part, int_of(1))))
        with e.loop(int_of(0), request.num_rows, int_of(1)) as row:
            source, to = (request.address(view, row.index) for view in (stage.source, stage.y))
            indices = request.integers(stage.indices, row.index)
            with e.loop(first, last, int_of(1)) as one:
                index = e.load_int(indices, e.product(one.index, int_of(stage.index_step)))
                exists = b.icmp_unsigned("<", index, int_of(stage.num_entries))
                with b.if_then(b.not_(exists)):
                    request.fault()
                entry = b.select(exists, index, int_of(0))
                places = (e.product(place, int_of(stage.width)) for place in (one.index, entry))
                target, found = (e.at(base, place) for base, place in zip((to, source), places, strict=True))
                e.copy(target, found, int_of(stage.width))

    def _flag(self, request: _Request, stage: Flags, part: Value, parts: Value) -> None:
        e, b, number = request.e, request.e.b, int_of(stage.number)
        first, last = (b.sdiv(e.product(number, end), parts) for end in (part, b.add(part, int_of(1))))
        with e.loop(int_of(0), request.num_rows, int_of(1)) as row:
            integers, y = request.integers(stage.x, row.index), request.address(stage.y, row.index)
            with e.loop(first, last, int_of(1)) as one:
                found = e.load_int(integers, e.product(one.index, int_of(stage.step)))
                flag = b.uitofp(b.icmp_signed("!=", found, int_of(0)), FLOAT)
                e.store_float(flag, e.at(y, one.index))

    def _attend(self, request: _Request, stage: Attention, part: Value, parts: Value) -> None:
        """Heads are shared out, whole."""
        e, number = request.e, int_of(stage.heads.num_heads)
        first, last = (e.b.sdiv(e.product(number, end), parts) for end in (part, e.b.add(part, int_of(1))))
        views = [getattr(stage, name) for name in ADDRESSES]
        with e.loop(int_of(0), request.num_rows, int_of(1)) as row:
            places = [int_of(0) if view is None else request.address(view, row.index) for view in views]
            e.b.call(self.attention[stage.heads], [*places, first, last])

    def _normalise(self, request: _Request, stage: Along, part: Value, parts: Value) -> None:
        """Vectors are shared out, whole."""
        e, positions = request.e, int_of(stage.positions)
        total = e.product(request.num_rows, positions)
        first = e.b.sdiv(e.product(total, part), parts)
        last = e.b.sdiv(e.product(total, e.b.add(part, int_of(1))), parts)
        with e.loop(first, last, int_of(1)) as number:
            row = e.b.sdiv(number.index, positions)
            position = e.b.sub(number.index, e.product(row, positions))
            x, y = (
                e.at(request.address(view, row), e.product(position, int_of(step)))
                for view, step in ((stage.x, stage.position_step), (stage.y, stage.size))
            )
            e.b.call(self.along[stage.kind], [x, y, int_of(stage.size), FLOAT(stage.epsilon)])

    def _pass(self, request: _Request, stage: Pointwise, part: Value, parts: Value) -> None:
        e, views = request.e, views_of(stage)
        with e.loop(int_of(0), request.num_rows, int_of(1)) as row:
            addresses = [request.address(view, row.index) for view in views]
            e.b.call(self.passes[_pass_of(stage)], [*addresses, part, parts])


class _Request:
    """Its words in the tables: rows, scratch memory, fault, inputs, outputs; and the weights of its tenant."""

    def __init__(self, e: Emitter, script: Script, tables: Sequence[Value], number: Value) -> None:
        self.e, self.script = e, script
        self._words = e.product(number, int_of(script.request_words))
        self._requests, self._weights = tables
        self._operands = e.product(number, int_of(script.weight_words))
        self.num_rows = self._word(0)

    def _word(self, place: int) -> Value:
        return self.e.load_int(self._requests, self.e.b.add(self._words, int_of(place)))

    def operand(self, number: int) -> Value:
        return self.e.load_int(self._weights, self.e.b.add(self._operands, int_of(number)))

    def fault(self) -> None:
        place = self.e.b.add(self._words, int_of(2))
        self.e.b.store(int_of(1), self.e.b.gep(self.e.b.inttoptr(self._requests, INT.as_pointer()), [place]))

    def address(self, view: View, row: Value | None = None) -> Value:
        """In this row; None: in the first."""
        if view.buffer.place is Place.OPERAND:
            return self.e.at(self.operand(view.buffer.number), int_of(view.offset))
        if view.buffer.place is Place.CONSTANT:
            return self.e.at(self.operand(len(self.script.operands) + view.buffer.number), int_of(view.offset))
        places = {
            Place.SCRATCH: 1,
            Place.INPUT: 3 + view.buffer.number,
            Place.OUTPUT: 3 + len(self.script.inputs) + view.buffer.number,
        }
        base = self.e.at(self._word(places[view.buffer.place]), int_of(view.offset))
        return base if row is None else self.e.at(base, self.e.product(row, int_of(self.row_floats(view))))

    def integers(self, view: View, row: Value) -> Value:
        """The address of one whose offset counts integers of 64 bits."""
        return self.address(replace(view, offset=2 * view.offset), row)

    def row_floats(self, view: View) -> int:
        """From one row to the next."""
        if view.buffer.place in (Place.OPERAND, Place.CONSTANT):
            return 0
        return self.script.scratch_floats if view.buffer.place is Place.SCRATCH else view.buffer.floats


def _pass_of(stage: Pointwise) -> Pass:
    work = pass_of(stage)
    assert work is not None, "the reader has looked"
    return work
