"""The driver of `make device`: run the stages, keep what they find, print a table.

python -m bench.device                         all stages, results under $OUT (or build/device)
python -m bench.device --only census --only gemm
python -m bench.device --resume build/device/device.json    leave out what went well there; keep its findings
python -m bench.device --stage census          one stage, in this process (for debugging)
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.device.findings import FAIL, INFO, MISSING, PASS, Finding, Notes, read
from bench.device.shards import command_of
from bench.provenance import REPOSITORY, collect

BUDGET_S = 525  # for everything: a command on a lent machine ends at ten minutes
DYING_S = 10  # a process that waits for a hung GPU may outlive its killing; nobody waits longer for that
TELLING_S = 2  # for a process to print where its threads are, before it is killed
MOST_FINDINGS, TAIL_CHARS = 400, 4000  # that are kept of one stage
MOST_TOLD, TOLD_CHARS = 3, 8000  # findings of a stage, and characters of all, that are printed at the end


@dataclass(frozen=True)
class Stage:
    """A function of a module of this package, in a process of its own."""

    name: str
    module: str
    limit_s: int
    environment: dict[str, str] = field(default_factory=dict)


STAGES = (
    Stage("versions", "host", 30),
    Stage("resources", "partitions", 30),
    Stage("contact", "contact", 90),
    Stage("census", "partitions", 45),
    Stage("graph_confinement", "graphs", 40),
    Stage("serving", "conformance", 110),
    Stage("slot_kernels", "kernels", 60),
    Stage("conformance", "conformance", 90),
    Stage("confinement", "partitions", 40),
    Stage("numerics", "partitions", 40),
    Stage("slot_programs", "programs", 90),
    Stage("merged_lanes", "merged", 110),
    Stage("native", "speed", 75),
    Stage("latencies", "graphs", 45),
    Stage("gemm", "speed", 100),
    Stage("slot_tune", "tables", 100),
    Stage("slot_products", "products", 70),
    Stage("slot_speed", "slot_speed", 80),
    Stage("bench", "benches", 100),
    Stage("overlap", "graphs", 30, {"CUDA_DEVICE_MAX_CONNECTIONS": "8"}),
    Stage("overlap", "graphs", 30, {"CUDA_DEVICE_MAX_CONNECTIONS": "32"}),
    Stage("interference", "speed", 45),
    Stage("many_contexts", "partitions", 45),
    Stage("unions", "partitions", 30),
    Stage("conv", "speed", 60),
    Stage("profile", "profiles", 60),
    Stage("sanitizer", "host", 100),
    Stage("slot_sanitizer", "kernels", 60),
    Stage("mps", "host", 80),
    Stage("suite", "host", 100),
)


@dataclass(frozen=True)
class Outcome:
    """How a stage went: what it found, and how it ended."""

    stage: str
    environment: dict[str, str]
    seconds: float
    end: str  # "done" | "timed out" | "exit code N" | "left out: ..."
    findings: list[Finding]
    tail: str  # the end of what it printed besides, when it did not end well


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bench.device", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = sorted({stage.name for stage in STAGES})
    parser.add_argument("--only", action="append", choices=names, metavar="STAGE", help=", ".join(names))
    parser.add_argument("--resume", type=Path, help="a device.json: stages that ended well in it are left out")
    parser.add_argument("--stage", choices=names, metavar="STAGE", help="run one stage here and now")
    options = parser.parse_args(arguments)
    if options.stage:
        return run_here(options.stage)
    reason = no_device()
    if reason is not None:
        print(
            f"error: there is no NVIDIA GPU to prove anything on\n  {reason}\n  `spacetime doctor` says what works here"
        )
        return 1
    try:
        known = load(options.resume) if options.resume else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"--resume {options.resume}: {type(error).__name__}: {error}; name a device.json of this command")
    done = {key(outcome.stage, outcome.environment) for outcome in known if went_well(outcome)}
    chosen = [
        s for s in STAGES if (not options.only or s.name in options.only) and key(s.name, s.environment) not in done
    ]
    outcomes = run_all(chosen, Path(os.environ.get("OUT", REPOSITORY / "build" / "device")), known)
    print(table(outcomes))
    return int(not all(map(went_well, outcomes)))


def run_here(name: str) -> int:
    faulthandler.register(signal.SIGUSR1)
    stage = next(stage for stage in STAGES if stage.name == name)
    function = getattr(import_module(f"bench.device.{stage.module}"), name)
    notes = Notes(name)
    with notes.trying(name):
        function(notes)
    return 0


def run_all(stages: Sequence[Stage], folder: Path, known: Sequence[Outcome] = ()) -> list[Outcome]:
    """One after another while time is left; the file is whole after every stage, with what was known before."""
    folder.mkdir(parents=True, exist_ok=True)
    start_s, file = time.monotonic(), folder / "device.json"
    outcomes: list[Outcome] = []
    provenance = provenance_of("cuda:0" if no_device() is None else "cpu")
    for stage in stages:
        left_s = BUDGET_S - (time.monotonic() - start_s)
        if left_s < 10:
            outcomes.append(Outcome(stage.name, stage.environment, 0.0, "left out: no time", [], ""))
            continue
        outcomes.append(run_apart(stage, min(stage.limit_s, left_s)))
        print(summary(outcomes[-1]), flush=True)
        write(file, provenance, joined(known, outcomes))
    write(file, provenance, joined(known, outcomes))
    return outcomes


def provenance_of(device: str) -> dict[str, Any]:
    """What can be told of the machine. Whatever fails here must not keep the stages from running."""
    try:
        return dict(json.loads(collect(device).to_json()))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def joined(known: Sequence[Outcome], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """What was known, with what was found again in its place; a stage that was left out this time replaces nothing."""
    found = {key(each.stage, each.environment): each for each in known}
    for each in outcomes:
        if not each.end.startswith("left out") or key(each.stage, each.environment) not in found:
            found[key(each.stage, each.environment)] = each
    return list(found.values())


def run_apart(stage: Stage, limit_s: float) -> Outcome:
    """In a process group of its own, which is killed as a whole when the time is over.

    It writes into a file: a pipe would be held open by whatever left the group, such as a daemon, and be waited for.
    """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"} | stage.environment
    start_s = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command_of(stage.name),
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        end = ended(process, limit_s)
        output.seek(0)
        findings, tail = sorted_out(output)
    seconds = round(time.monotonic() - start_s, 1)
    return Outcome(stage.name, stage.environment, seconds, end, findings, tail if end != "done" else "")


def ended(process: subprocess.Popen[Any], limit_s: float) -> str:
    """How it ended. What it started and left behind in its group ends with it."""
    try:
        code = process.wait(limit_s)
        end = "done" if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        end = "timed out"
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.kill(process.pid, signal.SIGUSR1)  # it prints where all of its threads are, see run_here
            process.wait(TELLING_S)
    with suppress(ProcessLookupError):  # usually nobody is left
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(DYING_S)
    except subprocess.TimeoutExpired:
        end = f"timed out, and cannot be killed (process {process.pid})"
    return end


def sorted_out(lines: Iterable[str]) -> tuple[list[Finding], str]:
    """The first findings, and the end of everything else."""
    findings, num_findings, tail = [], 0, ""
    for line in lines:
        finding = read(line)
        if finding is None:
            tail = (tail + line[-TAIL_CHARS:])[-TAIL_CHARS:]
            continue
        num_findings += 1
        if num_findings <= MOST_FINDINGS:
            findings.append(finding)
    if num_findings > MOST_FINDINGS:
        facts = f"{num_findings - MOST_FINDINGS} more findings were left out"
        findings.append(Finding(findings[0].stage, "findings", INFO, facts))
    return findings, tail.strip()


def write(path: Path, provenance: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    data = {"provenance": provenance, "outcomes": [asdict(outcome) for outcome in outcomes]}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=1), encoding="utf-8")
    temporary.replace(path)


def load(path: Path) -> list[Outcome]:
    known = json.loads(path.read_text(encoding="utf-8"))["outcomes"]
    return [Outcome(**{**outcome, "findings": [Finding(**each) for each in outcome["findings"]]}) for outcome in known]


def went_well(outcome: Outcome) -> bool:
    """To the end, and nothing failed: what failed is tried again, with what has been repaired since."""
    return outcome.end == "done" and all(finding.status != FAIL for finding in outcome.findings)


def key(name: str, environment: dict[str, str]) -> str:
    return " ".join([name, *(f"{variable}={value}" for variable, value in sorted(environment.items()))])


def summary(outcome: Outcome) -> str:
    counts = {status: sum(f.status == status for f in outcome.findings) for status in (PASS, FAIL, INFO, MISSING)}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{key(outcome.stage, outcome.environment):<52} {outcome.seconds:>6.1f} s  {outcome.end:<12} {told}"


def table(outcomes: Sequence[Outcome]) -> str:
    """What failed or is missing, of the first stages first; then all stages, where the end of a long output is seen."""
    told = "\n".join(line for outcome in outcomes for line in _troubles(outcome))
    if len(told) > TOLD_CHARS:
        told = f"{told[:TOLD_CHARS]} ...\nmore is in device.json"
    return "\n".join(["", told, "", *map(summary, outcomes), ""])


def _troubles(outcome: Outcome) -> Iterator[str]:
    findings = [finding for finding in outcome.findings if finding.status in (FAIL, MISSING)]
    findings.sort(key=lambda finding: finding.status != FAIL)
    for finding in findings[:MOST_TOLD]:
        yield f"{finding.status} {finding.stage}: {finding.name}: {finding.facts}".replace("\n", " ")[:400]
    if len(findings) > MOST_TOLD:
        yield f"... and {len(findings) - MOST_TOLD} more of {outcome.stage}: see device.json"
    if outcome.tail:
        where = outcome.tail.rfind("(most recent call first)")  # of the last thread that was told: the first one
        words = outcome.tail[-600:] if where < 0 else outcome.tail[where : where + 900]
        yield f"{outcome.stage} {outcome.end}; its last words:\n{words}"


def no_device() -> str | None:
    """Why there is no NVIDIA GPU; None when there is one."""
    try:
        import torch  # its absence is an answer
    except ImportError as error:
        return str(error)
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA"
    return None if torch.cuda.is_available() else f"torch {torch.__version__} finds no CUDA device"


if __name__ == "__main__":
    sys.exit(main())
