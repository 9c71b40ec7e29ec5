"""Child program of `phonemes`: one text spoken by libespeak-ng, which keeps its state in globals and ends its process.

Arguments: voice, words a minute, pitch 0..100; the text comes on standard input, UTF-8. Written to standard output: one
line of JSON ``{"rate": Hz, "phones": [[first sample, IPA name], ...]}``, then the samples, int16 little-endian.
Interface: eSpeak NG's published ``speak_lib.h``. It uses the standard library alone, so that it starts at once.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any, Final

LIBRARY: Final = "libespeak-ng.so.1"
SYNCHRONOUS: Final = 2
"""AUDIO_OUTPUT_SYNCHRONOUS: the samples come by the callback, within espeak_Synth"""
OPTIONS: Final = 0x0001 | 0x0002 | 0x8000
"""phoneme events, named in IPA; return an error where the data are missing, instead of exit"""
CHARS_UTF8: Final = 1
RATE, PITCH = 1, 3
EVENT_PHONEME: Final = 7
NOT_INSTALLED: Final = 3
"""exit code"""


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


def main(voice: str, words_a_minute: int, pitch: int, text: bytes) -> int:
    """Speak; 0 when the answer is written."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        print(error, file=sys.stderr)
        return NOT_INSTALLED
    rate_hz = library.espeak_Initialize(SYNCHRONOUS, 0, None, OPTIONS)
    if rate_hz <= 0:
        print("its voice data are missing", file=sys.stderr)
        return NOT_INSTALLED
    pieces: list[bytes] = []
    phones: list[tuple[int, str]] = []

    def take(samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].type:
            event = events[index]
            if event.type == EVENT_PHONEME:
                # A name of 8 bytes has no zero at its end.
                name = ctypes.string_at(ctypes.addressof(event.id), 8).split(b"\0")[0]
                phones.append((event.sample, name.decode("utf-8", "ignore")))
            index += 1
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))(
        take
    )
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        print(f"it has no voice {voice}", file=sys.stderr)
        return 1
    library.espeak_SetParameter(RATE, words_a_minute, 0)
    library.espeak_SetParameter(PITCH, pitch, 0)
    if library.espeak_Synth(text, len(text) + 1, 0, 1, 0, CHARS_UTF8, None, None) != 0:
        print("it could not speak", file=sys.stderr)
        return 1
    library.espeak_Synchronize()
    sys.stdout.buffer.write(json.dumps({"rate": rate_hz, "phones": phones}).encode() + b"\n" + b"".join(pieces))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.stdin.buffer.read()))
