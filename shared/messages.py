"""Every message that travels between services: typed, frozen, packed and unpacked here and nowhere else.

On the wire a message is a list of frames: a msgpack map (the header), then one raw frame for each array that the
message class declares in ``ARRAYS``, C-contiguous, in the order of that declaration. Arrays never travel as msgpack
lists and nothing is ever pickled. The header holds ``kind`` (which class), ``v`` (the version of the language),
``arrays`` (name to shape) and the other fields under their own names.

Units: samples are counts at 16 kHz mono since the epoch of the session began; ``*_ns`` are nanoseconds of the hub's
monotonic clock; pixels are counted from the top left corner of the turned photo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal

import msgpack
import msgspec
import numpy as np
import numpy.typing as npt

__all__ = [
    "ARRAY_LIMIT",
    "FORGOTTEN",
    "KINDS",
    "VERSION",
    "ArraySpec",
    "Audio",
    "Beat",
    "Credit",
    "Face",
    "FaceProblem",
    "Flush",
    "Forget",
    "Gap",
    "Message",
    "MessageError",
    "Patch",
    "Pcm",
    "Photo",
    "Refusal",
    "SessionState",
    "SourceState",
    "Work",
    "pack",
    "unpack",
]

VERSION: Final = 2
SMALL_BYTES: Final = 8192
"""an array below is copied out of the message that it came in"""
FORGOTTEN: Final = "forgotten"
"""key under which face_prep repeats each `Forget` that it has obeyed"""
HEADER_MAX_BYTES: Final = 64 * 1024
ARRAY_LIMIT: Final = 4096
"""Most elements of any list or map in a header."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
Text = Annotated[str, msgspec.Meta(max_length=1000)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Pixels = Annotated[int, msgspec.Meta(ge=-(2**15), le=2**15)]
Number = Annotated[float, msgspec.Meta(ge=-(2.0**62), le=2.0**62)]  # finite, and so are differences and rates of it
Fraction = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class MessageError(ValueError):
    """The frames are not a message of this language; the text says why."""


class ArraySpec(msgspec.Struct, frozen=True):
    """What one array of a message may be."""

    dtype: str
    """NumPy type string, little-endian"""
    shape: tuple[tuple[int, int], ...]
    """least and most length of each axis, both inclusive"""
    unit: str
    """what one element means"""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all messages."""

    KIND: ClassVar[str] = ""
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {}

    def misfit(self) -> str:
        """What in it does not fit together, although each part is within its own limits; empty when all fits."""
        return ""


class Audio(Message, frozen=True):
    """A piece of sound, 20 or 40 ms as audio_capture sends it."""

    KIND: ClassVar[str] = "audio"
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {
        "pcm": ArraySpec("<i2", ((1, 16_000),), "16 kHz mono, full scale 32768")
    }

    session: Name
    """whose sound"""
    epoch: Count
    """time line of the session that it belongs to"""
    stream: Name
    """incarnation of the capture; another one within an epoch means that the time line broke"""
    first_sample: Count
    """media time of the first sample, samples"""
    captured_ns: Count
    """when the last sample was heard, monotonic ns"""
    pcm: np.ndarray
    pushed: Annotated[int, msgspec.Meta(ge=-1, le=2**62)] = -1
    """how many samples of what was pushed in this epoch lie before the first one; -1 where nothing is pushed"""


class Gap(Message, frozen=True):
    """Time without sound: the time line goes on."""

    KIND: ClassVar[str] = "gap"

    session: Name
    """whose sound"""
    epoch: Count
    """time line of the session"""
    stream: Name
    """incarnation of the capture"""
    first_sample: Count
    """media time of the first missing sample, samples"""
    samples: Annotated[int, msgspec.Meta(ge=1, le=2**40)]
    """how many are missing"""
    reason: Literal["overflow", "unplugged", "lost", "late", "pause"]
    """why; at a pause, between two utterances that are pushed, nothing is missing"""


class SourceState(Message, frozen=True):
    """How the source of a session is: told at each change, and again each second."""

    KIND: ClassVar[str] = "source"

    session: Name
    """whose source"""
    epoch: Count
    """time line of the session"""
    state: Literal["starting", "running", "waiting", "ended", "failed"]
    """waiting: goes on by itself when what is missing comes back; ended and failed are final until a new start"""
    text: Text
    """the same for a person, with what to do about it"""


class Work(Message, frozen=True):
    """One mel window: one frame to make, sent to exactly one worker."""

    KIND: ClassVar[str] = "work"
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {"mel": ArraySpec("<f4", ((80, 80), (1, 256)), "log-mel, -4..4")}

    session: Name
    """whose frame"""
    epoch: Count
    """time line of the session"""
    frame: Count
    """number of the frame; it belongs to sample 640 x frame"""
    face: Name
    """content hash of the face to move"""
    seq: Count
    """running number of the work given to this worker since it joined"""
    budget_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)]
    """time left at sending until the frame is too late, ms"""
    gain: Fraction
    """voice gate: 1 speech, 0 silence (the mouth at rest)"""
    captured_ns: Count
    """when the sound of the frame's own moment was heard, monotonic ns of the hub"""
    mel: np.ndarray


class Credit(Message, frozen=True):
    """A worker says what it is and how much it may still be given. Its window is no wider than what `Work` can hold."""

    KIND: ClassVar[str] = "credit"

    worker: Name
    """id of the worker, new at each start"""
    engine: Name
    """engine that it runs"""
    capacity: Annotated[int, msgspec.Meta(ge=0, le=64)]
    """most windows it holds at once"""
    held: Annotated[int, msgspec.Meta(ge=0, le=64)]
    """windows that it holds now"""
    done: Annotated[int, msgspec.Meta(ge=-1, le=2**62)]
    """highest seq finished, dropped or lost; -1 before the first"""
    back: Annotated[int, msgspec.Meta(ge=0, le=200)]
    """mel frames before the frame's own that the engine needs"""
    ahead: Annotated[int, msgspec.Meta(ge=1, le=200)]
    """mel frames from the frame's own on"""
    shift: Annotated[int, msgspec.Meta(ge=-25, le=25)]
    """video frames by which the window is moved (Wav2Lip's training alignment: -1)"""
    faces: Annotated[tuple[Name, ...], msgspec.Meta(max_length=256)]
    """faces that it holds prepared"""
    in_silence: bool = False
    """whether it wants the windows of silence too, because its faces live there"""
    model: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """SHA-256 over the files of its model; work goes to workers with the hub's model only"""
    window_ms: Annotated[float, msgspec.Meta(ge=0.0, le=60_000.0)] = 0.0
    """what one window takes it, median of the last ones; 0 before the first"""

    def misfit(self) -> str:
        """Say what does not fit together."""
        wide, (_, most) = self.back + self.ahead, Work.ARRAYS["mel"].shape[1]
        return f"back and ahead are {wide} mel frames, at most {most}" if wide > most else ""


class Refusal(Message, frozen=True):
    """The hub gives a worker no work, and says why."""

    KIND: ClassVar[str] = "refusal"

    worker: Name
    text: Annotated[str, msgspec.Meta(max_length=1000)]
    """for the worker's log"""


class Face(Message, frozen=True):
    """A prepared face. The mask lies within the photo, and `index` is one of the boxes."""

    KIND: ClassVar[str] = "face"
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {
        "photo": ArraySpec("|u1", ((16, 4096), (16, 4096), (3, 3)), "BGR"),
        "landmarks": ArraySpec("<f4", ((468, 468), (3, 3)), "px (x, y, depth)"),
        "mask": ArraySpec("|u1", ((1, 4096), (1, 4096)), "soft mouth mask, 0..255"),
        "boxes": ArraySpec("<f4", ((1, 64), (4, 4)), "px (x1, y1, x2, y2) of every face found, largest first"),
    }

    face: Name
    """id: content hash of the picture and of the choices made with it"""
    index: Annotated[int, msgspec.Meta(ge=0, le=63)]
    """which of the boxes was taken"""
    box: tuple[Pixels, Pixels, Pixels, Pixels]
    """x1, y1, x2, y2 in the convention of the S3FD boxes that Wav2Lip was trained on, px"""
    mask_x: Pixels
    """left edge of the mask, px"""
    mask_y: Pixels
    """top edge of the mask, px"""
    photo: np.ndarray
    landmarks: np.ndarray
    mask: np.ndarray
    boxes: np.ndarray

    def misfit(self) -> str:
        """Say what does not fit together."""
        height, width = self.photo.shape[:2]
        bottom, right = self.mask_y + self.mask.shape[0], self.mask_x + self.mask.shape[1]
        if min(self.mask_x, self.mask_y) < 0 or bottom > height or right > width:
            return f"mask from ({self.mask_x}, {self.mask_y}) to ({right}, {bottom}), the photo has {width} x {height}"
        if self.index >= len(self.boxes):
            return f"index {self.index} of {len(self.boxes)} boxes"
        return ""


class FaceProblem(Message, frozen=True):
    """No face could be made of a photo."""

    KIND: ClassVar[str] = "face_problem"

    face: Name
    """id that was asked for"""
    code: Literal["no_face", "bad_image", "too_large", "bad_box", "no_model", "unknown"]
    """what is wrong"""
    text: Text
    """what is wrong and what to try, for a person"""


class Patch(Message, frozen=True):
    """The moving part of one frame. Image and mask are of one height and width, or the mask is empty: all of the image
    is taken."""

    KIND: ClassVar[str] = "patch"
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {
        "image": ArraySpec("|u1", ((1, 4096), (1, 4096), (3, 3)), "BGR"),
        "mask": ArraySpec("|u1", ((0, 4096), (0, 4096)), "share of the image, 0..255; 0 by 0: all of it"),
    }

    session: Name
    """whose frame"""
    epoch: Count
    """time line of the session"""
    frame: Count
    """number of the frame"""
    on: Annotated[int, msgspec.Meta(ge=-1, le=2**62)]
    """frame of the same worker, session, epoch and face on whose picture it is laid; -1: on the photo"""
    face: Name
    """content hash of the face"""
    worker: Name
    """who made it"""
    rest: bool
    """true when the mouth is at rest"""
    x: Pixels
    """left edge on the photo, px"""
    y: Pixels
    """top edge on the photo, px"""
    captured_ns: Count
    """as in Work"""
    render_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)]
    """time in the engine, ms"""
    image: np.ndarray
    mask: np.ndarray

    def misfit(self) -> str:
        """Say what does not fit together."""
        image, mask = self.image.shape[:2], self.mask.shape
        return "" if mask in {image, (0, 0)} else f"mask of shape {mask}, the image has {image}"


class SessionState(Message, frozen=True):
    """The whole state of a session, told again each second."""

    KIND: ClassVar[str] = "session"

    session: Name
    """its name"""
    epoch: Count
    """number of its time line; a higher one empties every stage"""
    running: bool
    """whether sound is heard and frames are made"""
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    """mic, browser, demo, network or file:PATH"""
    face: Name
    """content hash of its face"""
    ended: bool = False
    """whether it was deleted: forget it"""


class Photo(Message, frozen=True):
    """A picture that came by web, told again until its face is there."""

    KIND: ClassVar[str] = "photo"
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {
        "data": ArraySpec("|u1", ((1, 10 * 1024 * 1024),), "the bytes of the file")
    }

    face: Name
    """id under which the face will be told"""
    index: Annotated[int, msgspec.Meta(ge=0, le=63)]
    """which face to take, largest first"""
    box: tuple[Pixels, Pixels, Pixels, Pixels] | None
    """x1, y1, x2, y2 of the face given by hand, px; None to search"""
    data: np.ndarray


class Pcm(Message, frozen=True):
    """Sound that came by web, for the sources `network` and `browser`."""

    KIND: ClassVar[str] = "pcm"
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {
        "pcm": ArraySpec("<i2", ((1, 16_000),), "16 kHz mono, full scale 32768")
    }

    session: Name
    """whose sound"""
    epoch: Count
    """time line of the session"""
    first_sample: Count
    """place in what is pushed in this epoch, samples; a jump is a Gap"""
    pcm: np.ndarray
    arrived_ns: Count = 0
    """when it came to the streamer, monotonic ns of the hub"""


class Flush(Message, frozen=True):
    """An utterance of pushed sound ends: what waits for a full chunk is said with silence behind it."""

    KIND: ClassVar[str] = "flush"

    session: Name
    """whose sound"""
    epoch: Count
    """time line of the session"""
    first_sample: Count
    """place in what is pushed in this epoch where the next utterance begins, samples"""


class Forget(Message, frozen=True):
    """No session has use for a face any more: its picture is to be deleted, everywhere."""

    KIND: ClassVar[str] = "forget"

    face: Name
    """its id"""


class Beat(Message, frozen=True):
    """Health and rates of one service, sent by its main loop."""

    KIND: ClassVar[str] = "beat"

    service: Name
    """which service"""
    instance: Name
    """which process of it, new at each start"""
    pid: Count
    """process id"""
    uptime_s: Annotated[float, msgspec.Meta(ge=0, le=2.0**62)]
    """time since its start, s"""
    cpu_s: Annotated[float, msgspec.Meta(ge=0, le=2.0**62)]
    """processor time used so far, s"""
    rss_bytes: Count
    """memory in use, bytes"""
    counters: Annotated[dict[Name, Number], msgspec.Meta(max_length=256)]
    """totals since the start, by name"""
    gauges: Annotated[dict[Name, Number], msgspec.Meta(max_length=256)]
    """present values, by name"""
    info: Annotated[dict[Name, Text], msgspec.Meta(max_length=64)]
    """words for the status page"""
    last_error: Text
    """last error, empty when there was none"""


KINDS: Final[dict[str, type[Message]]] = {
    kind.KIND: kind
    for kind in (
        Audio,
        Gap,
        SourceState,
        Work,
        Credit,
        Refusal,
        Face,
        FaceProblem,
        Patch,
        SessionState,
        Photo,
        Forget,
        Pcm,
        Flush,
        Beat,
    )
}


def pack(message: Message) -> list[bytes | memoryview]:
    """Pack a message into frames.

    Returns:
        the msgpack header, then one frame for each array.

    Raises:
        MessageError: an array has the wrong type or shape, or parts do not fit together.
    """
    kind = type(message)
    header: dict[str, Any] = {
        name: getattr(message, name) for name in message.__struct_fields__ if name not in kind.ARRAYS
    }
    frames: list[bytes | memoryview] = []
    shapes: dict[str, Sequence[int]] = {}
    for name, spec in kind.ARRAYS.items():
        array = getattr(message, name)
        problem = _misfit(array.dtype, array.shape, spec)
        if problem:
            raise MessageError(f"{kind.KIND}.{name}: {problem}")
        shapes[name] = array.shape
        frames.append(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    _refuse_misfit(message)
    header |= {"kind": kind.KIND, "v": VERSION, "arrays": shapes}
    return [msgpack.packb(header), *frames]


def unpack(frames: Sequence[bytes | memoryview], allowed: Sequence[type[Message]]) -> Message:
    """Read a message from frames, trusting nothing.

    Args:
        frames: what `pack` made.
        allowed: the classes that may come here.

    Returns:
        the message; its arrays are read-only, and large ones views of the frames where those lie well for their type.

    Raises:
        MessageError: the frames are no message of one of these classes.
    """
    if not frames:
        raise MessageError("no frames")
    if len(frames[0]) > HEADER_MAX_BYTES:
        raise MessageError(f"header of {len(frames[0])} bytes, at most {HEADER_MAX_BYTES}")
    try:
        header = msgpack.unpackb(
            frames[0],
            max_array_len=ARRAY_LIMIT,
            max_map_len=ARRAY_LIMIT,
            max_str_len=HEADER_MAX_BYTES,
            max_bin_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise MessageError(f"header is no msgpack within limits: {error}") from error
    if not isinstance(header, dict):
        raise MessageError(f"header is a {type(header).__name__}, not a map")
    name = header.pop("kind", None)
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None or kind not in allowed:
        raise MessageError("kind is missing, unknown or not allowed on this topic")
    if header.pop("v", None) != VERSION:
        raise MessageError(f"another version of the language, this is {VERSION}")
    shapes = header.pop("arrays", None)
    if not isinstance(shapes, dict) or shapes.keys() != kind.ARRAYS.keys() or len(frames) != 1 + len(shapes):
        raise MessageError(f"{kind.KIND}: the arrays are not {', '.join(kind.ARRAYS) or 'none'}")
    for (array_name, spec), frame in zip(kind.ARRAYS.items(), frames[1:], strict=True):
        header[array_name] = _array(f"{kind.KIND}.{array_name}", frame, shapes[array_name], spec)
    try:
        message = msgspec.convert(header, kind)
    except msgspec.ValidationError as error:
        raise MessageError(f"{kind.KIND}: {error}") from error
    _refuse_misfit(message)
    return message


def _refuse_misfit(message: Message) -> None:
    problem = message.misfit()
    if problem:
        raise MessageError(f"{message.KIND}: {problem}")


def _array(name: str, frame: bytes | memoryview, shape: object, spec: ArraySpec) -> npt.NDArray[Any]:
    if not isinstance(shape, list) or not all(type(length) is int for length in shape):
        raise MessageError(f"{name}: shape is not a list of integers")
    dtype = np.dtype(spec.dtype)
    problem = _misfit(dtype, tuple(shape), spec)
    if problem:
        raise MessageError(f"{name}: {problem}")
    wanted = dtype.itemsize
    for length in shape:
        wanted *= length
    if len(frame) != wanted:
        raise MessageError(f"{name}: {len(frame)} bytes, its shape says {wanted}")
    array = np.frombuffer(frame, dtype).reshape(shape)
    # ZeroMQ puts a message anywhere, which NumPy is slow with, and a small one into a buffer with others.
    if not array.flags.aligned or array.nbytes < SMALL_BYTES:
        array = array.copy()
    array.flags.writeable = False
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise MessageError(f"{name}: not all numbers are finite")
    return array


def _misfit(dtype: np.dtype[Any], shape: tuple[int, ...], spec: ArraySpec) -> str:
    if dtype != np.dtype(spec.dtype):
        return f"dtype {dtype}, must be {np.dtype(spec.dtype)}"
    if len(shape) != len(spec.shape) or not all(
        low <= n <= high for n, (low, high) in zip(shape, spec.shape, strict=True)
    ):
        return f"shape {shape}, must be within {spec.shape}"
    return ""
