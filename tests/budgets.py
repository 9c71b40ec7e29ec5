"""Every number that a test holds the project to, in one place. Append your own section; keep names unique."""

from __future__ import annotations

from typing import Final

FRAME_RATE_HZ: Final = 25.0

# Mel frames (tests/unit/test_mel_stream.py)
MEL_FILTERBANK_TOLERANCE: Final = 1e-6
MEL_TOLERANCE: Final = 1e-4

# The wav2lip engine (tests/unit/test_wav2lip.py)
WAV2LIP_PIXEL_TOLERANCE: Final = 1.0
"""of 255: float32 sums in another order may cut off to the next lower number"""
WAV2LIP_MASK_STEP: Final = 60
"""of 255, between neighbouring pixels of a face of 100 px"""

# audio_capture
RESAMPLER_LAG_MS: Final = 19.0
"""from the input's end to the output's end, at 16 to 192 kHz"""
RESAMPLER_PLACE_SAMPLES: Final = 3.0
"""how far an impulse may come out from its place, 16 kHz samples"""
RESAMPLER_SNR_DB: Final = 100.0
RESAMPLER_ALIAS_DB: Final = -100.0
RESAMPLER_STEERED_SPUR_DB: Final = -70.0
TIME_LINE_MS: Final = 20.0
"""most that the time line may be off the monotonic clock"""
TIME_LINE_HOUR_S: Final = 3_600.0
TONE_RATIO: Final = 0.001
"""most that the pitch of a tone may be off after a real PortAudio device"""

# The voice gate (tests/unit/test_voice.py)
VOICE_ONSET_MS: Final = 20.0
"""from the first audible sound of a sentence to the open gate, in media time, asked 100 ms later"""
VOICE_CLOSED_AFTER_MS: Final = 130.0
"""after the last sound of a sentence"""
VOICE_OPEN_SHARE: Final = 0.99
"""of the gain, over all moments of audible speech"""
VOICE_NOISE_LEARNT_S: Final = 1.2
"""until a steady noise that begins no longer opens"""
VOICE_STEEPEST_FALL: Final = 0.25
"""of the gain, in 10 ms"""
VOICE_GAP_SHIFT_MS: Final = 50.0
"""of an onset after a gap; the gate opens up to 30 ms ahead of it"""

# shared/
FUZZ_EXAMPLES: Final = 400
WIRE_TIMEOUT_S: Final = 10.0
CLOCK_ERROR_S: Final = 0.010
"""how near the media clock must come to the truth under jitter"""
