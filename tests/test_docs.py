"""The README and docs/: their code runs, their commands exist, their links lead somewhere, their tables are whole."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import spacetime as st
from spacetime import errors
from spacetime.cli import main as spacetime_main
from spacetime.cli.profile import main as profile_main
from spacetime.scheduler import registry
from spacetime.scheduler.protocols import Backend
from spacetime.scheduler.registry import policy_names
from tests.cli.commands import run

ROOT = Path(__file__).parents[1]
GENERATED = {ROOT / "docs" / "results.md"}  # written by `make report`, which has tests of its own
HISTORY = {ROOT / "CHANGELOG.md", *ROOT.glob("docs/decisions/*.md")}  # what was, when it was written
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")} - GENERATED)
TODAY = sorted(set(PAGES) - HISTORY)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
QUOTED = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SCRIPTS = {"spacetime": spacetime_main, "spacetime-profile": profile_main}


def pages(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


def blocks(path: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(path.read_text(encoding="utf-8")) if found == language]


def commands(path: Path) -> Iterator[list[str]]:
    """Of blocks, and of the text, where something that looks like a command is quoted."""
    lines = [line for block in blocks(path, "") for line in block.splitlines()]
    lines += QUOTED.findall(BLOCK.sub("", path.read_text(encoding="utf-8")))
    for line in lines:
        words = shlex.split(line, comments=True) if "'" not in line else line.split()
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        if words and (words[0] in SCRIPTS or words[0] == "make" or (words[0].startswith("python") and "-m" in words)):
            yield words


# -- code ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", pages([path for path in PAGES if blocks(path, "python")]))
def test_the_blocks_of_a_page_run_one_after_another(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_policies", dict(registry._policies))  # what a page registers goes with it
    names: dict[str, object] = {"__name__": "__main__"}
    text = path.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        if match[1] == "python":
            first_line = text.count("\n", 0, match.start(2))
            exec(compile("\n" * first_line + match[2], str(path), "exec"), names)
    out, err = capsys.readouterr()
    assert out, "a block prints what it is about"
    assert err == ""


def test_the_page_on_serving_publishes_every_tenant(capsys: pytest.CaptureFixture[str]) -> None:
    """Its metrics are what stats() says: the page's own function, on a runtime of ours."""
    page = ROOT / "docs" / "serving.md"
    (block,) = [block for block in blocks(page, "python") if "def metrics" in block]

    class Books:
        def stats(self) -> dict[str, dict[str, float]]:
            keys = "completed failed rejected cancelled waiting running device_us load peak_bytes p50_us latency_sum_us"
            return {"one": dict.fromkeys(keys.split(), 1.0) | {"waiting": 7.0, "latency_sum_us": 3e6, "p99_us": 2e6}}

    names: dict[str, object] = {"rt": Books()}
    exec(block, names)
    lines = names["metrics"]().splitlines()  # type: ignore[operator]
    assert 'spacetime_requests_waiting{tenant="one"} 7.0' in lines
    assert 'spacetime_latency_seconds_sum{tenant="one"} 3.0' in lines
    assert 'spacetime_latency_seconds_count{tenant="one"} 2.0' in lines
    assert 'spacetime_latency_seconds{tenant="one",quantile="0.99"} 2.0' in lines
    assert all(re.fullmatch(r'[a-z_]+\{(\w+="[^"]*",?)+\} [\d.e+-]+', line) for line in lines)


# -- commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", pages([path for path in TODAY if list(commands(path))]))
def test_every_command_exists_with_its_options(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(path):
        if words[0] == "make":
            for target in (word for word in words[1:] if "=" not in word and word != "TARGET"):
                assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"make {target}"
        elif words[0] in SCRIPTS:
            ended = run(capsys, *words[1:], "--help", entry=SCRIPTS[words[0]])
            assert ended.code == 0, f"{' '.join(words)}: {ended.err}"
        else:
            module = words[words.index("-m") + 1]
            assert find_spec(module), " ".join(words)


def test_a_command_that_does_not_exist_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("Say `spacetime plan --nonesuch`, or\n\n```\nX=1 make nonesuch  # or\n```\n", encoding="utf-8")
    assert list(commands(page)) == [["make", "nonesuch"], ["spacetime", "plan", "--nonesuch"]]
    with pytest.raises(AssertionError, match="--nonesuch"):
        page.write_text("`spacetime plan --nonesuch`", encoding="utf-8")
        test_every_command_exists_with_its_options(page, capsys)


# -- links and tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", pages(PAGES))
def test_links_and_files_that_are_named_are_there(path: Path) -> None:
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    for target in LINK.findall(QUOTED.sub("", text)):
        if not target.startswith(("https://", "http://")):
            name, _, anchor = target.partition("#")
            found = (path.parent / name) if name else path
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target
    if path not in HISTORY:
        for quoted in QUOTED.findall(text):
            if re.fullmatch(r"(spacetime|tests|docs|bench|csrc)/[\w/.-]*", quoted):
                assert (ROOT / quoted).exists(), quoted


def anchors(path: Path) -> set[str]:
    """What GitHub makes of headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_index_names_every_page_and_every_policy() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page
    for name in policy_names():
        assert f"`{name}`" in index or name.startswith("krisp_"), name


def test_the_steps_to_a_backend_name_all_that_it_must_have() -> None:
    steps = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a backend")[2]
    members = {name for name in vars(Backend) if not name.startswith("_")}
    assert len(members) > 5 and members <= set(QUOTED.findall(steps))


def test_the_tree_of_errors_is_told_in_full() -> None:
    told = (errors.__doc__ or "").split()
    assert {name for name in st.__all__ if name.endswith("Error")} <= set(told)
