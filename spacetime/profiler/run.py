"""The whole of a profile: options, the thread that measures, interruption. The public `profile` calls it.

Measuring happens on a thread of its own, which may be pinned to cores and ends with its OpenMP team; the caller waits
and hears of the progress. An interruption reaches the caller, asks that thread to stop, and leaves the store with
every kernel that was done.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from queue import SimpleQueue

from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.profiler.campaign import Campaign, Progress, Runnable, Surrounding
from spacetime.profiler.environment import cpu_environment, modelled_environment
from spacetime.profiler.measure import Effort, Stopped
from spacetime.profiler.memory import available_bytes
from spacetime.profiler.modelled import NO_CACHE, ceilings_of, modelled, sizes_of
from spacetime.profiler.profile import VERSION, Ceilings, Layer, Profile
from spacetime.profiler.programs import Surroundings
from spacetime.profiler.records import Environment, Measurement
from spacetime.profiler.site import CpuSite, Site, make_site
from spacetime.profiler.store import Store
from spacetime.sim.devices import find

CPU, MODEL = "cpu", "model:"
CACHES = ("run", "warm", "cold")
MOST = 2**53  # operations or bytes of a kernel: integers that floating-point numbers hold exactly

OnProgress = Callable[[Progress], None]


def default_store() -> Path:
    """Where measurements are kept when nobody says where: the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "spacetime" / "profiles"


@dataclass(frozen=True)
class Asked:
    """What a profile is asked for, as spacetime.api.profile has it."""

    device: str
    rows: Sequence[int]
    units: Sequence[int] | None
    tolerance: float
    store: str | Path | None
    cache: str
    budget_s: float
    refresh: bool


def profile_program(program: Program, asked: Asked, progress: OnProgress | None = None) -> Profile:
    """See spacetime.api.profile."""
    effort = _check(program, asked)
    if asked.device.startswith(MODEL):
        return _modelled(program, asked)
    from spacetime.profiler.source import recall  # with torch, which a profile that is known does without

    source = recall(program)
    site = make_site(asked.device)
    runnable = source.on(site.torch_device)
    if site.environment.kind == "cpu":
        _check_memory(program, max(asked.rows))
    else:
        runnable = runnable.without_code()
    campaign = _campaign(program, asked, site, effort)
    ceilings, found = conduct(campaign, runnable, progress or (lambda _: None))
    return _profile(program, site.environment, ceilings, found, asked.rows[0], asked.tolerance, asked.cache)


def known_profile(
    program: Program,
    asked: Asked,
    surrounding: Surrounding | None,
    libraries: Mapping[str, str],
    progress: OnProgress | None = None,
) -> Profile | None:
    """The same profile, where nothing has to be measured for it, so that neither module nor torch is needed.

    `surrounding`: what a run has shown, None if there was none; `libraries`: as `cpu_libraries` says. None: something
    is to be measured, or the device is asked for itself, which takes torch.
    """
    effort = _check(program, asked)
    if asked.device.startswith(MODEL):
        return _modelled(program, asked)
    if asked.device != CPU or asked.refresh:
        return None
    if surrounding is None:
        if asked.cache == CACHES[0]:
            return None
        surrounding = Surroundings(has_code=False, wholes=())  # kernels are measured one by one
    site = CpuSite(cpu_environment(libraries))
    _check_memory(program, max(asked.rows))
    campaign = _campaign(program, asked, site, effort)
    campaign.progress = progress or campaign.progress
    recalled = campaign.recall(surrounding)
    if recalled is None:
        return None
    ceilings, found = recalled
    return _profile(program, site.environment, ceilings, found, asked.rows[0], asked.tolerance, asked.cache)


def _modelled(program: Program, asked: Asked) -> Profile:
    if asked.cache != CACHES[0]:
        facts = "its model knows no caches, all traffic goes to memory"
        raise OptionError(f"{asked.device} cannot be profiled with {asked.cache} caches", facts, "leave the caches out")
    model, rows = find(asked.device.removeprefix(MODEL)), tuple(dict.fromkeys(asked.rows))
    sizes = _checked_sizes(asked.device, asked.units, sizes_of(model))
    found = modelled(program, model, rows, sizes, exact=asked.units is not None, tolerance=asked.tolerance)
    environment, ceilings = modelled_environment(model), ceilings_of(model)
    return _profile(program, environment, ceilings, found, rows[0], asked.tolerance, NO_CACHE)


def _campaign(program: Program, asked: Asked, site: Site, effort: Effort) -> Campaign:
    """With what the store knows. Nothing is measured that could not be kept."""
    kept = Store(Path(asked.store) if asked.store is not None else default_store(), site.environment.device)
    campaign = Campaign(
        program=program,
        site=site,
        store=kept,
        rows=tuple(dict.fromkeys(asked.rows)),
        sizes=_checked_sizes(asked.device, asked.units, site.sizes),
        exact=asked.units is not None,
        tolerance=asked.tolerance,
        cache=asked.cache,
        effort=effort,
        progress=lambda _: None,
        stopped=lambda: False,
    )
    kept.check_writable()
    contents = kept.read()
    campaign.stale = contents.stale(site.environment)
    if not asked.refresh:
        campaign.known |= contents.of(site.environment)
        campaign.begun = kept.begun.read().of(site.environment)
    return campaign


def conduct(campaign: Campaign, runnable: Runnable, progress: OnProgress) -> tuple[Ceilings, tuple[Measurement, ...]]:
    """Run the campaign on a thread of its own; `progress` is called on this one. Whatever ends the wait stops it.

    What a stopped campaign still keeps is reported, too, before the interruption goes on its way.
    """
    stop = threading.Event()
    events: SimpleQueue[Progress | None] = SimpleQueue()
    campaign.progress, campaign.stopped = events.put, stop.is_set
    worker = _Worker(campaign, runnable, lambda: events.put(None))
    from spacetime.backends.threads import release_team

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


def _check(program: Program, asked: Asked) -> Effort:
    rows, tolerance, cache = asked.rows, asked.tolerance, asked.cache
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
    return Effort(asked.budget_s)


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
