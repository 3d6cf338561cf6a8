"""Where a side of bench/models.py runs: the object that its process keeps, and the processes that the case asks."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.memory import resident_bytes
from bench.models_sides import COMPILED, OF_OURS, SIDES, Serving, Subject
from bench.sides import LATE, Remote, Unavailable

WARM_UP_ROUNDS = 3  # of sides that learn nothing


@dataclass(frozen=True, slots=True)
class Block:
    """Rounds in a row: us until each tenant's result, by round; and what they took together."""

    done_us: list[list[float]]
    seconds: float
    num_rows: int  # served per round

    @property
    def rows_per_s(self) -> float:
        return self.num_rows * len(self.done_us) / self.seconds


@dataclass(frozen=True, slots=True)
class Ready:
    """What it took to get there."""

    ready_us: list[float]  # by tenant
    memory_bytes: int
    round_us: float
    note: str


class Stand:
    """A side in its process, with one set of tenants after another: a process takes longer to start than to be used."""

    def __init__(self, side: str, first: Subject) -> None:
        torch.set_grad_enabled(False)
        if first.on_gpu:
            torch.cuda.set_device(first.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._side, self._turn = side, 0
        self._subject = replace(first, rows=())
        self._serving: Serving | None = None
        self._round_us = 0.0
        if side not in COMPILED:
            _load_libraries(side, first)
        self._before_bytes = memory_bytes(first.device)

    def prepare(self, subject: Subject, warm_up_s: float) -> Ready:
        """Other tenants than before, ready to be served."""
        self.clear()
        self._subject, self._turn, self._round_us = subject, 0, 0.0
        self._serving = SIDES[self._side](subject)
        warm_up = self.block(warm_up_s, 1_000_000 if self._side in OF_OURS else WARM_UP_ROUNDS)
        self._round_us = max(warm_up.done_us[-1])
        return Ready(
            ready_us=self._serving.ready_us,
            memory_bytes=memory_bytes(subject.device) - self._before_bytes,
            round_us=self._round_us,
            note=getattr(self._serving, "note", ""),
        )

    def clear(self) -> None:
        """Let the tenants go, and their memory, as far as it can be had back."""
        serving, self._serving = self._serving, None
        if serving is not None:
            _close(serving)
            del serving
            gc.collect()
            memory_bytes(self._subject.device)

    def block(self, seconds: float, most_rounds: int, start_s: float = 0.0) -> Block:
        """Rounds until the time is over, one at least. Whose request is the first changes from round to round.

        Other sides have had the caches meanwhile, so a round before those is not counted where a block has several.
        """
        time.sleep(max(0.0, start_s - time.monotonic()))
        if 0 < self._round_us < seconds * 1e6 / 2:
            self._round()
        rounds = list[list[float]]()
        begin_s = time.monotonic()
        while not rounds or (time.monotonic() - begin_s < seconds and len(rounds) < most_rounds):
            rounds.append(self._round())
        return Block(rounds, time.monotonic() - begin_s, sum(self._subject.rows))

    def _round(self) -> list[float]:
        assert self._serving is not None
        count = self._subject.count
        order = [(self._turn + place) % count for place in range(count)]
        self._turn += 1
        return self._serving.serve(order)

    def close(self) -> None:
        self.clear()


def _load_libraries(side: str, subject: Subject) -> None:
    """Serve a small model once: what a side imports is neither its tenants' memory nor the time to add one."""
    serving = SIDES[side](replace(subject, model="mlp", rows=(1,)))
    serving.serve([0])
    _close(serving)


def _close(serving: Serving) -> None:
    close = getattr(serving, "close", None)
    if close is not None:
        close()


def memory_bytes(device: str) -> int:
    """What this process holds: its resident set, or what torch has reserved on the GPU (its context not counted)."""
    if device == "cpu":
        return resident_bytes()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_reserved(device))


def available_bytes(device: str) -> int:
    """That nobody uses."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise Unavailable("/proc/meminfo does not say how much memory is available")


# -- what the case asks ----------------------------------------------------------------------------------------------


class Contender:
    """A side: one process, or several that share the tenants and run at once."""

    def __init__(
        self, side: str, first: Subject, *, num_processes: int = 1, environment: Mapping[str, str] | None = None
    ) -> None:
        self.num_processes = num_processes
        self.ready = Ready([], 0, 0.0, "")
        self._is_started = False
        self._remotes = [Remote(Stand, side, first, environment=environment) for _ in range(num_processes)]

    def start(self, limit_s: float) -> str | None:
        """Until its processes are there; the reason if they cannot be."""
        if self._is_started:
            return None
        end_s = time.monotonic() + limit_s
        for remote in self._remotes:
            why = remote.why_not(max(0.0, end_s - time.monotonic()))
            if why is not None:
                return f"its process did not start in {limit_s:.0f} s" if why.startswith(LATE) else why
        self._is_started = True
        return None

    def prepare(self, subject: Subject, warm_up_s: float, limit_s: float) -> str | None:
        """Until these tenants can be served; the reason if they cannot be. A process that is late has ended."""
        end_s = time.monotonic() + limit_s
        found, why = list[Ready](), None
        shares = [
            replace(subject, rows=subject.rows[first :: self.num_processes]) for first in range(self.num_processes)
        ]
        for remote, share in zip(self._remotes, shares, strict=True):
            with suppress(Unavailable):  # its process has ended, as the answer will say
                remote.ask("prepare", share, warm_up_s)
        for remote in self._remotes:
            try:
                found.append(remote.answer(max(0.0, end_s - time.monotonic())))
            except Unavailable as error:
                why = f"not ready in {limit_s:.0f} s" if str(error).startswith(LATE) else str(error)
        if why is None:
            self.ready = Ready(
                [us for each in found for us in each.ready_us],
                sum(each.memory_bytes for each in found),
                max(each.round_us for each in found),
                next((each.note for each in found if each.note), ""),
            )
        return why

    def block(self, seconds: float) -> list[Block]:
        """One of each process."""
        start_s = 0.0 if len(self._remotes) == 1 else time.monotonic() + 0.005
        for remote in self._remotes:
            remote.ask("block", seconds, 1_000_000, start_s)
        return [remote.answer() for remote in self._remotes]

    def clear(self) -> None:
        """Without tenants, until the next ones."""
        for remote in self._remotes:
            remote.call("clear")

    def close(self, *, kill: bool = False) -> None:
        for remote in self._remotes:
            if kill:
                remote.kill()
            remote.__exit__(None, None, None)


def rows_per_s(blocks: Sequence[Block]) -> float:
    """Of processes that ran at once."""
    return sum(block.rows_per_s for block in blocks)
