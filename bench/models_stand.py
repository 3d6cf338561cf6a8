"""Where a side of bench/models.py runs: the object that its process keeps, and the processes that the case asks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.memory import resident_bytes
from bench.models_sides import COMPILED, OURS, SIDES, Serving, Subject
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
    """A side in its process."""

    def __init__(self, side: str, subject: Subject, warm_up_s: float) -> None:
        torch.set_grad_enabled(False)
        if subject.on_gpu:
            torch.cuda.set_device(subject.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._subject, self._turn = subject, 0
        if side not in COMPILED:
            _load_libraries(side, subject)
        before = memory_bytes(subject.device)
        self._serving = SIDES[side](subject)
        warm_up = self.block(warm_up_s, 1_000_000) if side == OURS else self.block(warm_up_s, WARM_UP_ROUNDS)
        self._ready = Ready(
            ready_us=self._serving.ready_us,
            memory_bytes=memory_bytes(subject.device) - before,
            round_us=max(warm_up.done_us[-1]),
            note=getattr(self._serving, "note", ""),
        )

    def ready(self) -> Ready:
        return self._ready

    def block(self, seconds: float, most_rounds: int, start_s: float = 0.0) -> Block:
        """Rounds until the time is over, one at least. Whose request is the first changes from round to round."""
        time.sleep(max(0.0, start_s - time.monotonic()))
        count, rounds = self._subject.count, list[list[float]]()
        begin_s = time.monotonic()
        while not rounds or (time.monotonic() - begin_s < seconds and len(rounds) < most_rounds):
            order = [(self._turn + place) % count for place in range(count)]
            self._turn += 1
            rounds.append(self._serving.serve(order))
        return Block(rounds, time.monotonic() - begin_s, sum(self._subject.rows))

    def close(self) -> None:
        _close(self._serving)


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
        self,
        side: str,
        subject: Subject,
        warm_up_s: float,
        *,
        num_processes: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        shares = [subject.rows[first::num_processes] for first in range(num_processes)]
        self._remotes = [
            Remote(Stand, side, replace(subject, rows=share), warm_up_s, environment=environment)
            for share in shares
            if share
        ]
        self.ready = Ready([], 0, 0.0, "")

    def wait(self, end_s: float) -> str | None:
        """Until it is ready; the reason if it cannot be, LATE if it is not at `end_s` of time.monotonic()."""
        for remote in self._remotes:
            why = remote.why_not(max(0.0, end_s - time.monotonic()))
            if why is not None:
                return LATE if why.startswith(LATE) else why
        found: list[Ready] = [remote.call("ready") for remote in self._remotes]
        self.ready = Ready(
            [us for each in found for us in each.ready_us],
            sum(each.memory_bytes for each in found),
            max(each.round_us for each in found),
            next((each.note for each in found if each.note), ""),
        )
        return None

    def block(self, seconds: float) -> list[Block]:
        """One of each process."""
        start_s = 0.0 if len(self._remotes) == 1 else time.monotonic() + 0.005
        for remote in self._remotes:
            remote.ask("block", seconds, 1_000_000, start_s)
        return [remote.answer() for remote in self._remotes]

    def close(self, *, kill: bool = False) -> None:
        for remote in self._remotes:
            if kill:
                remote.kill()
            remote.__exit__(None, None, None)


def rows_per_s(blocks: Sequence[Block]) -> float:
    """Of processes that ran at once."""
    return sum(block.rows_per_s for block in blocks)
