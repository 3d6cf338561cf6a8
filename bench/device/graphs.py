"""Stages on CUDA graphs, overlap and latencies: what does switching partitions cost, and what runs beside what?"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence

import torch

from bench.device.findings import INFO, Notes
from bench.device.gpu import Census, halves, open_partitions, stream_of, time_us

GATE_CYCLES = 10_000_000  # about five milliseconds: longer than the host takes to launch what waits behind it


def graph_confinement(notes: Notes) -> None:
    """One graph over three partitions, replayed on another stream: does every node stay in its partition?"""
    contexts = open_partitions()
    census = Census()
    quarter, (lower, upper) = contexts.num_atoms // 4, halves(contexts)
    masks = [(1 << quarter) - 1, lower & ~((1 << quarter) - 1), upper]
    streams = [stream_of(contexts, mask) for mask in masks]
    alone = [census.sms(stream) for stream in streams]
    seen = [census.fresh() for _ in masks]
    capture = torch.cuda.Stream()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=capture):
        begin = torch.cuda.Event()
        begin.record(capture)
        for stream, counts in zip(streams, seen, strict=True):
            stream.wait_event(begin)
            census.launch(stream, counts)
            end = torch.cuda.Event()
            end.record(stream)
            capture.wait_event(end)
    for counts in seen:
        counts.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        graph.replay()
    torch.cuda.synchronize()
    replayed = [census.read(counts) for counts in seen]
    facts = "; ".join(
        f"{mask:#x}: {len(a)} alone, {len(r)} in the graph" for mask, a, r in zip(masks, alone, replayed, strict=True)
    )
    notes.check(
        "graph nodes keep their partition", all(r and r <= a for a, r in zip(alone, replayed, strict=True)), facts
    )


def latencies(notes: Notes) -> None:
    """Edges inside a stream, across partitions, inside a graph; host time per launch and per replay."""
    contexts = open_partitions()
    tiny = torch.zeros(32, device="cuda")
    first, second = (stream_of(contexts, mask) for mask in halves(contexts))

    def chain(length: int, alternate: bool) -> None:
        previous = None
        for index in range(length):
            stream = second if alternate and index % 2 else first
            if previous is not None and previous is not stream:
                event = torch.cuda.Event()
                event.record(previous)
                stream.wait_event(event)
            with torch.cuda.stream(stream):
                tiny.add_(1)
            previous = stream
        assert previous is not None
        done = torch.cuda.Event()
        done.record(previous)
        torch.cuda.current_stream().wait_event(done)

    for name, alternate in (("same stream", False), ("alternating partitions", True)):
        with notes.trying(name):
            graph = torch.cuda.CUDAGraph()
            capture = torch.cuda.Stream()
            with torch.cuda.graph(graph, stream=capture):
                start = torch.cuda.Event()
                start.record(capture)
                first.wait_event(start)
                second.wait_event(start)
                chain(100, alternate)
                for stream in (first, second):
                    end = torch.cuda.Event()
                    end.record(stream)
                    capture.wait_event(end)
            eager_us = time_us(lambda alternate=alternate: chain(100, alternate), repeats=10) / 100  # type: ignore[misc]
            graph_us = time_us(graph.replay, repeats=30) / 100
            notes.note(
                name, INFO, "per kernel of a chain of 100", eager_us=round(eager_us, 2), graph_us=round(graph_us, 2)
            )
    with notes.trying("host time of a replay"):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(50):
                tiny.add_(1)
        owners, fresh = (
            torch.zeros(64, dtype=torch.int32, device="cuda"),
            torch.zeros(64, dtype=torch.int32).pin_memory(),
        )
        samples = []
        for _ in range(200):
            start_s = time.perf_counter()
            owners.copy_(fresh, non_blocking=True)
            graph.replay()
            samples.append((time.perf_counter() - start_s) * 1e6)
            torch.cuda.synchronize()
        notes.note(
            "host time of a replay",
            INFO,
            "one copy of a slot table, one replay of 50 kernels",
            us=round(statistics.median(samples), 1),
        )
    with notes.trying("waiting for a lane"):
        waits = {name: _wait(blocking) for name, blocking in (("spinning", False), ("blocking", True))}
        figures = {f"{name}_{key}": value for name, found in waits.items() for key, value in found.items()}
        notes.note(
            "waiting for a lane",
            INFO,
            "an event after about 1 ms of work: from its end to the host; CPU time meanwhile",
            **figures,
        )


def _wait(blocking: bool) -> dict[str, float]:
    """How long after the work the thread goes on, and how much of a core it kept busy meanwhile."""
    cycles = 1_500_000  # about a millisecond; how long it was is measured
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    late_us, busy = [], []
    for _ in range(100):
        torch.cuda.synchronize()
        last = torch.cuda.Event(blocking=blocking)
        start_s, cpu_s = time.perf_counter(), time.thread_time()
        begin.record()
        torch.cuda._sleep(cycles)
        end.record()
        last.record()
        last.synchronize()
        wall_us, cpu_us = 1e6 * (time.perf_counter() - start_s), 1e6 * (time.thread_time() - cpu_s)
        late_us.append(wall_us - 1e3 * begin.elapsed_time(end))
        busy.append(cpu_us / wall_us)
    return {"late_us": round(statistics.median(late_us), 1), "of_a_core": round(statistics.median(busy), 2)}


def overlap(notes: Notes) -> None:
    """Do kernels on 4..16 partitions run side by side? At the present CUDA_DEVICE_MAX_CONNECTIONS."""
    contexts = open_partitions()
    census = Census()
    connections = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "default")
    for number in (2, 4, 8, 16):
        width = contexts.num_atoms // number
        if not width:
            break
        streams = [stream_of(contexts, ((1 << width) - 1) << (index * width)) for index in range(number)]
        seen = [census.fresh() for _ in streams]
        alone_us = _together_us(census, streams[:1], seen[:1])
        all_us = _together_us(census, streams, seen)
        notes.check(
            f"{number} partitions overlap",
            all_us < 1.5 * alone_us,
            f"connections: {connections}",
            alone_us=round(alone_us),
            together_us=round(all_us),
        )


def _together_us(census: Census, streams: Sequence[torch.cuda.ExternalStream], seen: Sequence[torch.Tensor]) -> float:
    """A kernel on each stream, from the first's start to the last's end; the host has launched all by then."""
    current, samples = torch.cuda.current_stream(), []
    for _ in range(7):
        begin, done = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(GATE_CYCLES)
        begin.record(current)
        for stream, counts in zip(streams, seen, strict=True):
            stream.wait_event(begin)
            census.launch(stream, counts)
            end = torch.cuda.Event()
            end.record(stream)
            current.wait_event(end)
        done.record(current)
        done.synchronize()
        samples.append(begin.elapsed_time(done) * 1e3)
    return statistics.median(samples)


__all__ = ["graph_confinement", "latencies", "overlap"]
