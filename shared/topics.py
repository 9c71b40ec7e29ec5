"""THE table: every topic, what travels on it, who sends, who receives, who binds, and its bounds.

No topic, port or queue length stands anywhere else. The stable side binds, the side that comes and goes connects.
A topic may carry a key behind a dot (``work.<worker>``, ``face.<id>``), on which receivers subscribe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from shared.messages import (
    Audio,
    Beat,
    Credit,
    Face,
    FaceProblem,
    Flush,
    Forget,
    Gap,
    Message,
    Patch,
    Pcm,
    Photo,
    Refusal,
    SessionState,
    SourceState,
    Work,
)

__all__ = ["BY_NAME", "SERVICES", "TOPICS", "ServiceName", "Topic", "topic"]

ServiceName = Literal["audio_capture", "mel_features", "face_prep", "inference", "streamer"]

SERVICES: Final[tuple[ServiceName, ...]] = ("audio_capture", "mel_features", "face_prep", "inference", "streamer")

KiB: Final = 1024
MiB: Final = 1024 * 1024


@dataclass(frozen=True)
class Topic:
    """One row of the table."""

    name: str
    """what subscriptions begin with"""
    messages: tuple[type[Message], ...]
    """what may travel on it"""
    senders: tuple[ServiceName, ...]
    """who publishes"""
    receivers: tuple[ServiceName, ...]
    """who subscribes"""
    binds: ServiceName
    """which side has the port"""
    port: int
    """offset from the setting `MOUTHPIECE_BUS_PORT`"""
    rate_hz: float
    """messages a second and session (or process) that are usual"""
    high_water_mark: int
    """most messages that wait for one receiver"""
    max_bytes: int
    """most bytes of one frame of a message"""
    buffer_bytes: int
    """kernel socket buffers"""
    keyed: bool
    """whether a key follows the name"""
    watched: bool
    """whether it is to be noticed within a second or so that the other side stands still; else within a few: a
    process that ends is noticed at once, and each question whether the other side is there wakes both"""
    when_slow: str
    """what happens when the receiver is slow, for docs/protocol.md"""


TOPICS: Final[tuple[Topic, ...]] = (
    Topic(
        name="audio",
        messages=(Audio, Gap, SourceState),
        senders=("audio_capture",),
        receivers=("mel_features", "streamer"),
        binds="audio_capture",
        port=0,
        rate_hz=25,
        high_water_mark=1000,
        max_bytes=64 * KiB,
        buffer_bytes=256 * KiB,
        keyed=False,
        watched=False,
        when_slow="20 s wait, mostly 40; what is lost then shows as a jump of first_sample and is treated as a Gap",
    ),
    Topic(
        name="work",
        messages=(Work, Refusal),
        senders=("mel_features",),
        receivers=("inference",),
        binds="mel_features",
        port=1,
        rate_hz=25,
        high_water_mark=64,
        max_bytes=128 * KiB,
        buffer_bytes=128 * KiB,
        keyed=True,
        watched=True,
        when_slow="no credit, no send; a window that is too late is dropped and counted",
    ),
    Topic(
        name="credit",
        messages=(Credit,),
        senders=("inference",),
        receivers=("mel_features",),
        binds="mel_features",
        port=2,
        rate_hz=25,
        high_water_mark=200,
        max_bytes=64 * KiB,
        buffer_bytes=64 * KiB,
        keyed=False,
        watched=True,
        when_slow="each message holds the whole account, so a lost one is made good by the next",
    ),
    Topic(
        name="face",
        messages=(Face, FaceProblem, Forget),
        senders=("face_prep",),
        receivers=("inference", "streamer"),
        binds="face_prep",
        port=3,
        rate_hz=0.1,
        high_water_mark=16,
        max_bytes=52 * MiB,
        buffer_bytes=512 * KiB,
        keyed=True,
        watched=False,
        when_slow="a subscription to face.<id> is answered with the face, also for a late joiner",
    ),
    Topic(
        name="patch",
        messages=(Patch,),
        senders=("inference",),
        receivers=("streamer",),
        binds="streamer",
        port=4,
        rate_hz=25,
        high_water_mark=16,
        max_bytes=16 * MiB,
        buffer_bytes=512 * KiB,
        keyed=False,
        watched=True,
        when_slow="the newest wins; frames older than the picture shown are dropped and counted",
    ),
    Topic(
        name="session",
        messages=(SessionState,),
        senders=("streamer",),
        receivers=("audio_capture", "mel_features", "inference"),
        binds="streamer",
        port=5,
        rate_hz=1,
        high_water_mark=64,
        max_bytes=64 * KiB,
        buffer_bytes=64 * KiB,
        keyed=False,
        watched=False,
        when_slow="the whole state is told again each second",
    ),
    Topic(
        name="ingest",
        messages=(Photo, Forget, Pcm, Flush),
        senders=("streamer",),
        receivers=("audio_capture", "face_prep"),
        binds="streamer",
        port=6,
        rate_hz=1,
        high_water_mark=256,
        max_bytes=11 * MiB,
        buffer_bytes=512 * KiB,
        keyed=True,
        watched=False,
        when_slow="a photo is told again until its face is there; lost PCM is a Gap",
    ),
    Topic(
        name="beat",
        messages=(Beat,),
        senders=("audio_capture", "mel_features", "face_prep", "inference"),
        receivers=("streamer",),
        binds="streamer",
        port=7,
        rate_hz=1,
        high_water_mark=64,
        max_bytes=64 * KiB,
        buffer_bytes=64 * KiB,
        keyed=False,
        watched=False,
        when_slow="the newest wins",
    ),
)

BY_NAME: Final[dict[str, Topic]] = {row.name: row for row in TOPICS}


def topic(name: str) -> Topic:
    """Give the row of a topic.

    Raises:
        KeyError: there is no such topic.
    """
    return BY_NAME[name]
