"""Case `models`: R tenants of one architecture, served by every way that this device has."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice
from statistics import median, quantiles

from bench import mps
from bench.cases import Scale
from bench.models_sides import COMPILED, OF_OURS, ONLY_ON_CPU, ONLY_ON_GPU, OURS, OURS_CALLED_BACK, SIDES, Subject
from bench.models_stand import Block, Contender, available_bytes, rows_per_s
from bench.models_subjects import DTYPES, NOTE, SUBJECTS, weight_bytes
from bench.results import Figure, Measurement, distribution
from bench.sides import Unavailable

MPS = "MPS processes"
MPS_SIDE, MPS_PROCESSES = "graph per tenant, sequential", 16
MIXED_ROWS = (1, 3, 2, 4)
# Times the weights, at the worst moment: stacks and slabs are copies for as long as they are made.
COPIES = {"vmap": 2.2, "vmap, compiled": 2.2, "onnxruntime": 3.0, OURS: 2.5, OURS_CALLED_BACK: 2.5}
BASE_BYTES = 400 << 20  # of a process
MOST_OF_MEMORY = 0.8
COMPILERS_TIMES = 2.0

METHOD = (
    "R tenants, one request each at the same moment, the next round when all have their results; inputs are on the "
    "device, weights differ; whose request is first changes from round to round; ours: all submitted, then each result "
    "awaited in turn, unless the side's name says otherwise; each side in a process of its own, which serves one "
    "number of tenants after another and whose tenants are made while nothing else runs; they take turns in blocks of "
    "rounds, a block's first round does not count where a block has several; " + NOTE
)
THROUGHPUT = Figure("models", "throughput", "rows/s", METHOD)
_LATENCY = (
    "from the round's start until the thread that sent the requests has this one's result, by its own clock and for "
    f"every side alike, over a block; {METHOD}"
)
LATENCIES = {name: Figure("models", f"latency {name}", "ms", _LATENCY) for name in ("p50", "p99", "max")}
GAP = Figure("models", "slowest over fastest tenant", "ratio", f"of their median latencies in all rounds; {METHOD}")
MEMORY = Figure(
    "models",
    "memory",
    "MB",
    "growth since before any model was built, once these have served: the resident set, or what torch reserved of the "
    "GPU, with what fewer tenants before them left behind; libraries are loaded before, by serving another model (not "
    "under torch.compile)",
)
READY = Figure(
    "models",
    "time to add a tenant",
    "ms",
    "until it can serve: add(), a capture, a compilation, a session, a first call, while nothing else runs; the first "
    "tenant's is in the note, and at the smallest R it pays for what a process does once",
)
SPEED_UP = Figure("models", "speed-up", "ratio", f"ours over the baseline, by throughput, block by block; {METHOD}")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of it."""

    models: tuple[str, ...]
    counts: tuple[int, ...]
    mixed_counts: tuple[int, ...]
    dtypes: tuple[str, ...]
    num_blocks: int
    block_s: float
    warm_up_s: float  # ours, for the cost model to settle
    start_limit_s: float  # for the processes
    ready_limit_s: float  # for a side to become ready, at one number of tenants
    round_limit_s: float  # a round that would take longer is not tried
    blocks_s: float  # for a side's blocks, at one number of tenants
    side_budget_s: float  # for all that a side does with one model and type, then its larger counts are left out
    compiled: tuple[str, ...] = ()  # models for which compilers run; they have COMPILERS_TIMES the limit and the budget
    called_back: tuple[str, ...] = ()  # models for which ours is called back, too

    @classmethod
    def of(cls, scale: Scale) -> Sizes:
        dtypes = ("float32",) if scale.device == "cpu" else ("float32", "bfloat16")
        if scale.smoke:
            return cls(("mlp",), (4,), (), dtypes[:1], 2, 0.05, 0.3, 60, 10, 2, 1, 10, called_back=("mlp",))
        if scale.quick:
            models = ("mlp", "gru", "resnet18")
            compiled = ("mlp", "gru") if scale.device == "cpu" else models
            return cls(models, (1, 4, 8), (4,), dtypes, 3, 0.1, 1.5, 90, 20, 2, 1, 30, compiled, called_back=("mlp",))
        counts = (1, 2, 4, 8, 16, 32, 64)
        return cls(SUBJECTS, counts, (8,), dtypes, 7, 0.3, 3.0, 120, 60, 6, 6, 150, SUBJECTS, called_back=SUBJECTS)

    def why_not(self, side: str, model: str) -> str | None:
        """Sides that are left out of a run of this size."""
        if side in COMPILED and model not in self.compiled:
            return "left out of a quick run: compiling this model takes longer than the run"
        if side == OURS_CALLED_BACK and model not in self.called_back:
            return "left out of a quick run: how results are awaited matters where models are tiny"
        return None

    def times(self, side: str) -> float:
        return COMPILERS_TIMES if side in COMPILED else 1.0


def run(scale: Scale) -> Iterator[Measurement]:
    sizes = Sizes.of(scale)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        environment = {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        missing = dict(_missing(scale.device))
        try:
            clients = stack.enter_context(mps.daemon(scale.device))
        except Unavailable as why:
            missing[MPS], clients = str(why), {}
        for side, why_not in missing.items():
            yield THROUGHPUT.unavailable(side, why_not, {"side": side})
        yield from _left_out(scale.device, sizes)
        for dtype in sizes.dtypes:
            for model in sizes.models:
                yield from Race(scale.device, sizes, model, dtype, missing, environment, clients).run()


def _left_out(device: str, sizes: Sizes) -> Iterator[Measurement]:
    """Models and types that the suite has and this run has not."""
    for model in SUBJECTS:
        if model not in sizes.models:
            yield THROUGHPUT.unavailable(
                model, "left out of a quick run: a few models tell whether it runs", {"model": model}
            )
    for dtype in DTYPES:
        if dtype not in sizes.dtypes:
            why = "models are compared in float32 on a CPU" if device == "cpu" else "left out of a quick run"
            yield THROUGHPUT.unavailable(dtype, why, {"dtype": dtype})


def _missing(device: str) -> Iterator[tuple[str, str]]:
    """Sides that this device cannot have."""
    if device == "cpu":
        yield from ((side, "there is no GPU") for side in ONLY_ON_GPU)
    else:
        yield from ((side, "it is compared on the CPU only") for side in ONLY_ON_CPU)


@dataclass(slots=True)
class Race:
    """One model of one type: all sides over the number of tenants."""

    device: str
    sizes: Sizes
    model: str
    dtype: str
    missing: dict[str, str]
    environment: dict[str, str]
    clients: dict[str, str]  # what a process needs to be a client of MPS
    given_up: dict[str, str] = field(default_factory=dict)  # sides that failed, and why; larger counts leave them out
    round_us: dict[str, float] = field(default_factory=dict)  # per row, when last seen
    spent_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # by side
    stands: dict[str, Contender] = field(default_factory=dict)  # processes, for as long as their sides are not given up

    def run(self) -> Iterator[Measurement]:
        try:
            for count in self.sizes.counts:
                yield from self._compare((1,) * count)
                if count in self.sizes.mixed_counts:
                    yield from self._compare(tuple(islice(cycle(MIXED_ROWS), count)))
        finally:
            if self.stands:
                with ThreadPoolExecutor(len(self.stands)) as pool:  # a process takes a while to end
                    list(pool.map(lambda contender: contender.close(), self.stands.values()))

    def _compare(self, rows: tuple[int, ...]) -> Iterator[Measurement]:
        """All sides, as many at a time as the memory holds. Ours come last: nothing else may run while they learn."""
        waiting = []
        for side in (*(side for side in (*SIDES, MPS) if side not in OF_OURS), *OF_OURS):
            why = self._why_not(side, rows)
            if why is None:
                waiting.append(side)
            elif side not in self.missing:
                yield THROUGHPUT.unavailable(self._subject(side, rows), why, self._axes(side, rows))
        found: dict[str, list[list[Block]]] = {}
        while waiting:
            group = self._group(waiting, rows)
            waiting = waiting[len(group) :]
            ready = yield from self._ready(group, rows)
            taken, lost = self._in_turns(ready, sum(rows))
            found |= taken
            for side, contender in ready.items():
                if side in taken:
                    yield from self._figures(side, rows, taken[side], contender)
                    self._clear(side)
                else:
                    yield self._give_up(side, rows, lost[side])
        yield from self._speed_ups(rows, found)

    def _why_not(self, side: str, rows: tuple[int, ...]) -> str | None:
        if side in self.missing:
            return self.missing[side]
        if side in self.given_up:
            return self.given_up[side]
        why = self.sizes.why_not(side, self.model)
        if why is not None:
            return why
        if self._left_s(side) <= 0:
            return self._over(side)
        needed, free = self._needed_bytes(side, rows), available_bytes(self.device)
        if needed > MOST_OF_MEMORY * free:
            return f"it needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        round_s = self.round_us.get(side, 0.0) * sum(rows) / 1e6
        if round_s > self.sizes.round_limit_s:
            return f"a round would take about {round_s:.0f} s, more than {self.sizes.round_limit_s:.0f} s"
        return None

    def _left_s(self, side: str) -> float:
        return self.sizes.times(side) * self.sizes.side_budget_s - self.spent_s[side]

    def _over(self, side: str) -> str:
        return f"its {self.sizes.times(side) * self.sizes.side_budget_s:.0f} s for this model were over"

    def _needed_bytes(self, side: str, rows: tuple[int, ...]) -> float:
        return BASE_BYTES + COPIES.get(side, 1.0) * len(rows) * weight_bytes(self.model, self.dtype)

    def _group(self, waiting: Sequence[str], rows: tuple[int, ...]) -> list[str]:
        """As many of the first as fit into memory together; one at least."""
        left = MOST_OF_MEMORY * available_bytes(self.device)
        group: list[str] = []
        for side in waiting:
            left -= self._needed_bytes(side, rows)
            if group and left < 0:
                break
            group.append(side)
        return group

    def _ready(self, group: Sequence[str], rows: tuple[int, ...]) -> Generator[Measurement, None, dict[str, Contender]]:
        """Yields the reasons of those that cannot be made; returns the others.

        Processes start together. Then each side makes its tenants alone: the time that it takes is a figure.
        """
        ready: dict[str, Contender] = {}
        started = {side: self._contender(side, rows) for side in group}
        for side, contender in list(started.items()):
            why = contender.start(self.sizes.start_limit_s)
            if why is not None:
                del started[side]
                yield self._give_up(side, rows, why)
        for side, contender in started.items():
            begin_s = time.monotonic()
            limit_s = min(self.sizes.times(side) * self.sizes.ready_limit_s, self._left_s(side))
            subject = Subject(self.model, rows, self.device, self.dtype)
            why = contender.prepare(subject, self.sizes.warm_up_s, limit_s)
            self.spent_s[side] += time.monotonic() - begin_s
            if why is None:
                ready[side] = contender
            else:
                yield self._give_up(side, rows, why if self._left_s(side) > 0 else f"{why}: {self._over(side)}")
        return ready

    def _give_up(self, side: str, rows: tuple[int, ...], why: str) -> Measurement:
        """A side that cannot serve equal rows of so many tenants is not tried with more."""
        if len(set(rows)) == 1:
            self.given_up[side] = f"at R = {len(rows)}: {why}"
            self._end(side, kill=True)
        else:
            self._clear(side)
        return THROUGHPUT.unavailable(self._subject(side, rows), why, self._axes(side, rows))

    def _contender(self, side: str, rows: tuple[int, ...]) -> Contender:
        """Its processes, those of the last count where their number fits."""
        number = min(len(rows), MPS_PROCESSES) if side == MPS else 1
        if side in self.stands and self.stands[side].num_processes != number:
            self._end(side)
        if side not in self.stands:
            subject = Subject(self.model, rows, self.device, self.dtype)
            which, environment = (
                (MPS_SIDE, self.environment | self.clients) if side == MPS else (side, self.environment)
            )
            self.stands[side] = Contender(which, subject, num_processes=number, environment=environment)
        return self.stands[side]

    def _clear(self, side: str) -> None:
        try:
            self.stands[side].clear()
        except Unavailable:  # its process has ended
            self._end(side, kill=True)

    def _end(self, side: str, *, kill: bool = False) -> None:
        contender = self.stands.pop(side, None)
        if contender is not None:
            contender.close(kill=kill)

    def _in_turns(
        self, ready: dict[str, Contender], num_rows: int
    ) -> tuple[dict[str, list[list[Block]]], dict[str, str]]:
        """Blocks of every side, and why those that failed meanwhile have none; whose rounds take long has fewer."""
        found: dict[str, list[list[Block]]] = {side: [] for side in ready}
        lost: dict[str, str] = {}
        num_blocks = {
            side: max(2, min(self.sizes.num_blocks, int(self.sizes.blocks_s * 1e6 / contender.ready.round_us)))
            for side, contender in ready.items()
        }
        sides = list(ready)
        for turn in range(self.sizes.num_blocks):
            for place in range(len(sides)):
                side = sides[(turn + place) % len(sides)]
                if turn < num_blocks[side] and side not in lost:
                    begin_s = time.monotonic()
                    try:
                        found[side].append(ready[side].block(self.sizes.block_s))
                    except Unavailable as why:
                        lost[side] = str(why)
                    self.spent_s[side] += time.monotonic() - begin_s
        taken = {side: blocks for side, blocks in found.items() if side not in lost}
        for side, blocks in taken.items():  # the best: what else ran meanwhile must not end a side's run
            best_us = min(max(done_us) for block in blocks for each in block for done_us in each.done_us)
            self.round_us[side] = best_us / num_rows
        return taken, lost

    # -- figures -----------------------------------------------------------------------------------------------------

    def _figures(
        self, side: str, rows: tuple[int, ...], blocks: Sequence[Sequence[Block]], contender: Contender
    ) -> Iterator[Measurement]:
        subject, axes, note = self._subject(side, rows), self._axes(side, rows), contender.ready.note
        yield THROUGHPUT.of(subject, [rows_per_s(block) for block in blocks], note, axes)
        done_ms = [[us / 1e3 for each in block for served in each.done_us for us in served] for block in blocks]
        fewest = min(map(len, done_ms))
        of_all = {"p50": distribution([ms for values in done_ms for ms in values])}
        for name, figure in LATENCIES.items():
            samples = [_quantile(values, name) for values in done_ms]
            yield figure.of(subject, samples, f"{fewest} results or more", axes, of_all.get(name))
        if len(rows) > 1:
            gap, num_rounds = _gap(blocks)
            yield GAP.of(subject, [gap], f"{num_rounds} rounds or more", axes)
        each = weight_bytes(self.model, self.dtype)
        yield MEMORY.of(
            subject, [contender.ready.memory_bytes / 1e6], f"weights: {len(rows) * each / 1e6:.0f} MB in all", axes
        )
        first_us, *later_us = contender.ready.ready_us
        if any(contender.ready.ready_us):
            yield READY.of(
                subject, [us / 1e3 for us in later_us or [first_us]], f"the first: {first_us / 1e3:.0f} ms", axes
            )

    def _speed_ups(self, rows: tuple[int, ...], found: dict[str, list[list[Block]]]) -> Iterator[Measurement]:
        if OURS not in found:
            return
        ours = [rows_per_s(block) for block in found[OURS]]
        for side, blocks in found.items():
            if side in OF_OURS:
                continue
            ratios = [our / rows_per_s(block) for our, block in zip(ours, blocks, strict=False)]
            axes = self._axes(OURS, rows) | {"baseline": side}
            yield SPEED_UP.of(f"{self._subject(OURS, rows)} over {side}", ratios, "", axes)

    def _subject(self, side: str, rows: tuple[int, ...]) -> str:
        return f"{self.model} {self.dtype} R={len(rows)}{'' if _is_single(rows) else ' mixed rows'} {side}"

    def _axes(self, side: str, rows: tuple[int, ...]) -> dict[str, str | int | float]:
        how = "1" if _is_single(rows) else f"mixed {min(rows)}..{max(rows)}"
        return {"model": self.model, "dtype": self.dtype, "tenants": len(rows), "rows": how, "side": side}


def _is_single(rows: tuple[int, ...]) -> bool:
    return set(rows) == {1}


def _quantile(values: Sequence[float], name: str) -> float:
    if name == "max" or len(values) == 1:
        return max(values)
    return median(values) if name == "p50" else quantiles(values, n=100, method="inclusive")[98]


def _gap(blocks: Sequence[Sequence[Block]]) -> tuple[float, int]:
    """Of the tenants of all processes, and the fewest rounds that one of them had."""
    medians, num_rounds = [], []
    for process in zip(*blocks, strict=True):  # its blocks
        rounds = [done_us for block in process for done_us in block.done_us]
        medians += [median(times) for times in zip(*rounds, strict=True)]
        num_rounds.append(len(rounds))
    return max(medians) / min(medians), min(num_rounds)
