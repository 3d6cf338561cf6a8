"""The stage of first contact, as far as it goes without a GPU: its probes are in order, and find what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.device import contact
from bench.device.__main__ import STAGES
from bench.device.contact import PROBES, Contact
from bench.device.findings import FAIL, Notes, read
from tests.backends.cuda.fake_driver import FakeDriver
from tests.backends.cuda.fake_gpu import FakeGpu, with_gpu


def races(gpu: FakeGpu) -> list[str]:
    """What is wrong, but for streams of the primary context: a probe may use them, a lane may not."""
    return [problem for problem in gpu.problems if not problem.endswith("of the primary context")]


@pytest.fixture
def on() -> Iterator[Contact]:
    backend, gpu = with_gpu()
    assert gpu.driver is not None
    yield Contact(gpu, gpu.driver)
    assert races(gpu) == [], "no probe is a race itself"
    backend.close()


def test_it_comes_before_everything_that_needs_several_calls_at_once() -> None:
    names = [stage.name for stage in STAGES]
    assert names.index("contact") < min(names.index(name) for name in ("census", "serving", "conformance", "bench"))
    assert next(stage for stage in STAGES if stage.name == "contact").module == "contact"


def test_partitions_are_disjoint_and_the_whole_is_the_device(on: Contact) -> None:
    driver = on.driver
    assert isinstance(driver, FakeDriver)
    first, second = (driver.sms_of(stream.cuda_stream) for stream in on.streams)
    assert not first & second and len(first) == len(second) == 64
    assert PROBES["the unsplit device as a context"](on) == {"units": 132, "halves": [64, 64]}


def test_a_whole_that_is_not_the_device_fails(on: Contact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "context_units", lambda self, context: 128)
    with pytest.raises(AssertionError, match="128"):
        PROBES["the unsplit device as a context"](on)


def test_what_needs_no_partitions_is_asked_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    """A driver that refuses is one finding, not the end of the stage."""
    backend, gpu = with_gpu()

    def refuse() -> FakeDriver:
        raise TypeError("cuDevSmResourceSplitByCount() takes 5 positional arguments")

    on = contact.first_contact(Notes("contact"), gpu, refuse)
    (found,) = [read(line) for line in capsys.readouterr().out.splitlines()]
    assert found is not None and found.status == FAIL and "takes 5 positional arguments" in found.facts
    assert on.streams[0].cuda_stream != on.streams[1].cuda_stream
    assert "Fake H200" in PROBES["facts of the card"](on)["card"]
    PROBES["events between partitions"](on)
    with pytest.raises(AssertionError, match="no partitions"):
        PROBES["the unsplit device as a context"](on)
    backend.close()


def test_events_order_partitions_and_the_primary_context(on: Contact) -> None:
    """The fake GPU says so if a stream reads what another may still write."""
    PROBES["events between partitions"](on)


def test_events_that_order_nothing_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, gpu = with_gpu()
    assert gpu.driver is not None
    monkeypatch.setattr("tests.backends.cuda.fake_gpu.FakeEvent.wait", lambda self, stream: None)
    PROBES["events between partitions"](Contact(gpu, gpu.driver))
    assert races(gpu)
    backend.close()


def test_facts_without_clocks_fail(on: Contact, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Fake H200" in PROBES["facts of the card"](on)["card"]
    facts = FakeGpu().facts()
    monkeypatch.setattr(FakeGpu, "facts", lambda self: type(facts)("x", "cuda", 132, 1, 1, None, None))
    with pytest.raises(AssertionError, match="clocks"):
        PROBES["facts of the card"](on)


def test_an_error_in_a_thread_is_the_probes() -> None:
    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        contact._in_thread(fails)
