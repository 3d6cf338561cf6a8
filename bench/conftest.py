"""`pytest bench/`: the sides of the suite as pytest-benchmark cases, with its JSON and --benchmark-compare."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from bench.__main__ import device_of
from bench.provenance import collect


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="auto", help="Where the benchmarks run: auto, cpu or cuda:N.")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return device_of(request.config.getoption("--device"))


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Not into the machine's facts: those of two runs must be equal to be compared, and this has a date."""
    output_json["provenance"] = asdict(collect(device_of(config.getoption("--device"))))
