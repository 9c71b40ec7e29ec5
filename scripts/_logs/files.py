"""Log files that are written on and turned over while they are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from scripts._logs.lines import Reader, stamp

__all__ = ["Tail", "logs_in"]


class Tail:
    """One log with those before it (`x.log.2`, `x.log.1`, `x.log`), read in order, however often it is turned over.

    A log is turned over by renaming: `x.log.1` becomes `x.log.2`, `x.log` becomes `x.log.1`, and a new `x.log` begins.
    The file that is open stays the same one through that; the next is the one that has the place after it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._number = (0, 0)
        """device and inode of the file that is open"""
        self._begun = b""
        self.given = 0
        """lines"""
        chain = self._chain()
        at = stamp(datetime.fromtimestamp(chain[0][1]).astimezone()) if chain else ""
        self.reader = Reader(path.name.removesuffix(".log"), at)

    def lines(self) -> Iterator[str]:
        """All whole lines that are there and were not given yet."""
        while True:
            if self._file is not None:
                yield from self._rest(self._file)
            chain = [number for number, _ in self._chain()]
            if not chain or chain[-1] == self._number:
                return
            if self._file is not None:
                yield from self._rest(self._file)  # what was written between the last look and the turning over
                self._file.close()
            # One that is gone was the oldest or older: all that are there are new.
            known = self._number in chain
            if not known:
                self._begun = b""  # the end of that line is gone
            if not self._open(chain[chain.index(self._number) + 1] if known else chain[0]):
                return  # it was turned over just now; the next call finds it

    def _rest(self, file: BinaryIO) -> Iterator[str]:
        if os.fstat(file.fileno()).st_size < file.tell():
            file.seek(0)  # it was cut
        while piece := file.readline():
            self._begun += piece
            if self._begun.endswith(b"\n"):  # a log may be turned over in the middle of a line
                line, self._begun = self._begun[:-1].decode(errors="replace"), b""
                self.given += 1
                yield line

    def _chain(self) -> list[tuple[tuple[int, int], float]]:
        """Device and inode, and time of the last change, of all files of this log that have something; oldest first."""
        found: list[tuple[tuple[int, int], float]] = []
        # From the newest on: one that is renamed meanwhile is seen twice, none is missed.
        for path in (self._path, *sorted(self._path.parent.glob(f"{self._path.name}.[0-9]*"), key=_place)):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            key = (status.st_dev, status.st_ino)
            if key not in [number for number, _ in found]:
                found.append((key, status.st_mtime))
        return found[::-1]

    def _open(self, number: tuple[int, int]) -> bool:
        for path in (self._path, *sorted(self._path.parent.glob(f"{self._path.name}.[0-9]*"), key=_place)):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) == number:
                self._file, self._number = file, number
                return True
            file.close()
        return False

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()


def _place(path: Path) -> int:
    digits = path.name.rpartition(".")[2]
    return int(digits) if digits.isdecimal() else 0


def logs_in(folder: Path) -> list[Path]:
    """The logs of a folder, without those that were turned over, in the order in which to read them.

    They are written on meanwhile. The streamer's, where a frame ends, is first: what passed there was told by every
    other service earlier, and is found in the logs that are read after it.
    """
    return sorted(folder.glob("*.log"), key=lambda path: (not path.name.startswith("streamer"), path.name))
