"""Write the profiles that come with the project: the zoo with one row, JSON only. `make profiles`.

python -m bench.shipped                              profiles/<device>/<model>-<signature>.profile.json, modelled
python -m bench.shipped --device mi50 --model mlp    only these; what else is in the folder stays
python -m bench.shipped --device cpu                 measured here: three minutes of a machine with nothing else to do
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import spacetime as st
from bench.provenance import REPOSITORY
from spacetime import zoo
from spacetime.ir import Program
from spacetime.profiler.store import slug
from spacetime.zoo.registry import ZOO

FOLDER = REPOSITORY / "profiles"
MODELLED = ("h200", "mi50")
MEASURED = ("cpu", "cuda:0")
BUDGET_S = 0.5  # per kernel
SUFFIX = ".profile.json"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bench.shipped", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", action="append", choices=(*MODELLED, *MEASURED))
    parser.add_argument("--model", action="append", choices=list(ZOO), metavar="MODEL", help=", ".join(ZOO))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    for path, what in ship(options.folder, options.model or list(ZOO), options.device or MODELLED):
        print(f"{what:<9} {path}", flush=True)
    return 0


def ship(folder: Path, models: Sequence[str], devices: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Every file with "written", "unchanged" or "removed": one that is of the model as it used to be."""
    for model in models:
        program = st.capture(zoo.build(model), zoo.example(model))
        for device in devices:
            path, what = _write(folder, model, program, device)
            yield path, what
            for other in sorted(path.parent.glob(f"{model}-*{SUFFIX}")):
                if model_of(other) == model and other != path:
                    other.unlink()
                    yield other, "removed"


def model_of(path: Path) -> str:
    """
    >>> model_of(Path("profiles/model-h200/gru_cell-0123abcd.profile.json"))
    'gru_cell'
    """
    return path.name.removesuffix(SUFFIX).rpartition("-")[0]


def _write(folder: Path, model: str, program: Program, device: str) -> tuple[Path, str]:
    """A file that only had another date stays as it is."""
    found = _profile(program, device)
    path = folder / slug(found.device) / f"{model}-{program.signature[:8]}{SUFFIX}"
    if path.exists() and _undated(st.Profile.load(path)) == _undated(found):
        return path, "unchanged"
    found.save(path)
    return path, "written"


def _profile(program: Program, device: str) -> st.Profile:
    if device in MODELLED:
        return st.profile(program, f"model:{device}", rows=(1,))
    with tempfile.TemporaryDirectory() as store:  # what is shipped was measured in one go
        return st.profile(program, device, rows=(1,), store=store, budget_s=BUDGET_S)


def _undated(profile: st.Profile) -> st.Profile:
    return replace(profile, measurements=tuple(replace(each, date="") for each in profile.measurements))


if __name__ == "__main__":
    sys.exit(main())
