"""Kept programs: what is read is what was written for this model, or it is a miss that says why."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.errors import OptionError
from spacetime.profiler import programs
from spacetime.profiler.programs import MOST_KEPT, Beside, KeptProgram, Programs, Surroundings
from tests.profiler.fakes import program

KEPT = KeptProgram(program(8, 16), (), Surroundings(True, ((0, 1),)), (("torch", "2.13"),))
IDENTITY, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def kept(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def test_what_was_kept_is_found_and_nothing_else(kept: Programs) -> None:
    assert kept.find(IDENTITY) is None
    kept.keep(IDENTITY, KEPT)
    assert kept.find(IDENTITY) == KEPT and kept.find(OTHER) is None
    changed = replace(KEPT, surroundings=None)
    kept.keep(IDENTITY, changed)
    assert kept.find(IDENTITY) == changed, "the last one counts"
    assert [path.name for path in kept.folder.iterdir()] == [f"{IDENTITY}.json"]


def file_of(folder: Path) -> Path:
    Programs(folder).keep(IDENTITY, KEPT)
    return folder / "programs" / f"{IDENTITY}.json"


def refused(folder: Path, identity: str = IDENTITY) -> OptionError:
    with pytest.raises(OptionError, match="cannot be used") as caught:
        Programs(folder).find(identity)
    assert caught.value.facts and caught.value.next_step
    return caught.value


@given(data=st.data())
def test_any_damage_is_noticed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = file_of(Path(name))
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] ^= data.draw(st.integers(1, 255))
        else:
            del content[place:]
        path.write_bytes(content)
        refused(Path(name))


def test_a_program_of_something_else_is_not_taken(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    path.rename(path.with_name(f"{OTHER}.json"))
    assert "something else" in refused(tmp_path, OTHER).facts


@pytest.mark.parametrize("body", ["[]", "{}", '{"program": 1}', "[" * 100_000, "no JSON"])
def test_what_is_whole_but_no_program_is_not_taken(tmp_path: Path, body: str) -> None:
    """By another version, or by hand."""
    path = file_of(tmp_path)
    path.write_bytes(programs._head(IDENTITY, body.encode()) + b"\n" + body.encode())
    refused(tmp_path)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "programs" / f"{IDENTITY}.json").mkdir(parents=True)
    assert "directory" in refused(tmp_path).facts


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "programs").write_text("a file", encoding="utf-8")
    assert Programs(tmp_path).find(IDENTITY) is None
    with pytest.raises(OptionError, match="cannot be kept in"):
        Programs(tmp_path).keep(IDENTITY, KEPT)


def test_those_not_used_for_longest_make_room(kept: Programs) -> None:
    identities = [f"{index:064}" for index in range(MOST_KEPT)]
    for index, identity in enumerate(identities):
        kept.keep(identity, KEPT)
        os.utime(kept.folder / f"{identity}.json", (index, index))
    (kept.folder / f".{OTHER}.json.4711").write_text("half of it", encoding="utf-8")  # its writer was killed
    os.utime(kept.folder / f".{OTHER}.json.4711", (0.5, 0.5))
    assert kept.find(identities[0]) == KEPT, "used now"
    kept.keep(IDENTITY, KEPT)
    left = {path.stem for path in kept.folder.iterdir()}
    assert left == {identities[0], *identities[2:], IDENTITY}


def test_writers_in_two_processes_leave_one_whole_program(tmp_path: Path) -> None:
    lines = """
import sys
from pathlib import Path
from spacetime.profiler.programs import KeptProgram, Programs
folder, identity, kept = sys.argv[1:]
for _ in range(30):
    Programs(Path(folder)).keep(identity, KeptProgram.from_json(kept))
"""
    command = [sys.executable, "-c", lines, str(tmp_path), IDENTITY, KEPT.to_json()]
    writers = [subprocess.Popen(command) for _ in range(2)]
    kept = Programs(tmp_path)
    while any(writer.poll() is None for writer in writers):
        assert kept.find(IDENTITY) in (None, KEPT)
        time.sleep(0.002)  # the writers need the cores, too
    assert [writer.returncode for writer in writers] == [0, 0]
    assert kept.find(IDENTITY) == KEPT and len(list(kept.folder.iterdir())) == 1


# -- files that the model names --------------------------------------------------------------------------------------


def test_a_program_fits_only_beside_the_files_it_was_captured_from(tmp_path: Path) -> None:
    model, data = tmp_path / "folder" / "model.onnx", tmp_path / "folder" / "model.data"
    data.parent.mkdir()
    data.write_bytes(b"weights")
    beside = tuple(Beside.of(model, location) for location in ("model.data", "unread.data"))
    found = replace(KEPT, beside=beside)
    assert found.fits(model)
    state = data.stat()
    data.write_bytes(b"WEIGHTS")
    os.utime(data, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not found.fits(model), "of the same size and date"
    data.write_bytes(b"weights")
    (data.parent / "unread.data").write_bytes(b"")
    assert not found.fits(model), "what was not there is there"
    (data.parent / "unread.data").unlink()
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    assert not found.fits(model), "nothing outside the folder is read"
