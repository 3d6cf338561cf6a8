"""When requests come: point processes, and counts recorded elsewhere. Times in seconds. Bottom layer, no torch.

Every process starts in its steady state, so that the rate that was asked for holds from the first second on.
"""

from __future__ import annotations

import csv
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import TextIO

from spacetime.errors import OptionError


@dataclass(frozen=True, slots=True)
class Phase:
    """A state of a Markov-modulated Poisson process: how fast requests come, and how long that lasts on average."""

    rate_per_s: float
    mean_dwell_s: float


@dataclass(frozen=True, slots=True)
class Function:
    """A row of an invocation trace: how often a function was invoked in every minute."""

    name: str
    trigger: str
    counts: tuple[int, ...]


def poisson_times(rate_per_s: float, duration_s: float, rng: Random) -> Iterator[float]:
    """Independent of each other."""
    at_s = rng.expovariate(rate_per_s)
    while at_s < duration_s:
        yield at_s
        at_s += rng.expovariate(rate_per_s)


def gamma_times(rate_per_s: float, cv: float, duration_s: float, rng: Random) -> Iterator[float]:
    """Gaps with the coefficient of variation `cv`: below 1 regular, 1 Poisson, above 1 in bursts."""
    shape = 1 / cv**2
    scale_s = 1 / (rate_per_s * shape)
    # Whoever begins to watch falls into a long gap more often than into a short one, somewhere in its middle.
    at_s = rng.gammavariate(shape + 1, scale_s) * rng.random()
    while at_s < duration_s:
        yield at_s
        at_s += rng.gammavariate(shape, scale_s)


def mmpp_times(phases: Sequence[Phase], duration_s: float, rng: Random) -> Iterator[float]:
    """Poisson at the rate of the present phase; after it comes any of the others, all equally likely."""
    states = range(len(phases))
    state = rng.choices(states, [phase.mean_dwell_s for phase in phases])[0]
    start_s = 0.0
    while start_s < duration_s:
        phase = phases[state]
        dwell_s = rng.expovariate(1 / phase.mean_dwell_s)
        if phase.rate_per_s > 0:
            until_s = min(dwell_s, duration_s - start_s)
            yield from (start_s + at_s for at_s in poisson_times(phase.rate_per_s, until_s, rng))
        start_s += dwell_s
        state = rng.choice([other for other in states if other != state])


def counted_times(counts: Sequence[int], spread: str, speed: float, rng: Random) -> Iterator[float]:
    """Exactly as many as were counted in every minute: at equal distances ("even"), or independent ("poisson")."""
    minute_s = 60 / speed
    for minute, number in enumerate(counts):
        if spread == "even":
            offset = rng.random()  # or else all tenants would be in step
            parts = [(i + offset) / number for i in range(number)]
        else:
            parts = sorted([rng.random() for _ in range(number)])  # what Poisson arrivals are, given their number
        yield from ((minute + part) * minute_s for part in parts)


# -- invocation traces --------------------------------------------------------------------------------

_KEYS = ("HashOwner", "HashApp", "HashFunction", "Trigger")


def read_functions(
    path: str | Path, num_functions: int, choose: str, minutes: tuple[int, int | None], rng: Random
) -> list[Function]:
    """The busiest functions of a trace, or random ones of those invoked at all, in the minutes [first, end).

    The file is of the Azure Functions 2019 schema, one row per function: HashOwner, HashApp, HashFunction, Trigger,
    then the invocations in each minute, 1 to 1440. Files cut to their first minutes are read as well. Only the chosen
    rows are kept in memory.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            functions = _functions(file, str(path), minutes)
            chosen = _busiest(functions, num_functions) if choose == "busiest" else _any(functions, num_functions, rng)
    except OSError as error:
        raise OptionError(f"trace {path} cannot be read", str(error), "name a file that exists") from error
    if len(chosen) < num_functions:
        facts = f"{len(chosen)} functions are invoked in the chosen minutes"
        raise OptionError(
            f"{num_functions} tenants were asked for from {path}", facts, "ask for fewer, or more minutes"
        )
    return _named_apart(chosen)


def _functions(file: TextIO, path: str, minutes: tuple[int, int | None]) -> Iterator[Function]:
    """Those that are invoked in these minutes."""
    rows = csv.reader(file, strict=True)
    try:
        header = next(rows, [])
        num_minutes = len(header) - len(_KEYS)
        if tuple(header) != (*_KEYS, *map(str, range(1, num_minutes + 1))) or num_minutes < 1:
            raise _malformed(path, 1, f"the header starts with {', '.join(header[:6]) or 'nothing'}")
        first, end = minutes[0], num_minutes if minutes[1] is None else minutes[1]
        if not 0 <= first < end <= num_minutes:
            facts = f"the file holds minutes 0 to {num_minutes}"
            raise OptionError(f"minutes {first} to {end} of {path} were asked for", facts, "choose from these")
        for row in rows:
            if len(row) not in (0, len(header)):  # 0: an empty line
                raise _malformed(path, rows.line_num, f"{len(row)} fields, the header has {len(header)}")
            counts = _counts(row, path, rows.line_num)[first:end]
            if any(counts):
                yield Function(row[2], row[3], counts)
    except csv.Error as error:
        raise _malformed(path, rows.line_num, f"it is no CSV: {error}") from error
    except UnicodeDecodeError as error:  # found while a block of lines is read
        raise _malformed(path, rows.line_num + 1, f"here or soon after, it is no UTF-8: {error}") from error


def _counts(row: list[str], path: str, line: int) -> tuple[int, ...]:
    fields = row[len(_KEYS) :]
    if all(map(str.isdecimal, fields)):
        return tuple(map(int, fields))
    minute, text = next((i, text) for i, text in enumerate(fields, 1) if not text.isdecimal())
    raise _malformed(path, line, f"minute {minute} holds {text!r}, which is no number of invocations")


def _busiest(functions: Iterator[Function], number: int) -> list[Function]:
    return heapq.nlargest(number, functions, key=lambda function: sum(function.counts))


def _any(functions: Iterator[Function], number: int, rng: Random) -> list[Function]:
    """So many of a stream of unknown length, each as likely as the others."""
    chosen: list[Function] = []
    for seen, function in enumerate(functions):
        if seen < number:
            chosen.append(function)
        elif (place := rng.randrange(seen + 1)) < number:
            chosen[place] = function
    return chosen


def _named_apart(functions: list[Function]) -> list[Function]:
    """Names short enough for a table; the hashes of different functions may begin alike."""
    names: set[str] = set()
    apart = []
    for function in functions:
        base = function.name[:8]
        name = next(name for i in count(1) if (name := base if i == 1 else f"{base}#{i}") not in names)
        names.add(name)
        apart.append(Function(name, function.trigger, function.counts))
    return apart


def _malformed(path: str, line: int, problem: str) -> OptionError:
    facts = f"expected: {','.join(_KEYS)},1,2,... and a line of numbers per function"
    return OptionError(
        f"{path}, line {line}: {problem}", facts, "pass one like invocations_per_function_md.anon.d01.csv"
    )
