"""The harness's world with a recorder, for the tests of recording and of replaying."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spacetime.plan import Lane
from spacetime.scheduler.journal import Journal, replay
from spacetime.scheduler.protocols import Policy
from spacetime.scheduler.recorder import Recorder
from spacetime.scheduler.registry import get_policy
from tests.scheduler.harness import World


class RecordedWorld(World):
    """The harness's world, with a recorder at every seam of its scheduler."""

    def __init__(self, policy: str | Policy = "space_time", *, latency_us: int | Callable[[Lane], int] = 100) -> None:
        super().__init__(policy, latency_us=latency_us)
        self.recorder = Recorder()
        self.costs: Any = self.recorder.costs
        self.scheduler = self.recorder.scheduler(self.backend, get_policy(policy), self.posted.append)

    def journal(self) -> Journal:
        journal = self.recorder.journal()
        assert Journal.from_json(journal.to_json()) == journal
        return journal


def assert_replays(journal: Journal) -> None:
    again = replay(journal)
    assert again.difference is None, str(again.difference)
    assert again.plans == journal.plans
