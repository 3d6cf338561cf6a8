"""Load by a harness that nobody here wrote: mlcommons-loadgen sends, a runtime's tenants answer.

Only its traffic and its clock are used. The sizes are ours and the models are not MLCommons', so nothing that comes out
of here is an MLPerf result, and none of it may be called one. Imported by bench/tenants.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

MODULE = "mlperf_loadgen"
MISSING = "mlcommons-loadgen is not installed; pip install mlcommons-loadgen"
SERVER, MULTI_STREAM = "Server", "MultiStream"
SCENARIOS = (SERVER, MULTI_STREAM)
PREFIX = ":::MLLOG "

Submit = Callable[[str], "Future[Any]"]


@dataclass(frozen=True, slots=True)
class Drive:
    """What it is to do. `Server`: single requests of tenants drawn at random, Poisson at `rate_per_s`.

    `MultiStream`: queries of one request per tenant on average, the next when the last has its results.
    """

    scenario: str
    duration_s: float
    rate_per_s: float
    latency_limit_us: int
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Driven:
    """What it says: of requests (Server), or of whole queries (MultiStream)."""

    p50_us: float
    p99_us: float
    num_queries: int
    completed_per_s: float | None  # Server
    num_failed: int


def why_not() -> str | None:
    return None if importlib.util.find_spec(MODULE) else MISSING


def drive(submit: Submit, names: Sequence[str], what: Drive) -> Driven:
    """Play a scenario; sample i of its library is a request of the i-th tenant."""
    loadgen: Any = importlib.import_module(MODULE)
    system = SystemUnderTest(loadgen, submit, names)
    with tempfile.TemporaryDirectory() as folder, _made(loadgen, system, len(names)) as (sut, library):
        loadgen.StartTestWithLogSettings(sut, library, _settings(loadgen, what, len(names)), _logs(loadgen, folder))
        found = parse((Path(folder) / "mlperf_log_detail.txt").read_text(encoding="utf-8"))
    return driven(found, system.num_failed)


class SystemUnderTest:
    """Sends on what the harness asks for, and tells it when a request has ended."""

    def __init__(self, loadgen: Any, submit: Submit, names: Sequence[str]) -> None:
        self._loadgen = loadgen
        self._submit = submit
        self._names = names
        self._lock = threading.Lock()
        self.num_failed = 0

    def issue(self, samples: Sequence[Any]) -> None:
        for sample in samples:
            self._submit(self._names[sample.index]).add_done_callback(partial(self._ended, sample.id))

    def flush(self) -> None:
        """Nothing is held back."""

    def _ended(self, sample_id: int, future: Future[Any]) -> None:
        if future.cancelled() or future.exception() is not None:  # the harness knows no failures
            with self._lock:
                self.num_failed += 1
        self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(sample_id, 0, 0)])


@contextmanager
def _made(loadgen: Any, system: SystemUnderTest, num_samples: int) -> Iterator[tuple[int, int]]:
    """The two ends as the harness knows them: who answers, and a library of inputs, which are in place already."""
    sut = loadgen.ConstructSUT(system.issue, system.flush)
    library = loadgen.ConstructQSL(num_samples, num_samples, lambda indices: None, lambda indices: None)
    try:
        yield sut, library
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(sut)


def _settings(loadgen: Any, what: Drive, num_tenants: int) -> Any:
    """Of a run as short as we say: the harness calls it invalid, by the rules of a contest that this is not."""
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, what.scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_query_count = 1
    settings.min_duration_ms = round(what.duration_s * 1000)
    settings.max_duration_ms = round(what.duration_s * 2000)
    settings.schedule_rng_seed = settings.sample_index_rng_seed = settings.qsl_rng_seed = what.seed
    settings.server_target_qps = what.rate_per_s
    settings.server_target_latency_ns = what.latency_limit_us * 1000
    settings.multi_stream_samples_per_query = num_tenants
    settings.multi_stream_expected_latency_ns = what.latency_limit_us * 1000
    return settings


def _logs(loadgen: Any, folder: str) -> Any:
    output = loadgen.LogOutputSettings()
    output.outdir = folder
    output.copy_summary_to_stdout = False
    logs = loadgen.LogSettings()
    logs.log_output = output
    logs.enable_trace = False
    return logs


def parse(log: str) -> dict[str, Any]:
    """What the detailed log says, by key; of several lines with one key the last counts."""
    lines = (line.removeprefix(PREFIX) for line in log.splitlines() if line.startswith(PREFIX))
    return {entry["key"]: entry["value"] for entry in map(json.loads, lines)}


def driven(found: dict[str, Any], num_failed: int) -> Driven:
    """Of queries as wholes, where they are more than a request."""
    of = "per_query_latency" if "result_99.00_percentile_per_query_latency_ns" in found else "latency"
    rate = found.get("result_completed_samples_per_sec")
    return Driven(
        p50_us=found[f"result_50.00_percentile_{of}_ns"] / 1e3,
        p99_us=found[f"result_99.00_percentile_{of}_ns"] / 1e3,
        num_queries=int(found["result_query_count"]),
        completed_per_s=None if rate is None else float(rate),
        num_failed=num_failed,
    )
