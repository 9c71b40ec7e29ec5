"""A folder of a converted model, written beside its place and put there once it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from services.inference.wav2lip.files import FACE, GENERATOR, GENERATOR_INT8, MANIFEST, PLAIN

__all__ = ["FolderError", "check_place", "new_folder"]

NEEDED_BYTES: Final = 500 << 20
"""of a whole conversion with its ONNX file, with some room"""
NETWORKS: Final = (PLAIN, FACE, GENERATOR, GENERATOR_INT8)
OWN_FILES: Final = frozenset(NETWORKS) | {Path(name).with_suffix(".bin").name for name in NETWORKS} | {MANIFEST}


class FolderError(ValueError):
    """The folder cannot be written there; the text says why and what to do."""


def check_place(target: Path) -> None:
    """See that a converted model may stand there.

    Args:
        target: the folder; it may be there already.

    Raises:
        FolderError: a file, or a folder with other things in it that would be lost; or no room for it.
    """
    if target.exists() and not target.is_dir():
        raise FolderError(f"{target} is a file; give a folder with --out")
    foreign = sorted({path.name for path in target.iterdir()} - OWN_FILES) if target.is_dir() else []
    if foreign:
        raise FolderError(
            f"{target} holds other things than a converted model ({foreign[0]}), which would be lost; "
            "give a folder of its own with --out"
        )
    there = next(parent for parent in target.resolve().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < NEEDED_BYTES:
        raise FolderError(
            f"{target}: {NEEDED_BYTES >> 20} MB are needed while the model is converted, {free >> 20} MB are free; "
            "make room or give another folder with --out"
        )


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `target` in the end, if nothing is raised meanwhile.

    Args:
        target: the folder, one that `check_place` lets pass; what it holds is replaced.

    Raises:
        OSError: it cannot be written; `target` is as it was.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    try:
        draft.chmod(0o755)
        yield draft
        for path in [*draft.iterdir(), draft]:
            _sync(path)
        _put(draft, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _put(draft: Path, target: Path) -> None:
    if not target.exists():
        draft.rename(target)
        return
    aside = draft.with_suffix(".old")
    target.rename(aside)
    try:
        draft.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have it written to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
