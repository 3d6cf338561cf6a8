"""Case `models`: which sides run, when and together with whom; whose processes are kept, and what each may take."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from bench import models
from bench.cases import FULL, QUICK, SMOKE
from bench.models import MPS, Race, Sizes
from bench.models_sides import EAGER, OURS, OURS_CALLED_BACK, SIDES, Subject
from bench.models_stand import Block, Ready
from bench.models_subjects import SUBJECTS
from bench.sides import Unavailable

THREADS = "eager, a thread per core"
SIZES = Sizes(("mlp",), (3,), (3,), ("float32",), 2, 0.001, 0.01, 60.0, 60.0, 60.0, 1.0, 60.0, called_back=("mlp",))


def race(**options: object) -> Race:
    made = Race("cpu", SIZES, "mlp", "float32", {}, {}, {})
    for name, value in options.items():
        setattr(made, name, value)
    return made


def test_memory_decides_what_runs_at_all_and_what_runs_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "weight_bytes", lambda model, dtype: 1 << 30)
    monkeypatch.setattr(models, "available_bytes", lambda device: 10 << 30)
    found = race()
    assert found._why_not(EAGER, (1,) * 7) is None
    assert "GB" in (found._why_not(EAGER, (1,) * 8) or "")
    assert "GB" in (found._why_not(OURS, (1,) * 4) or "")  # the slab is a copy while it grows
    assert found._group([EAGER, THREADS, "vmap", OURS], (1,) * 3) == [EAGER, THREADS]
    assert found._group([OURS, EAGER], (1,) * 7) == [OURS]  # one at least


def test_a_side_that_failed_or_would_take_too_long_is_left_out() -> None:
    found = race(given_up={"vmap": "at R = 2: no"}, round_us={EAGER: 1e6}, sizes=replace(SIZES, round_limit_s=3.0))
    assert found._why_not("vmap", (1, 1)) == "at R = 2: no"
    assert found._why_not(EAGER, (1, 1)) is None
    assert "4 s" in (found._why_not(EAGER, (2, 2)) or "")


def test_a_side_has_a_budget_of_its_own() -> None:
    found = race(sizes=replace(SIZES, compiled=("mlp",)))
    found.spent_s["vmap"] = found.spent_s["vmap, compiled"] = 61.0
    assert found._why_not("vmap", (1,)) == "its 60 s for this model were over"
    assert found._why_not("vmap, compiled", (1,)) is None  # a compiler has twice as much
    assert found._why_not(EAGER, (1,)) is None
    found.spent_s["vmap, compiled"] = 120.5
    assert found._why_not("vmap, compiled", (1,)) == "its 120 s for this model were over"


def test_what_a_quick_run_leaves_out_says_why() -> None:
    quick = Sizes.of(QUICK)
    assert quick.why_not("torch.compile per tenant", "mlp") is None
    assert "compiling" in (quick.why_not("torch.compile per tenant", "resnet18") or "")
    assert "tiny" in (quick.why_not(OURS_CALLED_BACK, "resnet18") or "")
    assert all(quick.why_not(side, "resnet18") is None for side in (EAGER, OURS, MPS))
    assert all(Sizes.of(FULL).why_not(side, model) is None for side in SIDES for model in SUBJECTS)
    on_gpu = Sizes.of(replace(QUICK, device="cuda:0"))
    assert on_gpu.why_not("torch.compile per tenant", "resnet18") is None


class Process:
    """In place of a Contender: says why it cannot, and writes down what it was asked."""

    def __init__(self, reasons: dict[int, str], num_processes: int = 1, *, dies: bool = False) -> None:
        self.num_processes = num_processes
        self.ready = Ready([], 0, 1.0, "")
        self.asked: list[object] = []
        self._reasons, self._dies = reasons, dies

    def start(self, limit_s: float) -> str | None:
        self.asked.append("start")
        return self._reasons.get(0)

    def prepare(self, subject: Subject, warm_up_s: float, limit_s: float) -> str | None:
        self.asked.append((subject.rows, limit_s))
        return self._reasons.get(sum(subject.rows))

    def clear(self) -> None:
        self.asked.append("clear")
        if self._dies:
            raise Unavailable("its process has ended")

    def close(self, *, kill: bool = False) -> None:
        self.asked.append("kill" if kill else "close")


def ready(found: Race, side: str, rows: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """The sides that are ready, and the notes of the others."""
    generator, notes = found._ready([side], rows), []
    while True:
        try:
            notes.append(next(generator).note)
        except StopIteration as end:
            return list(end.value), notes


def test_a_process_is_kept_from_count_to_count_until_its_side_is_given_up() -> None:
    process = Process({5: "no such rows", 8: "no"})
    found = race(stands={EAGER: process}, sizes=replace(SIZES, ready_limit_s=7.0))
    assert ready(found, EAGER, (1, 1)) == ([EAGER], [])
    assert ready(found, EAGER, (1, 4)) == ([], ["unavailable: no such rows"])
    assert EAGER in found.stands and EAGER not in found.given_up
    assert ready(found, EAGER, (1,) * 8) == ([], ["unavailable: no"])
    assert not found.stands and found.given_up == {EAGER: "at R = 8: no"}
    asked = ["start", ((1, 1), 7.0), "start", ((1, 4), 7.0), "clear", "start", ((1,) * 8, 7.0), "kill"]
    assert process.asked == asked


def test_a_process_that_has_ended_is_not_kept() -> None:
    found = race(stands={EAGER: Process({5: "not ready in 7 s"}, dies=True)})
    assert ready(found, EAGER, (1, 4)) == ([], ["unavailable: not ready in 7 s"])
    assert not found.stands and not found.given_up  # equal rows may be tried


def test_a_process_that_does_not_start_is_given_up() -> None:
    found = race(stands={EAGER: Process({0: "its process did not start in 9 s"})})
    assert ready(found, EAGER, (1,)) == ([], ["unavailable: its process did not start in 9 s"])
    assert not found.stands and EAGER in found.given_up


def test_the_last_seconds_of_a_budget_are_the_limit_of_getting_ready() -> None:
    process = Process({})
    found = race(stands={EAGER: process}, sizes=replace(SIZES, side_budget_s=3.0))
    found.spent_s[EAGER] = 2.0
    ready(found, EAGER, (1,))
    assert process.asked == ["start", ((1,), 1.0)]


def test_who_is_late_because_its_budget_is_over_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.0, 100.0))
    monkeypatch.setattr(models, "time", SimpleNamespace(monotonic=lambda: next(times)))
    found = race(stands={EAGER: Process({1: "not ready in 60 s"})})
    assert ready(found, EAGER, (1,)) == ([], ["unavailable: not ready in 60 s: its 60 s for this model were over"])


def test_more_processes_than_before_are_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "Contender", lambda side, subject, **options: Process({}, options["num_processes"]))
    two: Any = Process({}, 2)
    found = race(stands={MPS: two})
    kept: Any = found._contender(MPS, (1, 1))
    assert kept is two
    assert found._contender(MPS, (1,) * 40).num_processes == models.MPS_PROCESSES
    assert two.asked == ["close"]


def test_a_side_that_ends_in_the_middle_takes_no_other_with_it() -> None:
    """An out-of-memory kill, for one: its blocks so far are not figures, and its reason is one."""

    class Contender:
        ready = SimpleNamespace(round_us=1.0)

        def __init__(self, most_blocks: int) -> None:
            self._left = most_blocks

        def block(self, seconds: float) -> list[Block]:
            self._left -= 1
            if self._left < 0:
                raise Unavailable("its process ended with code -9")
            return [Block([[3.0, 6.0]], 1.0, 2)]

    found = race()
    taken, lost = found._in_turns({EAGER: Contender(9), "vmap": Contender(1)}, 2)  # type: ignore[dict-item]
    assert {side: len(blocks) for side, blocks in taken.items()} == {EAGER: SIZES.num_blocks}
    assert lost == {"vmap": "its process ended with code -9"}
    assert found.round_us == {EAGER: 3.0} and found.spent_s.keys() == {EAGER, "vmap"}
    row = found._give_up("vmap", (1, 1), lost["vmap"])
    assert row.n == 0 and "code -9" in row.note and "code -9" in (found._why_not("vmap", (1,) * 4) or "")


def test_processes_end_with_their_model(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = {EAGER: Process({}), OURS: Process({})}
    monkeypatch.setattr(Race, "_compare", lambda self, rows: iter(()))
    assert list(race(stands=processes).run()) == []
    assert all(process.asked == ["close"] for process in processes.values())


def test_sizes_grow_with_the_scale() -> None:
    assert Sizes.of(FULL).models == SUBJECTS
    assert Sizes.of(FULL).counts == (1, 2, 4, 8, 16, 32, 64) and Sizes.of(QUICK).counts == (1, 4, 8)
    assert set(Sizes.of(SMOKE).models) <= set(Sizes.of(QUICK).models) <= set(SUBJECTS)
    assert Sizes.of(replace(FULL, device="cuda:0")).dtypes == ("float32", "bfloat16")
