"""Starts the interpreted tests beside the others: they need a process of their own, see interpreted/conftest.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


@pytest.fixture(scope="session")
def interpreted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The process, and where it writes its results."""
    results = tmp_path_factory.mktemp("interpreted") / "results.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={results}", str(FOLDER)]
    marks = request.config.getoption("markexpr")
    command += ["-m", marks] if marks else []
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    with subprocess.Popen(
        command, env=environment, cwd=FOLDER.parents[3], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        yield process, results
        process.kill()


@pytest.fixture(scope="session", autouse=True)
def started(request: pytest.FixtureRequest) -> None:
    """While the first tests of this folder compile, the interpreter works on the other core."""
    if any("interpreted" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("interpreted")
