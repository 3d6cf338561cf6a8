"""The stage that runs the benchmark suite's GEMMs on the device: rows for bench/results/, under $OUT."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.device.findings import FAIL, INFO, PASS, Notes
from bench.provenance import REPOSITORY

LIMIT_S = 90  # a little less than the stage's: rows are appended as they come, so what was measured is kept
TAIL = 900  # characters of what it said, at the end


def bench(notes: Notes) -> None:
    """`spacetime bench gemm --quick`, as anybody would run it. Only new rows count: the file may have earlier ones."""
    folder = Path(os.environ.get("OUT", REPOSITORY / "build" / "device"))
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "gemm.jsonl"
    before = _num_rows(written)
    command = [sys.executable, "-m", "bench", "gemm", "--quick", "--device", "cuda:0", "--out", str(folder)]
    try:
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        code, tail = ended.returncode, (ended.stdout + ended.stderr)[-TAIL:]
    except subprocess.TimeoutExpired as error:
        code, tail = None, _text(error.stdout)[-TAIL // 2 :] + _text(error.stderr)[-TAIL // 2 :]
    status, facts = judged(code, _num_rows(written) - before, tail)
    notes.note("rows of gemm", status, facts, rows=_num_rows(written) - before, rows_before=before)


def judged(code: int | None, rows: int, tail: str) -> tuple[str, str]:
    """Status and facts of a run that ended with this code (None: its time was over) and so many new rows."""
    if code is None:
        how = f"cut off after {LIMIT_S} s; {tail}"
        return (INFO, f"partial: {rows} rows, {how}") if rows > 0 else (FAIL, f"no row; {how}")
    if code != 0:
        return FAIL, f"exit code {code} after {rows} rows; {tail}"
    return (PASS, "") if rows > 0 else (FAIL, f"it ended well and wrote no row; {tail}")


def _num_rows(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def _text(output: str | bytes | None) -> str:
    """What `TimeoutExpired` has of the output: bytes, whatever was asked for."""
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""
