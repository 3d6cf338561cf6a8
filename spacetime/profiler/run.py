"""The whole of a profile: options, the thread that measures, interruption. The public `profile` calls it.

Measuring happens on a thread of its own, which may be pinned to cores and ends with its OpenMP team; the caller waits
and hears of the progress. An interruption reaches the caller, asks that thread to stop, and leaves the store with
every kernel that was done.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from queue import SimpleQueue

from spacetime.backends.threads import release_team
from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.profiler.campaign import Campaign, Progress, Runnable
from spacetime.profiler.environment import modelled_environment
from spacetime.profiler.measure import Effort, Stopped
from spacetime.profiler.modelled import NO_CACHE, ceilings_of, modelled, sizes_of
from spacetime.profiler.onnx.memory import available_bytes
from spacetime.profiler.profile import VERSION, Ceilings, Layer, Profile
from spacetime.profiler.records import Environment, Measurement
from spacetime.profiler.site import make_site
from spacetime.profiler.source import recall
from spacetime.profiler.store import Store
from spacetime.sim.devices import find

MODEL = "model:"
CACHES = ("run", "warm", "cold")
MOST = 2**53  # operations or bytes of a kernel: integers that floating-point numbers hold exactly

OnProgress = Callable[[Progress], None]


def default_store() -> Path:
    """Where measurements are kept when nobody says where: the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "spacetime" / "profiles"


def profile_program(
    program: Program,
    device: str,
    *,
    rows: Sequence[int],
    units: Sequence[int] | None,
    tolerance: float,
    store: str | Path | None,
    cache: str,
    budget_s: float,
    refresh: bool,
    progress: OnProgress | None,
) -> Profile:
    """See spacetime.api.profile."""
    _check(program, rows, tolerance, cache)
    effort = Effort(budget_s)
    rows = tuple(dict.fromkeys(rows))
    if device.startswith(MODEL):
        if cache != CACHES[0]:
            facts = "its model knows no caches, all traffic goes to memory"
            raise OptionError(f"{device} cannot be profiled with {cache} caches", facts, "leave the caches out")
        model = find(device.removeprefix(MODEL))
        sizes = _checked_sizes(device, units, sizes_of(model))
        found = modelled(program, model, rows, sizes, exact=units is not None, tolerance=tolerance)
        environment, ceilings = modelled_environment(model), ceilings_of(model)
        return _profile(program, environment, ceilings, found, rows[0], tolerance, NO_CACHE)
    source = recall(program)
    site = make_site(device)
    runnable = source.on(site.torch_device)
    if site.environment.kind == "cpu":
        _check_memory(program, max(rows))
    else:
        runnable = runnable.without_code()
    kept = Store(Path(store) if store is not None else default_store(), site.environment.device)
    campaign = Campaign(
        program=program,
        site=site,
        store=kept,
        rows=rows,
        sizes=_checked_sizes(device, units, site.sizes),
        exact=units is not None,
        tolerance=tolerance,
        cache=cache,
        effort=effort,
        progress=lambda _: None,
        stopped=lambda: False,
    )
    kept.check_writable()
    contents = kept.read()
    campaign.stale = contents.stale(site.environment)
    if not refresh:
        campaign.known |= contents.of(site.environment)
    ceilings, found = conduct(campaign, runnable, progress or (lambda _: None))
    return _profile(program, site.environment, ceilings, found, rows[0], tolerance, cache)


def conduct(campaign: Campaign, runnable: Runnable, progress: OnProgress) -> tuple[Ceilings, tuple[Measurement, ...]]:
    """Run the campaign on a thread of its own; `progress` is called on this one. Whatever ends the wait stops it.

    What a stopped campaign still keeps is reported, too, before the interruption goes on its way.
    """
    stop = threading.Event()
    events: SimpleQueue[Progress | None] = SimpleQueue()
    campaign.progress, campaign.stopped = events.put, stop.is_set
    worker = _Worker(campaign, runnable, lambda: events.put(None))
    release_team()  # this thread's own, from building and capturing the model
    worker.start()
    try:
        for event in iter(events.get, None):
            progress(event)
    except BaseException:
        stop.set()
        worker.join()
        while not events.empty():
            if (kept := events.get()) is not None:
                progress(kept)
        raise
    worker.join()
    return worker.result()


class _Worker(threading.Thread):
    def __init__(self, campaign: Campaign, runnable: Runnable, ended: Callable[[], None]) -> None:
        super().__init__(name="spacetime-profiler", daemon=True)
        self._campaign, self._runnable, self._ended = campaign, runnable, ended
        self._found: tuple[Ceilings, tuple[Measurement, ...]] | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            with self._campaign.site:
                self._found = self._campaign.ceilings(), self._campaign.run(self._runnable)
        except Stopped:
            pass  # whoever asked for it knows
        except BaseException as error:  # raised again in the thread that waits
            self._error = error
        finally:
            self._ended()

    def result(self) -> tuple[Ceilings, tuple[Measurement, ...]]:
        if self._error is not None:
            raise self._error
        assert self._found is not None, "a campaign that was not stopped has a result"
        return self._found


def _profile(
    program: Program,
    environment: Environment,
    ceilings: Ceilings,
    measurements: tuple[Measurement, ...],
    rows: int,
    tolerance: float,
    cache: str,
) -> Profile:
    return Profile(
        version=VERSION,
        signature=program.signature,
        environment=environment,
        cache=cache,
        rows=rows,
        tolerance=tolerance,
        ceilings=ceilings,
        program=tuple(map(Layer.of, program.kernels)),
        measurements=measurements,
    )


def _check(program: Program, rows: Sequence[int], tolerance: float, cache: str) -> None:
    if not isinstance(program, Program):
        facts = f"it is a {type(program).__name__}"
        raise OptionError(
            "only programs can be profiled", facts, "pass what spacetime.capture(module, example) returns"
        )
    if not program.kernels:
        what = f"program {program.signature} has nothing to profile"
        raise OptionError(what, "it launches no kernels", "profile a module with a layer that computes")
    if not rows or any(not isinstance(count, int) or count < 1 for count in rows):
        raise OptionError(f"rows={rows!r} cannot be profiled", "each is a number of rows from 1", "pass rows=(1, 8)")
    if not 0 <= tolerance < inf:
        raise OptionError(f"a tolerance of {tolerance}", "knees are within it of the best latency", "pass 0.05")
    if cache not in CACHES:
        raise OptionError(f"cache={cache!r} is no state of the caches", f"known: {', '.join(CACHES)}", "name one")
    most = max(max(kernel.flops(max(rows)), kernel.bytes(max(rows))) for kernel in program.kernels)
    if most > MOST:
        facts = f"a kernel of theirs has {most:.1e} operations, or bytes"
        raise OptionError(f"{max(rows)} rows are too many", facts, "profile fewer rows")


def _check_memory(program: Program, rows: int) -> None:
    """What one kernel reads and writes is in memory at one time; without it the system may end this process."""
    largest = max(program.kernels, key=lambda kernel: kernel.bytes(rows))
    available = available_bytes()
    if largest.bytes(rows) > available:
        facts = f"kernel {largest.name} alone has {largest.bytes(rows) / 2**30:.1f} GiB to read and write, "
        facts += f"{available / 2**30:.1f} GiB are free"
        raise OptionError(f"{rows} rows do not fit in memory", facts, "profile fewer rows")


def _checked_sizes(device: str, units: Sequence[int] | None, sizes: Sequence[int]) -> tuple[int, ...]:
    if units is None:
        return tuple(sizes)
    unknown = sorted(set(units) - set(sizes))
    if unknown or not units:
        raise OptionError(
            f"{device} cannot be profiled on {', '.join(map(str, unknown)) or 'no'} units",
            f"it has partitions of {', '.join(map(str, sizes))}",
            "name some of these, or leave units out",
        )
    return tuple(sorted(set(units)))
