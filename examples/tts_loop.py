"""Speak each line of standard input through espeak-ng: `python examples/tts_loop.py`. An empty line (Enter) interrupts.

espeak-ng makes speech far faster than it is spoken, as every TTS of a voice agent does: it is pushed as it comes.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import threading

from mouthpiece_client import Event, Speaker, SpeakerError


def speech_of(text: str, voice: str) -> tuple[int, bytes]:
    """Speech of espeak-ng: its rate, Hz, and its samples, 16-bit mono."""
    command = ["espeak-ng", "-v", voice, "--stdin", "--stdout"]
    wav = subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout
    # A WAV whose lengths are unknown when its head is written: the samples are all that follows the word "data".
    (rate,) = struct.unpack_from("<I", wav, 24)
    return rate, wav[wav.index(b"data") + 8 :]


def main() -> int:
    """Speak until the input ends."""
    parser = argparse.ArgumentParser(description="Speak each line of standard input; an empty line interrupts.")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--session", default="default")
    parser.add_argument("--voice", default="en-us")
    arguments = parser.parse_args()
    gone = threading.Event()
    rate = 0

    def show(event: Event) -> None:
        if event.type in ("started", "ended", "interrupted"):
            print(f"{event.type} {event.utterance} at {event.sample / rate:.3f} s", flush=True)
        elif event.type in ("closed", "error"):
            print(f"tts_loop: {event.fields.get('text', event.type)}", file=sys.stderr)
        elif event.type == "gone":
            gone.set()

    try:
        rate, _ = speech_of("ready", arguments.voice)
        with Speaker(
            arguments.url, arguments.session, os.environ.get("MOUTHPIECE_TOKEN", ""), on_event=show
        ) as speaker:
            speaker.start(rate)
            for line in sys.stdin:
                if line.strip():
                    speaker.push(speech_of(line, arguments.voice)[1])
                    speaker.flush()
                else:
                    speaker.interrupt()
            speaker.end()
            gone.wait()
    except FileNotFoundError:
        print("tts_loop: espeak-ng is missing; install it (sudo apt-get install espeak-ng)", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"tts_loop: {error.stderr.decode(errors='replace').strip()}", file=sys.stderr)
        return 2
    except SpeakerError as error:
        print(f"tts_loop: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
