"""The stage that runs the benchmark suite's GEMMs on the device: rows for bench/results/, under $OUT."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.device.findings import Notes
from bench.provenance import REPOSITORY

LIMIT_S = 90  # a little less than the stage's: rows are appended as they come, so what was measured is kept


def bench(notes: Notes) -> None:
    """`spacetime bench gemm --quick`, as anybody would run it."""
    folder = Path(os.environ.get("OUT", REPOSITORY / "build" / "device"))
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "bench", "gemm", "--quick", "--device", "cuda:0", "--out", str(folder)]
    try:
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        how, tail = f"exit code {ended.returncode}", (ended.stdout + ended.stderr)[-900:]
    except subprocess.TimeoutExpired:
        how, tail = f"cut off after {LIMIT_S} s", ""
    written = folder / "gemm.jsonl"
    rows = len(written.read_text(encoding="utf-8").splitlines()) if written.exists() else 0
    notes.check("rows of gemm", rows > 0, f"{how}; {tail}" if how != "exit code 0" else "", rows=rows)
