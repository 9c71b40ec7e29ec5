"""How much is under way to a viewer, and how fast it goes: read from the kernel, without a word from the viewer.

Between us and the eye lie three stores that would each fill up with old pictures: our own send buffer, the queues of
the network, and the receive buffer of the viewer. The first two are what the kernel counts as not acknowledged
(SIOCOUTQ, tcp(7)); the third shows in the receive window that the viewer advertises (``tcpi_snd_wnd``, Linux 5.4): it
shrinks by what lies there unread. A new frame goes out when the first two are nearly empty and the third is at most
half full. (Not nearly empty: a Linux receiver tells that it has room again only when the room has doubled.)
"""

from __future__ import annotations

import errno
import fcntl
import select
import socket
import struct
import termios
import time
from dataclasses import dataclass
from typing import Final

__all__ = ["TcpLine"]

SEND_BUFFER_BYTES: Final = 128 * 1024
"""about one frame; the kernel doubles it for its own book-keeping"""
SLACK_BYTES: Final = 4 * 1024
"""bytes under way that still count as nothing"""
STALL_S: Final = 6.0
"""a viewer that takes nothing for this long is gone"""
PROBE_S: Final = (0.1, 1.0)
"""pause before a frame is sent just to see whether the viewer reads again: after the first hiccup, and at most"""
POLL_S: Final = 0.004
"""the kernel tells nobody when a queue runs empty, so we look"""
FRAME_S: Final = 0.04
"""a frame under way for longer than this measures the line; a shorter one only says that it is fast enough"""
TOLD_BYTES: Final = 4096
"""of a frame from which the viewer's window shows whether it is read: windows are told in steps of up to 1 KiB or so"""
LONG_S: Final = 0.2
"""a frame under way for longer than this leaves no doubt"""
PACE: Final = 1.15
"""a line that is full gets a little less than it carries, so that what stands in its buffers drains"""
SLOWEST: Final = 20 * 1024.0
"""bytes/s: no line is thought slower, or it could not show within seconds that it has become faster"""
START: Final = (125e3, 500e3)
"""bytes/s that a new line is taken to carry: if its viewer seems to read slowly, and if not"""
FAST: Final = 4e6
"""bytes/s from which a line is no longer new"""
LAZY_S: Final = (0.03, 0.07)
"""a near kernel whose program has read acknowledges at once; after this time it does so without: that proves nothing"""
MOST_DOUBTS: Final = 3
"""of the first frames may look unread or lazily acknowledged; a near kernel that has room may look so for ever"""
ENOUGH: Final = 10
"""frames in a row that went through at once: the line is known, though small ones measure none as fast"""
CROWDED: Final = 0.5
"""share of the viewer's buffer: with less left in it, it is read too slowly"""
WARY: Final = 0.75
"""the same for a new line"""
GROWTH: Final = 1.04
"""by which the rate of a line is taken to be better with each frame that it took with ease"""
NEAR_US: Final = 5000
"""round trip up to which a viewer counts as near, us"""
MOST_IN_FLIGHT_BYTES: Final = 1024 * 1024
"""most that is taken for the line's own contents"""

# struct tcp_info, include/uapi/linux/tcp.h: offsets in bytes
_BYTES_ACKED: Final = 120
_MIN_RTT_US: Final = 148
_DELIVERY_RATE: Final = 160
_SND_WND: Final = 228
_TCP_INFO_BYTES: Final = 232


@dataclass(frozen=True)
class _Look:
    queued: int
    """bytes not acknowledged"""
    acked: int
    """bytes acknowledged since the start"""
    in_flight: int
    """bytes that a line of this length and rate has under way even when no queue stands, the product of both"""
    window: int
    """bytes that the viewer would take"""


class TcpLine:
    """A TCP connection to a viewer. Used by the thread that sends."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A pulled cable sends no FIN. This ends retransmissions; the stall rule below ends a reader that only sleeps.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round((STALL_S + 2) * 1000))
        # A still picture is sent once a second: one that left would be noticed only at the second sending after that.
        self._hung_up = select.poll()
        self._hung_up.register(sock, select.POLLRDHUP)
        self._near = True
        # For a frame that is larger than the send buffer: sendall() of the server waits no longer than this.
        sock.settimeout(STALL_S)
        now = time.monotonic()
        look = self._look()
        self._acked = look.acked
        self._window = look.window
        self._widest = look.window
        """about the widest window seen: the viewer's buffer when it is empty"""
        self._window_sent = look.window
        """window when the last frame was handed over"""
        self._rose = False
        """whether the window has grown since the last probe: somebody reads"""
        self._rate: float | None = None
        self._starting = True
        """whether no frame has yet shown what the line carries"""
        self._eager = 0
        """frames in a row that were acknowledged at once, while starting"""
        self._doubts = 0
        """frames that were not, while starting"""
        self._probe_s = PROBE_S[0]
        self._size = 0
        """bytes of the last frame"""
        self._sent_s = now
        self._measured_s = -1.0
        """`_sent_s` of the frame that measured the line last"""
        self._progress_s = now
        """when the viewer last took something"""

    @property
    def rate(self) -> float | None:
        """What the line carries, bytes/s; None while unknown."""
        return self._rate

    def sent(self, size: int, began_s: float) -> None:
        """Note that `size` bytes were handed to the kernel, beginning at `began_s` (monotonic)."""
        self._size = size
        self._sent_s = began_s
        self._window_sent = self._window
        if 2 * self._window >= self._widest:
            self._progress_s = began_s  # until now it had nothing to take

    def wait(self) -> None:
        """Wait until hardly anything is under way.

        Raises:
            ConnectionResetError: the viewer has hung up, or took nothing for `STALL_S` and has been cut off.
        """
        while True:
            if self._hung_up.poll(0):
                raise ConnectionResetError(errno.ECONNRESET, "viewer has hung up")
            if self._ready():
                return
            if time.monotonic() - self._progress_s > STALL_S:
                cut(self._sock)
                raise ConnectionResetError(errno.ECONNRESET, f"viewer took nothing for {STALL_S:.0f} s")
            time.sleep(POLL_S)

    def _ready(self) -> bool:
        now = time.monotonic()
        if not self._size:
            return True
        look = self._look()
        crowded = look.window < (WARY if self._starting else CROWDED) * self._widest
        if look.window > self._window:
            self._progress_s, self._rose = now, True
        elif look.acked > self._acked and not crowded:
            self._progress_s = now
        elif crowded and not look.queued and self._size >= TOLD_BYTES and self._reads(look.window):
            # Its buffer may never be as wide again as it was once, and then looks crowded for ever.
            self._progress_s, self._rose = now, True
        self._widest = max(self._widest, look.window)
        self._window, self._acked = look.window, look.acked
        if look.queued > look.in_flight + SLACK_BYTES:
            return False
        if not crowded:
            self._probe_s = PROBE_S[0]
        elif now - self._sent_s < self._probe_s:
            return False
        else:
            # Room is announced late, and a buffer may never look as wide again as it did when it was new.
            self._probe_s = min(2 * self._probe_s, PROBE_S[1])
            if self._rose:
                self._widest, self._rose = max(look.window, round(0.9 * self._widest)), False
            elif now - self._progress_s > STALL_S:
                return False
        self._learn(now)
        return self._rate is None or now - self._sent_s >= PACE * self._size / self._rate - FRAME_S

    def _reads(self, window: int) -> bool:
        """Whether the viewer has read what came before the last frame, which has lain down in its buffer meanwhile."""
        return window > self._window_sent - self._size // 2

    def _learn(self, now: float) -> None:
        """The last frame has gone through: what does the time it took say about the line?"""
        if self._measured_s == self._sent_s:
            return
        self._measured_s = self._sent_s
        took_s = now - self._sent_s
        # What went through is the frame, and what the viewer had not read before it.
        went = self._size + max(0, self._window - self._window_sent)
        if self._starting:
            self._start(took_s, went)
            return
        sample = max(SLOWEST, went / max(took_s, FRAME_S))
        if self._rate is None:
            self._rate = sample
        elif took_s > LONG_S:
            self._rate = min(self._rate, sample)
        elif took_s > FRAME_S:
            self._rate = (self._rate * sample) ** 0.5
        else:
            # A small frame vanishes into some buffer at once; that the line is faster is believed step by step.
            self._rate = max(self._rate, min(went / max(took_s, POLL_S), GROWTH * self._rate))

    def _start(self, took_s: float, went: int) -> None:
        """Learn from one of the first frames, before the line is known: more is believed while all goes at once."""
        lazy = LAZY_S[0] < took_s < LAZY_S[1]
        unread = took_s < LAZY_S[1] and not self._reads(self._window)
        if self._near and (lazy or unread):
            self._rate, self._eager = START[0], 0
            self._doubts += 1
            self._starting = self._doubts < MOST_DOUBTS
            return
        self._eager += 1
        sample = max(SLOWEST, went / max(took_s, POLL_S))
        if self._rate is None:
            self._rate = min(sample, START[1])
        elif took_s > (FRAME_S if sample < self._rate else LONG_S):
            self._rate, self._starting = min(sample, START[0]), False
        elif self._eager > 1:
            self._rate = max(self._rate, min(sample, 2 * self._rate))
            self._starting = self._rate < FAST and self._eager < ENOUGH

    def _look(self) -> _Look:
        queued = struct.unpack("i", fcntl.ioctl(self._sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        info = info.ljust(_TCP_INFO_BYTES, b"\0")
        (acked,) = struct.unpack_from("Q", info, _BYTES_ACKED)
        (min_rtt_us,) = struct.unpack_from("I", info, _MIN_RTT_US)
        (delivery_rate,) = struct.unpack_from("Q", info, _DELIVERY_RATE)
        (window,) = struct.unpack_from("I", info, _SND_WND)
        # On a short way the acknowledgement is back long before the next frame: nothing need be under way.
        self._near = min_rtt_us <= NEAR_US
        in_flight = 0 if self._near else min(MOST_IN_FLIGHT_BYTES, delivery_rate * min_rtt_us // 1_000_000)
        return _Look(queued, acked, in_flight, window)


def cut(sock: socket.socket) -> None:
    """End a connection at once, without waiting for what the other side has not taken."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended by itself
