"""What verbs have in common: progress bars, files that are to be written, what options name. Imported by verbs."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as ProgressBar

from spacetime.errors import OptionError
from spacetime.scheduler.registry import policy_names
from spacetime.sim import architectures, devices
from spacetime.trace import Trace

PERFETTO_SUFFIXES = (".pftrace", ".perfetto-trace")
TRACE_HELP = f"Write the last policy's lanes: for Perfetto to {' or '.join(PERFETTO_SUFFIXES)}, else as Chrome JSON."
POLICIES_HELP = ", ".join(policy_names())
MODELLED_HELP = f"{', '.join(devices.names())}, or a .json file of one."
MODELS_HELP = f"Repeat for several: {', '.join(architectures.names())}, or another gemm_MxNxK. Default: resnet50."

Show = Callable[[str, int, int], None]  # what is going on; done, of so many


@contextmanager
def progress_bar() -> Iterator[Show]:
    """A bar on stderr when that is a terminal, else nothing."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def print_in_any_encoding() -> None:
    """What the terminal or the pipe has no code for ("µ" in ASCII) becomes a question mark, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def check_writable(what: str, path: Path | None) -> None:
    """Before anything is measured or simulated for it."""
    if path is not None and not path.parent.is_dir():
        facts = f"{path.parent} is not a directory"
        raise OptionError(f"the {what} cannot be written to {path}", facts, "make the directory first")


def write_trace(trace: Trace, path: Path) -> None:
    if path.suffix in PERFETTO_SUFFIXES:
        path.write_bytes(trace.to_perfetto())
    else:
        path.write_text(trace.to_chrome(), encoding="utf-8")
