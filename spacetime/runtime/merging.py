"""Keeps one merged executable for the cohorts of a runtime, made in the background while they serve. Runtime only.

All cohorts whose lanes are fused are its members; a lane has rows of some of them. It is made anew when cohorts come
and go. A cohort whose tenants get other results merged than by themselves is left out from then on, and an executable
that turns out to be at fault is given up; both say so in explain().

Lanes of a few members run what the others leave of it, at once. Members that are active together again and again are
aligned by themselves, too: where that makes fewer launches, an executable of just these comes beside it when it is
ready, and policies choose. There are at most MOST_REFINED of them.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from spacetime.backends.executables import Call, CohortExecutable
from spacetime.backends.merged import MergedExecutable
from spacetime.device import Device
from spacetime.merged import MergedProgram
from spacetime.merging import MergeCache, Recurrences
from spacetime.plan import Lane, MergedView
from spacetime.runtime.courtesy import courteous
from spacetime.runtime.merged_report import MergedReport, merged_report
from spacetime.runtime.prepare import WARM_ROWS
from spacetime.scheduler.costs import OnlineCosts
from spacetime.scheduler.driver import Driver
from spacetime.scheduler.loop import Scheduler
from spacetime.trace import Trace

ROWS_CHECKED = 2  # of the example
MOST_REFINED = 4  # each is a further choice in every decision
_log = logging.getLogger("spacetime")

Members = tuple[str, ...]  # cohorts


@dataclass
class _Member:
    """A cohort, and what its results are checked with."""

    executable: CohortExecutable
    call: Call
    tenants: list[str]


@dataclass
class _Live:
    """The merged executable that lanes run."""

    view: MergedView
    executable: MergedExecutable
    checked: set[str] = field(default_factory=set)  # tenants


class Merging:
    """`changing` is held by whoever adds and removes tenants, and while an executable is made and put in force."""

    def __init__(self, driver: Driver, costs: OnlineCosts, device: Device, changing: threading.RLock) -> None:
        self._driver = driver
        self._costs = costs
        self._device = device
        self._changing = changing
        self._cache = MergeCache()
        self._members: dict[str, _Member] = {}
        self._unfit: dict[str, str] = {}  # members that are left out, and why
        self._given_up: dict[Members, str] = {}
        self._live: _Live | None = None
        self._refined: OrderedDict[Members, _Live] = OrderedDict()
        self._recurrences = Recurrences()
        self._due: deque[Members] = deque()  # sets that recur
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._wanted = False
        self._waking = threading.Lock()  # of the three above

    # -- what the runtime tells; it holds `changing` --------------------------------------------------

    def joined(self, tenant: str, cohort: str, executable: CohortExecutable, example: tuple[object, ...]) -> None:
        """A tenant whose lanes are those of its cohort."""
        if cohort not in self._members:
            # An example may be elsewhere than the weights.
            where = next((layer.stack.device for layer in executable.cohort.layers), None)
            tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
            leaves = [leaf[:ROWS_CHECKED].to(where or leaf.device, copy=True) for leaf in tensors]
            if where is not None and where.type == "cuda":  # another thread's stream will read them
                torch.cuda.current_stream(where).synchronize()
            self._members[cohort] = _Member(executable, Call((), tuple(leaves)), [])
        self._members[cohort].tenants.append(tenant)
        self._wake()

    def left(self, tenant: str) -> None:
        """The loop knows already: with the last tenant of a cohort it has let go of what the cohort was merged in."""
        for cohort, member in list(self._members.items()):
            if tenant in member.tenants:
                member.tenants.remove(tenant)
                if not member.tenants:
                    del self._members[cohort]
                    self._unfit.pop(cohort, None)
                    self._given_up = {its: why for its, why in self._given_up.items() if cohort not in its}
                    if self._live is not None and cohort in self._live.view.cohorts:
                        self._live = None
                    for cohorts in [cohorts for cohorts in self._refined if cohort in cohorts]:
                        del self._refined[cohorts]
                    self._recurrences.forget([cohort])
                    self._wake()
                for live in self._lives():
                    live.checked.discard(tenant)

    def stop(self) -> None:
        """Make nothing more. Not to be called with `changing` held: it waits for what is being made."""
        with self._waking:
            self._stopped = True
        self.settle()

    def settle(self) -> None:
        """Wait until the background has nothing left to do."""
        while True:
            with self._waking:
                thread = self._thread
            if thread is None or not thread.is_alive():
                return
            thread.join()

    def reports(self, trace: Trace) -> tuple[tuple[MergedReport, ...], tuple[str, ...]]:
        """What is merged, and why the rest is not."""
        reasons = [f"cohort {cohort}: {reason}" for cohort, reason in self._unfit.items()]
        fit = self._fit()
        reasons += [f"{' + '.join(cohorts)}: {reason}" for cohorts, reason in self._given_up.items()]
        if self._live is None:
            if len(fit) > 1 and fit not in self._given_up:
                reasons.append(f"{' + '.join(fit)}: being prepared")
            return (), tuple(reasons)
        return tuple([self._report(live, trace) for live in self._lives()]), tuple(reasons)

    def _report(self, live: _Live, trace: Trace) -> MergedReport:
        tenants = [self._members[cohort].tenants for cohort in live.view.cohorts]
        return merged_report(live.view, live.executable, tenants, trace)

    def _lives(self) -> list[_Live]:
        return [*([] if self._live is None else [self._live]), *self._refined.values()]

    # -- the background -------------------------------------------------------------------------------

    def _wake(self) -> None:
        """There is something to do; a thread does it that ends with it, and its intra-op threads too."""
        with self._waking:
            self._wanted = True
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._work, name="spacetime-merging", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._waking:
                if not self._wanted or self._stopped:
                    self._thread = None
                    return
                self._wanted = False
            try:
                with courteous():
                    self._update()
            except Exception as error:  # what is not merged serves as it is
                _log.exception("merging failed")
                with self._changing:
                    self._give_up(f"{type(error).__name__}: {error}")

    def _update(self) -> None:
        with self._changing:
            if self._live is not None and self._live.executable.fault:
                self._give_up(f"a lane failed in a way that its members do not: {self._live.executable.fault}")
            wanted = self._fit()
            programs = [self._members[cohort].executable.cohort.program for cohort in wanted]
            self._review(wanted)
        if len(wanted) < 2 or wanted in self._given_up:
            return
        merged = self._cache.resident(programs)
        with self._changing:
            if self._stopped or self._fit() != wanted:
                self._wake()
            elif self._live is not None and self._live.view.cohorts == wanted:
                self._live.executable.joined()
                if not self._check(self._live):
                    self._let_go()
            else:
                self._make(merged, wanted)
        while self._due and not self._stopped:
            cohorts = self._due.popleft()
            try:
                self._refine(cohorts)
            except Exception as error:  # they go on with what the others leave
                _log.exception("refining failed")
                with self._changing:
                    self._given_up[cohorts] = f"{type(error).__name__}: {error}"

    def _make(self, merged: MergedProgram, cohorts: Members) -> None:
        live = self._executable_of(merged, cohorts)
        if self._check(live):
            self._enter(live, self._live)
            self._live = live

    def _executable_of(self, merged: MergedProgram, cohorts: Members) -> _Live:
        members = [self._members[cohort].executable for cohort in cohorts]
        return _Live(MergedView(f"merged:{'+'.join(cohorts)}", cohorts), MergedExecutable(merged, members))

    def _check(self, live: _Live) -> bool:
        """Who deviates is left out."""
        troubles = self._troubles(live)
        for tenant, trouble in troubles.items():
            cohort = next(cohort for cohort, member in self._members.items() if tenant in member.tenants)
            self._unfit.setdefault(cohort, f"self-check of {tenant!r} failed when merged: {trouble}")
        if troubles:
            self._wake()
        return not troubles

    def _troubles(self, live: _Live) -> dict[str, str]:
        """Of tenants not checked yet: merged results beside those of their cohorts, where they differ."""
        new = {cohort: self._unchecked(live, cohort) for cohort in live.view.cohorts}
        if not any(new.values()):
            return {}
        calls = {  # of the other cohorts one each: alone nobody shares a launch
            tenant: self._members[cohort].call
            for cohort, its in new.items()
            for tenant in its or self._members[cohort].tenants[:1]
        }
        troubles = live.executable.check(calls)
        if not troubles:
            if not live.checked:
                live.executable.warm(calls, WARM_ROWS)
            live.checked.update(calls)
        return troubles

    def _unchecked(self, live: _Live, cohort: str) -> list[str]:
        return [tenant for tenant in self._members[cohort].tenants if tenant not in live.checked]

    def _enter(self, live: _Live, before: _Live | None) -> None:
        """In the place of another one."""
        launched = live.executable.launched
        live.executable.watch = partial(self._has_run, live.view.cohorts)

        def enter(scheduler: Scheduler) -> None:
            if before is not None:
                scheduler.remove_merged(before.view.id)
            self._costs.register_merged(live.view.id, launched, live.view.cohorts, self._device)
            scheduler.add_merged(live.view, live.executable)

        self._driver.call(enter)

    def _give_up(self, reason: str) -> None:
        """Of these very members; others may do."""
        _log.warning("merged lanes are given up: %s", reason)
        self._given_up[self._fit() if self._live is None else self._live.view.cohorts] = reason
        self._let_go()

    def _let_go(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            self._remove(live)

    def _remove(self, live: _Live) -> None:
        self._driver.call(lambda scheduler: scheduler.remove_merged(live.view.id))

    # -- members that are active together -------------------------------------------------------------

    def _has_run(self, cohorts: Members, executable: MergedExecutable, lane: Lane) -> None:
        """On a lane's thread: it may have shown the execution to be at fault, or have rows of some members only."""
        if executable.fault:
            self._wake()
        active = executable.active(lane)
        if 1 < len(active) < len(cohorts):
            its = tuple([cohorts[member] for member in active])
            if self._recurrences.note(its):
                self._due.append(its)
                self._wake()

    def _refine(self, cohorts: Members) -> None:
        """An executable of just these, if it makes fewer launches than what the others leave of the residents'."""
        with self._changing:
            if self._live is None or not set(cohorts) < set(self._live.view.cohorts) or cohorts in self._given_up:
                return
            resident = self._live.executable.merged
        kept = [index for index, program in enumerate(resident.programs) if program.signature in cohorts]
        refined = self._cache.refine(self._cache.active(resident, cohorts))
        if refined.num_launches >= resident.restrict(kept).num_launches:
            return
        with self._changing:
            if self._stopped or cohorts in self._refined or not set(cohorts) <= set(self._fit()):
                return
            live = self._executable_of(refined, cohorts)
            troubles = self._troubles(live)
            if troubles:
                self._given_up[cohorts] = f"aligned by themselves they deviate: {troubles}"
                return
            self._enter(live, None)
            self._refined[cohorts] = live
            if len(self._refined) > MOST_REFINED:
                oldest, outdated = self._refined.popitem(last=False)
                self._remove(outdated)
                self._recurrences.forget_set(oldest)

    def _review(self, fit: Members) -> None:
        """Those that are refined still have to be right: tenants may have joined, members turned out to be unfit."""
        for cohorts, live in list(self._refined.items()):
            trouble = live.executable.fault
            if any([self._unchecked(live, cohort) for cohort in cohorts]) and not trouble:
                live.executable.joined()
                trouble = "; ".join(self._troubles(live).values())
            if trouble:
                self._given_up[cohorts] = trouble
            if trouble or not set(cohorts) <= set(fit):
                del self._refined[cohorts]
                self._remove(live)

    def _fit(self) -> Members:
        """In the order in which merged programs have their members."""
        return tuple(sorted(self._members.keys() - self._unfit.keys()))
