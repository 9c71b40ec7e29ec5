"""Say a WAV file: `python examples/push_wav.py speech.wav [--url http://127.0.0.1:8080] [--session default]`.

16-bit PCM, 8 to 48 kHz, mono or stereo; it is pushed at once and heard at its own pace. Ends when all was heard.
"""

from __future__ import annotations

import argparse
import os
import sys
import wave

from mouthpiece_client import Speaker, SpeakerError


def main() -> int:
    """Push, and print what is told."""
    parser = argparse.ArgumentParser(description="Say a WAV file.")
    parser.add_argument("file")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--session", default="default")
    arguments = parser.parse_args()
    try:
        with (
            wave.open(arguments.file, "rb") as sound,
            Speaker(arguments.url, arguments.session, os.environ.get("MOUTHPIECE_TOKEN", "")) as speaker,
        ):
            if sound.getsampwidth() != 2:
                print(f"push_wav: {arguments.file}: convert it to 16 bits a sample", file=sys.stderr)
                return 2
            speaker.start(sound.getframerate(), sound.getnchannels())
            while block := sound.readframes(16_000):
                speaker.push(block)
            speaker.end()
            for event in speaker.events():
                print(event.type, *([event.utterance, event.sample] if event.sample >= 0 else []), flush=True)
    except (OSError, EOFError, wave.Error) as error:
        print(f"push_wav: {arguments.file}: {error}", file=sys.stderr)
        return 2
    except SpeakerError as error:
        print(f"push_wav: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
