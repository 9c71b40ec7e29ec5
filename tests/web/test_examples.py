"""The examples: what others copy runs against the real server."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
import threading
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.budgets import EXAMPLE_S
from tests.web.conftest import ROOT, Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager
    from types import ModuleType

    Serve = Callable[..., AbstractContextManager[Server]]

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str, words: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, input=words, capture_output=True, text=True, timeout=EXAMPLE_S, check=False)


def write_wav(path: Path, seconds: float, rate_hz: int = 24_000, channels: int = 1, width: int = 2) -> Path:
    turn = 2 * np.pi * 220 * np.arange(int(rate_hz * seconds)) / rate_hz
    pcm = np.repeat((9_000 * np.sin(turn)).astype("<i2"), channels)
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate_hz)
        sound.writeframes(pcm.tobytes()[: len(pcm) * 2 // width * width])
    return path


@pytest.mark.parametrize(("rate_hz", "channels"), [(24_000, 1), (44_100, 2)])
def test_a_wav_is_said_and_told_of_to_the_sample(serve: Serve, tmp_path: Path, rate_hz: int, channels: int) -> None:
    path = write_wav(tmp_path / "a.wav", 1.5, rate_hz, channels)
    with serve() as server:
        said = run("push_wav.py", str(path), "--url", server.url)
        assert said.returncode == 0, said.stderr
        told = [line.split() for line in said.stdout.splitlines()]
        assert [line for line in told if line[0] in ("started", "ended")] == [
            ["started", "0", "0"],
            ["ended", "0", str(rate_hz * 3 // 2)],
        ]
        puts = [arguments for name, arguments in server.calls() if name == "put"]
        assert sum(samples for samples, _, _ in puts) == 24_000
        assert max(loudest for _, loudest, _ in puts) > 8_000


def test_what_cannot_be_said_is_told_in_a_line(serve: Serve, tmp_path: Path) -> None:
    odd = write_wav(tmp_path / "odd.wav", 0.2, width=1)
    (tmp_path / "text.wav").write_text("no sound")
    with serve() as server:
        for path in (odd, tmp_path / "text.wav", tmp_path / "missing.wav"):
            said = run("push_wav.py", str(path), "--url", server.url)
            assert said.returncode == 2
            assert len(said.stderr.splitlines()) == 1
            assert said.stderr.startswith("push_wav: ")
        said = run("push_wav.py", str(write_wav(tmp_path / "a.wav", 0.2)), "--url", server.url, "--session", "nobody")
        assert said.returncode == 1
        assert "nobody" in said.stderr
    said = run("push_wav.py", str(tmp_path / "a.wav"), "--url", server.url)
    assert said.returncode == 1
    assert "cannot be reached" in said.stderr


def test_lines_are_spoken_one_after_the_other(serve: Serve) -> None:
    with serve() as server:
        said = run("tts_loop.py", "--url", server.url, words="Hello.\nGood day.\n")
        assert said.returncode == 0, said.stderr
        assert [line.split()[:2] for line in said.stdout.splitlines()] == [
            ["started", "0"],
            ["ended", "0"],
            ["started", "1"],
            ["ended", "1"],
        ]


def test_an_empty_line_interrupts(serve: Serve) -> None:
    with serve() as server:
        long = "This is a long sentence that nobody wants to hear to its end, " * 4
        said = run("tts_loop.py", "--url", server.url, words=f"{long}\n\nYes.\n")
        assert said.returncode == 0, said.stderr
        told = [line.split()[:2] for line in said.stdout.splitlines()]
        assert told[-2:] == [["started", "1"], ["ended", "1"]]
        assert ["interrupted", "0"] in told
        assert ["ended", "0"] not in told


def test_a_push_waits_for_room_and_an_interrupt_ends_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    client = importlib.import_module("mouthpiece_client")
    most = 600 * 16_000
    sent: list[int] = []
    with serve() as server, client.Speaker(server.url) as speaker:
        ready = speaker.start(16_000)
        assert ready.fields["bound_samples"] == most
        pushing = threading.Thread(target=lambda: sent.append(speaker.push(bytes(2 * (most + 60 * 16_000)))))
        pushing.start()
        events = speaker.events(EXAMPLE_S)
        assert list(iter_until(events, "full"))[-1].fields["waiting_samples"] >= most
        speaker.interrupt()
        pushing.join(EXAMPLE_S)
        assert not pushing.is_alive()
        (cut,) = (event for event in iter_until(events, "interrupted") if event.type == "interrupted")
        assert most < sent[0] - cut.sample < most + 20 * 16_000, "it stopped soon after it was told"
        assert 0 <= cut.sample < EXAMPLE_S * 16_000
        assert speaker.push(bytes(3_200)) == 1_600
        speaker.end()
        told = list(events)
        ended = next(event for event in told if event.type == "ended")
        assert ended.sample == speaker.pushed_samples == sent[0] + 1_600
        assert "room" in [event.type for event in told]
        with pytest.raises(client.SpeakerError):
            speaker.push(bytes(2))


def test_who_is_replaced_is_told_why(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    client = importlib.import_module("mouthpiece_client")
    with serve() as server, client.Speaker(server.url) as first, client.Speaker(server.url) as second:
        first.start()
        second.start()
        with pytest.raises(client.SpeakerError, match="Another connection"):
            list(first.events(EXAMPLE_S))


def test_a_token_is_shown(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    client = importlib.import_module("mouthpiece_client")
    with serve("token=secret") as server:
        with client.Speaker(server.url, "default", "secret") as speaker:
            assert speaker.start(8_000, 2).fields["sample_rate"] == 8_000
        with client.Speaker(server.url) as speaker, pytest.raises(client.SpeakerError, match="401"):
            speaker.start()


def iter_until(events: Iterator[Any], kind: str) -> Iterator[Any]:
    for event in events:
        yield event
        if event.type == kind:
            return


def adapter(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An adapter of the examples, where its framework is installed."""
    why = f"{package} is not installed: docs/voice_agents.md says how this test is run"
    pytest.importorskip(package, reason=why)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


def tone(seconds: float, rate_hz: int = 24_000) -> bytes:
    turn = 2 * np.pi * 220 * np.arange(int(rate_hz * seconds)) / rate_hz
    return (9_000 * np.sin(turn)).astype("<i2").tobytes()


@pytest.mark.filterwarnings("default")  # the frameworks' own
def test_livekit_agents_learn_what_was_heard(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that end, one that is cut off, one behind it, and a connection that breaks."""
    livekit = adapter("livekit_agent", "livekit.agents", monkeypatch)
    rtc = importlib.import_module("livekit.rtc")

    def frames(seconds: float) -> list[Any]:
        pcm = tone(seconds)
        pieces = [pcm[at : at + 960] for at in range(0, len(pcm), 960)]
        return [rtc.AudioFrame(piece, 24_000, 1, len(piece) // 2) for piece in pieces]

    async def say(output: Any, seconds: float) -> None:
        for frame in frames(seconds):
            await output.capture_frame(frame)
        output.flush()

    async def talk(server: Server) -> None:
        output = livekit.MouthpieceOutput(server.url)
        started = asyncio.Event()
        begun: list[float] = []

        def begin(event: Any) -> None:
            begun.append(event.created_at)
            started.set()

        output.on("playback_started", begin)
        await output.start()

        await say(output, 0.5)
        heard = await asyncio.wait_for(output.wait_for_playout(), EXAMPLE_S)
        assert (heard.playback_position, heard.interrupted) == (0.5, False)

        started.clear()
        await say(output, 20.0)
        await asyncio.wait_for(started.wait(), EXAMPLE_S)
        output.clear_buffer()
        output.clear_buffer()  # the framework does so
        await say(output, 0.25)  # at once: it waits until the interrupt is done, and is not part of it
        heard = await asyncio.wait_for(output.wait_for_playout(), EXAMPLE_S)
        assert (heard.playback_position, heard.interrupted) == (0.25, False)
        assert len(begun) == 3

        finished: list[Any] = []
        output.on("playback_finished", finished.append)
        started.clear()
        await output.capture_frame(frames(0.1)[0])
        for frame in frames(5.0):
            await output.capture_frame(frame)
        await asyncio.wait_for(started.wait(), EXAMPLE_S)
        output.clear_buffer()  # before its end
        heard = await asyncio.wait_for(output.wait_for_playout(), EXAMPLE_S)
        assert heard.interrupted
        assert 0 <= heard.playback_position < 5.0
        await output.capture_frame(frames(0.1)[0])  # the rest of what was cut off
        output.flush()

        await say(output, 20.0)
        await asyncio.to_thread(server.stop)
        heard = await asyncio.wait_for(output.wait_for_playout(), EXAMPLE_S)
        assert heard.interrupted
        await say(output, 0.1)  # nobody waits for ever
        await asyncio.wait_for(output.wait_for_playout(), EXAMPLE_S)
        assert [event.interrupted for event in finished] == [True, True, True]
        await output.aclose()

    with serve() as server:
        asyncio.run(talk(server))


@pytest.mark.filterwarnings("default")
def test_a_livekit_session_keeps_what_was_heard(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The framework's own session, without a room: it says something, says something long, and is interrupted."""
    livekit = adapter("livekit_agent", "livekit.agents", monkeypatch)
    agents = importlib.import_module("livekit.agents")
    rtc = importlib.import_module("livekit.rtc")

    async def sound(seconds: float) -> AsyncIterator[Any]:
        pcm = tone(seconds)
        for at in range(0, len(pcm), 960):
            yield rtc.AudioFrame(pcm[at : at + 960], 24_000, 1, 480)

    async def talk(server: Server) -> tuple[list[Any], list[Any]]:
        output = livekit.MouthpieceOutput(server.url)
        finished: list[Any] = []
        begun: asyncio.Queue[Any] = asyncio.Queue()
        output.on("playback_finished", finished.append)
        output.on("playback_started", begun.put_nowait)
        await output.start()
        session = agents.AgentSession()
        session.output.audio = output
        await session.start(agents.Agent(instructions="Speak."))
        await asyncio.wait_for(session.say("A short one.", audio=sound(0.5)).wait_for_playout(), EXAMPLE_S)
        long = session.say("A long one.", audio=sound(20.0))
        for _ in range(2):
            await asyncio.wait_for(begun.get(), EXAMPLE_S)
        await session.interrupt()
        await asyncio.wait_for(long.wait_for_playout(), EXAMPLE_S)
        kept = [item for item in session.history.items if item.type == "message"]
        await session.aclose()
        await output.aclose()
        return finished, kept

    with serve() as server:
        finished, kept = asyncio.run(talk(server))
    assert [event.interrupted for event in finished] == [False, True]
    assert finished[0].playback_position == 0.5
    assert finished[1].playback_position < 20.0
    assert [item.interrupted for item in kept] in ([False], [False, True])  # what was hardly begun is not kept


@pytest.mark.filterwarnings("default")
def test_pipecat_passes_on_what_was_heard(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts behind sound come out when it was heard; those behind an interrupt do not."""
    pipecat = adapter("pipecat_agent", "pipecat", monkeypatch)
    kinds = importlib.import_module("pipecat.frames.frames")
    testing = importlib.import_module("pipecat.tests.utils")

    def speech(seconds: float) -> list[Any]:
        pcm = tone(seconds)
        sound = [kinds.TTSAudioRawFrame(pcm[at : at + 9_600], 24_000, 1) for at in range(0, len(pcm), 9_600)]
        return [kinds.TTSStartedFrame(), *sound]

    def text(words: str) -> Any:
        return kinds.TTSTextFrame(words, text_type="sentence")

    async def talk(server: Server) -> tuple[list[Any], list[Any]]:
        sent = [*speech(0.6), text("one"), kinds.TTSStoppedFrame(), testing.SleepFrame(sleep=1.5)]
        sent += [*speech(0.4), text("two"), *speech(20.0), text("three"), kinds.TTSStoppedFrame()]
        sent += [testing.SleepFrame(sleep=1.5), kinds.InterruptionFrame(), testing.SleepFrame(sleep=0.3)]
        sent += [*speech(0.3), text("four"), kinds.TTSStoppedFrame()]
        down, up = await testing.run_test(pipecat.MouthpieceOutput(server.url), frames_to_send=sent, start_timeout=10.0)
        return list(down), list(up)

    with serve() as server:
        down, up = asyncio.run(asyncio.wait_for(talk(server), EXAMPLE_S))
        puts = [arguments for name, arguments in server.calls() if name == "put"]
    assert sum(samples for samples, _, _ in puts) == round(16_000 * 21.3)
    assert [frame.text for frame in down if isinstance(frame, kinds.TTSTextFrame)] == ["one", "two", "four"]
    speaking = (kinds.BotStartedSpeakingFrame, kinds.BotStoppedSpeakingFrame)
    for frames in (down, up):
        assert [type(frame) for frame in frames if isinstance(frame, speaking)] == [*speaking] * 3
    assert not [frame for frame in up if isinstance(frame, kinds.ErrorFrame)]
    order = [frame for frame in down if isinstance(frame, (*speaking, kinds.TTSTextFrame))]
    assert [getattr(frame, "text", type(frame).__name__) for frame in order][:3] == [
        "BotStartedSpeakingFrame",
        "one",
        "BotStoppedSpeakingFrame",
    ]


@pytest.mark.filterwarnings("default")
def test_pipecat_goes_on_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    pipecat = adapter("pipecat_agent", "pipecat", monkeypatch)
    kinds = importlib.import_module("pipecat.frames.frames")
    testing = importlib.import_module("pipecat.tests.utils")

    async def talk() -> tuple[list[Any], list[Any]]:
        sent = [kinds.TTSAudioRawFrame(tone(0.1), 24_000, 1), kinds.TextFrame("hello"), kinds.InterruptionFrame()]
        down, up = await testing.run_test(
            pipecat.MouthpieceOutput("http://127.0.0.1:9"), frames_to_send=sent, start_timeout=10.0
        )
        return list(down), list(up)

    down, up = asyncio.run(asyncio.wait_for(talk(), EXAMPLE_S))
    assert "cannot be reached" in next(frame.error for frame in up if isinstance(frame, kinds.ErrorFrame))
    assert any(isinstance(frame, kinds.InterruptionFrame) for frame in down)
