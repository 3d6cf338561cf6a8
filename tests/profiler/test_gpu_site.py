"""The GPU's site on a fake GPU with planted times: what is measured where, and what is said when it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spacetime as st
from spacetime.backends.cuda.gpu import unusable
from spacetime.device import Device
from spacetime.errors import OptionError, PartitionError
from spacetime.ir import Program
from spacetime.profiler import run as running
from spacetime.profiler.campaign import Campaign, Progress, subjects_of
from spacetime.profiler.curves import Point, find_knee
from spacetime.profiler.environment import cpu_environment, environment_of, gpu_driver, gpu_environment
from spacetime.profiler.gpu_site import LONGEST_WAIT_US, sizes_of
from spacetime.profiler.measure import Effort, time_on_sizes
from spacetime.profiler.run import conduct
from spacetime.profiler.site import Call, Sample, Site
from spacetime.profiler.store import Store
from tests.backends.cuda.fake_gpu import fake_backend
from tests.backends.cuda.lanes import is_handed_on
from tests.profiler.fake_clock import OLD, READING_US, ClockedSite, knee_at
from tests.profiler.fakes import program

SIZES = (*range(8, 121, 8), 132)
KNEES = {8: 24, 16: 64, 32: 132}  # of the kernels of PROGRAM, by width
PROGRAM = program(8, 16, 8, 32)


def never() -> bool:
    return False


class Laws:
    """A program whose kernels have a knee each."""

    has_code, wholes = False, ()

    def __init__(self, site: ClockedSite, described: Program) -> None:
        self.site = site
        widths = [kernel.inputs[1].shape[0] for kernel in described.kernels]
        self.calls = [site.kernel(knee_at(KNEES[int(str(width))])) for width in widths]

    def kernels(self, rows: int) -> Iterator[tuple[int, Call]]:
        yield from enumerate(self.calls)

    def time(self, rows: int, site: Site) -> Any:
        def once(now: Any, interruptions: Any, read: Any) -> None:
            for index, call in enumerate(self.calls):
                start = now()
                call()
                read((index, start, now(), None))
                site.gpu.work(2.0)  # type: ignore[attr-defined]

        return site.time_run(once, len(self.calls))


def campaign(folder: Path, site: ClockedSite, cache: str = "run", **changes: Any) -> Campaign:
    settings: dict[str, Any] = {
        "program": PROGRAM,
        "rows": (1,),
        "sizes": site.sizes,
        "exact": False,
        "tolerance": 0.05,
        "effort": Effort(),
        "progress": lambda _: None,
        "stopped": never,
        "store": Store(folder, site.environment.device),
        **changes,
    }
    made = Campaign(site=site, cache=cache, **settings)
    made.known |= made.store.read().of(site.environment)
    return made


# -- where -------------------------------------------------------------------------------------------------


def test_the_sizes_are_the_partitions_of_the_driver_and_the_whole_with_its_remainder() -> None:
    site = ClockedSite()
    assert site.sizes == SIZES
    with site:
        for units in SIZES:
            site.confine(units)
            assert site.gpu.units == units
    assert site.gpu.problems == []


def test_the_partitions_are_closed_behind_it() -> None:
    site = ClockedSite()
    driver = site.gpu.driver
    assert driver is not None and driver.contexts
    with site:
        pass
    assert is_handed_on(site.gpu)


def test_a_partition_that_is_not_what_was_asked_for_is_no_size() -> None:
    site = ClockedSite()
    with site, pytest.raises(PartitionError, match="partition of 24 units") as caught:
        site._partition_of[24] = replace(site._partition_of[24], atoms=0b1)
        site.confine(24)
    assert "8 were granted" in str(caught.value)


def test_sizes_of_a_device_without_a_remainder() -> None:
    assert [each.granted_units for each in sizes_of(Device("d", "cuda", 24, 8))] == [8, 16, 24]
    assert [each.granted_units for each in sizes_of(Device("d", "cuda", 132, 132))] == [132]


# -- how long ----------------------------------------------------------------------------------------------


def test_a_kernel_shorter_than_its_launch_is_timed_without_it() -> None:
    """2 us on the device, 5 us to launch: a host that does not get ahead would see 5."""
    with ClockedSite() as site:
        call = site.kernel(lambda units: 2.0)
        site.sample(call, 40)
        assert site.sample(call, 40) == Sample(pytest.approx(2.0), False)  # type: ignore[arg-type]


def test_a_host_that_did_not_get_ahead_is_told_and_waits_longer_next_time() -> None:
    with ClockedSite() as site:
        call = site.kernel(lambda units: 2.0)
        first = site.sample(call, 40)
        assert first.disturbed and first.us > 3.0
        assert site.timer.waits_us[-1] < 40 * 5.0
        assert not site.sample(call, 40).disturbed
        assert site.timer.waits_us[-1] >= 40 * 5.0


def test_work_that_waits_for_the_device_is_measured_all_the_same() -> None:
    """As an operation does that brings a number to the host: the host is never ahead, and waits have an end."""
    with ClockedSite() as site:

        def call() -> None:
            site.gpu.work(30.0)
            site.timer.mark().synchronize()

        taken = time_on_sizes(site, call, (132,), Effort(), cold=False, stopped=never)[132]
        assert taken.num_disturbed == 0 and taken.samples_us and min(taken.samples_us) >= 30.0
        assert max(site.timer.waits_us) <= LONGEST_WAIT_US
        num_waits = len(site.timer.waits_us)
        site.sample(call, 1)
        assert len(site.timer.waits_us) == num_waits, "it is no use, and no longer done"


def test_only_the_first_sample_of_a_call_is_disturbed() -> None:
    """Sizes take turns, and each begins with a single call that is not counted."""
    with ClockedSite() as site:
        call = site.kernel(lambda units: 2.0)
        taken = time_on_sizes(site, call, (8, 64, 132), Effort(), cold=False, stopped=never)
    assert [len(each.disturbed_us) for each in taken.values()] == [1, 0, 0]


def test_what_launches_nothing_takes_next_to_nothing_but_not_nothing() -> None:
    with ClockedSite() as site:
        assert 0 < site.sample(lambda: None, 1).us < 0.1


@pytest.mark.parametrize("cold", [False, True])
def test_knees_are_found_on_partitions(cold: bool) -> None:
    with ClockedSite() as site:
        call = site.kernel(knee_at(64))
        taken = time_on_sizes(site, call, SIZES, Effort(budget_s=1e3), cold=cold, stopped=never)
    knee = find_knee([Point(units, each.samples_us) for units, each in taken.items()])
    assert (knee.units, knee.best_us) == (64, pytest.approx(20.0))
    swept = sum(name == "aten.add_" for _, name in site.gpu.ran)
    assert (swept > 0) == cold
    assert site.gpu.problems == []


def test_a_run_has_every_kernel_and_what_lies_between() -> None:
    with ClockedSite() as site:
        run = Laws(site, PROGRAM)
        for _ in range(2):
            samples = run.time(1, site)
    assert [round(sample.us, 6) for sample in samples[:-1]] == [20.0] * 4
    assert samples[-1].us == pytest.approx(4 * 2.0)
    assert not any(sample.disturbed for sample in samples)
    assert site.reading_us == pytest.approx(READING_US)


# -- whole campaigns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["run", "warm", "cold"])
def test_planted_knees_are_found(tmp_path: Path, cache: str) -> None:
    site = ClockedSite()
    made = campaign(tmp_path, site, cache)
    _, found = conduct(made, Laws(site, PROGRAM), lambda _: None)
    for subject, units in zip(subjects_of(PROGRAM, with_between=False), KNEES.values(), strict=True):
        points = [each.point for each in found if each.key.kernel == subject.key]
        knee = find_knee(points)
        assert knee.units == units, subject
        assert knee.best_us == pytest.approx(20.0)
        assert len(points) < len(SIZES), "few points will do"
    assert site.gpu.problems == []


@pytest.mark.parametrize("cache", ["run", "warm"])
def test_an_interrupted_profile_is_resumed(tmp_path: Path, cache: str) -> None:
    def interrupt(report: Progress) -> None:
        raise KeyboardInterrupt

    site = ClockedSite()
    with pytest.raises(KeyboardInterrupt):
        conduct(campaign(tmp_path, site, cache), Laws(site, PROGRAM), interrupt)
    resumed = ClockedSite()
    made = campaign(tmp_path, resumed, cache)
    kept = set(made.known)
    reports: list[Progress] = []
    _, found = conduct(made, Laws(resumed, PROGRAM), reports.append)
    assert kept & {each.key for each in found} and reports[-1].num_known >= 1
    again = ClockedSite()
    made = campaign(tmp_path, again, cache)
    assert conduct(made, Laws(again, PROGRAM), lambda _: None)[1] == found
    assert not again.timer.waits_us or max(again.timer.waits_us) == again.timer.waits_us[0], "nothing was timed"


def test_without_partitions_only_the_whole_is_measured_and_the_environment_says_why(tmp_path: Path) -> None:
    site = ClockedSite(partitions=False)
    made = campaign(tmp_path, site)
    _, found = conduct(made, Laws(site, PROGRAM), lambda _: None)
    assert site.sizes == (132,) and {each.key.units for each in found} == {132}
    assert site.environment.unconfined == f"this driver has no green contexts: {OLD}"
    assert ClockedSite().environment.unconfined == ""
    assert site.gpu.problems == []


def test_the_public_profile_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of it but the device: real operations under the fake's streams, which finds races."""
    sites = [ClockedSite(), ClockedSite(partitions=False)]
    made = iter(sites)
    monkeypatch.setattr(running, "make_site", lambda device: next(made))
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    captured = st.capture(module, (torch.ones(2, 6),))
    found = st.profile(captured, "cuda:0", rows=(1, 3), store=tmp_path, budget_s=1e-4)
    assert found.device == "Fake H200 (cuda:0)" and found.method == "measured" and found.all_rows == (1, 3)
    assert found.environment.kind == "cuda" and found.total.best_units == 132
    assert found.environment.unconfined == ""
    whole = st.profile(captured, "cuda:0", store=tmp_path, budget_s=1e-4)
    assert [point.units for point in whole.total_points] == [132] and whole.environment.unconfined
    assert [problem for site in sites for problem in site.gpu.problems] == []


def test_units_that_are_no_partition_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(running, "make_site", lambda device: ClockedSite())
    captured = st.capture(nn.Linear(3, 3).eval(), (torch.ones(2, 3),))
    with pytest.raises(OptionError, match="cannot be profiled on 12 units"):
        st.profile(captured, "cuda:0", units=(12,), store=tmp_path)


@pytest.mark.skipif(unusable("cuda") is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    captured = st.capture(nn.Linear(3, 3).eval(), (torch.ones(2, 3),))
    with pytest.raises(OptionError) as caught:
        st.profile(captured, "cuda:0", store=tmp_path)
    assert caught.value.what == "device 'cuda:0' cannot be used"
    assert caught.value.facts and "device='cpu'" in caught.value.next_step
    assert list(tmp_path.iterdir()) == []


# -- the environment -----------------------------------------------------------------------------------------

H200 = Device("NVIDIA H200 (cuda:0)", "cuda", 132, 8)


def test_a_gpus_environment_is_its_device_its_partitions_and_its_libraries() -> None:
    here = gpu_environment(H200, "")
    facts = dict(here.versions)
    assert (here.device, here.kind, here.num_units) == (H200.name, "cuda", 132)
    assert facts["partitions"] == "16 atoms of 8 units" and facts["torch"] == torch.__version__
    assert "an empty pair" in facts["timing"] and {"CUDA", "cuDNN", "float32 products"} <= facts.keys()
    (difference,) = here.differences(gpu_environment(replace(H200, units_per_atom=2), ""))
    assert difference == "partitions: 16 atoms of 8 units here, 66 atoms of 2 units there"


def test_the_environment_of_a_backend_is_that_of_its_site() -> None:
    site = ClockedSite()
    device = Device("Fake H200 (cuda:0)", "cuda", 132, 8)
    assert environment_of(device) == site.environment
    assert environment_of(device, "no driver") != site.environment
    assert environment_of(Device("any cpu", "cpu", 2)) == cpu_environment()


def test_a_runtime_takes_the_profile_of_its_own_device_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = iter([ClockedSite(), ClockedSite(partitions=False)])
    monkeypatch.setattr(running, "make_site", lambda device: next(made))
    module, example = nn.Linear(4, 3).eval(), (torch.ones(2, 4),)
    captured = st.capture(module, example)
    confined, unconfined = (st.profile(captured, "cuda:0", store=tmp_path, budget_s=1e-4) for _ in range(2))
    with st.Runtime(fake_backend(), profile=confined) as runtime:
        assert torch.allclose(runtime.add(module, example, "t")(*example), module(*example), atol=1e-5)
    with st.Runtime(fake_backend(partitions=False), profile=unconfined):
        pass
    for backend, profile in ((fake_backend(), unconfined), ("cpu", confined)):
        with pytest.raises(OptionError, match="not of this machine"):
            st.Runtime(backend, profile=profile)
        if not isinstance(backend, str):
            backend.close()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build  (dvs)", "580.159.03"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        ("something else", "of an unknown version"),
    ],
)
def test_the_drivers_version_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, version: str) -> None:
    file = tmp_path / "version"
    file.write_text(text, encoding="utf-8")
    monkeypatch.setattr("spacetime.profiler.environment._NVIDIA_DRIVER", file)
    assert gpu_driver("cuda") == f"nvidia {version}"
