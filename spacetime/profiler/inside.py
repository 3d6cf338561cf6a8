"""Files that a model names, which may come from a stranger: only those below its folder. The importer of ONNX files and
the kept programs ask it; no torch.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from spacetime.errors import OptionError


def inside(path: Path, name: str, location: str) -> Path:
    """The file at a location below the folder of the model at `path`; a link does not lead out of it either."""
    folder = path.parent.resolve()
    relative = PurePosixPath(location)
    is_outside = relative.is_absolute() or PureWindowsPath(location).is_absolute() or "\\" in location
    is_outside |= ".." in relative.parts or "\0" in location or not location
    file = folder if is_outside else (folder / relative).resolve()
    if is_outside or not file.is_relative_to(folder):
        raise OptionError(
            f"{path}: the external data of {name!r} lie outside the model's folder",
            f"location {location!r}; only files below {folder} are read",
            "put the data file beside the model and save the model with its relative path",
        )
    if not file.is_file():
        raise OptionError(
            f"{path}: the external data of {name!r} are missing",
            f"there is no file {location!r} in {folder}",
            "copy the data file to the model's folder",
        )
    return file
