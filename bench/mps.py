"""NVIDIA's MPS: processes that share a GPU without taking turns. A daemon of our own, for as long as a case needs it.

No setting of the card is changed; the daemon's pipes and logs lie in a folder that goes with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.sides import Unavailable

CONTROL = "nvidia-cuda-mps-control"
_LIMIT_S = 20


@contextmanager
def daemon(device: str) -> Iterator[dict[str, str]]:
    """The environment of its clients, from before they first use CUDA. `Unavailable` says why there is none."""
    if device == "cpu":
        raise Unavailable("there is no GPU")
    control = shutil.which(CONTROL)
    if control is None:
        raise Unavailable(f"{CONTROL} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for path in environment.values():
            Path(path).mkdir()
        _run([control, "-d"], environment)
        try:
            yield environment
        finally:
            _run([control], environment, text="quit\n")


def _run(command: list[str], environment: dict[str, str], text: str | None = None) -> None:
    try:
        ended = subprocess.run(
            command,
            env=os.environ | environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{CONTROL}: {type(error).__name__}: {error}") from error
    if ended.returncode and text is None:
        raise Unavailable(f"the MPS daemon did not start: {ended.stderr.strip() or ended.stdout.strip()}")
