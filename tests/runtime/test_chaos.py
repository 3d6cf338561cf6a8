"""Everything at once: threads, asyncio, tenants that come, go and fail, cancellations, a close in the middle.

Every answer is compared with the plain module's, every request ends, the books add up. Seeded, but threads are not.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spacetime as st
from tests.runtime.models import EXAMPLE, PATIENCE_S, WIDTH, Lookup, Refusing, assert_equal, plain, tiny

SECONDS = 4.0
NO_ANSWER = (st.RejectedError, st.ClosedError, CancelledError, asyncio.CancelledError, TimeoutError)
ENDS = ("completed", "failed", "rejected", "cancelled", "waiting", "running")
KINDS: dict[str, tuple[Callable[[int], nn.Module], tuple[Tensor, ...]]] = {
    "fused": (tiny, EXAMPLE),
    "lookup": (Lookup, (torch.zeros(2, dtype=torch.long),)),
    "opaque": (lambda _: Refusing().eval(), (EXAMPLE[0].abs(),)),
}


@dataclass(frozen=True)
class Resident:
    kind: str
    module: nn.Module
    handle: st.Tenant


@dataclass(frozen=True)
class Question:
    x: Tensor
    fails: bool


def draw(dice: random.Random, kind: str) -> Question:
    rows = dice.choice((1, 1, 2, 3, 8, 70))
    source = torch.Generator().manual_seed(dice.randrange(1 << 30))
    fails = kind != "fused" and dice.random() < 0.1
    if kind == "lookup":
        indices = torch.randint(0, 10, (rows,), generator=source)
        indices[0] = 10 if fails else indices[0]
        return Question(indices, fails)
    x = torch.randn(rows, WIDTH, generator=source)
    if kind == "opaque":
        return Question(-x.abs() - 1 if fails else x.abs(), fails)
    if dice.random() < 0.1:
        x[dice.randrange(rows)] = float("nan")
    return Question(x, fails)


class Chaos:
    def __init__(self, rt: st.Runtime, seed: int) -> None:
        self.rt = rt
        self.seed = seed
        self.stop = threading.Event()
        self.troubles: list[BaseException] = []
        self.num_answers = 0
        self._residents: dict[str, Resident] = {}
        self._lock = threading.Lock()

    def run(self, *, close_in_the_middle: bool) -> None:
        bodies = [self._call, self._call, lambda _: asyncio.run(self._await_all()), self._churn]
        threads = [threading.Thread(target=self._guarded, args=(body, place)) for place, body in enumerate(bodies)]
        for thread in threads:
            thread.start()
        time.sleep(SECONDS)
        if close_in_the_middle:
            self.rt.close(drain=bool(self.seed % 2))
        self.stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "somebody hangs"
        if self.troubles:
            raise self.troubles[0]

    def _guarded(self, body: Callable[[random.Random], None], place: int) -> None:
        try:
            body(random.Random(100 * self.seed + place))
        except BaseException as error:
            self.troubles.append(error)
            self.stop.set()

    def _pick(self, dice: random.Random) -> Resident | None:
        with self._lock:
            return dice.choice(list(self._residents.values())) if self._residents else None

    def _judge(self, resident: Resident, question: Question, ask: Callable[[], Any]) -> None:
        try:
            answer = ask()
        except NO_ANSWER:
            return
        except (ArithmeticError, IndexError):
            assert question.fails
            return
        self._compare(resident, question, answer)

    def _compare(self, resident: Resident, question: Question, answer: Any) -> None:
        assert not question.fails, "an error was swallowed"
        expected = plain(resident.module, question.x)
        assert torch.equal(answer.isnan(), expected.isnan()), "a neighbour's rows are not numbers"
        assert_equal(answer.nan_to_num(), expected.nan_to_num())
        self.num_answers += 1

    def _call(self, dice: random.Random) -> None:
        """One by one, and in batches of which some are cancelled, and some are never looked at."""
        while not self.stop.is_set():
            resident = self._pick(dice)
            if resident is None:
                time.sleep(0.001)
                continue
            handle, questions = resident.handle, [draw(dice, resident.kind) for _ in range(dice.randrange(1, 20))]
            self._judge(resident, questions[0], lambda handle=handle, x=questions[0].x: handle(x))
            try:
                futures = [handle.submit(question.x) for question in questions]
            except NO_ANSWER:
                continue
            for future in dice.sample(futures, len(futures) // 4):
                future.cancel()
            for question, future in zip(questions, futures, strict=True):
                if dice.random() < 0.9:
                    self._judge(resident, question, lambda future=future: future.result(PATIENCE_S))

    async def _await_all(self) -> None:
        await asyncio.gather(*[self._await(random.Random(10_000 + 100 * self.seed + place)) for place in range(6)])

    async def _await(self, dice: random.Random) -> None:
        while not self.stop.is_set():
            resident = self._pick(dice)
            if resident is None:
                await asyncio.sleep(0.001)
                continue
            question = draw(dice, resident.kind)
            try:
                asked = resident.handle.asubmit(question.x)
                answer = await asyncio.wait_for(asked, dice.choice((0.0005, 0.005, PATIENCE_S)))
            except NO_ANSWER:
                continue
            except (ArithmeticError, IndexError):
                assert question.fails
                continue
            self._compare(resident, question, answer)

    def _churn(self, dice: random.Random) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            try:
                if len(self._residents) < 5 or (len(self._residents) < 10 and dice.random() < 0.5):
                    self._add(dice, number)
                else:
                    with self._lock:
                        name = dice.choice(list(self._residents))
                        del self._residents[name]
                    self.rt.remove(name, drain=dice.random() < 0.5)
                books = self.rt.stats().values()
            except st.ClosedError:
                return
            except st.OptionError:  # remove(), when close() has come between
                assert self.rt._closed
                return
            for book in books:
                assert book["submitted"] == sum([book[end] for end in ENDS]) and min(book[end] for end in ENDS) >= 0
            time.sleep(dice.random() * 0.01)

    def _add(self, dice: random.Random, number: int) -> None:
        kind = dice.choice(list(KINDS))
        build, example = KINDS[kind]
        module, options = build(number), dict[str, Any](exact=dice.random() < 0.1, max_queue=dice.choice((5, 10_000)))
        if dice.random() < 0.5:
            options |= {"slo_ms": dice.choice((20.0, 1000.0)), "late": dice.choice(("serve", "reject"))}
        if dice.random() < 0.3:
            options["timeout_ms"] = dice.choice((1.0, 50.0))
        handle = self.rt.add(module, example, f"{kind} {number}", **options)
        with self._lock:
            self._residents[handle.name] = Resident(kind, module, handle)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("policy", ["space_time", "krisp", "gslice", "static", "streams", "time_slice"])
@pytest.mark.parametrize(("seed", "close_in_the_middle"), [(1, True), (2, True), (3, False)])
def test_nobody_gets_a_wrong_answer_and_nothing_hangs(policy: str, seed: int, close_in_the_middle: bool) -> None:
    with st.Runtime("cpu", policy=policy, merge=seed == 3, admission="off") as rt:
        for kind, (build, example) in KINDS.items():  # exports take their time
            rt.add(build(0), example, kind)
        chaos = Chaos(rt, seed)
        chaos.run(close_in_the_middle=close_in_the_middle)
        assert chaos.num_answers > 0
