"""The kernels in Triton's interpreter against float64, with planted bugs: runs the tests of interpreted/."""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("triton")

# So that a collection that finds nothing cannot pass.
FEWEST = {
    "test_kernels": 51,
    "test_planted_bugs": 34,
    "test_fused": 20,
    "test_merged": 22,
    "test_products": 9,
    "test_shared": 14,
}


@pytest.mark.timeout(600)  # a bound, not a measure: it shares its cores with other tests
def test_the_interpreted_tests_pass(interpreted: tuple[subprocess.Popen[str], Path]) -> None:
    process, results = interpreted
    output, _ = process.communicate(timeout=580)
    assert process.returncode == 0, output[-8000:]
    passed = [case.get("classname", "").rpartition(".")[2] for case in ElementTree.parse(results).iter("testcase")]
    for name, fewest in FEWEST.items():
        assert passed.count(name) >= fewest, output
