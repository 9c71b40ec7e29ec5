"""Messages keep their limits, and what is no message is refused, never a crash."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from shared.messages import KINDS, VERSION, Message, MessageError, Work, pack, unpack
from shared.topics import SERVICES, TOPICS
from tests.budgets import FUZZ_EXAMPLES
from tests.examples import EXAMPLES

ALL = tuple(KINDS.values())


def frames_of(message: Message) -> list[bytes]:
    return [bytes(frame) for frame in pack(message)]


def test_every_kind_has_an_example_and_a_topic():
    assert EXAMPLES.keys() == KINDS.keys()
    assert {kind for topic in TOPICS for kind in topic.messages} == set(KINDS.values())


def test_the_topic_table_is_sound():
    assert len({topic.name for topic in TOPICS}) == len(TOPICS)
    assert len({topic.port for topic in TOPICS}) == len(TOPICS)
    for topic in TOPICS:
        assert topic.binds in topic.senders + topic.receivers
        assert set(topic.senders + topic.receivers) <= set(SERVICES)
        assert len(topic.senders if topic.binds in topic.senders else topic.receivers) == 1, "one side binds"
        assert topic.high_water_mark > 0
        assert topic.max_bytes > 0


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_round_trip(kind: str):
    message = EXAMPLES[kind]
    back = unpack(frames_of(message), [type(message)])
    assert type(back) is type(message)
    for name in message.__struct_fields__:
        there, here = getattr(message, name), getattr(back, name)
        if isinstance(there, np.ndarray):
            np.testing.assert_array_equal(there, here)
            assert not here.flags.writeable
        else:
            assert there == here


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_arrays_fit_the_topic(kind: str):
    message = EXAMPLES[kind]
    for topic in TOPICS:
        if type(message) in topic.messages:
            for spec in type(message).ARRAYS.values():
                most = np.dtype(spec.dtype).itemsize
                for _, high in spec.shape:
                    most *= high
                if kind != "patch":  # a patch is far smaller than the largest photo squared allows
                    assert most <= topic.max_bytes


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_a_kind_that_is_not_allowed_is_refused(kind: str):
    others = [other for other in ALL if kind != other.KIND]
    with pytest.raises(MessageError, match="not allowed"):
        unpack(frames_of(EXAMPLES[kind]), others)


def test_a_wrong_array_is_refused_by_the_sender():
    audio = msgspec.structs.replace(EXAMPLES["audio"], pcm=np.zeros(320, np.float32))
    with pytest.raises(MessageError, match="dtype"):
        pack(audio)
    audio = msgspec.structs.replace(EXAMPLES["audio"], pcm=np.zeros((2, 160), np.int16))
    with pytest.raises(MessageError, match="shape"):
        pack(audio)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("patch", {"mask": zeros(4, 4)}, "mask"),
        ("patch", {"mask": zeros(30, 20)}, "mask"),
        ("patch", {"image": zeros(21, 30, 3)}, "mask"),
        ("face", {"mask": zeros(20, 41)}, "mask"),
        ("face", {"mask": zeros(45, 20)}, "mask"),
        ("face", {"mask_x": -1}, "mask"),
        ("face", {"mask_y": -1}, "mask"),
        ("face", {"photo": zeros(40, 27, 3)}, "mask"),
        ("face", {"index": 1}, "boxes"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused_by_both_sides(kind: str, changes: dict[str, Any], words: str):
    message = msgspec.structs.replace(EXAMPLES[kind], **changes)
    with pytest.raises(MessageError, match=words):
        pack(message)
    header = {name: getattr(message, name) for name in message.__struct_fields__ if name not in message.ARRAYS}
    arrays = {name: getattr(message, name) for name in message.ARRAYS}
    header |= {"kind": kind, "v": VERSION, "arrays": {name: array.shape for name, array in arrays.items()}}
    with pytest.raises(MessageError, match=words):
        unpack([msgpack.packb(header), *(array.tobytes() for array in arrays.values())], ALL)


@pytest.mark.parametrize(
    ("back", "ahead", "fits"), [(88, 7, True), (0, 16, True), (56, 200, True), (57, 200, False), (200, 57, False)]
)
def test_nobody_may_ask_for_a_window_that_no_work_can_hold(back: int, ahead: int, fits: bool):
    credit = msgspec.structs.replace(EXAMPLES["credit"], back=back, ahead=ahead)
    frames = mended("credit", back=back, ahead=ahead)
    if not fits:
        with pytest.raises(MessageError, match="257"):
            pack(credit)
        with pytest.raises(MessageError, match="257"):
            unpack(frames, ALL)
        return
    assert unpack(frames_of(credit), ALL) == unpack(frames, ALL) == credit
    mel = np.zeros((80, back + ahead), np.float32)
    assert unpack(frames_of(msgspec.structs.replace(EXAMPLES["work"], mel=mel)), ALL)


def with_floats(kind: type[Message], value: float) -> dict[str, object]:
    """Every field of a message that holds a float, with that value in it."""
    made: dict[str, object] = {}
    told = inspect.type_info(kind)
    assert isinstance(told, inspect.StructType)
    for field in told.fields:
        match field.type:
            case inspect.FloatType():
                made[field.name] = value
            case inspect.DictType(value_type=inspect.FloatType()):
                made[field.name] = {"name": value}
    return made


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e308, -1e308])
def test_numbers_that_no_json_can_hold_or_that_overflow_are_refused_everywhere(value: float):
    fields = [(kind.KIND, name, whole) for kind in ALL for name, whole in with_floats(kind, float(value)).items()]
    assert {("work", "gain"), ("beat", "cpu_s"), ("beat", "counters")} <= {(kind, name) for kind, name, _ in fields}
    for kind, name, whole in fields:
        with pytest.raises(MessageError, match=name):
            unpack(mended(kind, **{name: whole}), ALL)


def mended(kind: str, **changes: object) -> list[bytes]:
    frames = frames_of(EXAMPLES[kind])
    header = msgpack.unpackb(frames[0])
    header.update(changes)
    return [msgpack.packb(header), *frames[1:]]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "no frames"),
        ([b""], "msgpack"),
        ([b"\xc1"], "msgpack"),
        ([b"x" * 70_000], "bytes"),
        ([b"\xdf\xff\xff\xff\xff"], "msgpack"),  # claims four thousand million entries
        ([b"\xdd\xff\xff\xff\xff"], "msgpack"),
        ([b"\x91" * 5000], "msgpack"),  # nested too deeply
        ([msgpack.packb([1, 2])], "not a map"),
        ([msgpack.packb({"kind": "audio"})], "version"),
        ([msgpack.packb({"kind": ["audio"]})], "kind"),
        (mended("audio", v=VERSION + 1), "version"),
        (mended("audio", epoch=-1), "epoch"),
        (mended("audio", epoch="3"), "epoch"),
        (mended("audio", session="../etc"), "session"),
        (mended("audio", surprise=1), "surprise"),
        (mended("audio", arrays={}), "arrays"),
        (mended("audio", arrays={"pcm": [321]}), "bytes"),
        (mended("audio", arrays={"pcm": [-320]}), "shape"),
        (mended("audio", arrays={"pcm": [True]}), "shape"),
        (mended("audio", arrays={"pcm": [2**40]}), "shape"),
        (mended("work", gain=float("nan")), "gain"),
        (mended("credit", faces=["x"] * 300), "faces"),
        (mended("gap", reason="boredom"), "reason"),
        ([*mended("audio"), b"more"], "arrays"),
    ],
)
def test_what_is_no_message_is_refused(frames: list[bytes], words: str):
    with pytest.raises(MessageError, match=words):
        unpack(frames, ALL)


def test_infinite_numbers_in_an_array_are_refused():
    frames = frames_of(EXAMPLES["work"])
    mel = np.full((80, 16), np.nan, "<f4")
    with pytest.raises(MessageError, match="finite"):
        unpack([frames[0], mel.tobytes()], ALL)


@settings(max_examples=FUZZ_EXAMPLES, deadline=None)
@given(
    kind=st.sampled_from(sorted(EXAMPLES)),
    at=st.integers(0, 10_000),
    value=st.integers(0, 255),
    which=st.integers(0, 4),
    cut=st.integers(0, 20),
)
def test_mutated_messages_never_crash(kind: str, at: int, value: int, which: int, cut: int):
    frames = frames_of(EXAMPLES[kind])
    number = which % len(frames)
    mutated = bytearray(frames[number])
    mutated[at % len(mutated)] = value
    frames[number] = bytes(mutated[: len(mutated) - cut])
    try:
        unpack(frames, ALL)
    except MessageError:
        return


def test_numbers_that_lie_askew_are_laid_straight():
    """ZeroMQ puts a message anywhere."""
    example = EXAMPLES["work"]
    assert isinstance(example, Work)
    header, mel = frames_of(example)
    for shift in range(8):
        askew = memoryview(bytearray(b"?" * shift + mel))[shift:]
        read = unpack([header, askew], [type(example)])
        assert isinstance(read, Work)
        assert read.mel.flags.aligned
        assert not read.mel.flags.writeable
        assert np.array_equal(read.mel, example.mel)
