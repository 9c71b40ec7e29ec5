"""Every number that a test holds the project to, in one place. Append your own section; keep names unique."""

from __future__ import annotations

import os
from typing import Final

FRAME_RATE_HZ: Final = 25.0

# Mel frames (tests/unit/test_mel_stream.py)
MEL_FILTERBANK_TOLERANCE: Final = 1e-6
MEL_TOLERANCE: Final = 1e-4

# The wav2lip engine (tests/unit/test_wav2lip.py)
WAV2LIP_PIXEL_TOLERANCE: Final = 1.0
"""of 255: float32 sums in another order may cut off to the next lower number"""
WAV2LIP_FEWER_PRODUCTS: Final = {64: 0.69, 128: 0.79}
"""share of the generator's multiplications that is left where the 3x3 convolutions of so many channels are rewritten"""
WAV2LIP_FEWER_IN_A_CHAIN: Final = 0.7
"""the same of a chain of such layers, whatever its rows"""
WAV2LIP_MATRICES: Final = 4
"""layers of the generator that read or make one pixel"""
WAV2LIP_BESIDE: Final = 5
"""its layers of few pixels and many weights"""
WAV2LIP_SPLIT_TOLERANCE: Final = 1e-5
"""largest difference between the split network and the plain one in 32 bits, of 0..1"""
WAV2LIP_PICTURE_STD: Final = 0.02
"""least spread of a picture that shows something, of 0..1"""
WAV2LIP_LIVE_S: Final = 30.0
WAV2LIP_LIVE_FRAMES: Final = 12
"""different frames within that time"""
WAV2LIP_LIVE_CHANGE: Final = 8
"""of 255: more than JPEG makes of a pixel that stays"""
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
PULSE_PATH_MS: Final = 60.0
"""how far PulseAudio's own latency wanders when players come and go on a busy machine"""
TONE_RATIO: Final = 0.001
"""most that the pitch of a tone may be off after a real PortAudio device"""

# The voice gate (tests/unit/test_voice.py)
VOICE_ONSET_MS: Final = 20.0
"""from the first audible sound of a sentence to the open gate, in media time, asked 100 ms later"""
VOICE_CLOSED_AFTER_MS: Final = 130.0
"""after the last sound of a sentence"""
VOICE_OPEN_SHARE: Final = 0.99
"""of the gain, over all moments of audible speech"""
VOICE_OPEN_SHARE_NOISY: Final = 0.97
"""the same with noise 10 dB below the speech"""
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

# The demo face and speech (tests/unit/test_demo_assets.py)
DEMO_FACE_MAX_BYTES: Final = 900_000
DEMO_FACE_LEAST_SIDE_PX: Final = 768
DEMO_FACE_MOST_SIDE_PX: Final = 896
DEMO_FACE_SCORE: Final = 0.8
DEMO_FACE_HEIGHT_SHARE: Final = (0.38, 0.55)
"""forehead to chin, of the picture's height"""
DEMO_FACE_LIP_GAP: Final = 0.03
"""of the distance between the outer corners of the eyes"""
DEMO_FACE_POINT_PX: Final = 12.0
"""from a drawn corner of the eyes or of the mouth to the mesh's"""
DEMO_FACE_JAW_PX: Final = 14.0
"""from a point of the mesh's jaw line to the drawn one"""
DEMO_SPEECH_S: Final = (20.0, 30.0)
DEMO_SPEECH_MAX_BYTES: Final = 600_000
DEMO_SPEECH_PEAK_DBFS: Final = -3.0
DEMO_SPEECH_PEAK_TOLERANCE_DB: Final = 0.1
DEMO_SPEECH_LEAD_S: Final = 0.3
DEMO_SPEECH_TAIL_S: Final = 1.5
DEMO_SPEECH_EDGE_S: Final = 0.1
"""how far its first and last sound may be from where silence should end and begin"""
DEMO_SPEECH_SILENCE_DBFS: Final = -60.0
DEMO_SPEECH_LEAST_PAUSE_S: Final = 0.85
DEMO_SPEECH_LEAST_PAUSES: Final = 4
DEMO_SPEECH_REPEAT_ERROR: Final = 0.002
"""most that a sample may differ when the script makes the speech again with the same flite, full scale 1"""

# --- face_prep: photos and faces ---

FACE_IOU_MIN: Final = 0.85
"""Least overlap of the box of a known face with where it was put."""
FACE_UPRIGHT_DIFFERENCE_PX: Final = 2.0
"""Most mean distance of landmarks between a photo and the same one stored on its side or head, face of 93 px."""
FACE_LANDMARK_SCATTER_SHARE: Final = 0.02
"""Most mean distance of landmarks between a photo and its half-size copy, in distances between the eyes."""
FACE_JPEG_DIFFERENCE: Final = 2.0
"""Most mean difference of grey levels between our reading of a photo and the plain decoder's."""
FACE_STORE_MOST: Final = 5
"""Bound of the store in its tests."""

# processes
PROCESS_START_S: Final = 40.0
"""until a service beats, on a busy machine"""
SESSION_TOLD_S: Final = 0.5
"""after which a service that joins knows the session, though it is repeated only each second"""
PROCESS_STOP_S: Final = 8.0
FULL: Final = os.environ.get("FAULTS") == "full"
"""as often and as long as the figures in docs/faults.md say"""
CORRUPT_MESSAGES: Final = 100_000 if FULL else 300
"""of each kind on each topic"""
CORRUPT_S: Final = 400.0 if FULL else 40.0
CORRUPT_GROWTH_BYTES: Final = 10_000_000

# The web part (tests/web)
WEB_START_S: Final = 20.0
"""longest time until a server takes connections, on a busy machine"""
WEB_STOP_S: Final = 2.0
"""longest time from SIGTERM to exit code 0, with streams open"""
WEB_GONE_S: Final = 10.0
"""longest time until a viewer that reads no more is freed"""
WEB_VIEWERS: Final = 20
"""viewers at once that share one encoding"""
WEB_SLOW_BYTES_PER_S: Final = 125_000.0
"""a viewer throttled to 1 Mbit/s"""

# the whole, end to end (the figures of the issue "The main job")
STREAM_SECONDS: Final = 10
STREAM_RATE_ERROR_HZ: Final = 0.5
LIPS_CORRELATION: Final = 0.6
LIPS_LAG_S: Final = 0.4
LIPS_PAUSE_SHARE: Final = 0.15
LIPS_SHUT: Final = 0.045
"""opening that FaceMesh sees when the mouth is shut, in distances of the outer eye corners; more on a smile"""
LIPS_SENTENCES: Final = 3
RECOVERY_S: Final = 20.0
"""3 s and the load of a model, on a machine that does other things as well"""
STOP_S: Final = 10.0
VIEWERS: Final = 20
VIEWER_RATE_HZ: Final = 20.0
"""24 is the aim, shown by scripts/measure; here the viewers share two cores with the test itself"""

# The built-in engine (tests/unit/test_builtin_*)
BUILTIN_LOOK_AHEAD_MS: Final = 100.0
"""from the beginning of a video frame to the end of the last STFT window that it reads"""
BUILTIN_LOUDNESS_CORRELATION: Final = 0.6
"""of the opening that the engine wants with the loudness of the voice"""
BUILTIN_LOUDNESS_LAG_MS: Final = 60.0
BUILTIN_LEVEL_DIFFERENCE: Final = 0.04
"""mean change of the opening, of the widest one, when the recording is 14 dB quieter"""
BUILTIN_NOISE_SHARE: Final = 0.05
"""of the widest opening, in white noise at -50 dB of full scale, behind the voice gate; in pauses without it"""
BUILTIN_UNGATED_NOISE_SHARE: Final = 0.10
"""the same without the voice gate"""
BUILTIN_CLOSURES: Final = 0.90
"""of the p, b, m that synthesisers speak: inner lips within 15 % of the 90th percentile of the opening"""
BUILTIN_CLOSED: Final = 0.15
BUILTIN_USUAL_QUANTILE: Final = 0.9
"""lips that are no further apart than this share of this quantile of the opening meet"""
PAIRS_CHUNKS: Final = 21
PAIRS_ALONE: Final = 3
"""of these at most, at the beginning and the end, that go out alone"""
COLUMNS_ERROR: Final = 1e-4
"""of what the network says, shares of the usual opening"""
BUILTIN_SPEAKS: Final = 0.4
"""of the widest possible opening that speech reaches"""
BUILTIN_LEVEL_CORRELATION: Final = 0.95
"""of the openings of a recording and of the same 14 dB quieter"""
BUILTIN_LOUD_OPENING: Final = 0.05
BUILTIN_WIDER: Final = 0.95
"""of the pairs of an open and a close vowel: the open one opens wider"""
BUILTIN_NARROWER: Final = 0.90
"""of the pairs of /u/ and /i/: /u/ is narrower"""
BUILTIN_REST_GAP: Final = 0.06
"""gap of the lips at rest measured by FaceMesh on a photo that shows teeth, eye distances"""
BUILTIN_OPENED_GAP: Final = 0.15
"""the same, of a mouth that is told to open by 0.2"""
BUILTIN_SMALL_CHANGE: Final = 1.5
"""mean change of grey levels of a patch when the mouth moves by 0.002 eye distances"""
BUILTIN_REST_CHANGE: Final = 9.0
"""mean difference of a patch at rest from the photo of a smile, both blurred, grey levels"""
PAGE_WAIT_S: Final = 20.0
MOUTH_CHANGE: Final = 4.0
"""mean difference of the mouth between two screenshots of a speaking face, of 255"""
MOUTH_STILL: Final = 0.5

# playout
PLAYOUT_MARGIN_S: Final = 0.045
"""how much later than the slowest of its frames the picture may be shown: one frame's time and a little"""

# the house
MAIN_LINES: Final = 41
"""of a service's __main__.py"""

CALM_S: Final = 0.3
"""a machine that stood still for longer has measured nothing"""
CALM_TRIES: Final = 4
STREAM_STILL_S: Final = 1.5
"""longest time without a frame while another service is killed"""
LEAK_WAIT_S: Final = 5.0
STOLEN_S: Final = 0.5
"""processor time taken away within a second over which a test that failed four times is not judged"""

# scripts/fetch_models (tests/unit/test_fetch_models.py)
FETCH_BYTES: Final = 600_000
"""of the file that is fetched"""
FETCH_DISK_BYTES: Final = 2_000_000
"""of a small disk, where 1 MB must stay free beside the file"""
FETCH_TIMEOUT_S: Final = 2.0
"""that the script is told to wait for a byte of what stalls or trickles"""
FETCH_DEADLINE_S: Final = 30.0
"""for one run of the script"""

# Conversion of Wav2Lip (tests/unit/test_convert.py)
WAV2LIP_PARAMETERS: Final = 36_298_035
WAV2LIP_MMACS: Final = {
    "audio_encoder": 93,
    "face_encoder_blocks": 311,
    "face_decoder_blocks": 3349,
    "output_block": 213,
}
"""million multiplications a frame, as counted of the published network"""
WAV2LIP_RESIDUALS: Final = {"audio_encoder": 7, "face_encoder_blocks": 10, "face_decoder_blocks": 11, "output_block": 0}
"""blocks that add what they read"""
CONVERT_DIFFERENCE: Final = 1e-4
"""of a pixel, 0..1, between PyTorch and OpenVINO in 32 bits, each 1e-5 from 64 bits on the test's random network"""
CONVERT_BF16_PSNR_DB: Final = 35.0
"""of the worst window of the random network, which is rougher than a trained one"""
CONVERT_DEADLINE_S: Final = 240.0
"""for one run of the script"""

# scripts/render (tests/unit/test_render.py, tests/unit/test_parity.py)
PARITY_LEVELS: Final = 1
PARITY_SHARE: Final = 0.999
"""of pixel values within `PARITY_LEVELS` of the published algorithm's, before encoding"""
RENDER_RESAMPLED_MEL: Final = 0.02
"""of -4..4, where the sound was resampled piece by piece, not at once"""
RENDER_IN_STEP_S: Final = 0.020
"""between picture and sound"""
RENDER_SOFT_CHANGE: Final = 3.0
"""mean change of the lower face that a drawn frame shows at least, grey levels"""
RENDER_ENCODED_LEVELS: Final = 4.0
"""mean difference of a frame from itself after H.264 in 4:2:0, grey levels"""
RENDER_BOX_IOU: Final = 0.8
"""of a face that is followed with where it was put"""
RENDER_DEADLINE_S: Final = 120.0
"""for one run of the script"""

# The detector RetinaFace (tests/unit/test_retinaface.py)
RETINAFACE_DIFFERENCE: Final = 1e-4
"""largest difference of an output between PyTorch and OpenVINO"""
RETINAFACE_DECODED_PX: Final = 1e-2
"""between boxes and points and those of a plain reference"""
RETINAFACE_POINT_PX: Final = 12.0
"""of an eye or the mouth of the astronaut, looked at by eye; the face is 93 px wide"""
RETINAFACE_MISSED_SHARE: Final = 0.03
"""of the faces on which YuNet and SCRFD agree"""
RETINAFACE_EXTRA_SHARE: Final = 0.05
"""boxes where neither of the two has one, of the faces on which they agree"""
RETINAFACE_MEAN_IOU: Final = 0.9
"""with the mean of the boxes of the two, which reach 0.889 between themselves"""

# Mixed 8 bits (tests/unit/test_quantise.py)
QUANTISE_GATE_DB: Final = 38.0
"""of the lower half in the worst window, on a network of random weights"""
QUANTISE_PSNR_ERROR_DB: Final = 0.05
QUANTISE_EQUAL_DIFFERENCE: Final = 1e-4
"""of a pixel, 0..1, when factors are moved from one convolution to the next"""
QUANTISE_LEVELLED: Final = 1.3
"""by how much the smallest channel comes nearer the largest"""
DEMO_BOX_PX: Final = 2.0

# scripts/benchmark (tests/unit/test_benchmark.py)
BENCHMARK_PLAIN_MMACS: Final = 3966.6
"""10^6 multiplications of the published network for a frame"""
BENCHMARK_FEWER_MMACS: Final = (1434.0, 1643.0)
"""of the generator whose 3x3 convolutions of 64, and of 128 channels and more are rewritten"""
BENCHMARK_GENERATOR_MMACS: Final = 2115.0
BENCHMARK_F32_DIFFERENCE: Final = 1e-4
"""of a pixel value, 0..1, between any two ways to compute in 32 bits, on random weights"""
BENCHMARK_DEADLINE_S: Final = 300.0
"""for one run of the script, on a machine that does other things as well"""

# Speech of synthesisers (tests/unit/test_phonemes.py)
PHONEMES_CLOSURE_ERROR_S: Final = 0.025
"""median; flite's labels are 22 ms before the sound"""
PHONEMES_HISS_ERROR_S: Final = 0.020
PHONEMES_LEAST_CASES: Final = 3
PHONEMES_TRAINING_TEXTS: Final = 115
PHONEMES_PRESSED: Final = 0.85
"""of 1, while the lips of p, b and m meet"""
PHONEMES_OPEN_VOWEL: Final = 0.7
"""of 1, that an /a/ between closures reaches"""
PHONEMES_VOWEL_DIFFERENCE: Final = 0.3
PHONEMES_REST: Final = 0.02
PHONEMES_STEP: Final = 0.25
"""in 5 ms"""

# scripts/evaluate (tests/unit/test_evaluate.py)
EVALUATE_LAGGED_R: Final = 0.9
"""of a mouth that is two frames late, as it stands"""
EVALUATE_LAG_MS: Final = 6.0
EVALUATE_UNRELATED_DISTANCE: Final = 0.15
EVALUATE_SAME_DISTANCE: Final = 0.2
"""at the right lag; the ends of the track are others"""
EVALUATE_LATE_CLOSED: Final = 0.8
"""share of closures that a mouth meets that is four frames late"""
EVALUATE_OWN_OPENING: Final = 0.97
"""r of what the engine makes with a clip that it made itself, seen by FaceMesh"""
EVALUATE_OWN_WIDTH: Final = 0.65
"""a coefficient is not the width that FaceMesh sees: opening narrows the mouth"""
EVALUATE_OWN_JAW: Final = 0.8
EVALUATE_OWN_DRAWN: Final = 0.95
"""r of all three, both of them drawn"""
EVALUATE_OWN_DISTANCE: Final = 0.2
EVALUATE_OWN_SHARPNESS: Final = 0.2
EVALUATE_SILENT_OPENING: Final = 0.05
"""of the largest in speech"""
EVALUATE_DEADLINE_S: Final = 180.0
"""for one run of the script, on a machine that does other things as well"""

# The life of faces (tests/unit/test_builtin_life.py)
LIFE_BLINKS_A_MINUTE: Final = (14.0, 20.0)
"""people at rest: 17 (Bentivoglio et al. 1997)"""
LIFE_PAIR_S: Final = 0.7
"""what follows sooner is the second of a pair"""
LIFE_PAIRS: Final = (0.05, 0.2)
LIFE_WAIT_S: Final = (1.4, 6.1)
"""from one blink to the next; after the second of a pair it is shorter"""
LIFE_WAIT_SPREAD_S: Final = 0.5
LIFE_FALL_FRAMES: Final = 4
"""to the first in which the eye is closed"""
LIFE_RISE_FRAMES: Final = (4, 6)
LIFE_LID_STEP: Final = 0.8
"""of the whole way, in a frame"""
LIFE_HEAD_MOST: Final = 0.02
"""eye distances"""
LIFE_HEAD_LEAST: Final = 0.001
LIFE_HEAD_STEP: Final = 0.001
LIFE_ROLL_MOST_DEG: Final = 0.5
LIFE_ROLL_STEP_DEG: Final = 0.03
LIFE_IRIS_LIGHT: Final = 0.5
"""share of the skin's light; a lid has 0.7 or more"""
LIFE_WHITE_LIGHT: Final = 1.25
LIFE_IRIS_SHARE: Final = 0.15
"""of the open eye that is darker"""
LIFE_WHITE_LEFT: Final = 0.01
LIFE_CLEAR_PIXELS: Final = 50
LIFE_ROUNDING: Final = 2
LIFE_NEARLY_OPEN: Final = 1.0
LIFE_RIM_CHANGE: Final = 4.0
"""mean, of 255"""
LIFE_SEAM: Final = 3
LIFE_CARRIED: Final = 1.3
"""mean difference of a moved head from the same picture moved as a whole, of 255"""
LIFE_CHANGED: Final = 0.25
"""bytes of what has changed on a head that stays, as a share of the whole"""
LIFE_SHARPNESS: Final = 0.75
"""of the spread of the Laplacian, at the worst part of a pixel"""

# The training of the built-in engine (tests/unit/test_train_builtin.py)
BUILTIN_HALF_ERROR: Final = 0.02
"""largest difference of what the network says by its weights in 16 bits, random weights"""
BUILTIN_TOY_CORRELATION: Final = 0.6
"""with the speaker, of a small network that learned for some seconds on mouths that open with the loudness"""

# How the built-in engine looks (tests/unit/test_builtin_warp.py)
BUILTIN_CROSSED: Final = 0.03
"""how far the lines of the lips may pass through each other before they are led back, eye distances"""
BUILTIN_JUMP: Final = 12.0
"""second difference of a pixel in steps of a thousandth of the eye distance, grey levels"""
BUILTIN_STILL_TEETH: Final = 0.5
"""difference of the upper teeth when the jaw has moved, grey levels"""
BUILTIN_TEETH_WIDTH: Final = 0.5
"""of the row that is covered without a gap, eye distances"""
BUILTIN_ROUNDING: Final = 2
"""between the colours of a grey pixel"""
BUILTIN_DARK_LINE: Final = 0.55
"""brightness of the line between lips that nearly touch, as a share of that of the skin"""
TRAIN_MEASURE_ERROR: Final = 0.1
"""of the usual opening and width, which are 1 in a speaker's own measure"""
TRAIN_OPENING_SEEN: Final = 0.99
TRAIN_WIDTH_SEEN: Final = 0.95
"""r of what was put into landmarks and what is read from them"""
TRAIN_POSE_ERROR: Final = 1e-3
TRAIN_OPENING_ERROR: Final = 0.03
"""eye distances"""
TRAIN_TOGETHER: Final = 0.8
"""r of loudness and motion of drawn sequences in which the one follows the other"""
TRAIN_SILENT_MOST: Final = 0.5
"""share of sequences without a voice among 24 drawn ones"""
TRAIN_SHUT: Final = 0.05
TRAIN_PRESSED: Final = 0.5
TRAIN_OPEN: Final = 0.5
"""targets of synthesised speech around an m, and at its widest"""
TRAIN_LEVEL_ERROR: Final = 0.2
"""units of the log-mel scale: what lies on its floor stays there"""
TRAIN_WEIGHT_ERROR: Final = 0.02

# The mark (tests/e2e/test_mark.py)
MARK_SECONDS: Final = 4
MARK_LETTERS: Final = 30
"""white pixels of the mark, whatever the quality of the stream"""
MARK_MOVES: Final = 20
"""grey levels by which a moving head changes a pixel"""

# The bus (tests/process/test_bus.py)
BUS_ASLEEP_S: Final = 0.4
"""for which something that wakes nobody is waited for"""
BUS_LEAVINGS: Final = 25
"""publishers that are left in the middle of a message"""

# Keys of the bus (tests/process/test_keys.py)
KEY_WINDOWS: Final = 20
KEY_BACK_S: Final = 10.0
KEY_GONE_S: Final = 3.0
"""from the change of the list to the end of the connection"""
KEY_REFUSED_S: Final = 10.0

# Faults (tests/process/test_faults.py, test_sharing.py); FAULTS=full for the figures that are told, on a calm machine
FAULT_KILLS: Final = 20 if FULL else 5
FAULT_GAP_S: Final = 0.12 if FULL else 0.3
"""longest time between two new frames when one of two workers is killed"""
FAULT_LOST: Final = 2 if FULL else 5
"""most frames left out at once"""
BACK_S: Final = 15.0
"""until a worker works again: 3 s and the load of a model, on a machine that does other things as well"""
STOPPED_AWAY_S: Final = 0.5 if FULL else 1.0
"""after which nothing goes to a worker that stands still"""
OLD_S: Final = 0.2 if FULL else 0.4
"""most that a frame shown may be older than frames usually are"""
JOIN_S: Final = 2.0 if FULL else 6.0
"""until the first frame of a worker that joins, from its start"""
EVEN_SHARE: Final = 0.9 if FULL else 0.7
"""of the steps between new frames when a fifth is missing that are at most one frame too long"""
SHORT_FOUND_S: Final = 15.0
SHARES_S: Final = 10.0
SHARES_ERROR: Final = 0.15 if FULL else 0.3
THROUGHPUT: Final = 0.9 if FULL else 0.75
STARTS: Final = 100 if FULL else 3
STOPPED_S: Final = 30.0 if FULL else 6.0
STOPPED_GROWTH_BYTES: Final = 20_000_000
LINK_DELAY_S: Final = (0.0, 0.08)
LINK_CUTS: Final = 15 if FULL else 4
"""connections cut, one in each hundred frames"""
LATE_SHARE: Final = 0.02 if FULL else 0.08
STEPS_S: Final = 3.0
HUNG_AWAY_S: Final = 0.5 if FULL else 1.0
HUNG_END_S: Final = 6.0 if FULL else 12.0

# Containers (tests/compose)
COMPOSE_ENGINE_S: Final = 30.0
COMPOSE_BUILD_S: Final = 1500.0
"""without a cache, on a slow line; with one it is seconds"""
COMPOSE_READY_S: Final = 90.0
COMPOSE_HEALTHY_S: Final = 90.0
COMPOSE_RESTART_S: Final = 60.0
COMPOSE_STOP_S: Final = 3.0
COMPOSE_FRAMES: Final = 100
"""frames that ffmpeg reads: 4 s"""
COMPOSE_RATE_ERROR_HZ: Final = 0.5
COMPOSE_RATE_TRIES_S: Final = 60.0
COMPOSE_MOVING: Final = 0.5
"""share of the frames that differ from all others"""
COMPOSE_PAUSE_S: Final = 0.5
"""longest pause in the stream while one of two workers dies: the streamer sends 25 pictures a second all the same"""
COMPOSE_IMAGE_MB: Final = {
    "audio-capture": 320,
    "mel-features": 300,
    "face-prep": 660,
    "inference": 660,
    "streamer": 570,
}
"""most size of an image, 10^6 bytes"""

# Scripts called with another Python (tests/unit/test_own_python.py)
SCRIPT_DEADLINE_S: Final = 60.0
"""until one has told how it is used, on a machine that does other things as well"""

# Beats, logs, traces (tests/unit/test_service_loop.py, test_logs.py, test_trace.py, tests/process/test_supervisor.py)
LOOP_BEATS: Final = 300
"""written while a reader looks"""
LOOP_READS: Final = 20
"""least looks of that reader"""
LOGS_DEADLINE_S: Final = 20.0
"""until a line that was written is shown, or a script has ended, on a machine that does other things as well"""
LOGS_TURNINGS: Final = 5
"""of a log that is followed"""
TRACE_ROUNDING_MS: Final = 0.11
"""of each part of a frame's way, as it is printed"""
TRACE_STAGES: Final = 12
"""least parts of the way of a frame through all services"""
DEATHS: Final = 5
"""within a minute, after which a service is left down"""
GIVEN_UP_S: Final = 30.0
"""until that is seen on the page: five starts, the later ones with a pause, on a busy machine"""

# Two boxes (tests/process/test_boxes.py)
BOX_BYTES: Final = 1_000_000
"""that went over the cable while it was listened to, at least"""
KUBERNETES: Final = ("1.31", "1.37")
"""versions whose fields the manifests keep to"""
COMPOSE_UPDATE_FRAMES: Final = 750
"""frames that ffmpeg reads while a swarm replaces its workers: 30 s"""
COMPOSE_UPDATE_S: Final = 120.0

# A browser's microphone (tests/unit/test_audio_live.py)
LIVE_DRIFT_S: Final = 300.0
LIVE_LINE_MS: Final = 6.0
"""most that the line may be off the true time with 200 ppm of drift and 8 ms of jitter"""
LIVE_STEADY_MS: Final = 1.5
"""of a line that has settled"""
LIVE_PAUSE_MS: Final = 30.0
"""most that a hole is longer than the pause: the chunk that was not full, and the jitter of the link"""
LIVE_HELD_MS: Final = 250.0
"""until sound after a pause is given: the least lateness stands for 100 ms"""
LIVE_BEND_DELAY_SAMPLES: Final = 16
LIVE_BEND_DB: Final = -80.0

# Recordings (tests/process/test_recorder.py, tests/web/test_recordings.py)
RECORDING_SKEW_S: Final = 0.03
"""between a flash and its click in the file: less than a frame"""
RECORDING_FLASHES_SEEN: Final = 2
"""of three that last one tick each: a host that holds the test up may hide one"""
RECORDING_LENGTH_S: Final = 0.2
"""by which a recording may be shorter or longer than the time between start and stop: sound comes in pieces of 64 ms"""
RECORDING_CUT_S: Final = 1.0
"""what a crash or a full disk may cost"""
RECORDING_WAIT_S: Final = 20.0
RECORDING_SLOW_PX: Final = 1600
"""side of a picture of noise that takes longer than a 25th of a second to encode"""
RECORDING_DISK_BYTES: Final = 260_000_000

# Bursts of pushed speech (tests/unit/test_audio_playback.py)
BURST_S: Final = 600
"""as much as may wait"""
BURST_MEMORY_SHARE: Final = 1.25
"""of the bytes of the sound that waits"""
BURST_CROWD: Final = 100_000
"""pieces of one sample"""

# Sound in step with the picture (tests/unit/test_sound.py, tests/web/test_audio_feed.py)
SOUND_DRIFT_SKEW_S: Final = 0.002
"""most that a reader is off while the clock of the sound drifts by 200 ppm"""
SOUND_CLICK: Final = 0.05
"""biggest step between two samples, as a share of the loudness: a cut without a fade makes one of up to 2"""
SOUND_SPUR_DB: Final = -70.0
SOUND_RETURN_S: Final = 8.0
"""after the delay changed by 96 ms"""
SOUND_SETTLED_S: Final = 0.010
SOUND_MEMORY_BYTES: Final = 1_000_000
"""beyond the 30 s of sound that a hub keeps"""
INTERPOLATE_SNR_DB: Final = {200.0: 90.0, 1_000.0: 85.0, 3_000.0: 76.0, 7_000.0: 70.0}
FEED_SKEW_MS: Final = 60.0
"""most that a beep may move against the picture while a busy machine shows that late"""

# ---- sound that is pushed
PUSH_PIECES: Final = 20
"""pieces that 20 000 single samples may be kept in"""

# Examples (tests/web/test_examples.py)
EXAMPLE_S: Final = 40.0
"""until a program that speaks for a few seconds has ended, on a busy machine"""

# ---- web sockets (tests/unit/test_websocket.py, tests/web/test_{player,audio}_socket.py)
SOCKET_WAIT_S: Final = 10.0
"""longest wait for what must come"""
SOCKET_QUICK_S: Final = 0.2
"""instead of the long limits of a connection"""
SOCKET_CROWD: Final = 200
"""opened and dropped"""
SOCKET_SPARE_THREADS: Final = 110
"""most threads of the server then: those of its pool, which come one by one as they are needed and stay"""
SPEECH_LEVEL_SHARE: Final = 0.08
"""by how much the loudest sample of a tone may change on its way to 16 kHz: its two ends ring"""
SPEECH_SOCKETS: Final = 16
"""senders of sound at once"""

# The page's player (tests/web/test_player_page.py)
PLAYER_SKEW_MS: Final = (-60.0, 40.0)
"""a flash in the picture after its beep in the sound: picture early, picture late"""
PLAYER_FLASHES: Final = 4
"""that a test looks at"""
PLAYER_WAIT_S: Final = 15.0
"""until what must come has come"""
PLAYER_OWN_DELAY_MS: Final = 150.0
"""that a decoded picture waits for its sound on a quiet line, 95th percentile"""
PLAYER_STALL_S: Final = 3.0
PLAYER_AGAIN_MS: Final = 400.0
"""most that is heard behind what came, after a stall"""
CUT_SAMPLE: Final = 0.01
"""nothing louder is heard after a cut"""
CUT_S: Final = 0.08
"""by then; what was in stock would be heard for twice as long"""

# REST, trust and TLS (tests/web/test_api.py, test_guard.py, test_tls.py)
API_EXAMPLES: Final = 5
"""requests that schemathesis makes up for each operation, beside those that follow from its description"""
GUARD_CROWD: Final = 200
"""connections that never become a request"""
GUARD_ANSWER_S: Final = 1.0
"""until the page answers all the same"""
GUARD_THREADS: Final = 40
"""most that the server begins for them"""
GUARD_WAIT_S: Final = 5.0
"""longest wait for an answer"""
TLS_FRAMES: Final = 25
"""that ffmpeg reads over HTTPS"""
TLS_RESETS: Final = 50
"""connections that are reset in their handshake"""
TLS_WAIT_S: Final = 20.0
"""longest that a program or a browser takes to read something, on a busy machine"""

# WebRTC (tests/web/test_whep.py)
WHEP_SKEW_S: Final = 0.04
"""between a flash and its beep, by the sender's clock, as a player keeps them in step: one frame"""
WHEP_BROWSER_SKEW_S: Final = 0.1
"""by Chromium's own estimate, which holds its own target of 80 ms; it draws the newest picture and delays the sound"""
WHEP_WATCH_S: Final = 6.0
WHEP_FRAMES_HZ: Final = 23.0
"""least frames of a second that come, of 25, on a busy machine"""
WHEP_WAIT_S: Final = 15.0
WHEP_PLAYERS: Final = 3

# ---- several sessions
SESSION_FPS: Final = 20.0
"""of each, while tests share the machine"""
SESSION_GONE_S: Final = 8.0
"""after which nothing is left of a session that was deleted"""
PUSHED_EVENT_S: Final = 6.0
"""within which the event comes that a second of pushed sound leads to"""
INTERRUPT_EVENT_S: Final = 0.6
"""between an interrupt and its word, on a busy machine; 0.15 s is the aim, shown by scripts/measure"""

# The page's microphone (tests/web/test_microphone_page.py)
MIC_PIECES: Final = 150
"""of 8 to 20 ms that a test looks at"""
MIC_RATE_SHARE: Final = 0.05
"""by which what arrives may differ from 16 kHz"""

# The browser's microphone through the whole product (tests/e2e/test_browser_mic.py)
BROWSER_LISTEN_S: Final = 22.0
"""once through the speech"""
BROWSER_MIC_CORRELATION: Final = 0.5
"""of the mouth's distance from rest with the loudness"""
BROWSER_LAG_MS: Final = 350.0
"""from the microphone to the canvas"""
BROWSER_SKEW_MS: Final = (-60.0, 40.0)
"""as the player itself measures it: picture early, picture late"""
FIREFOX_LISTEN_S: Final = 8.0
FIREFOX_HEARD_DB: Final = -40.0
FIREFOX_WEBRTC_FRAMES: Final = 50
"""as many packets of sound, too"""
FIREFOX_LEAST_FPS: Final = 12.0
"""drawn by Firefox without a graphics card, beside all services; measured: 25, 19 in the first seconds"""

SAME_PICTURE: Final = 6.0
"""mean difference of two pictures of the page, of 255, that show the same face, one of them less sharp"""
OTHER_PICTURE: Final = 15.0
"""the same of two that show another one"""

# ---- a recording of the whole product
RECORDED_S: Final = 8.0
RECORDED_FIT: Final = 0.5
"""of the lips with the loudness of their voice, in the file"""
RECORDED_LAG_S: Final = 0.12
"""between the two where they fit best; lips lead and follow the loudness by some 50 ms of themselves"""

# ---- sessions in the running loop (tests/unit/test_stage.py)
STAGE_WAIT_S: Final = 10.0
"""longest wait for a thread"""
STATUS_CROWD: Final = 16
"""who ask for the status at the same time"""
STATUS_LOOKS: Final = 4
"""most times that it is gathered for them: once for each tenth of a second that they take"""
STATUS_PATIENCE_S: Final = 0.05

# ---- the line to a viewer
LINE_FRAME_BYTES: Final = 8_000
LINE_WINDOW_BYTES: Final = 128_000
LINE_FRAMES: Final = 150
LINE_SHRUNK: Final = 0.4
"""of the window that there was at first: less than half of it"""
LINE_TINY_BYTES: Final = 700
LINE_FIRST_FRAMES: Final = 4
"""after which a near line is known to be fast"""
LINE_MOMENT: Final = 0.6
"""of the time of a frame: a small one was on its way for so long"""
"""6 s: so soon a near viewer has sharp pictures, whatever its kernel says"""

# ---- training of Wav2Lip for tests (tests/unit/test_train_wav2lip.py)
FILM_RISE: Final = 25.5
"""levels a second by which the test film grows brighter, within this share:"""
FILM_RISE_SHARE: Final = 0.2
FILM_DIP: Final = 2.0
"""levels that coding may take from a frame"""
FILM_MEL: Final = 0.05
LEARNED_SHARE: Final = 0.8
"""of the first step's mistake, after eight"""
FEW_STEPS_MOVE: Final = 0.01
"""of a weight"""
