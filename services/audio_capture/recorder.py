"""The process that holds the microphone: ``python -m services.audio_capture.recorder``.

PortAudio lives here and nowhere else. It may hang in Pa_Initialize, print on stderr for pages, abort inside an ALSA
plug-in when the sound server dies, and it refreshes its device list only by a new start. In a process of its own
all of this is mended by ending the process. `MicrophoneSource` starts it and reads its records from a socket.

A record is one datagram of a SOCK_SEQPACKET socket: a head (`HEAD`) and a body. ``R`` running: JSON of the device and
rate; ``P`` sound: int16, interleaved channels; ``E`` an error: a code, a line feed, a text for a person.
The socket's own buffer is the bounded queue between the audio callback and the reader. When it is full a block
is left out, and the frame number of the next one tells how much.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any, Final

from services.audio_capture.devices import Device, DeviceError, NoDeviceError, choose_device, encode_devices

__all__ = ["HEAD", "MISSING_PYAUDIO", "QUEUE_BYTES", "RECORD_BYTES"]

HEAD: Final = struct.Struct("<cQqI")
"""kind; number of the first frame of the block; when the block came, monotonic ns; PortAudio's status flags"""
RECORD_BYTES: Final = 64 * 1024
"""most bytes of a record"""
QUEUE_BYTES: Final = 192 * 1024
"""size asked for the socket's buffer, about 1 s of sound with the kernel's own overhead"""
BLOCK_S: Final = 0.010
MISSING_PYAUDIO: Final = (
    "The microphone needs PyAudio, which is not installed. Install the system package portaudio19-dev "
    "(sudo apt-get install portaudio19-dev), then run `make setup`."
)


def main(arguments: list[str]) -> int:
    """List the devices (``--list``) or record (``--fd N [--device WANTED]``) until stdin closes."""
    if arguments == ["--list"]:
        return _list()
    channel = socket.socket(fileno=int(arguments[1]))
    channel.setblocking(False)
    _die_with_parent()
    with contextlib.suppress(PermissionError):  # only root, or whom the system trusts with it, may
        os.setpriority(os.PRIO_PROCESS, 0, -11)  # as PulseAudio does: little work, and lost sound does not come back
    try:
        _record(channel, arguments[3] if len(arguments) > 3 else None)
    except ImportError:
        _tell(channel, b"E", b"missing\n" + MISSING_PYAUDIO.encode())
    except NoDeviceError as error:
        _tell(channel, b"E", f"absent\n{error}".encode())
    except DeviceError as error:
        _tell(channel, b"E", f"choice\n{error}".encode())
    except OSError as error:
        _tell(channel, b"E", f"device\n{_reason(error)}".encode())
    # Pa_Terminate may wait for ever on a device that is gone; the end of the process frees it in any case.
    os._exit(0)


def _list() -> int:
    # What PortAudio's helpers print on stdout must not mix with the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        pyaudio = importlib.import_module("pyaudio")
    except ImportError:
        print("missing", MISSING_PYAUDIO, file=answer, flush=True)
        return 1
    try:
        devices = _devices(pyaudio.PyAudio())
    except OSError as error:
        print("failed", f"PortAudio cannot start: {_reason(error)}.", file=answer, flush=True)
        return 1
    print("devices", encode_devices(devices), file=answer, flush=True)
    os._exit(0)


def _die_with_parent() -> None:
    """End when the parent does, by a signal, even while PortAudio hangs and holds the interpreter's lock."""
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO ends a process by default
    if select.select([0], [], [], 0)[0]:
        os._exit(0)


def _devices(audio: Any) -> list[Device]:
    try:
        default = int(audio.get_default_input_device_info()["index"])
    except OSError:  # PortAudio's way to say that there is none
        default = -1
    devices = []
    for index in range(audio.get_device_count()):
        info = audio.get_device_info_by_index(index)
        channels = int(info["maxInputChannels"])
        if channels > 0:
            name = str(info["name"])
            devices.append(Device(index, name, int(info["defaultSampleRate"]), channels, index == default))
    return devices


def _record(channel: socket.socket, wanted: str | None) -> None:
    pyaudio = importlib.import_module("pyaudio")
    audio = pyaudio.PyAudio()
    device = choose_device(_devices(audio), wanted)
    frames_done = 0
    head_full = 0

    def on_block(data: bytes, frames: int, _times: object, flags: int) -> tuple[None, int]:
        nonlocal frames_done, head_full
        # PortAudio's own time of capture is wall time and, under PulseAudio, jumps by a block; ours is steadier.
        head = HEAD.pack(b"P", frames_done, time.monotonic_ns(), flags | head_full)
        frames_done += frames
        try:
            channel.send(head + data)
            head_full = 0
        except BlockingIOError:
            head_full = flags  # a flag must not get lost with its block
        except OSError:
            return None, pyaudio.paAbort
        return None, pyaudio.paContinue

    stream, rate_hz, channels = _open(pyaudio, audio, device, on_block)
    about = {"name": device.name, "index": device.index, "rate_hz": rate_hz, "channels": channels}
    _tell(channel, b"R", json.dumps(about).encode())
    stream.start_stream()
    while not select.select([0], [], [], 0.1)[0]:
        if not stream.is_active():
            raise OSError(f"the device {device.name} stopped")


def _open(pyaudio: Any, audio: Any, device: Device, on_block: Any) -> tuple[Any, int, int]:
    """Open at the device's own rate in mono, or else in its first shape that works; mixing is the reader's work."""
    problem: OSError | ValueError | None = None
    for rate_hz in dict.fromkeys((device.rate_hz, 48_000, 44_100, 16_000)):
        for channels in dict.fromkeys((1, min(2, device.channels), min(8, device.channels))):
            try:
                stream = audio.open(
                    rate=rate_hz,
                    channels=channels,
                    format=pyaudio.paInt16,
                    input=True,
                    input_device_index=device.index,
                    frames_per_buffer=max(1, round(rate_hz * BLOCK_S)),
                    start=False,
                    stream_callback=on_block,
                )
            except (OSError, ValueError) as error:
                problem = problem or error
            else:
                return stream, rate_hz, channels
    raise OSError(f"the device {device.name} cannot be opened: {_reason(problem)}")


def _reason(error: BaseException | None) -> str:
    return str(error.args[-1]) if error and error.args and str(error.args[-1]) else type(error).__name__


def _tell(channel: socket.socket, kind: bytes, body: bytes) -> None:
    select.select([], [channel], [], 1)
    try:
        channel.send(HEAD.pack(kind, 0, time.monotonic_ns(), 0) + body[: RECORD_BYTES - HEAD.size])
    except OSError:
        os._exit(1)  # nobody listens any more


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
