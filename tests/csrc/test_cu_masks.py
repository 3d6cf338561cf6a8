"""AMD masks: our atoms against the driver's bits, and the streams of csrc/cu_mask_hip.cpp on a fake libamdhip64."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_uint32, c_void_p
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacetime.backends.cu_masks import MAX_STREAMS, SIGNATURES, MaskedStreams, Topology
from spacetime.device import Device, Partition
from spacetime.errors import PartitionError
from spacetime.kernels import native
from spacetime.kernels.native import Library, NativeError
from spacetime.plan import Placement
from spacetime.scheduler.allocation import mask as allocate
from tests.csrc.building import CSRC, HERE, build, compiles

MI50 = Topology(((15, 15, 15, 15),))
MI300X = Topology(((10, 10, 9, 9),) * 8)
NAVI = Topology(((20, 20),), paired=True)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Dies of equal shape whose engines have lost different numbers of CUs."""
    paired, num_dies, num_engines = draw(st.booleans()), draw(st.sampled_from([1, 2, 8])), draw(st.integers(1, 4))
    step = 2 if paired else 1
    alive = st.integers(3, 6).map(lambda atoms: atoms * step)
    engines = st.lists(alive, min_size=num_engines, max_size=num_engines).map(tuple)
    return Topology(tuple(draw(engines) for _ in range(num_dies)), paired)


def driver_masks(topology: Topology, mask: int) -> list[list[int]]:
    """Which CUs of each engine a mask enables: the kernel driver's mqd_symmetrically_map_cu_mask, die by die."""
    engines_of_dies = []
    step = 2 if topology.paired else 1
    for die, alive in enumerate(topology.units):
        engines = [0] * len(alive)
        bit = die * step
        for cu in range(0, 16 * step, step):
            for engine, units in enumerate(alive):
                if units > cu:
                    if mask >> bit & 1:
                        engines[engine] |= (3 if topology.paired else 1) << cu
                    bit += step * len(topology.units)
        engines_of_dies.append(engines)
    return engines_of_dies


@given(topologies(), st.data())
def test_an_atom_is_the_unit_that_the_driver_enables(topology: Topology, data: st.DataObject) -> None:
    """Atom by atom, engine by engine: our numbering against the driver's loop."""
    step = topology.units_per_atom
    places = [
        (die, engine, cu)
        for die, engines in enumerate(topology.units)
        for engine, alive in enumerate(engines)
        for cu in range(0, alive, step)
    ]
    assert len(places) == len(topology.bits) == topology.num_units // step
    chosen = data.draw(st.sets(st.integers(0, len(places) - 1), min_size=1))
    atoms = sum(1 << atom for atom in chosen)
    expected = [[0] * len(engines) for engines in topology.units]
    for atom in chosen:
        die, engine, cu = places[atom]
        expected[die][engine] |= (3 if topology.paired else 1) << cu
    assert driver_masks(topology, topology.mask(atoms)) == expected
    assert topology.atoms(topology.mask(atoms)) == atoms


def test_known_chips() -> None:
    assert (MI50.num_units, MI50.num_groups, MI50.bits[:4], MI50.bits[15:18]) == (60, 4, (0, 4, 8, 12), (1, 5, 9))
    assert MI300X.num_units == 304 and sorted(MI300X.bits) == list(range(304))
    assert [NAVI.mask(1 << atom) for atom in (0, 1, 10)] == [0b11, 0b11 << 4, 0b11 << 2]
    assert MI50.words(1 << 59) == [0, 1 << 27]


@pytest.mark.parametrize(("order", "engines"), [("conserved", 1), ("packed", 1), ("distributed", 4)])
def test_the_schedulers_masks_reach_the_engines_they_mean(order: str, engines: int) -> None:
    device = Device("mi50", "hip", num_units=60, num_groups=MI50.num_groups)
    atoms = allocate(device, (), 8, Placement(order))
    (enabled,) = driver_masks(MI50, MI50.mask(atoms))
    assert sum(engine.bit_count() for engine in enabled) == 8
    assert sum(map(bool, enabled)) == engines


# -- the compiled library -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("native")
    build(CSRC / "cu_mask_hip.cpp", made / "libspacetime_hip.so")
    build(HERE / "fake_hip.cpp", made / "libfake_hip.so")
    return made


@pytest.fixture
def library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setenv(native.VARIABLE, str(folder))
    made = Library("spacetime_hip", "st_hip_error", SIGNATURES)
    made.call("st_hip_open", str(folder / "libfake_hip.so").encode())
    return made


@pytest.fixture
def fake(folder: Path) -> ctypes.CDLL:
    opened = ctypes.CDLL(str(folder / "libfake_hip.so"))
    opened.fake_calls.restype = c_char_p
    opened.fake_reset()
    return opened


def partition(atoms: int) -> Partition:
    return Partition(atoms, atoms.bit_count(), atoms.bit_count())


def test_a_stream_gets_its_mask_and_says_so(library: Library, fake: ctypes.CDLL) -> None:
    streams = MaskedStreams(MI50, library=library)
    wanted = partition(0b11 << 14)  # the last of engine 0 and the first of engine 1
    stream = streams.acquire(wanted)
    mask = MI50.mask(0b11 << 14)
    assert fake.fake_calls().decode() == f"create {stream} {mask & 0xFFFFFFFF} {mask >> 32}\n"
    assert streams.granted_atoms(wanted) == wanted.atoms
    assert streams.acquire(wanted) == stream
    streams.close()
    assert fake.fake_calls().decode().splitlines()[1:] == [f"destroy {stream}"]


def test_the_stream_that_idled_longest_makes_room(library: Library, fake: ctypes.CDLL) -> None:
    streams = MaskedStreams(MI50, library=library)
    handles = [streams.acquire(partition(1 << atom)) for atom in range(MAX_STREAMS)]
    with pytest.raises(PartitionError, match=f"{MAX_STREAMS} masked streams are busy|was asked for"):
        streams.acquire(partition(1 << 20))
    for atom in (3, 5):
        streams.release(partition(1 << atom))
    streams.acquire(partition(1 << 20))
    assert f"destroy {handles[3]}\n" in fake.fake_calls().decode()
    assert f"destroy {handles[5]}\n" not in fake.fake_calls().decode()
    assert streams.acquire(partition(1 << 5)) == handles[5]


@pytest.mark.parametrize("atoms", [0, 1 << 60])
def test_a_mask_off_the_device_is_refused(library: Library, fake: ctypes.CDLL, atoms: int) -> None:
    with pytest.raises(PartitionError, match="was asked for"):
        MaskedStreams(MI50, library=library).acquire(partition(atoms))
    assert fake.fake_calls() == b""


def test_the_library_refuses_an_empty_mask_itself(library: Library, fake: ctypes.CDLL) -> None:
    stream, words = c_void_p(), (c_uint32 * 2)(0, 0)
    with pytest.raises(NativeError, match="would hang the queue"):
        library.call("st_hip_stream_create", 0, words, 2, byref(stream))
    with pytest.raises(NativeError, match=r"hipSetDevice: hipErrorFake \(code 1101\)"):
        library.call("st_hip_stream_create", 5, (c_uint32 * 2)(1, 0), 2, byref(stream))
    assert fake.fake_calls() == b""
    count = c_int()
    library.call("st_hip_device_count", byref(count))
    assert count.value == 1


HIP_CHECKS = """
#define __HIP_PLATFORM_AMD__
#include <hip/hip_runtime_api.h>
#include "hip_abi.h"
#include <type_traits>
template <class R, class... A> constexpr int arity(R (*)(A...)) { return sizeof...(A); }
static_assert(arity(hip::StreamCreateWithCUMask{}) == arity(&hipExtStreamCreateWithCUMask));
static_assert(arity(hip::StreamGetCUMask{}) == arity(&hipExtStreamGetCUMask));
static_assert(hip::kSuccess == hipSuccess && sizeof(hip::Error) == sizeof(hipError_t));
static_assert(sizeof(hip::Stream) == sizeof(hipStream_t));
hipError_t (*create)(hipStream_t*, uint32_t, const uint32_t*) = &hipExtStreamCreateWithCUMask;
hipError_t (*get)(hipStream_t, uint32_t, uint32_t*) = &hipExtStreamGetCUMask;
"""


@pytest.mark.skipif(
    not Path("/usr/include/hip/hip_runtime_api.h").exists(), reason="the headers of HIP are not installed"
)
def test_our_declarations_are_those_of_hip(tmp_path: Path) -> None:
    compiles(HIP_CHECKS, tmp_path, f"-I{CSRC}", "-Wno-unused-result", "-Wno-error")
