"""From a module to something a lane can run: join a cohort, found one, or stay opaque with a reason.

Runs at add() time on the caller's thread, never on the hot path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spacetime.backends.executables import CohortExecutable, PlainExecutable
from spacetime.backends.families import LengthsExecutable
from spacetime.backends.intercepted import InterceptedExecutable
from spacetime.capture.arena import structure
from spacetime.capture.cohort import Cohort
from spacetime.capture.export import Unfusible, at_least_two_rows, export
from spacetime.capture.lengths import Lengths
from spacetime.capture.program import Captured, build_program, storage_key
from spacetime.capture.python_state import hooked, untouched
from spacetime.capture.recorder import Recording, StorageKey, owned_tensors, record
from spacetime.capture.rows import prove
from spacetime.capture.selfcheck import magnitude, problem
from spacetime.capture.store import Store
from spacetime.errors import CaptureError
from spacetime.runtime.courtesy import collect_garbage
from spacetime.runtime.varying import check, length_error, make_programs

Modules = dict[str, nn.Module]

_Code = tuple[str, tuple[type[nn.Module], ...]]  # what a module did, and its parts

MOST_REFUSED = 256  # architectures that are remembered
WARM_ROWS = (2, 4, 8, 16, 32)  # of lanes for which a GPU's kernels are compiled in add(); others compile when they come


@dataclass(frozen=True)
class Prepared:
    """How a tenant will run. `cohort` None: opaque, for this reason; `meets`: with whom its calls are launched."""

    executable: CohortExecutable | LengthsExecutable | PlainExecutable | InterceptedExecutable
    cohort: str | None
    reason: str
    meets: str | None = None
    lengths: Lengths | None = None

    @property
    def is_one_call(self) -> bool:
        """Are its fused lanes a native call each, whatever its kernels would take?"""
        return isinstance(self.executable, CohortExecutable) and not isinstance(self.executable.whole, str)

    def group(self, name: str) -> str:
        """Who shares lanes with it, as the scheduler knows them."""
        if self.cohort is not None and self.lengths is not None:
            return f"{self.cohort}:{self.lengths.least}..{self.lengths.most}"
        return self.cohort or self.meets or f"opaque:{name}"


@dataclass
class _Known:
    """A fingerprint seen before: its cohort, and which of the recorded weights is which weight of the program."""

    cohort: str
    order: tuple[int | None, ...]


@dataclass
class Preparer:
    """All cohorts of a runtime. Its owner serialises the calls."""

    prepack: bool = False
    intercept: bool = False
    modules: Modules = field(default_factory=dict)  # by tenant; shared with the executables
    cohorts: dict[str, CohortExecutable] = field(default_factory=dict)
    varying: dict[tuple[str, Lengths], LengthsExecutable] = field(default_factory=dict)
    meetings: dict[str, InterceptedExecutable] = field(default_factory=dict)
    store: Store = field(default_factory=Store)  # of weights that several cohorts have
    _known: dict[str, _Known] = field(default_factory=dict)
    _refused: OrderedDict[_Code, str] = field(default_factory=OrderedDict)  # and why
    _is_littered: bool = False  # by exports

    def prepare(
        self, name: str, module: nn.Module, example: tuple[Any, ...], *, exact: bool, lengths: Lengths | None = None
    ) -> Prepared:
        """Never refuses a module that runs: what cannot share launches is opaque."""
        try:
            return self._prepare(name, module, example, exact, lengths)
        finally:
            self._tidy()  # here, where no exception holds what an export that was refused has left

    def _prepare(
        self, name: str, module: nn.Module, example: tuple[Any, ...], exact: bool, lengths: Lengths | None
    ) -> Prepared:
        self.modules[name] = module
        try:
            if exact:
                self._try_example(name, module, example)
                raise Unfusible("exact=True forbids any change of kernel")
            if lengths is not None:
                return self._join_lengths(name, module, example, lengths)
            return self._join(name, module, example)
        except Unfusible as why:
            return self._opaque(name, module, str(why), exact=exact)
        except BaseException:
            del self.modules[name]
            raise

    def _opaque(self, name: str, module: nn.Module, reason: str, *, exact: bool) -> Prepared:
        alike = structure(module) if self.intercept and not exact else None
        if alike is None:
            return Prepared(PlainExecutable(self.modules), None, reason)
        key = f"alike:{alike}"
        executable = self.meetings.setdefault(key, InterceptedExecutable(self.modules))
        executable.join(name, module)
        return Prepared(executable, None, reason, meets=key)

    def forget(self, name: str) -> None:
        """The tenant's lanes have ended: give its module memory of its own again."""
        del self.modules[name]
        self._leave(name)
        self.hold([stack for executable in self.cohorts.values() for stack in executable.cohort.compact()])

    def hold(self, replaced: Sequence[Tensor]) -> None:
        """Weights have moved: lanes that run, of any cohort since weights are shared, keep what they may still read."""
        vacated = [*replaced, *self.store.take_vacated()]
        for executable in self.cohorts.values() if vacated else ():
            executable.hold(vacated)

    def _leave(self, name: str) -> None:
        """Out of everything that it has joined."""
        for found, varying in list(self.varying.items()):
            if name in varying:
                varying.leave(name)
                if varying.is_empty:
                    del self.varying[found]
        for key, meeting in list(self.meetings.items()):
            if name in meeting.arena:
                meeting.arena.leave(name)
                if not meeting.arena.names:
                    del self.meetings[key]
        for signature, executable in list(self.cohorts.items()):
            if name in executable.cohort.members:
                executable.cohort.leave(name)
                if not executable.cohort.members:
                    self._disband(signature)

    # -- joining --------------------------------------------------------------------------------------

    def _join(self, name: str, module: nn.Module, example: tuple[Any, ...]) -> Prepared:
        leaves, in_spec = pytree.tree_flatten(example)
        if not all(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves):
            self._try_example(name, module, example)
            raise Unfusible("an input is not a tensor with rows")
        part = hooked(module)
        if part is not None:
            self._try_example(name, module, example)
            raise Unfusible(f"forward hooks (of {part}) are called only where the module itself runs")
        if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
            self._try_example(name, module, example)
            raise Unfusible("it is TorchScript, which torch.export does not look into; the Python module may fuse")
        args = pytree.tree_unflatten([at_least_two_rows(leaf) for leaf in leaves], in_spec)
        recording = self._record(name, module, args)
        owned = owned_tensors(module)
        known = self._known.get(recording.fingerprint)
        if known is None:
            known = self._learn_once(module, args, recording)
            self._tidy()
        executable = self.cohorts[known.cohort]
        is_first = not executable.cohort.members
        weights = _weights_in_order(known, recording, owned)
        executable.join(name, weights)
        tensors = pytree.tree_leaves(args)
        trouble = _order_problem(executable, module, args, recording)
        if trouble is not None and is_first:
            executable.cohort.leave(name)
            executable = self._keep_order(known.cohort)
            executable.join(name, weights)
            trouble = None
        trouble = trouble or _self_check(executable, name, tensors, recording)
        if trouble is None and is_first:
            trouble = _warm(executable, tensors)
        if trouble is not None:
            executable.cohort.leave(name)
            if not executable.cohort.members:
                self._disband(known.cohort)
            raise Unfusible(f"self-check failed: {trouble}")
        return Prepared(executable, known.cohort, "")

    def _join_lengths(self, name: str, module: nn.Module, example: tuple[Any, ...], lengths: Lengths) -> Prepared:
        """Into the cohort of the longest inputs, and into the programs of the shorter ones."""
        try:
            joined = self._join(name, module, lengths.resized(example, lengths.most))
        except CaptureError as error:
            cause = error.__cause__
            raise (error if cause is None else length_error(lengths.most, cause)) from cause
        assert joined.cohort is not None, "what cannot join raises"
        main = self.cohorts[joined.cohort]
        executable = self.varying.get((joined.cohort, lengths))
        if executable is None:
            self._is_littered = True
            executable = make_programs(main, lengths, module, example, self.modules)
            self.varying[joined.cohort, lengths] = executable
        is_first = executable.is_empty
        executable.join(name)
        trouble = check(executable, name, module, example)
        for length, program in executable.programs.items() if is_first and trouble is None else ():
            trouble = trouble or _warm(program, pytree.tree_leaves(lengths.resized(example, length)))
        if trouble is not None:
            self._leave(name)
            raise Unfusible(f"self-check failed: {trouble}")
        return Prepared(executable, joined.cohort, "", lengths=lengths)

    def _record(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> Recording:
        try:
            recording = record(module, args)
        except Exception as error:
            # It may be the second row that it does not like: then it is opaque, not broken.
            raise _example_error(name, error) from error
        if recording.wrote is not None:
            raise Unfusible(f"the module writes {recording.wrote}")
        return recording

    def _try_example(self, name: str, module: nn.Module, example: tuple[Any, ...]) -> None:
        try:
            with torch.no_grad():
                module(*pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, example))
        except Exception as error:
            raise _example_error(name, error) from error

    def _learn_once(self, module: nn.Module, args: tuple[Any, ...], recording: Recording) -> _Known:
        """What was refused is not tried again: with modules of the same parts that do the same, it takes as long."""
        code = recording.fingerprint, tuple([type(part) for part in module.modules()])
        if code in self._refused:
            raise Unfusible(self._refused[code])
        try:
            return self._learn(module, args, recording)
        except Unfusible as why:
            self._refused[code] = str(why)
            while len(self._refused) > MOST_REFUSED:
                self._refused.popitem(last=False)
            raise

    def _learn(self, module: nn.Module, args: tuple[Any, ...], recording: Recording) -> _Known:
        """The slow path: export, prove that rows are independent, fuse. Once per architecture."""
        self._is_littered = True
        with untouched(module):
            exported = export(module, args)
        captured = build_program(exported, prove(exported))
        signature = captured.program.signature
        known = _Known(signature, _weight_order(captured, recording))
        if signature not in self.cohorts:
            brought = [index for index, place in enumerate(known.order) if place is not None]
            cohort = Cohort(captured.without_contents(brought), store=self.store)
            self.cohorts[signature] = CohortExecutable(cohort, self.modules, prepack=self.prepack)
        self._known[recording.fingerprint] = known
        return known

    def _tidy(self) -> None:
        if self._is_littered:
            self._is_littered = False
            collect_garbage()

    def _keep_order(self, signature: str) -> CohortExecutable:
        """In the place of one that is empty: its weights stay as the modules have them."""
        cohort = Cohort(self.cohorts[signature].cohort.captured, store=self.store, keeps_order=True)
        executable = self.cohorts[signature] = CohortExecutable(cohort, self.modules, prepack=self.prepack)
        return executable

    def _disband(self, signature: str) -> None:
        """The last member has left: nothing of the architecture is kept."""
        del self.cohorts[signature]
        self._known = {key: known for key, known in self._known.items() if known.cohort != signature}


def _example_error(name: str, error: Exception) -> CaptureError:
    return CaptureError(
        f"tenant {name!r}: the module fails on its own example",
        f"{type(error).__name__}: {error}",
        "pass an example that module(*example) accepts",
    )


def _weight_order(captured: Captured, recording: Recording) -> tuple[int | None, ...]:
    """For every weight of the program its position in the recording; None for constants of the code."""
    position = {key: index for index, key in enumerate(recording.weights)}
    return tuple(position.get(storage_key(weight.tensor)) for weight in captured.weights)


def _weights_in_order(
    known: _Known, recording: Recording, owned: dict[StorageKey, tuple[Tensor, ...]]
) -> list[tuple[Tensor, ...]]:
    return [() if index is None else owned[recording.weights[index]] for index in known.order]


def _self_check(executable: CohortExecutable, name: str, tensors: list[Tensor], recording: Recording) -> str | None:
    """The fused results beside the plain module's, in each way they may be computed.

    The first tenant of a cohort alone: the example, and its first row. Those who come later in one batch with another.
    """
    if recording.first_row is None:
        return "the module refuses a single row"
    try:
        one_row = [tensor[:1] for tensor in tensors]
        peer = next((member for member in executable.cohort.members if member != name), None)
        if peer is None:
            scales = [magnitude(output) for output in recording.outputs]
            trouble = problem(executable.flat_outputs(name, tensors), recording.outputs) or problem(
                executable.flat_outputs(name, one_row), recording.first_row, scales
            )
        else:
            trouble = problem(executable.outputs_beside(peer, one_row, name, tensors), recording.outputs)
            trouble = trouble and f"beside the rows of {peer!r}, {trouble}"
        at_once = None if trouble else executable.whole_outputs(name, tensors)
        return trouble or (None if at_once is None else problem(at_once, recording.outputs))
    except torch.OutOfMemoryError:
        raise  # it says nothing about the results
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _order_problem(
    executable: CohortExecutable, module: nn.Module, args: tuple[Any, ...], recording: Recording
) -> str | None:
    """What is wrong with the plain module now that its weights lie in another order: view() takes only some."""
    if not executable.cohort.reorders:
        return None
    row_dims = executable.cohort.fused.output_row_dims
    try:
        with torch.no_grad():
            results = pytree.tree_leaves(module(*pytree.tree_map(_two_rows, args)))
            usual = [
                output if row_dim is None else output.narrow(row_dim, 0, 2)
                for output, row_dim in zip(recording.outputs, row_dims, strict=True)
            ]
        trouble = problem(results, usual, [magnitude(output) for output in recording.outputs])
    except torch.OutOfMemoryError:
        raise  # it says nothing about the module
    except Exception as error:
        trouble = f"{type(error).__name__}: {error}"
    return trouble and f"the module itself, with weights in the order that its cohort has them in: {trouble}"


def _two_rows(leaf: Any) -> Any:
    """A copy: it may write to its inputs, if it fails."""
    return leaf[:2].clone() if isinstance(leaf, Tensor) else leaf


def _warm(executable: CohortExecutable, tensors: list[Tensor]) -> str | None:
    """A lone tenant needs no kernels of its own, so the self-check has not met them yet. What is wrong with them."""
    try:
        executable.warm(tensors, WARM_ROWS)
    except Exception as error:
        return f"its kernels for lanes of several tenants fail: {type(error).__name__}: {error}"
    return None
