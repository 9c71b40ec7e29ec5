"""`/ws/audio` on the real server, with the client of the package `websockets`."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection
from wsproto.events import BytesMessage, TextMessage

from services.streamer import speech
from services.streamer.control import SessionControl
from services.streamer.mjpeg import FrameHub, HubClosedError
from services.streamer.push import Push
from services.streamer.websocket import WebSocket, handshake
from tests.budgets import SOCKET_WAIT_S, SPEECH_LEVEL_SHARE, SPEECH_SOCKETS
from tests.unit.test_websocket import HEADERS, Peer
from tests.web.conftest import Server, until
from tests.web.test_player_socket import listen as watch
from tests.web.test_player_socket import player

Serve = Callable[..., AbstractContextManager[Server]]
Words = dict[str, Any]

PEAK = 9000
TONE_HZ = 440.0
SMALL_BOUND = 32_000
FLOOD_MESSAGES = 300
"""20 MB: far more than the buffers of two kernels and what is read ahead"""


@contextmanager
def sender(server: Server, query: str = "", **start: Any) -> Iterator[tuple[ClientConnection, Words]]:
    """An open socket that has said what it sends, and the answer."""
    with player(server, query, "ws/audio") as client:
        client.send(json.dumps({"type": "start", "sample_rate": 16000, **start}))
        ready = hear(client)
        assert ready["type"] == "ready", ready
        yield client, ready


def say(client: ClientConnection, kind: str) -> None:
    client.send(json.dumps({"type": kind}))


def hear(client: ClientConnection) -> Words:
    message = client.recv(timeout=SOCKET_WAIT_S)
    assert isinstance(message, str)
    words: Words = json.loads(message)
    return words


def hear_until(client: ClientConnection, kind: str) -> list[Words]:
    """All that comes up to a message of that kind."""
    heard = [hear(client)]
    while heard[-1]["type"] != kind:
        assert heard[-1]["type"] not in {"error", "closed"}, heard[-1]
        heard.append(hear(client))
    return heard


def hear_out(client: ClientConnection) -> tuple[list[Words], int]:
    """All that comes until the server closes, and its code."""
    heard: list[Words] = []
    with pytest.raises(ConnectionClosed) as closed:
        heard.extend(iter(lambda: hear(client), None))
    assert closed.value.rcvd is not None
    return heard, closed.value.rcvd.code


def tone(samples: int, rate: int, channels: int = 1) -> npt.NDArray[np.int16]:
    wave = (PEAK * np.sin(2 * np.pi * TONE_HZ * np.arange(samples) / rate)).astype("<i2")
    return np.repeat(wave, channels) if channels > 1 else wave


def puts(server: Server, session: str = "default") -> list[list[int]]:
    """Length, loudest sample and arrival of what was pushed."""
    return [what for call, what in server.told()["sessions"][session] if call == "put"]


def of(heard: list[Words], kind: str) -> list[Words]:
    return [words for words in heard if words["type"] == kind]


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_each_rate_is_heard_as_long_and_as_loud_as_it_was(server: Server, rate: int, channels: int):
    first, second = rate // 2 + 7, rate // 3 + 1
    before = len(puts(server))
    with sender(server, sample_rate=rate, channels=channels) as (client, ready):
        assert ready["sample_rate"] == rate
        assert ready["bound_samples"] == 600 * rate
        for samples in (first, second):
            data = tone(samples, rate, channels).tobytes()
            for at in range(0, len(data), 1001):  # a piece may end within a sample
                client.send(data[at : at + 1001])
            say(client, "flush")
        say(client, "end")
        heard, code = hear_out(client)
        pushed = puts(server)[before:]
    assert code == 1000
    assert [words["sample"] for words in of(heard, "ended")] == [first, first + second]
    assert [words["utterance"] for words in of(heard, "ended")] == [0, 1]
    assert [words["utterance_samples"] for words in of(heard, "ended")] == [first, second]
    assert [words["sample"] for words in of(heard, "flushed")][:2] == [first, first + second]
    assert of(heard, "started")[0]["sample"] == 0
    assert of(heard, "ended")[1]["media_ms"] == pytest.approx(1000 * (first + second) / rate, abs=0.001)
    assert sum(length for length, *_ in pushed) == round(first * 16000 / rate) + round(second * 16000 / rate)
    loudest = max(peak for _, peak, _ in pushed)
    assert abs(loudest / PEAK - 1) < SPEECH_LEVEL_SHARE


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_opus_is_heard(server: Server, rate: int, channels: int):
    packets = opus(tone(48_000, 48_000, channels), channels)
    assert len(packets) == 50
    before = len(puts(server))
    with sender(server, encoding="opus", sample_rate=rate, channels=channels) as (client, _):
        for packet in packets:
            client.send(packet)
        say(client, "end")
        heard, code = hear_out(client)
        pushed = puts(server)[before:]
    assert code == 1000
    assert of(heard, "ended")[-1]["sample"] == rate
    assert sum(length for length, *_ in pushed) == 16_000
    assert abs(max(peak for _, peak, _ in pushed) / PEAK - 1) < 2 * SPEECH_LEVEL_SHARE


def opus(samples: npt.NDArray[np.int16], channels: int) -> list[bytes]:
    encoder = av.AudioCodecContext.create("libopus", "w")
    encoder.sample_rate = 48_000
    encoder.layout = "mono" if channels == 1 else "stereo"
    encoder.format = "s16"
    packets: list[bytes] = []
    for at in range(0, len(samples), 960 * channels):
        frame = av.AudioFrame.from_ndarray(
            samples[None, at : at + 960 * channels], format="s16", layout=encoder.layout.name
        )
        frame.sample_rate = 48_000
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    return packets


def test_a_microphone_is_passed_on_at_once_and_leaves_when_it_likes(serve: Serve):
    with serve() as server, sender(server, live=True, sample_rate=48_000) as (client, ready):
        assert ready["live"] is True
        assert ["push", True] in server.calls()
        for number in range(1, 4):
            before_ns = time.monotonic_ns()
            client.send(tone(4800, 48_000).tobytes())
            came = until(lambda: puts(server)[number - 1 :], SOCKET_WAIT_S)  # noqa: B023  # it is called at once
            assert before_ns < came[-1][2] < time.monotonic_ns()
        say(client, "end")
        assert hear_out(client)[1] == 1000


def test_a_burst_is_held_back_and_nothing_is_lost(serve: Serve):
    """20 s at once into a server that lets 2 s wait, read on for up to 20 s more: full, then room, in good order."""
    seconds = 5
    with serve(f"bound={SMALL_BOUND}") as server, sender(server) as (client, ready):
        assert ready["bound_samples"] == ready["room_samples"] == SMALL_BOUND
        began_s = time.monotonic()
        data = tone(seconds * 16_000, 16_000).tobytes()
        for at in range(0, len(data), 65_536):
            client.send(data[at : at + 65_536])
        say(client, "flush")
        heard = hear_until(client, "full")
        assert heard[-1]["waiting_samples"] > SMALL_BOUND - 16_000
        assert sum(length for length, *_ in puts(server)) <= SMALL_BOUND
        heard += hear_until(client, "room")
        assert heard[-1]["room_samples"] >= SMALL_BOUND // 2
        say(client, "end")
        rest, code = hear_out(client)
        heard += rest
        took_s = time.monotonic() - began_s
        assert sum(length for length, *_ in puts(server)) == seconds * 16_000
    assert code == 1000
    assert len(of(heard, "full")) == len(of(heard, "room")) == 1
    assert of(heard, "ended")[0]["sample"] == seconds * 16_000
    assert took_s > seconds - 1


def test_a_sender_that_does_not_stop_is_held_back_by_tcp(serve: Serve):
    """It sends 20 minutes in the time of a few seconds; the server takes what may wait, and a little."""
    with serve(f"bound={SMALL_BOUND}") as server, sender(server, sample_rate=8000) as (client, _):
        client.socket.settimeout(1.0)
        with pytest.raises((TimeoutError, ConnectionClosed)):
            flood(client)
        assert sum(length for length, *_ in puts(server)) < 4 * SMALL_BOUND
        assert server.get("healthz").ok


def flood(client: ClientConnection) -> None:
    for _ in range(FLOOD_MESSAGES):
        client.send(bytes(65_536))


def test_an_interrupt_tells_where_and_gets_past_what_waits(serve: Serve):
    with serve(f"bound={SMALL_BOUND}") as server, sender(server, sample_rate=24_000) as (client, _):
        for _ in range(8):  # 8 s, of which 2 may wait
            client.send(tone(24_000, 24_000).tobytes())
        hear_until(client, "full")
        say(client, "interrupt")
        cut = hear_until(client, "interrupted")[-1]
        assert 0 <= cut["sample"] < 4 * 24_000
        assert cut["utterance"] == 0
        assert cut["utterance_samples"] == cut["sample"]
        assert cut["media_ms"] == pytest.approx(cut["sample"] / 24, abs=0.001)
        client.send(tone(12_000, 24_000).tobytes())
        say(client, "end")
        heard, code = hear_out(client)
        total = sum(length for length, *_ in puts(server))
    assert code == 1000
    # Places count on over what was forgotten.
    assert of(heard, "started")[-1]["sample"] == 8 * 24_000
    assert of(heard, "ended")[-1]["sample"] == 8 * 24_000 + 12_000
    assert of(heard, "ended")[-1]["utterance_samples"] == 12_000
    assert total < SMALL_BOUND + 16_000 + 8_000 + 100


def test_what_is_sent_right_behind_an_interrupt_is_said(serve: Serve):
    with serve() as server, sender(server) as (client, _):
        for number in range(5):
            client.send(tone(32_000, 16_000).tobytes())
            say(client, "interrupt")
            client.send(tone(1600, 16_000).tobytes())
            say(client, "flush")
            assert hear_until(client, "interrupted")[-1]["sample"] <= (number + 1) * 33_600
            ended = hear_until(client, "ended")[-1]
            assert ended["sample"] == (number + 1) * 33_600
            assert ended["utterance_samples"] == 1600
        say(client, "end")
        assert hear_out(client)[1] == 1000


def test_the_session_interrupts_too(serve: Serve):
    with serve() as server, sender(server) as (client, _):
        client.send(tone(32_000, 16_000).tobytes())
        hear_until(client, "started")
        answer = server.post("api/sessions/default/interrupt")
        if answer.status_code == 404:
            pytest.skip("the API of sessions is not there")
        cut = hear_until(client, "interrupted")[-1]
        assert 0 < cut["sample"] < 32_000


def test_the_listener_hears_and_sees_it(serve: Serve):
    with serve() as server, player(server) as viewer, sender(server) as (client, _):
        client.send(tone(16_000, 16_000).tobytes())
        say(client, "flush")
        got = watch(viewer, lambda g: g.sounds and sum(len(pcm) for *_, pcm in g.sounds) >= 16_000)
        assert max(int(np.abs(pcm).max()) for *_, pcm in got.sounds) == PEAK
        assert got.texts[-1]["source"] == "network"


def test_nothing_said_and_ended_is_over_at_once(serve: Serve):
    with serve() as server, sender(server) as (client, _):
        say(client, "end")
        heard, code = hear_out(client)
    assert code == 1000
    assert [words["type"] for words in heard] == ["flushed"]


def test_another_one_takes_over(serve: Serve):
    with serve() as server, sender(server) as (client, _), sender(server) as (other, _):
        heard, code = hear_out(client)
        assert heard[-1]["type"] == "closed"
        assert "speaks" in heard[-1]["text"]
        assert code == 4409
        say(other, "end")
        assert hear_out(other)[1] == 1000


START = {"type": "start", "sample_rate": 16_000}


@pytest.mark.parametrize(
    ("messages", "error", "code"),
    [
        ([b"\0\0"], "bad_start", 1003),
        (["{"], "bad_start", 1003),
        ([{"type": "flush"}], "bad_start", 1008),
        ([{**START, "live": "yes"}], "bad_start", 1008),
        ([{"type": "start"}], "bad_rate", 1008),
        ([{**START, "sample_rate": 7999}], "bad_rate", 1008),
        ([{**START, "sample_rate": 16_000.5}], "bad_rate", 1008),
        ([{**START, "sample_rate": True}], "bad_rate", 1008),
        ([{**START, "encoding": "opus", "sample_rate": 44_100}], "bad_rate", 1008),
        ([{**START, "encoding": "mp3"}], "bad_encoding", 1008),
        ([{**START, "encoding": ["opus"]}], "bad_encoding", 1008),
        ([{**START, "channels": 3}], "bad_channels", 1008),
        ([{**START, "channels": [1]}], "bad_channels", 1008),
        ([{**START, "channels": 1.0}], "bad_channels", 1008),
        ([START, "{"], "bad_text", 1003),
        ([START, b"\0\0\0", {"type": "flush"}], "half_sample", 1007),
        ([START, b"\0" * 64_000, {"type": "end"}, b"\0\0"], "after_end", 1008),
        ([{**START, "encoding": "opus"}, b"\xff\xff\xff"], "bad_opus", 1007),
        ([{**START, "encoding": "opus"}, bytes(2000)], "bad_opus", 1007),
    ],
)
def test_mistakes_are_told_in_words(server: Server, messages: list[Any], error: str, code: int):
    with player(server, path="ws/audio") as client:
        for message in messages:
            client.send(json.dumps(message) if isinstance(message, dict) else message)
        heard, closed = hear_out(client)
    assert closed == code
    assert heard[-1]["type"] == "error"
    assert heard[-1]["code"] == error
    assert heard[-1]["text"].endswith((".", "}."))


def test_too_long_a_message_ends_it(server: Server):
    with sender(server) as (client, ready):
        client.send(bytes(ready["max_message_bytes"]))
        client.send(bytes(ready["max_message_bytes"] + 1))
        assert hear_out(client)[1] == 1009


def test_unknown_words_and_empty_messages_do_no_harm(server: Server):
    with sender(server, encoding="opus", sample_rate=48_000, mood="good") as (client, _):
        client.send(b"")
        say(client, "dance")
        client.send('{"type": ["flush"]}')
        say(client, "end")
        assert hear_out(client)[1] == 1000


def test_there_are_only_so_many_senders(serve: Serve):
    with serve() as server:
        clients = [player(server, path="ws/audio") for _ in range(SPEECH_SOCKETS)]
        for client in clients:
            client.__enter__()
        with pytest.raises(InvalidStatus) as caught, player(server, path="ws/audio"):
            pass
        assert caught.value.response.status_code == 503
        for client in clients:
            client.__exit__(None, None, None)
        assert until(lambda: can_open(server), SOCKET_WAIT_S)


def can_open(server: Server) -> bool:
    try:
        with player(server, path="ws/audio"):
            return True
    except InvalidStatus:
        return False


def test_a_server_that_stops_ends_it(serve: Serve):
    with serve() as server, sender(server) as (client, _):
        client.send(tone(16_000, 16_000).tobytes())
        hear_until(client, "started")
        server.process.terminate()
        assert hear_out(client)[1] == 1001
        assert server.process.wait(SOCKET_WAIT_S) == 0


class Slow:
    """A session whose loop does an interrupt a while after it was asked to, as the real one."""

    name = "default"

    def __init__(self) -> None:
        self.frames = FrameHub()
        self.asked = threading.Event()
        self.push_: Push | None = None

    def push(self, *, live: bool) -> Push:
        self.push_ = Push(lambda: None, lambda _: self.asked.set(), live=live)
        return self.push_


def test_new_sound_waits_until_an_interrupt_is_done():
    ends = socket.socketpair()
    with ends[0], ends[1]:
        session = Slow()
        shake = handshake(HEADERS)
        web, peer = WebSocket(ends[0], shake), Peer(ends[1])
        assert ends[1].recv(len(shake.answer)) == shake.answer
        thread = threading.Thread(target=serve_speech, args=(web, session))
        thread.start()
        peer.send(TextMessage(json.dumps({**START, "sample_rate": 8000})))
        peer.send(BytesMessage(bytes(16_000)))
        peer.send(TextMessage('{"type":"flush"}'))
        heard = peer_words(peer, "flushed")
        peer.send(TextMessage('{"type":"interrupt"}'))
        peer.send(BytesMessage(bytes(3_200)))
        peer.send(TextMessage('{"type":"flush"}'))
        assert session.asked.wait(SOCKET_WAIT_S)
        assert session.push_ is not None
        session.push_.forget()
        assert session.push_.waiting == 0
        session.push_.tell_cut(4_000)
        heard = peer_words(peer, "flushed")
        cut = of(heard, "interrupted")[0]
        assert cut["sample"] == 2_000
        assert session.push_.waiting == 3_200
        assert sum(len(piece.pcm) for piece in session.push_.to_send() if piece.pcm is not None) == 3_200
        session.push_.came_back(0, 0, 3_200)
        session.push_.heard(3_200)
        heard = peer_words(peer, "ended")
        assert heard[0]["type"] == "started"
        assert heard[0]["sample"] == 8_000
        assert heard[-1]["sample"] == 8_000 + 1_600
        assert heard[-1]["utterance_samples"] == 1_600
        session.frames.close()
        thread.join(SOCKET_WAIT_S)
        assert not thread.is_alive()
        assert session.push_.finished


def serve_speech(web: WebSocket, session: Slow) -> None:
    with suppress(HubClosedError):
        speech.listen(web, cast("SessionControl", session))


def peer_words(peer: Peer, kind: str) -> list[Words]:
    heard: list[Words] = []
    while not heard or heard[-1]["type"] != kind:
        events = peer.events()
        assert events
        heard += [json.loads(event.data) for event in events if isinstance(event, TextMessage)]
    return heard


def test_places_are_those_of_the_sender_and_exact_at_the_ends_of_utterances():
    ledger = speech.Ledger(44_100)
    taken = pushed = 0
    for samples in (1, 7, 44_099, 12_345, 3):
        taken, pushed = taken + samples, pushed + round(samples * 16_000 / 44_100)
        ledger.end(pushed, taken)
        assert ledger.place(pushed) == taken
    assert ledger.place(pushed + 16_000) == taken + 44_100
    ledger.cut(pushed + 16_000, taken + 100_000)
    assert ledger.place(pushed + 16_000) == taken + 44_100
    assert ledger.place(pushed + 16_000, begins=True) == taken + 100_000
    assert ledger.place(pushed + 16_160) == taken + 100_441


def test_a_sound_that_is_resampled_is_the_sound_that_was_sent():
    converter = speech.Converter(speech.Start(live=False, encoding="pcm16", sample_rate=48_000, channels=2))
    data = tone(48_000, 48_000, 2).tobytes()
    parts = [converter.feed(data[at : at + 1_999]) for at in range(0, len(data), 1_999)]
    out = np.concatenate([*parts, converter.end()]).astype(float)
    assert len(out) == 16_000
    assert converter.taken == 48_000
    wanted = PEAK * np.sin(2 * np.pi * TONE_HZ * np.arange(16_000) / 16_000)
    middle = slice(1_000, 15_000)
    best = min(np.abs(out[middle] - np.roll(wanted, shift)[middle]).max() for shift in range(-3, 4))
    assert best < PEAK * SPEECH_LEVEL_SHARE
