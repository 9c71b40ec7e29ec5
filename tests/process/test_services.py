"""Each service alone, as a real process, with the test as everybody else."""

from __future__ import annotations

import functools
import random
import re
import socket
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from services.face_prep.store import FaceStore
from shared.bus import Bus
from shared.messages import Audio, Beat, Credit, Face, FaceProblem, Pcm, Photo, SessionState, Work, pack, unpack
from shared.topics import SERVICES, TOPICS, ServiceName, Topic
from tests.budgets import (
    CORRUPT_GROWTH_BYTES,
    CORRUPT_MESSAGES,
    CORRUPT_S,
    PROCESS_START_S,
    PROCESS_STOP_S,
    SESSION_TOLD_S,
)
from tests.examples import EXAMPLES
from tests.rig.peer import Peer, Process
from tests.rig.stack import ROOT, until
from tests.rig.voices import paused_speech

BEATING: tuple[ServiceName, ...] = ("audio_capture", "mel_features", "face_prep", "inference")
DEMO_FACE = ROOT / "services" / "face_prep" / "assets" / "demo_face.png"


@contextmanager
def alone(service: ServiceName, folder: Path, **settings: str) -> Iterator[tuple[Peer, Process]]:
    peer = Peer(service)
    process = Process(service, folder, {"MOUTHPIECE_BUS_PORT": str(peer.base_port), **settings})
    try:
        yield peer, process
        assert process.alive(), process.text()
        assert process.stop(PROCESS_STOP_S) == 0, process.text()
        assert "Traceback" not in process.text(), process.text()
        assert "Warning" not in process.text(), process.text()
    finally:
        process.close()
        peer.close()


def garbage(number: int, valid: list[bytes], seed: int) -> Iterator[list[bytes]]:
    """Nothing, noise, and valid messages with bytes changed or cut off."""
    rng = random.Random(seed)
    yield []
    yield [b""]
    yield [b"\xdf\xff\xff\xff\xff"]
    for _ in range(number):
        frames = [bytearray(frame) for frame in valid]
        which = rng.choice(frames)
        for _ in range(rng.randint(1, 4)):
            which[rng.randrange(min(len(which), 200))] = rng.randrange(256)
        if rng.random() < 0.3:
            del which[rng.randrange(len(which)) :]
        yield [bytes(frame) for frame in frames][: rng.randint(1, len(frames))]


def send_garbage(peer: Peer, topic: Topic, key: str) -> int:
    """Send messages that are none, too large, or of a time line that is over; how many."""
    sent = 0
    for kind in topic.messages:
        valid = [bytes(frame) for frame in pack(EXAMPLES[kind.KIND])]
        for frames in garbage(CORRUPT_MESSAGES, valid, topic.port):
            peer.send_raw(topic.name, frames, key)
            sent += 1
    peer.send_raw(topic.name, [bytes(topic.max_bytes + 1)], key)
    return sent + 1


@pytest.mark.parametrize("service", BEATING)
def test_corrupt_messages_are_counted_and_nothing_ends(service: ServiceName, tmp_path: Path):
    with alone(service, tmp_path) as (peer, process):
        peer.receive("beat", Beat, PROCESS_START_S)
        for topic in TOPICS:
            if service not in topic.receivers:
                continue
            key = min(peer.subscriptions(topic.name, PROCESS_START_S))
            valid = [[bytes(frame) for frame in pack(EXAMPLES[kind.KIND])] for kind in topic.messages]
            for frames in valid:  # what is kept of the largest of them is no growth
                peer.send_raw(topic.name, frames, key)
            wait_counted(peer, topic, len(valid))
            memory = psutil.Process(process.pid).memory_info().rss
            expected = len(valid) + send_garbage(peer, topic, key)
            beat = wait_counted(peer, topic, expected)
            assert counted(beat.counters, topic) == expected, "each was counted, once"
            assert beat.counters[f"corrupt.{topic.name}"] > 0.2 * expected
            assert beat.last_error
            assert psutil.Process(process.pid).memory_info().rss - memory <= CORRUPT_GROWTH_BYTES


def wait_counted(peer: Peer, topic: Topic, least: int) -> Beat:
    return peer.beat_of(lambda beat: counted(beat.counters, topic) >= least, CORRUPT_S)


def counted(counters: Mapping[str, float], topic: Topic) -> float:
    return counters.get(f"corrupt.{topic.name}", 0.0) + counters.get(f"received.{topic.name}", 0.0)


def test_corrupt_messages_do_not_end_the_streamer(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with alone("streamer", tmp_path, MOUTHPIECE_PORT=str(port)) as (peer, process):
        peer.receive("session", SessionState, PROCESS_START_S)
        memory = psutil.Process(process.pid).memory_info().rss
        for topic in TOPICS:
            if "streamer" not in topic.receivers:
                continue
            keys = peer.subscriptions(topic.name, PROCESS_START_S)
            expected = send_garbage(peer, topic, min(keys))
            until(functools.partial(all_told, port, topic, expected), CORRUPT_S, "all are counted")
            assert told(port, topic) == expected
        assert psutil.Process(process.pid).memory_info().rss - memory <= CORRUPT_GROWTH_BYTES


def all_told(port: int, topic: Topic, least: int) -> bool:
    return told(port, topic) >= least


def told(port: int, topic: Topic) -> float:
    """How many messages of a topic the streamer says to have received, corrupt or not."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    labels = rf'[^}}]*service="streamer"[^}}]*topic="{topic.name}"[^}}]*'
    pattern = rf"^mouthpiece_messages_(?:received|corrupt)_total\{{{labels}\}} (\S+)"
    return sum(map(float, re.findall(pattern, text, re.MULTILINE)))


def test_mel_features_hands_each_window_to_one_worker_with_credit(tmp_path: Path):
    nothing = {"MOUTHPIECE_MODELS_DIR": str(tmp_path)}  # a hub without a model takes that of its first worker
    with alone("mel_features", tmp_path, **nothing) as (peer, _):
        peer.receive("beat", Beat, PROCESS_START_S)
        peer.subscriptions("session", PROCESS_START_S)
        peer._in["work"].unsubscribe(b"")
        for worker in ("w1", "w2"):
            peer._in["work"].subscribe(f"work.{worker}\0".encode())
        state = SessionState(session="default", epoch=5, running=True, source="demo", face="f0")
        peer.send("session", state)

        def both_joined(beat: Beat) -> bool:
            for worker in ("w1", "w2"):
                peer.send("credit", credit(worker))
            return beat.gauges["credit"] == 4.0

        peer.beat_of(both_joined, PROCESS_START_S)
        pcm = paused_speech()[16_000 : 16_000 + 320 * 100]
        seen: list[Work] = []
        done = {"w1": -1, "w2": -1}
        for index in range(100):
            audio = Audio(
                session="default",
                epoch=5,
                stream="s",
                first_sample=320 * index,
                captured_ns=10**9 + 20_000_000 * (index + 1),
                pcm=pcm[320 * index : 320 * (index + 1)],
            )
            peer.send("audio", audio)
            for worker in ("w1", "w2"):  # as workers do, who else would count as silent
                peer.send("credit", credit(worker, done[worker]))
            while peer._in["work"].poll(20):
                frames = peer._in["work"].recv_multipart()
                worker = frames[0].decode().rstrip("\0").partition(".")[2]
                work = unpack(frames[1:], [Work])
                assert isinstance(work, Work)
                seen.append(work)
                done[worker] = work.seq
        numbers = [work.frame for work in seen]
        assert numbers == sorted(set(numbers)), "each frame once and in order"
        assert len(numbers) > 30
        assert set(done.values()) != {-1}
        assert all(work.face == "f0" and work.epoch == 5 and work.mel.shape == (80, 16) for work in seen)
        assert all(abs(work.captured_ns - (10**9 + work.frame * 40_000_000)) <= 2_000_000 for work in seen)


def credit(worker: str, done: int = -1) -> Credit:
    return Credit(
        worker=worker, engine="wav2lip", capacity=2, held=0, done=done, back=0, ahead=16, shift=-1, faces=("f0",)
    )


def test_face_prep_makes_faces_keeps_them_and_answers_latecomers(tmp_path: Path):
    data = np.frombuffer(DEMO_FACE.read_bytes(), np.uint8)
    with alone("face_prep", tmp_path) as (peer, _):
        peer.receive("beat", Beat, PROCESS_START_S)
        peer.subscriptions("ingest", PROCESS_START_S)
        peer.send("ingest", Photo(face="a" * 32, index=0, box=None, data=data), "photo")
        face = peer.receive("face", Face, PROCESS_START_S)
        assert isinstance(face, Face)
        assert face.face == "a" * 32
        peer.send("ingest", Photo(face="b" * 32, index=0, box=None, data=np.frombuffer(b"text", np.uint8)), "photo")
        problem = peer.receive("face", FaceProblem, PROCESS_START_S)
        assert isinstance(problem, FaceProblem)
        assert problem.code == "bad_image"
        assert problem.text
    with alone("face_prep", tmp_path) as (peer, _):
        peer._in["face"].unsubscribe(b"")
        peer._in["face"].subscribe(f"face.{'a' * 32}\0".encode())
        again = peer.receive("face", Face, PROCESS_START_S)
        assert isinstance(again, Face)
        np.testing.assert_array_equal(again.landmarks, face.landmarks)
        np.testing.assert_array_equal(again.photo, face.photo)


def test_a_photo_that_ended_face_prep_again_and_again_is_left_alone(tmp_path: Path):
    data = np.frombuffer(DEMO_FACE.read_bytes(), np.uint8)
    store = FaceStore(tmp_path / "state" / "faces")
    for name in ("a" * 32, "a" * 32, "b" * 32):  # as a process does that is killed in the middle
        store.begin(name)
    with alone("face_prep", tmp_path) as (peer, process):
        peer.receive("beat", Beat, PROCESS_START_S)
        peer.subscriptions("ingest", PROCESS_START_S)
        peer.send("ingest", Photo(face="a" * 32, index=0, box=None, data=data), "photo")
        problem = peer.receive("face", FaceProblem, PROCESS_START_S)
        assert isinstance(problem, FaceProblem)
        assert (problem.face, problem.code) == ("a" * 32, "unknown")
        peer.send("ingest", Photo(face="b" * 32, index=0, box=None, data=data), "photo")
        face = peer.receive("face", Face, PROCESS_START_S)
        assert isinstance(face, Face)
        assert face.face == "b" * 32, "once may be chance"
        assert "faces_given_up" in process.text()
    assert [path.stem for path in (tmp_path / "state" / "faces").glob("*.tried")] == ["a" * 32]


def test_a_service_that_comes_is_told_the_session_at_once(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with alone("streamer", tmp_path, MOUTHPIECE_PORT=str(port)) as (peer, _):
        peer.receive("session", SessionState, PROCESS_START_S)
        for _ in range(5):
            bus = Bus("audio_capture", "127.0.0.1", peer.base_port)
            bus.receives("session")
            began_s = time.monotonic()
            assert list(bus.receive(PROCESS_START_S))
            assert time.monotonic() - began_s < SESSION_TOLD_S
            bus.close()


def test_audio_capture_plays_pushed_sound_in_order(tmp_path: Path):
    pcm = paused_speech()[16_000:48_000]
    with alone("audio_capture", tmp_path) as (peer, _):
        peer.receive("beat", Beat, PROCESS_START_S)
        peer.subscriptions("session", PROCESS_START_S)
        assert peer.subscriptions("ingest", PROCESS_START_S) == {"pcm"}
        # The sound overtakes the word that the session listens: nothing of it may be lost.
        for at in (0, 16_000):
            piece = Pcm(session="default", epoch=7, first_sample=at, pcm=pcm[at : at + 16_000])
            peer.send("ingest", piece, "pcm")
        peer.send("session", SessionState(session="default", epoch=7, running=True, source="network", face="f0"))
        heard: list[npt.NDArray[np.int16]] = []
        while sum(len(piece) for piece in heard) < len(pcm):
            audio = peer.receive("audio", Audio, PROCESS_START_S)
            assert isinstance(audio, Audio)
            assert audio.first_sample == sum(len(piece) for piece in heard)
            heard.append(audio.pcm)
        np.testing.assert_array_equal(np.concatenate(heard), pcm)


@pytest.mark.parametrize("service", SERVICES)
def test_a_wrong_setting_ends_with_words_and_code_2(service: str, tmp_path: Path):
    process = Process(service, tmp_path, {"MOUTHPIECE_PROT": "1"})
    assert process.wait(PROCESS_START_S) == 2
    assert "unknown setting MOUTHPIECE_PROT" in process.text()
    assert "Traceback" not in process.text()


def test_a_taken_port_of_the_bus_ends_with_words(tmp_path: Path):
    peer = Peer("audio_capture")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", peer.base_port))
        holder.listen()
        process = Process("audio_capture", tmp_path, {"MOUTHPIECE_BUS_PORT": str(peer.base_port)})
        assert process.wait(PROCESS_START_S) == 1
    peer.close()
    assert "MOUTHPIECE_BUS_PORT" in process.text()
    assert "Traceback" not in process.text()


def test_without_models_face_prep_says_what_to_do(tmp_path: Path):
    process = Process("face_prep", tmp_path, {"MOUTHPIECE_MODELS_DIR": str(tmp_path / "none")})
    assert process.wait(PROCESS_START_S) == 1
    assert "fetch_face_models" in process.text() or "make setup" in process.text()
    assert "Traceback" not in process.text()
