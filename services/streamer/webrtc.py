"""WebRTC: picture and sound of a session to players that speak it, in step, within a few hundred milliseconds.

A session with at least one player is encoded once for all of them: H.264 for the picture (RFC 6184), Opus for the sound
(RFC 7587), by one thread. Only a player that knows no H.264 costs an encoder of its own, for VP8. Sending, encryption
and everything else is aiortc's, in one asyncio loop.

No server outside is asked for our address (no STUN): this is for the same machine and the same network.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, TypeVar

import av
import cv2
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av.video.frame import PictureType

from services.streamer.mjpeg import HubClosedError
from services.streamer.recorder import fit
from shared.clock import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import numpy.typing as npt

    from services.streamer.control import SessionControl
    from services.streamer.mjpeg import Frame, FrameHub, Viewer
    from services.streamer.sound import SoundHub

__all__ = ["MOST_PEERS", "OfferError", "Peers", "TooManyPeersError"]

MOST_PEERS: Final = 16
"""players at once, of all sessions"""
ANSWER_S: Final = 10.0
"""longest time until an offer is answered"""
CONNECT_S: Final = 20.0
"""time in which a player must have come after its offer was answered"""
SOUND_S: Final = 0.02
"""of sound in a packet"""
SOUND_SAMPLES: Final = round(SAMPLE_RATE_HZ * SOUND_S)
LATE_S: Final = 0.5
"""sound that is so late is left out: the machine stood still"""
REPEAT_S: Final = 1.0
"""a picture that does not move is sent again after this time"""
KEY_S: Final = 2.0
"""time from one picture that stands for itself to the next: a player that missed one is well again after it"""
WAITING: Final = 25
"""packets that may wait for a player"""
VIDEO_CLOCK_HZ: Final = 90_000
VIDEO_OPTIONS: Final = {
    "preset": "veryfast",
    "tune": "zerolatency",
    "crf": "23",
    "maxrate": "3000k",
    "bufsize": "1000k",
}
SOUND_OPTIONS: Final = {"application": "voip", "frame_duration": "20"}
SOUND_BITS: Final = 32_000
"""of Opus, bit/s"""
MOST_CANDIDATES: Final = 64
"""addresses that a player may offer: each of them is tried, by all of ours"""

T = TypeVar("T")

log = logging.getLogger(__name__)


class OfferError(ValueError):
    """An offer cannot be answered; the text is for the person who wrote or chose the player."""


class TooManyPeersError(RuntimeError):
    """No further player can be served; the text says how many there may be."""


class Peers:
    """All players of one server. Safe to call from any thread."""

    def __init__(self, most: int = MOST_PEERS) -> None:
        for name in ("aioice", "aiortc"):  # they tell the addresses of those who look
            logging.getLogger(name).setLevel(logging.WARNING)
        self._most = most
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Only the loop's thread touches these.
        self._peers: dict[str, _Peer] = {}
        self._broadcasts: dict[FrameHub, _Broadcast] = {}
        self._tasks: set[asyncio.Task[bool]] = set()

    def connect(self, session: SessionControl, offer: str) -> tuple[str, str]:
        """Answer the offer of a player.

        Args:
            session: what it wants to see.
            offer: SDP.

        Returns:
            a name for the connection that nobody can guess, and the SDP of the answer with all our addresses.

        Raises:
            OfferError: the offer cannot be answered.
            TooManyPeersError: there are as many players as there may be.
            TooManyViewersError: the session has as many viewers, or listeners, as it may have.
            HubClosedError: the session ends.
            TimeoutError: the machine is too busy.
        """
        return self._do(self._connect(session, offer))

    def end(self, resource: str) -> bool:
        """End a connection; whether there was one of that name.

        Raises:
            TimeoutError: the machine is too busy.
        """
        return self._do(self._end(resource))

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="webrtc", daemon=True).start()
        future = asyncio.run_coroutine_threadsafe(what, self._loop)
        try:
            return future.result(ANSWER_S)
        except TimeoutError:
            future.cancel()
            raise

    async def _connect(self, session: SessionControl, offer: str) -> tuple[str, str]:
        if len(self._peers) >= self._most:
            raise TooManyPeersError(
                f"{self._most} players are connected by WebRTC already, which is the most this server takes. "
                "Close one of them and try again."
            )
        resource = secrets.token_urlsafe(16)
        with ExitStack() as stack:
            viewer = stack.enter_context(session.frames.viewer())
            broadcast = self._broadcasts.get(session.frames)
            if broadcast is None:
                broadcast = _Broadcast(session.frames, session.sound, self._over)
                self._broadcasts[session.frames] = broadcast
            peer = self._peers[resource] = _Peer(viewer, broadcast, stack.pop_all())
        try:
            answer = await peer.answer(offer)
        except BaseException:
            await self._end(resource)
            raise
        loop = asyncio.get_running_loop()

        @peer.connection.on("connectionstatechange")
        async def changed() -> None:
            if peer.connection.connectionState in {"failed", "closed"}:
                await self._end(resource)

        loop.call_later(CONNECT_S, lambda: None if peer.came else self._end_soon(resource))
        return resource, answer

    def _end_soon(self, resource: str) -> None:
        task = asyncio.get_running_loop().create_task(self._end(resource))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, resource: str) -> bool:
        peer = self._peers.pop(resource, None)
        if peer is None:
            return False
        await peer.close()
        if not peer.broadcast.peers:
            self._drop(peer.broadcast)
            peer.broadcast.stop()
        return True

    def _drop(self, broadcast: _Broadcast) -> None:
        if self._broadcasts.get(broadcast.frames) is broadcast:
            del self._broadcasts[broadcast.frames]

    def _over(self, broadcast: _Broadcast) -> None:
        """A session has ended, and with it its players. Runs in the loop."""
        self._drop(broadcast)
        for resource, peer in self._peers.items():
            if peer.broadcast is broadcast:
                self._end_soon(resource)


class _Track(MediaStreamTrack):
    """What waits to be sent to one player."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self._packets: asyncio.Queue[Any] = asyncio.Queue(WAITING)
        self._broken = True
        """whether it takes up again only with a packet that stands for itself"""

    def put(self, item: Any, *, key: bool) -> bool:
        """Put a packet or picture behind the others; whether it was taken."""
        if self._broken and not key:
            return False
        self._broken = self._packets.full()
        if not self._broken:
            self._packets.put_nowait(item)
        return not self._broken

    async def recv(self) -> Any:
        if self.readyState != "live":
            raise MediaStreamError
        return await self._packets.get()


class _Peer:
    """One player. Lives in the loop."""

    def __init__(self, viewer: Viewer, broadcast: _Broadcast, stack: ExitStack) -> None:
        self.broadcast = broadcast
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.picture, self.sound = _Track("video"), _Track("audio")
        self.takes_h264 = False
        self.viewer = viewer
        self._stack = stack
        broadcast.peers.add(self)

    @property
    def came(self) -> bool:
        """Whether it is connected."""
        return bool(self.connection.connectionState == "connected")

    async def answer(self, offer: str) -> str:
        """Answer an offer; gives the SDP of the answer."""
        kinds = _asked(offer)
        if "video" in kinds:
            known = RTCRtpSender.getCapabilities("video").codecs
            pictures = self.connection.addTransceiver(self.picture, "sendonly")
            pictures.setCodecPreferences(sorted(known, key=lambda codec: codec.mimeType != "video/H264"))
        if "audio" in kinds:
            self.connection.addTransceiver(self.sound, "sendonly")
        try:
            await self.connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            answer = await self.connection.createAnswer()
        except Exception as error:  # the parser raises whatever a line leads it to
            log.debug("an offer was not understood", exc_info=True)
            raise OfferError("This offer is not understood: send the SDP that a WHEP player makes.") from error
        if "a=sendonly" not in answer.sdp:
            raise OfferError("This offer asks for nothing: a player has to be ready to receive picture or sound.")
        await self.connection.setLocalDescription(answer)
        self.takes_h264 = _first_codec(answer.sdp) == "H264"
        self.broadcast.need_key()
        return str(self.connection.localDescription.sdp)

    async def close(self) -> None:
        self.broadcast.peers.discard(self)
        self.broadcast.need_key()
        self._stack.close()
        await self.connection.close()


@dataclass(frozen=True)
class _Piece:
    """Something to be sent."""

    kind: str
    packet: Any
    """H.264 or Opus; None where nobody takes it"""
    picture: Any
    """not encoded; None where nobody takes it so"""
    key: bool
    """whether it stands for itself"""
    size: int = 0
    """bytes"""


class _Broadcast:
    """Picture and sound of one session, encoded once for all its players, as long as it has some."""

    def __init__(self, frames: FrameHub, sound: SoundHub, over: Callable[[_Broadcast], None]) -> None:
        self.frames = frames
        self.peers: set[_Peer] = set()
        """who takes it; only the loop's thread touches them"""
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._stopped = threading.Event()
        self._wanted = threading.Event()
        self._plain = self._h264 = False
        with ExitStack() as stack:
            self._reader = stack.enter_context(sound.reader())
            self._listening = stack.pop_all()
        self._film: _H264 | None = None
        self._voice = _opus()
        threading.Thread(target=self._run, name="webrtc-encode", daemon=True).start()

    def need_key(self) -> None:
        """Send a picture that stands for itself soon, to whom there is now. Called in the loop."""
        self._h264 = any(peer.takes_h264 for peer in self.peers)
        self._plain = any(not peer.takes_h264 for peer in self.peers)
        self._wanted.set()

    def stop(self) -> None:
        """End it; its thread ends within a few milliseconds."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            self._send_all()
        except HubClosedError:
            log.debug("a session ends, and with it its players")
        finally:
            self._listening.close()
            self._loop.call_soon_threadsafe(self._over, self)

    def _send_all(self) -> None:
        """Both tracks with one clock: the moment at which a picture is shown, or the first sample of sound is heard."""
        began_s = time.monotonic()
        packets, seen = 0, 0
        shown: Frame | None = None
        shown_s = key_s = -KEY_S
        while not self._stopped.is_set():
            due_s = began_s + packets * SOUND_S
            published = self.frames.wait(seen, max(0.0, due_s - time.monotonic()))
            now_s = time.monotonic() - began_s
            if now_s - packets * SOUND_S > LATE_S:
                packets = round(now_s / SOUND_S)
            while packets * SOUND_S <= now_s:
                self._speak(packets, began_s + packets * SOUND_S)
                packets += 1
            if published is None:
                continue
            seen = published.count
            key = self._wanted.is_set() or now_s - key_s >= KEY_S
            if published.frame is not shown or self._wanted.is_set() or now_s - shown_s >= REPEAT_S:
                self._wanted.clear()
                shown, shown_s = published.frame, now_s
                key_s = now_s if key else key_s
                self._show(shown.image, round(now_s * VIDEO_CLOCK_HZ), key=key)

    def _speak(self, number: int, due_s: float) -> None:
        pcm = self._reader.read(SOUND_SAMPLES, due_s)
        sound = av.AudioFrame.from_ndarray(pcm[None, :], format="s16", layout="mono")
        sound.sample_rate = SAMPLE_RATE_HZ
        sound.time_base = Fraction(1, SAMPLE_RATE_HZ)
        sound.pts = number * SOUND_SAMPLES
        for packet in self._voice.encode(sound):
            packet.pts = sound.pts
            packet.time_base = sound.time_base
            self._send(_Piece("audio", packet, packet, key=True))

    def _show(self, image: npt.NDArray[np.uint8], pts: int, *, key: bool) -> None:
        height, width = (max(16, side & ~1) for side in image.shape[:2])
        planes = cv2.cvtColor(fit(image, width, height), cv2.COLOR_BGR2YUV_I420).astype(np.uint8, copy=False)
        picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        picture.pts, picture.time_base = pts, Fraction(1, VIDEO_CLOCK_HZ)
        plain = picture if self._plain else None
        if not self._h264:
            self._send(_Piece("video", None, plain, key=True))
            return
        if self._film is None or (self._film.width, self._film.height) != (width, height):
            self._film = _H264(width, height)
            key = True
        for packet in self._film.encode(picture, key=key):
            self._send(_Piece("video", packet, plain, key, packet.size))

    def _send(self, piece: _Piece) -> None:
        self._loop.call_soon_threadsafe(self._deliver, piece)

    def _deliver(self, piece: _Piece) -> None:
        """Runs in the loop."""
        for peer in self.peers:
            if piece.kind == "audio":
                peer.sound.put(piece.packet, key=True)
            elif peer.takes_h264 and piece.packet is not None:
                if peer.picture.put(piece.packet, key=piece.key):
                    peer.viewer.count(piece.size)
            elif not peer.takes_h264 and piece.picture is not None and peer.picture.put(piece.picture, key=True):
                peer.viewer.count(0)


class _H264:
    """One encoder for one size."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._coder: Any = av.CodecContext.create("libx264", "w")
        self._coder.width, self._coder.height = width, height
        self._coder.pix_fmt = "yuv420p"
        self._coder.time_base = Fraction(1, VIDEO_CLOCK_HZ)
        self._coder.framerate = Fraction(25)
        self._coder.thread_count = 1
        self._coder.gop_size = 1000  # we say when
        self._coder.profile = "Baseline"
        self._coder.options = VIDEO_OPTIONS

    def encode(self, picture: Any, *, key: bool) -> list[Any]:
        """The packets of a picture, one as a rule."""
        picture.pict_type = PictureType.I if key else PictureType.NONE
        packets = self._coder.encode(picture)
        picture.pict_type = PictureType.NONE
        return list(packets)


def _opus() -> Any:
    """An encoder for the sound as it is; Opus counts in 48 kHz whatever goes in."""
    coder: Any = av.CodecContext.create("libopus", "w")
    coder.sample_rate = SAMPLE_RATE_HZ
    coder.layout = "mono"
    coder.format = "s16"
    coder.time_base = Fraction(1, SAMPLE_RATE_HZ)
    coder.bit_rate = SOUND_BITS
    coder.options = SOUND_OPTIONS
    return coder


def _asked(sdp: str) -> list[str]:
    """What an offer has lines for: `audio`, `video`, or both.

    Raises:
        OfferError: there is more in it. What we do not send a player would send, and nobody would ever take it.
    """
    lines = sdp.splitlines()  # as the parser cuts it
    kinds = [line[2:].split(" ", 1)[0] for line in lines if line.startswith("m=")]
    if len(set(kinds)) < len(kinds) or set(kinds) - {"audio", "video"}:
        raise OfferError("Offer one line for the picture, one for the sound, and nothing else: that is all there is.")
    if sum(line.startswith("a=candidate:") for line in lines) > MOST_CANDIDATES:
        raise OfferError(f"This offer has more than {MOST_CANDIDATES} addresses.")
    return kinds


def _first_codec(sdp: str) -> str:
    """The codec that an answer gives the picture; empty where it has none."""
    line = re.search(r"^m=video \d+ \S+ (\d+)", sdp, re.MULTILINE)
    name = line and re.search(rf"^a=rtpmap:{line[1]} ([^/\s]+)/", sdp, re.MULTILINE)
    return name[1] if name else ""
