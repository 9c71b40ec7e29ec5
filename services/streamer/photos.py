"""Photos on their way to becoming faces."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from shared.identity import face_id
from shared.messages import Face, FaceProblem, Photo

__all__ = ["Photos"]

PATIENCE_S: Final = 8.0
"""how long a face is waited for whose photo is not here any more"""
MOST: Final = 4
"""photos kept, so that another face of one can be chosen"""


class Photos:
    """Keeps the newest photos until their faces are made; knows the state of the one that is wanted."""

    def __init__(self, demo: Path) -> None:
        data = demo.read_bytes()
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise ValueError(f"{demo} is no picture; run scripts/make_demo_face")
        self.demo_picture: npt.NDArray[np.uint8] = picture.astype(np.uint8)
        self.demo_id = face_id(data)
        self._photos: OrderedDict[str, Photo] = OrderedDict()
        self.wanted = self.demo_id
        self._wanted_s: float | None = None
        self.state: Literal["ready", "preparing", "problem"] = "preparing"
        self.text = ""
        self.faces = 1
        self.index = 0
        self._keep(self.demo_id, data, 0, None)
        self._demo = self._photos.pop(self.demo_id)

    def _keep(self, face: str, data: bytes, index: int, box: tuple[int, int, int, int] | None) -> None:
        self._photos[face] = Photo(face=face, index=index, box=box, data=np.frombuffer(data, np.uint8))
        self._photos.move_to_end(face)
        while len(self._photos) > MOST:
            self._photos.popitem(last=False)

    def add(self, data: bytes, index: int = 0, box: tuple[int, int, int, int] | None = None) -> str:
        """Keep a photo; gives the id of the face that will be made of it."""
        face = face_id(data, index, box)
        self._keep(face, data, index, box)
        return face

    def other(self, index: int) -> str | None:
        """The id of another face of the photo that is shown; None when its photo is not here."""
        photo = self._photos.get(self.wanted) or (self._demo if self.wanted == self.demo_id else None)
        if photo is None:
            return None
        return self.add(photo.data.tobytes(), index)

    def want(self, face: str) -> None:
        """Name the face to show when it is there."""
        self.wanted = face
        self._wanted_s = None
        self.state, self.text = "preparing", "The face is being prepared."

    def clear(self) -> str:
        """Forget all photos; the demo face is wanted again."""
        self._photos.clear()
        return self.demo_id

    def answered(self, answer: Face | FaceProblem) -> str | None:
        """Take what face_prep says.

        Returns:
            the id of the face that is wanted, if this answer brought it.
        """
        if answer.face != self.wanted:
            return None
        if isinstance(answer, FaceProblem):
            self.state, self.text = "problem", answer.text
            return None
        self.faces, self.index = len(answer.boxes), answer.index
        fresh = self.state != "ready"
        self.state, self.text = "ready", ""
        return answer.face if fresh else None

    def to_tell(self) -> list[Photo]:
        """The photo that face_prep must still be told of."""
        if self.state != "preparing":
            return []
        photo = self._demo if self.wanted == self.demo_id else self._photos.get(self.wanted)
        return [] if photo is None else [photo]

    def given_up(self, now_s: float) -> bool:
        """Whether the wanted face neither came nor can be made, because its photo is not here any more."""
        if self.state != "preparing" or self.to_tell():
            self._wanted_s = None
            return False
        if self._wanted_s is None:
            self._wanted_s = now_s
        return now_s - self._wanted_s > PATIENCE_S
