"""A streamer without a bus: the real server and page over a `Control` that draws its own face.

The tests start it as a program: ``python -m tests.web.standin PORT [NAME=VALUE ...]``. It prints ``ready URL``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from services.streamer.control import FaceStatus, Service, SourceChoice, Status, UploadError
from services.streamer.mjpeg import Frame, FrameHub
from services.streamer.server import PortTakenError, serve

if TYPE_CHECKING:
    import numpy.typing as npt

DEMO_FACE = FaceStatus("demo", "ready", "The demo face. Put in your own photo.", is_demo=True)
SERVICES = ("audio_capture", "mel_features", "face_prep", "inference", "streamer")
PERIOD_S = 0.04


def drawing(number: int, size: int = 480, *, noise: bool = False) -> npt.NDArray[np.uint8]:
    """A drawn face whose mouth is opened by the number, BGR, (size, size, 3)."""
    image = np.full((size, size, 3), (196, 178, 150), np.uint8)
    unit = size // 48
    centre = size // 2
    cv2.ellipse(image, (centre, 50 * unit), (20 * unit, 12 * unit), 0, 180, 360, (92, 70, 60), -1, cv2.LINE_AA)
    cv2.ellipse(image, (centre, centre), (13 * unit, 17 * unit), 0, 0, 360, (150, 188, 232), -1, cv2.LINE_AA)
    cv2.ellipse(image, (centre, 15 * unit), (14 * unit, 9 * unit), 0, 180, 360, (40, 52, 74), -1, cv2.LINE_AA)
    for side in (-1, 1):
        eye = (centre + 5 * side * unit, 22 * unit)
        cv2.ellipse(image, eye, (2 * unit, unit), 0, 0, 360, (250, 250, 250), -1, cv2.LINE_AA)
        cv2.circle(image, eye, unit, (60, 40, 30), -1, cv2.LINE_AA)
    opening = round(unit * (0.4 + 2.2 * abs(np.sin(number / 4))))
    cv2.ellipse(image, (centre, 33 * unit), (5 * unit, opening), 0, 0, 360, (60, 50, 170), -1, cv2.LINE_AA)
    cv2.ellipse(
        image, (centre, 33 * unit), (4 * unit, max(1, opening - unit // 2)), 0, 0, 360, (40, 20, 60), -1, cv2.LINE_AA
    )
    if noise:  # JPEGs of the size of real photos
        grain = np.random.default_rng(number).integers(0, 40, image.shape, dtype=np.uint8)
        image = cv2.subtract(image, grain).astype(np.uint8)
    return image


class StandIn:
    """Remembers what it was told, publishes 25 frames a second while running and one a second when still."""

    def __init__(self, *, viewers: int = 64, size: int = 480, noise: bool = False, publish: bool = True) -> None:
        self.frames = FrameHub(viewers)
        self.calls: list[tuple[str, Any]] = []
        self.size = size
        self.noise = noise
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._status = Status(
            running=False,
            source="demo",
            epoch=0,
            face=DEMO_FACE,
            level_db=None,
            sources=(
                SourceChoice("mic", "Microphone", available=True),
                SourceChoice("demo", "Demo speech", available=True),
                SourceChoice("network", "My own sound file", available=True),
            ),
            source_text="A short speech that comes with the program.",
            services=tuple(Service(name, alive=True, expected_hz=25.0, rate_hz=25.0) for name in SERVICES),
            width=size,
            height=size,
        )
        self._thread = threading.Thread(target=self._publish, name="publish", daemon=True)
        if publish:
            self._thread.start()

    def _publish(self) -> None:
        number = 0
        images = [drawing(n, self.size, noise=self.noise) for n in range(12)]
        frame = Frame(0, images[0])
        next_s = time.monotonic()
        while not self._stopped.is_set():
            if self.status().running:
                number += 1
                frame = Frame(number, images[number % len(images)], media_time=640 * number)
                next_s += PERIOD_S
            else:
                next_s += 1.0
            self.frames.publish(frame)
            while (left := next_s - time.monotonic()) > 0 and not self._stopped.wait(min(left, 0.05)):
                if self.status().running and left > PERIOD_S:
                    next_s = time.monotonic()

    def change(self, **fields: Any) -> None:
        with self._lock:
            self._status = replace(self._status, **fields)

    def status(self) -> Status:
        with self._lock:
            status = self._status
        level = -18.0 if status.running else None
        return replace(status, viewers=self.frames.viewers, level_db=level, fps=25.0 * status.running)

    def upload(self, data: bytes, index: int, box: tuple[int, int, int, int] | None) -> str:
        self.calls.append(("upload", (len(data), index, box)))
        if b"no face" in data:
            raise UploadError("There is no face in this photo. Take one that looks at the camera.")
        face = hashlib.sha256(data).hexdigest()[:16]
        faces = 3 if b"three faces" in data else 1
        self.change(face=FaceStatus(face, "ready", "Your photo is ready.", faces=faces, index=index))
        return face

    def start(self, source: str | None) -> None:
        self.calls.append(("start", source))
        if source is not None:
            self.choose_source(source)
        self.change(running=True, latency_ms=180.0)

    def stop(self) -> None:
        self.calls.append(("stop", None))
        self.change(running=False)

    def clear(self) -> None:
        self.calls.append(("clear", None))
        self.change(
            running=False, face=FaceStatus("demo", "ready", "The demo face. Put in your own photo.", is_demo=True)
        )

    def choose_source(self, source: str) -> None:
        self.calls.append(("source", source))
        choice = next((c for c in self.status().sources if c.id == source), None)
        if choice is None or not choice.available:
            raise ValueError(f"There is no source {source} here.")
        self.change(source=source, source_text=f"The source is {choice.label}.")

    def choose_face(self, index: int) -> None:
        self.calls.append(("face", index))
        face = self.status().face
        if index >= face.faces:
            raise ValueError(f"The photo has no face {index}.")
        self.change(face=replace(face, index=index))

    def speak(self, pcm: npt.NDArray[np.int16]) -> None:
        self.calls.append(("speak", pcm.size))
        self.change(source="network", running=True)

    def metrics(self) -> bytes:
        """The calls and counters of this stand-in, for the tests."""
        stats = [vars(s) for s in self.frames.stats()]
        return json.dumps({"calls": self.calls, "encodes": self.frames.encodes, "viewers": stats}, default=str).encode()

    def close(self) -> None:
        self._stopped.set()
        self.frames.close()


def main(arguments: list[str]) -> int:
    """Serve until a signal."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    options = dict(argument.split("=", 1) for argument in arguments[1:])
    viewers = int(options.get("viewers", "64"))

    def build() -> StandIn:
        control = StandIn(viewers=viewers, size=int(options.get("size", "480")), noise="noise" in options)
        if "down" in options:
            services = tuple(replace(s, alive=s.name != options["down"]) for s in control.status().services)
            control.change(services=services)
        if "nomic" in options:
            why = "No microphone was found. Plug one in, or use the demo speech or a sound file of your own."
            mic, *rest = control.status().sources
            control.change(sources=(replace(mic, available=False, why=why), *rest), notices=(why,))
        if "run" in options:
            control.start(None)
        return control

    try:
        serve(
            options.get("host", "127.0.0.1"),
            int(arguments[0]),
            build,
            token=options.get("token", ""),
            max_viewers=viewers,
            on_ready=lambda url: print("ready", url, flush=True),  # noqa: T201
        )
    except PortTakenError as error:
        logging.getLogger("streamer").error("%s", error.strerror)  # noqa: TRY400
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
