"""The microphone: a recorder process that is watched, and a time line that survives it."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import threading
import time
from typing import Final

import numpy as np
import numpy.typing as npt

from services.audio_capture.chunks import Chunk, Hole, SourceStatus
from services.audio_capture.devices import ROOT, recorder_command, recorder_environment
from services.audio_capture.recorder import HEAD, QUEUE_BYTES, RECORD_BYTES
from services.audio_capture.timeline import Block, CaptureLine

__all__ = ["MicrophoneSource"]

PA_INPUT_OVERFLOW: Final = 2
"""PortAudio's status flag paInputOverflow"""


class MicrophoneSource:
    """Sound of an input device.

    Args:
        device: None for the system's default, "3" for PortAudio's index, otherwise a part of the name, case ignored.

    A device that stops, fails or falls silent (no block for 1 s) is given up and looked for every second until it is
    there again; then one `Hole` ("unplugged") stands for the time it was away. The first sample of the line is the
    first one ever heard. Latency: at most 10 ms for the block, 13 ms in the resampler, 20 ms to fill a chunk, beside
    what the sound server adds before.
    """

    OPEN_S: Final = 8.0
    """a recorder that has not opened its device by then hangs"""
    FIRST_BLOCK_S: Final = 2.0
    SILENT_S: Final = 1.0
    """a device that gives no block for so long is gone"""
    RETRY_S: Final = 1.0
    CLOSE_S: Final = 0.3
    READ_MAX: Final = 1000
    """most records in one `read`"""

    def __init__(self, device: str | None = None) -> None:
        self._wanted = device
        self._found: str | None = None
        self._heard = False
        self._line = CaptureLine()
        self._status = SourceStatus("starting", "The microphone is being opened.")
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._channels = 1
        self._about = ""
        self._due: float | None = None
        self._epoll: select.epoll | None = select.epoll()  # a constant descriptor, whichever recorder there is

    @property
    def status(self) -> SourceStatus:
        """How it is."""
        return self._status

    def start(self) -> None:
        """Begin to open the device; nothing waits for it."""
        self._spawn()

    def fileno(self) -> int:
        """A descriptor that is readable when a block or news waits; the same one always.

        Raises:
            ValueError: the source is closed.
        """
        if self._epoll is None:
            raise ValueError("the microphone is closed")
        return self._epoll.fileno()

    def next_due(self) -> float | None:
        """When the device counts as gone, or when to try again, s of `time.monotonic`."""
        return self._due

    def read(self) -> list[Chunk | Hole]:
        """Give what was heard. Never blocks."""
        items: list[Chunk | Hole] = []
        if self._epoll is None:
            return items
        if self._channel is None:
            if self._due is not None and time.monotonic() >= self._due:
                self._spawn()
            return items
        for _ in range(self.READ_MAX):
            try:
                record = self._channel.recv(RECORD_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                self._give_up(f"The microphone failed ({error.strerror}).")
                return items
            if not record:
                self._give_up("The recorder of the microphone ended.")
                return items
            items += self._take(record)
            if self._process is None:  # the record said that the device is gone
                return items
        if self._due is not None and time.monotonic() >= self._due:
            self._give_up(
                "The microphone gives no sound any more."
                if self._about
                else f"PortAudio has not opened the microphone within {self.OPEN_S:g} s."
            )
        return items

    def close(self) -> None:
        """End the recorder. May be called twice."""
        self._stop(self.CLOSE_S)
        self._due = None
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
            if self._status.state != "failed":
                self._status = SourceStatus("ended", "The microphone is closed.")

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)
        wanted = self._found or self._wanted
        arguments = ["--fd", str(theirs.fileno()), *(["--device", wanted] if wanted else [])]
        try:
            self._process = subprocess.Popen(
                recorder_command(*arguments),
                cwd=ROOT,
                env=recorder_environment(),
                stdin=subprocess.PIPE,  # its end tells the recorder that we are gone
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for us; we end the recorder
            )
        except OSError as error:
            ours.close()
            self._give_up(f"The recorder of the microphone cannot be started ({error.strerror}).")
            return
        finally:
            theirs.close()
        self._channel = ours
        self._about = ""
        self._due = time.monotonic() + self.OPEN_S
        if self._epoll is not None:
            self._epoll.register(ours, select.EPOLLIN)

    def _take(self, record: bytes) -> list[Chunk | Hole]:
        kind, first_frame, heard_ns, flags = HEAD.unpack_from(record)
        body = record[HEAD.size :]
        if kind == b"P":
            self._due = time.monotonic() + self.SILENT_S
            if self._status.state != "running":
                self._status = SourceStatus("running", f"Listening to {self._about}.")
            self._heard = True
            block = Block(first_frame, heard_ns, bool(flags & PA_INPUT_OVERFLOW), _mono(body, self._channels))
            return self._line.feed(block)
        if kind == b"R":
            about = json.loads(body)
            self._channels = about["channels"]
            self._about = f"{about['name']} at {about['rate_hz']} Hz"
            if (self._wanted or "").strip().isdigit():
                self._found = about["name"]  # numbers change when devices come and go
            self._due = time.monotonic() + self.FIRST_BLOCK_S
            self._line.begin(about["rate_hz"])
            return []
        code, _, text = body.decode(errors="replace").partition("\n")
        if code == "missing" or (code == "choice" and not self._heard):
            self._stop()
            self._due = None
            self._status = SourceStatus("failed", text)
        else:
            self._give_up(text if code != "device" else f"The microphone failed: {text}.")
        return []

    def _give_up(self, text: str) -> None:
        self._stop()
        self._due = time.monotonic() + self.RETRY_S
        self._status = SourceStatus("waiting", f"{text} It is looked for every second.")

    def _stop(self, wait_s: float = 0.0) -> None:
        if self._channel is not None:
            if self._epoll is not None:
                self._epoll.unregister(self._channel)
            self._channel.close()
            self._channel = None
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:  # it may be stuck inside the kernel; whoever reaps it must not be us
            threading.Thread(target=process.wait, name="recorder-reaper", daemon=True).start()


def _mono(body: bytes, channels: int) -> npt.NDArray[np.float32]:
    """The mean of the first two channels, or the only one, full scale 1."""
    frames = np.frombuffer(body, np.int16).reshape(-1, channels)[:, :2]
    mono: npt.NDArray[np.float32] = frames.mean(axis=1, dtype=np.float32) / np.float32(32768)
    return mono
