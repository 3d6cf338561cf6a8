"""Text files that are there whole or not at all. Used by profiles and by the commands that write about them."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Beside it first. What is no file of its own (a link, /dev/stdout), or in a folder that takes no other, is
    written to, not replaced."""
    exists = path.is_symlink() or path.exists()
    if exists and (path.is_symlink() or not path.is_file() or not os.access(path.parent, os.W_OK)):
        path.write_text(text, encoding="utf-8")
        return
    half_written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half_written.write_text(text, encoding="utf-8")
        half_written.replace(path)
    except BaseException:
        half_written.unlink(missing_ok=True)
        raise
