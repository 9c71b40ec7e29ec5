"""One render from beginning to end: sound in, faces found, frames drawn, an MP4 or PNGs out."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from scripts._render.audio import Sound, ffmpeg_input, listen
from scripts._render.compose import cut, mask_of, paste_hard, paste_soft
from scripts._render.faces import Box, BoxStore, Choice, Follower, checked_box, choose, padded, smoothed
from scripts._render.video import Change, Clip, Mp4, RenderError
from services.face_prep.face import FaceMaker
from services.face_prep.image import MAX_BYTES, PNG_SIGNATURE, decode
from services.inference.builtin.engine import BuiltinEngine, LivingEngine
from services.inference.builtin.life import FRAMES_A_SECOND
from services.inference.engine import Drive, Engine, MelWindow
from services.inference.wav2lip.files import MANIFEST, PLAIN
from services.inference.wav2lip.network import BATCHES, FacePart, Wav2LipNetwork
from services.streamer.compositor import compose
from shared.messages import Face

__all__ = ["Job", "Made", "Progress", "render"]

Pixels = npt.NDArray[np.uint8]
Item = TypeVar("Item")

MAX_SIDE_PX: Final = 4096
"""H.264 and `Face` take no longer side; a larger photo is scaled down."""
QUEUE_BYTES: Final = 48 * 2**20
"""Most memory for the frames that wait between two stages."""
MOST_PARTS: Final = 32
"""Faces whose share of the network is kept; a part has about 2 MB."""
JPEG_QUALITY: Final = 97

Progress = Callable[[str, int, int], None]
"""told of every frame: the stage, how many frames are done, how many there will be"""


@dataclass(frozen=True)
class Job:
    """What is to be rendered, and how. Lengths in px; options have the meaning of the published script."""

    face: Path
    audio: Path
    output: Path | None = None
    frames_dir: Path | None = None
    engine: Literal["auto", "wav2lip", "builtin"] = "auto"
    model: Path | None = None
    """converted folder or network; None: the project's own folder"""
    device: str = "CPU"
    precision: str = "auto"
    alignment: Literal["training", "inference"] = "training"
    paste: Literal["soft", "hard"] = "soft"
    pads: tuple[int, int, int, int] = (0, 10, 0, 0)
    box: tuple[int, int, int, int] | None = None
    """top, bottom, left, right; it is not padded"""
    change: Change = field(default_factory=Change)
    smooth: bool = True
    static: bool = False
    fps: float = 25.0
    """of a photo"""
    still: bool = False
    """engine builtin: nothing but the mouth moves"""
    batch: int = 8
    loop: Literal["pingpong", "repeat"] = "pingpong"
    choice: Choice = field(default_factory=Choice)
    face_models: Path = Path("models/face")
    wav2lip_models: Path = Path("models/wav2lip")
    cache: Path = Path("var/render")
    """folder of the boxes that were found"""


@dataclass(frozen=True)
class Made:
    """What came out."""

    frames: int
    faceless: int
    """frames that passed through since no face was in them"""
    engine: str
    """with its precision and why"""


@dataclass
class _Shot:
    """A frame on its way."""

    number: int
    frame: Pixels
    box: Box | None
    """None: it passes through"""
    crop: Pixels | None = None
    drawn: Pixels | None = None
    mask: npt.NDArray[np.float32] | None = None
    """share of what is drawn, on the box; None: the lower half"""


def render(job: Job, progress: Progress) -> Made:
    """Render.

    Args:
        job: what and how.
        progress: told of every frame.

    Returns:
        what was made.

    Raises:
        RenderError: something cannot be read, found or written; also `ImageError`, `FaceError`, `NetworkError`,
            `BasisError` and OSError from below. Nothing half-written is left, whatever is raised.
    """
    if job.output is None and job.frames_dir is None:
        raise RenderError("give -o FILE.mp4, --frames-dir DIR, or both")
    if job.output is not None:
        _check_output(job.output, (job.face, job.audio))
    source = _open(job)
    rate_hz = source.rate_hz if isinstance(source, Clip) else Fraction(job.fps).limit_denominator(1001)
    wav2lip = _takes_wav2lip(job)
    if not wav2lip and isinstance(source, Clip):
        raise RenderError(
            "the built-in engine moves a photo, not a video: give a photo, or --static to take the video's first "
            "frame, or fetch Wav2Lip (scripts/fetch_models) and take --engine wav2lip"
        )
    sound = listen(job.audio, rate_hz, gated=not wav2lip)
    total = sound.frames
    told = "builtin"
    with contextlib.ExitStack() as stack:
        if wav2lip:
            network = _network(job)
            told = f"wav2lip, {network.precision} ({network.choice})"
            shape, shots = _wav2lip_shots(job, source, total, progress)
            drawn = _drawn(job, network, sound, shots, _batch(job.batch, shape))
        else:
            assert not isinstance(source, Clip)  # noqa: S101 - refused above
            shape, drawn = _builtin_shots(job, source, sound)
        frames = stack.enter_context(contextlib.closing(_ahead(drawn, _waiting(shape))))
        sinks: list[Mp4 | _PngFolder] = []
        if job.frames_dir is not None:
            sinks.append(stack.enter_context(_PngFolder(job.frames_dir)))
        if job.output is not None:
            sinks.append(stack.enter_context(Mp4(job.output, (shape[0], shape[1]), rate_hz, ffmpeg_input(job.audio))))
        faceless = 0
        for shot in frames:
            _finish(shot, job.paste)
            for sink in sinks:
                sink.write(shot.frame)
            faceless += shot.box is None
            progress("frames", shot.number + 1, total)
    return Made(total, faceless, told)


def _check_output(output: Path, inputs: tuple[Path, ...]) -> None:
    if output.suffix.lower() != ".mp4":
        raise RenderError(f"{output}: the result is an MP4 file; give a name that ends in .mp4")
    if not output.parent.is_dir():
        raise RenderError(f"{output}: there is no folder {output.parent}")
    if output.is_dir():
        raise RenderError(f"{output}: is a folder; give the name of a file")
    if any(each.exists() and output.exists() and each.samefile(output) for each in inputs):
        raise RenderError(f"{output}: is what is read; give another name")


def _takes_wav2lip(job: Job) -> bool:
    if job.engine == "auto":
        return job.model is not None or any((job.wav2lip_models / name).is_file() for name in (MANIFEST, PLAIN))
    return job.engine == "wav2lip"


def _network(job: Job) -> Wav2LipNetwork:
    try:
        return Wav2LipNetwork(job.model or job.wav2lip_models, job.device, job.precision, batches=BATCHES)
    except ValueError as error:
        raise RenderError(str(error)) from error


def _batch(wanted: int, shape: tuple[int, ...]) -> int:
    return max(1, min(wanted, QUEUE_BYTES // int(np.prod(shape))))


def _waiting(shape: tuple[int, ...]) -> int:
    return max(2, min(32, QUEUE_BYTES // int(np.prod(shape))))


# The face: a photo, the first frame of a video, or a video.


def _open(job: Job) -> Clip | Pixels:
    """Open a video; or read a photo, or the first frame of a video that stands still, already changed."""
    if not job.face.is_file():
        raise RenderError(f"{job.face}: no such file")
    with job.face.open("rb") as file:
        head = file.read(16)
    if head.startswith((b"\xff\xd8\xff", PNG_SIGNATURE)) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return job.change.apply(decode(job.face.read_bytes(), MAX_SIDE_PX))
    clip = Clip(job.face, job.change)
    return clip.first() if job.static else clip


def _face(job: Job, photo: Pixels) -> Face:
    """Find the face of a photo; a photo that lies on its side comes back upright."""
    done, coded = cv2.imencode(".png", photo)
    if not done or coded.nbytes > MAX_BYTES:
        _, coded = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    data = coded.tobytes()
    name = hashlib.sha256(data).hexdigest()[:16]
    maker = FaceMaker(job.face_models)
    if job.box is not None:
        box = checked_box(job.box, (photo.shape[1], photo.shape[0]))
        return maker.make(name, data, box=box, max_side_px=MAX_SIDE_PX)
    if job.choice.at is None:
        return maker.make(name, data, index=job.choice.index, max_side_px=MAX_SIDE_PX)
    face = maker.make(name, data, max_side_px=MAX_SIDE_PX)
    index = choose(list(face.boxes), job.choice) or 0
    return face if index == 0 else maker.make(name, data, index=index, max_side_px=MAX_SIDE_PX)


def _wav2lip_shots(
    job: Job, source: Clip | Pixels, total: int, progress: Progress
) -> tuple[tuple[int, ...], Iterator[_Shot]]:
    """All frames with their boxes, still to be drawn; and the shape of a frame."""
    if isinstance(source, Clip):
        shape = source.first().shape
        size = (shape[1], shape[0])
        if job.box is not None:
            boxes: Sequence[Box | None] = [checked_box(job.box, size)] * total
        else:
            boxes = _find(job, source, total, progress)
            boxes = [None if box is None else padded(box, job.pads, size) for box in boxes]
            boxes = smoothed(boxes) if job.smooth else boxes
        played = contextlib.closing(source.played(total, job.loop))
        return shape, _cropped(played, boxes)
    if job.box is not None:
        return source.shape, _still(source, checked_box(job.box, (source.shape[1], source.shape[0])), None, total)
    face = _face(job, source)
    box = padded(face.box, job.pads, (face.photo.shape[1], face.photo.shape[0]))
    mask = mask_of(face, box)
    if not mask.any():
        raise RenderError(f"--pads {' '.join(map(str, job.pads))} leaves the mouth in the upper half of the box")
    return face.photo.shape, _still(face.photo, box, mask, total)


def _find(job: Job, clip: Clip, total: int, progress: Progress) -> list[Box | None]:
    """Boxes of the frames that will be shown, from the store or by looking; before pads and smoothing."""
    options = repr((job.change, job.choice, clip.rate_hz, clip.shape))
    store = BoxStore(job.cache, job.face, options)
    boxes = store.load(total)
    if boxes is None:
        boxes = []
        follower = Follower(job.face_models, "CPU", job.choice)
        with contextlib.closing(_ahead(clip.frames(), _waiting(clip.shape))) as frames:
            for frame in frames:
                boxes.append(follower.find(frame))
                progress("faces", len(boxes), total)
                if len(boxes) == total:
                    break
        if boxes:
            store.save(boxes, complete=len(boxes) < total)
    if not any(boxes):
        raise RenderError(
            f"{job.face}: no face was found in any frame; try --rotate or --crop, or give --box TOP BOTTOM LEFT RIGHT"
        )
    return boxes


def _cropped(
    played: contextlib.closing[Generator[tuple[int, Pixels]]], boxes: Sequence[Box | None]
) -> Generator[_Shot]:
    with played as frames:
        for number, (index, frame) in enumerate(frames):
            box = boxes[index] if index < len(boxes) else None
            yield _Shot(number, frame, box, None if box is None else cut(frame, box))


def _still(photo: Pixels, box: Box, mask: npt.NDArray[np.float32] | None, total: int) -> Generator[_Shot]:
    crop = cut(photo, box)
    for number in range(total):
        yield _Shot(number, photo.copy(), box, crop, mask=mask)


# Drawing.


class _Parts:
    """The network's share of each face, computed once and kept while there is room."""

    def __init__(self, network: Wav2LipNetwork) -> None:
        self._network = network
        self._kept: OrderedDict[bytes, FacePart] = OrderedDict()

    def of(self, crop: Pixels) -> FacePart:
        """The share of a face (96, 96, 3)."""
        key = hashlib.blake2b(crop.tobytes(), digest_size=16).digest()
        part = self._kept.get(key)
        if part is None:
            (part,) = self._network.prepare(crop[None])
            self._kept[key] = part
            if len(self._kept) > MOST_PARTS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return part


def _drawn(job: Job, network: Wav2LipNetwork, sound: Sound, shots: Iterator[_Shot], batch: int) -> Generator[_Shot]:
    """Draw the faces, some frames at once, in order."""
    published = job.alignment == "inference"
    window = MelWindow(back=0, ahead=16, shift=0 if published else -1)
    parts = _Parts(network)
    with contextlib.closing(_ahead(shots, 2 * batch)) as ready:
        for group in _groups(ready, batch):
            faces = [shot for shot in group if shot.crop is not None]
            if faces:
                mels = np.stack([sound.window(s.number, window, "held" if published else "silence") for s in faces])
                crops = [shot.crop for shot in faces if shot.crop is not None]
                if job.paste == "hard":
                    drawn = network.draw_whole(np.stack(crops), mels)
                else:
                    drawn = network.draw([parts.of(crop) for crop in crops], mels)
                for shot, picture in zip(faces, drawn, strict=True):
                    shot.drawn = picture
            yield from group


def _builtin_shots(job: Job, photo: Pixels, sound: Sound) -> tuple[tuple[int, ...], Generator[_Shot]]:
    """All frames, drawn by the built-in engine; and the shape of a frame."""
    engine: Engine[Any] = BuiltinEngine() if job.still else LivingEngine(BuiltinEngine())
    face = _face(job, photo)
    state = engine.prepare(face)

    def shots() -> Generator[_Shot]:
        for number in range(sound.frames):
            gain = sound.gains[number] if number < len(sound.gains) else 0.0
            mel = sound.window(number, engine.window, "silence")
            moment = float(number * FRAMES_A_SECOND / sound.rate_hz)
            (rendered,) = engine.render([state], [Drive(mel, gain, face.face, moment)])
            yield _Shot(number, compose(face.photo, rendered), face.box)

    return face.photo.shape, shots()


def _finish(shot: _Shot, paste: Literal["soft", "hard"]) -> None:
    """Lay what was drawn on the frame."""
    if shot.box is None or shot.crop is None or shot.drawn is None:
        return
    if paste == "hard":
        paste_hard(shot.frame, shot.box, shot.drawn)
    else:
        paste_soft(shot.frame, shot.box, shot.crop, shot.drawn, shot.mask)


# Plumbing.


def _groups(items: Iterator[Item], most: int) -> Iterator[list[Item]]:
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group


def _ahead(items: Iterator[Item], most: int) -> Generator[Item]:
    """Take items from an iterator in a thread of its own, up to so many before they are asked for.

    What the iterator raises is raised here. When this generator is closed, the iterator is closed too.
    """
    ready: queue.Queue[tuple[Literal["item"], Item] | tuple[Literal["end"], Exception | None]] = queue.Queue(most)
    stopped = threading.Event()

    def offer(what: tuple[Literal["item"], Item] | tuple[Literal["end"], Exception | None]) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(what, timeout=0.1)
                return True
        return False

    def work() -> None:
        problem: Exception | None = None
        try:
            for item in items:
                if not offer(("item", item)):
                    break
        except Exception as error:  # noqa: BLE001 - it is raised again where the items are taken
            problem = error
        finally:
            close: Callable[[], None] | None = getattr(items, "close", None)
            if close is not None:
                close()
        offer(("end", problem))

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            what = ready.get()
            if what[0] == "item":
                yield what[1]
            elif what[1] is not None:
                raise what[1]
            else:
                return
    finally:
        stopped.set()
        thread.join()


class _PngFolder:
    """Writes frames as ``000000.png`` and so on, into a folder that gets its name when all are there.

    Args:
        path: the folder; it must be new or empty.

    Raises:
        RenderError: it is neither.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RenderError(f"{path}: is not empty; give a new folder, so that frames of two runs are not mixed")
        self._path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._count = 0

    def __enter__(self) -> Self:
        self._part.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._part.replace(self._path)
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def write(self, frame: Pixels) -> None:
        """Add a frame.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        done, coded = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if not done:
            raise RenderError("OpenCV cannot write PNG; reinstall opencv-python-headless")
        (self._part / f"{self._count:06d}.png").write_bytes(coded.tobytes())
        self._count += 1
