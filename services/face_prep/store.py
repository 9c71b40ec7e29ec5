r"""Prepared faces on disk, each under its content hash.

A file holds the frames of the `Face` message, so the language of the services is its only format:

    8 bytes   ``MPFACE1\n``
    32 bytes  SHA-256 of all that follows
    then for each frame its length (8 bytes, little-endian) and its bytes
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shared.messages import Face, MessageError, pack, unpack

__all__ = ["FaceStore"]

log = logging.getLogger(__name__)

MAGIC: Final = b"MPFACE1\n"
DIGEST_BYTES: Final = 32
MAX_FILE_BYTES: Final = 96 * 1024 * 1024
"""A face has at most 4096 x 4096 pixels of four bytes, landmarks and a header."""
MAX_FRAMES: Final = 16
MAX_DAMAGED: Final = 8
"""Damaged files kept for a look; older ones are deleted."""
TRY_S: Final = 600.0
"""after which a preparation that never ended is forgotten: the program may be another one by then"""
SUFFIX, DAMAGED, UNFINISHED, TRIED = ".face", ".damaged", ".part", ".tried"
ID: Final = re.compile(r"[0-9a-f]{8,64}")


class FaceStore:
    """Keeps faces in a folder that only its owner may read. The least recently used leave when there are too many.

    One process owns a folder.
    """

    def __init__(self, folder: Path, max_faces: int = 200) -> None:
        """Open or make the folder; what a crash left half written is removed.

        Args:
            folder: where; its parents are made too.
            max_faces: most faces kept.

        Raises:
            OSError: the folder cannot be made or written.
        """
        if max_faces < 1:
            raise ValueError(f"max_faces is {max_faces}, must be at least 1")
        self._folder = folder
        self._max_faces = max_faces
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        for unfinished in folder.glob(f"*{UNFINISHED}"):
            unfinished.unlink(missing_ok=True)
        for tried in folder.glob(f"*{TRIED}"):
            if time.time() - tried.stat().st_mtime > TRY_S:
                tried.unlink(missing_ok=True)

    def begin(self, face_id: str) -> int:
        """Note that a face is about to be made, so that a photo which ends the process is known when it is back.

        Returns:
            how often its making was begun before and not `finish`ed, of late.

        Raises:
            ValueError: its id is not 8 to 64 hex digits.
            OSError: the disk is full or cannot be written.
        """
        path = self._path(face_id).with_suffix(TRIED)
        before = path.stat().st_size if path.exists() else 0  # a byte for each time
        path.touch(mode=0o600)
        with path.open("ab") as file:
            file.write(b".")
        return before

    def finish(self, face_id: str) -> None:
        """Note that the making of a face came to an end, whether it was made or not."""
        self._path(face_id).with_suffix(TRIED).unlink(missing_ok=True)

    def save(self, face: Face) -> None:
        """Write a face; when this returns it survives a loss of power.

        Raises:
            ValueError: its id is not 8 to 64 hex digits, or its arrays are not as the language says.
            OSError: the disk is full or cannot be written; nothing half-written stays.
        """
        path = self._path(face.face)
        frames = pack(face)
        parts = [part for frame in frames for part in (struct.pack("<Q", len(frame)), frame)]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=face.face, suffix=UNFINISHED)
        unfinished = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(MAGIC + digest.digest())
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        self._sync_folder()
        self._trim(SUFFIX, self._max_faces)

    def load(self, face_id: str) -> Face | None:
        """Read a face and count that as use.

        A file that is damaged or of another version is set aside under another name and logged.

        Returns:
            the face, or None when it is not there or no id of a face.

        Raises:
            OSError: the disk cannot be read.
        """
        if ID.fullmatch(face_id) is None:
            return None
        path = self._path(face_id)
        try:
            face = _read(path, face_id)
        except FileNotFoundError:
            return None
        except MessageError as error:
            log.warning("stored face %s is damaged and set aside: %s", face_id, error)
            with contextlib.suppress(FileNotFoundError):
                path.replace(path.with_suffix(DAMAGED))
            self._trim(DAMAGED, MAX_DAMAGED)
            return None
        with contextlib.suppress(FileNotFoundError):  # removed since: the face is in hand all the same
            os.utime(path)
        return face

    def delete(self, face_id: str) -> bool:
        """Delete a face, what was set aside of it too.

        Returns:
            whether there was one.

        Raises:
            OSError: the disk cannot be written.
        """
        if ID.fullmatch(face_id) is None:
            return False
        path = self._path(face_id)
        path.with_suffix(DAMAGED).unlink(missing_ok=True)
        path.with_suffix(TRIED).unlink(missing_ok=True)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        self._sync_folder()
        return True

    def _path(self, face_id: str) -> Path:
        if ID.fullmatch(face_id) is None:
            raise ValueError(f"{face_id!r} is no id of a face: 8 to 64 hex digits")
        return self._folder / f"{face_id}{SUFFIX}"

    def _oldest_first(self, suffix: str) -> Sequence[Path]:
        aged: list[tuple[int, str, Path]] = []
        for path in self._folder.glob(f"*{suffix}"):
            with contextlib.suppress(FileNotFoundError):
                aged.append((path.stat().st_mtime_ns, path.name, path))
        return [path for _, _, path in sorted(aged)]

    def _trim(self, suffix: str, most: int) -> None:
        for path in self._oldest_first(suffix)[:-most]:
            path.unlink(missing_ok=True)

    def _sync_folder(self) -> None:
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(handle)  # the new name itself
        finally:
            os.close(handle)

    def list(self) -> list[str]:
        """Ids of the faces kept, the most recently used first."""
        return [path.stem for path in reversed(self._oldest_first(SUFFIX)) if ID.fullmatch(path.stem)]


def _read(path: Path, face_id: str) -> Face:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise MessageError(f"it has more than {MAX_FILE_BYTES} bytes")
    data = path.read_bytes()
    start = len(MAGIC) + DIGEST_BYTES
    if not data.startswith(MAGIC) or len(data) < start:
        raise MessageError("it is no file of this store")
    view = memoryview(data)
    if hashlib.sha256(view[start:]).digest() != data[len(MAGIC) : start]:
        raise MessageError("its checksum is wrong")
    frames: list[bytes] = []
    at = start
    while at < len(data):
        if len(frames) == MAX_FRAMES or at + 8 > len(data):
            raise MessageError("its frames make no sense")
        (length,) = struct.unpack_from("<Q", data, at)
        if length > len(data) - at - 8:
            raise MessageError("its frames make no sense")
        frames.append(bytes(view[at + 8 : at + 8 + length]))
        at += 8 + length
    message = unpack(frames, (Face,))
    if not isinstance(message, Face) or message.face != face_id:
        raise MessageError("it holds another face than its name says")
    return message
