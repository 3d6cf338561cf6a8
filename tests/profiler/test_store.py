"""The store: what is appended is read again, whoever else writes, and whatever dies meanwhile."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.errors import OptionError
from spacetime.profiler.records import Environment, Key, Measurement
from spacetime.profiler.store import Store, slug

HERE = Environment("two cores", "cpu", 2, "linux 6.1", (("python", "3.11"), ("torch", "2.13")))
UPDATED = replace(HERE, versions=(("python", "3.11"), ("torch", "2.14")))
KEY = Key("linear(float32[rows, 4])8", 1, 2)


def measured(key: Key = KEY, *samples_us: float, date: str = "2026-01-01") -> Measurement:
    return Measurement(key, "linear", "float32", samples_us or (5.0,), 40, 0.05, 0, "measured", date)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, HERE.device)


def test_an_absent_store_is_empty(store: Store) -> None:
    assert store.read().environments == {} and not store.path.exists()


def test_what_is_appended_is_read(store: Store) -> None:
    other = replace(KEY, units=1)
    store.append(HERE, [measured(), measured(other, 9.0, 9.5)])
    assert store.path.parent.name == "two-cores"
    assert store.read().of(HERE) == {KEY: measured(), other: measured(other, 9.0, 9.5)}


def test_the_latest_counts_and_nothing_is_lost(store: Store) -> None:
    store.append(HERE, [measured(KEY, 5.0)])
    first = store.path.read_bytes()
    store.append(HERE, [measured(KEY, 4.0)])
    assert store.read().of(HERE)[KEY].samples_us == (4.0,)
    assert store.path.read_bytes().startswith(first)


def test_what_is_begun_is_in_a_file_of_its_own(store: Store) -> None:
    store.begun.append(HERE, [measured()])
    assert store.read().environments == {} and store.begun.path.parent == store.path.parent
    store.begun.append(HERE, [measured(KEY, 5.0, 6.0)])
    assert store.begun.read().of(HERE)[KEY].samples_us == (5.0, 6.0)


def test_other_environments_are_stale_until_measured_again(store: Store) -> None:
    store.append(HERE, [measured()])
    assert store.read().of(UPDATED) == {}
    assert store.read().stale(UPDATED) == {KEY: (HERE, measured())}
    assert UPDATED.differences(HERE) == ("torch: 2.14 here, 2.13 there",)
    store.append(UPDATED, [measured(KEY, 3.0)])
    assert store.read().stale(UPDATED) == {} and store.read().of(HERE)[KEY].samples_us == (5.0,)


def test_a_killed_writer_loses_its_line_only(store: Store) -> None:
    store.append(HERE, [measured()])
    whole = store.path.read_bytes()
    store.append(HERE, [measured(replace(KEY, rows=2))])
    store.path.write_bytes(store.path.read_bytes()[:-20])
    assert store.read().of(HERE) == {KEY: measured()} and store.read().num_torn == 1
    third = replace(KEY, rows=3)
    store.append(HERE, [measured(third)])
    contents = store.read()
    assert contents.of(HERE).keys() == {KEY, third} and contents.num_torn == 1
    assert store.path.read_bytes().startswith(whole)


@given(st.integers(0, 400))
def test_a_file_cut_anywhere_is_read(cut: int) -> None:
    lines = [measured(replace(KEY, rows=rows)) for rows in range(1, 4)]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), HERE.device)
        store.append(HERE, lines)
        text = store.path.read_bytes()
        store.path.write_bytes(text[: len(text) - min(cut, len(text) - 200)])
        known = store.read().of(HERE)
        assert list(known.values()) == lines[: len(known)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nonsense", "line 3"),
        ('{"schema":9,"type":"measurement"}', "another version"),
        ('{"schema":1,"type":"measurement","environment":"feed"}', "feed is not described"),
        ('{"schema":1,"type":"environment","id":"x","device":5}', "fields do not match"),
        ('{"schema":1}', "KeyError"),
        ("[1]", "expected an object, found list"),
    ],
)
def test_a_line_that_is_not_ours_is_named(store: Store, line: str, problem: str) -> None:
    store.append(HERE, [measured()])
    with store.path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(OptionError, match=problem) as caught:
        store.read()
    assert "line 3" in str(caught.value)


WRITER = """
import sys
from pathlib import Path
from tests.profiler.test_store import HERE, KEY, Store, measured, replace
store = Store(Path(sys.argv[1]), HERE.device)
for rows in range(50):
    store.append(HERE, [measured(replace(KEY, rows=rows, units=int(sys.argv[2])))])
"""


def test_two_processes_write_at_once(store: Store, tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(units)], cwd=Path(__file__).parents[2])
        for units in (1, 2)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    contents = store.read()
    assert len(contents.of(HERE)) == 100 and contents.num_torn == 0
    lines = [json.loads(line) for line in store.path.read_text().splitlines()]
    assert [line["type"] for line in lines].count("environment") == 1


@pytest.mark.parametrize("room", [0, 100, 700])
def test_a_disk_that_fills_up_takes_nothing_and_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """It takes a part first, and refuses the rest."""
    store.append(HERE, [measured()])
    before, left, write = store.path.read_bytes(), [room], os.write

    def write_some(descriptor: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, data[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", write_some)
    with pytest.raises(OptionError, match="cannot be kept") as refused:
        store.append(HERE, [measured(replace(KEY, rows=rows)) for rows in range(2, 20)])
    assert "No space left on device" in refused.value.facts and "--store" in refused.value.next_step
    assert store.path.read_bytes() == before
    monkeypatch.undo()
    store.append(HERE, [measured(replace(KEY, rows=2))])
    assert len(store.read().of(HERE)) == 2 and store.read().num_torn == 0


def test_slugs() -> None:
    assert slug("Intel(R) Xeon(R) @ 2.0GHz, 2 cores") == "intel-r-xeon-r-2-0ghz-2-cores"
    assert slug("model:h200") == "model-h200"
    assert slug("Réseau_模型 é.v2") == "réseau-模型-é-v2"
    assert slug("///") == "unnamed"
