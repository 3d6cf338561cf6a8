"""Profiles for other programs: CSV and Chrome's trace JSON. Profile imports it; it takes layers, it changes nothing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spacetime.profiler.profile import LayerKnee

COLUMNS = (
    "index name op shape bound flops bytes rows best_us best_units knee_units knee_us saved_units confidence "
    "marginal_units device method key"
).split()


def to_csv(layers: Sequence[LayerKnee], rows: int, device: str, method: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for layer in layers:
        knee = layer.knee
        writer.writerow(
            {
                **{name: getattr(layer, name) for name in "index name op shape bound flops bytes key".split()},
                "rows": rows,
                "best_us": knee.best_us,
                "best_units": knee.best_units,
                "knee_units": knee.units,
                "knee_us": knee.latency_us,
                "saved_units": knee.saved_units,
                "confidence": knee.confidence,
                "marginal_units": knee.marginal_units,
                "device": device,
                "method": method,
            }
        )
    return text.getvalue()


def to_chrome(layers: Sequence[LayerKnee], rows: int, device: str, method: str) -> str:
    """Slices for the kernels, a counter for the units that they need."""
    events = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": f"{device} ({method}), {rows} rows"}},
        {"ph": "M", "pid": 1, "tid": 1, "name": "thread_name", "args": {"name": "kernels at their knees"}},
        *_events(layers),
    ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ns"})


def _events(layers: Sequence[LayerKnee]) -> Iterator[dict[str, Any]]:
    now_us = 0.0
    for layer in layers:
        knee = layer.knee
        notes = {"units": knee.units, "best_us": knee.best_us, "bound": layer.bound, "shape": layer.shape}
        yield {
            "ph": "X",
            "pid": 1,
            "tid": 1,
            "name": layer.name,
            "cat": layer.op,
            "ts": now_us,
            "dur": knee.latency_us,
            "args": notes,
        }
        yield {"ph": "C", "pid": 1, "name": "units", "ts": now_us, "args": {"units": knee.units}}
        now_us += knee.latency_us
    yield {"ph": "C", "pid": 1, "name": "units", "ts": now_us, "args": {"units": 0}}
