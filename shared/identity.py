"""Content hashes: under what name a photo and the face made of it are known to all services."""

from __future__ import annotations

import hashlib

__all__ = ["face_id"]


def face_id(data: bytes, index: int = 0, box: tuple[int, int, int, int] | None = None) -> str:
    """Name the face that is made of a photo with certain choices.

    Args:
        data: the bytes of the file.
        index: which face, largest first; of no meaning when a box is given.
        box: x1, y1, x2, y2 given by hand, px; None when the face is searched.

    Returns:
        32 hexadecimal digits of a SHA-256. The leading word changes when faces come to be prepared otherwise, so that
        stored ones are made anew.
    """
    choice = f"index={index}" if box is None else "box=" + ",".join(str(int(edge)) for edge in box)
    digest = hashlib.sha256(f"mouthpiece face 1|{choice}|".encode())
    digest.update(data)
    return digest.hexdigest()[:32]
