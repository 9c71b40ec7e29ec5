"""scripts/evaluate: do its measures measure, and does it score a clip that the engine itself made as such?"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from scripts._builtin.phonemes import ESPEAK_VARIANTS, FLITE_VOICES, PAUSE, Phone, motion_targets
from scripts._builtin.tracks import Track
from scripts._evaluate import speech as spoken
from scripts._evaluate.clips import chosen, read_folds
from scripts._evaluate.likeness import LIPS, MOST_LAG, Likeness, compare, distance_of, pearson, unrest
from scripts._evaluate.report import ClipScore, Evaluation, markdown, summaries, write_atomically, write_report
from scripts._evaluate.sheet import COLUMNS, Strip, moments, sheet, tile
from scripts._evaluate.speech import Cases, case_shares, count_cases, voices
from scripts._evaluate.stage import EvaluateError
from scripts._render.job import Job, render
from tests import budgets
from tests.rig.stack import ROOT

Numbers = npt.NDArray[np.float64]
DEMO_FACE = ROOT / "services/face_prep/assets/demo_face.png"
DEMO_SPEECH = ROOT / "services/audio_capture/assets/demo_speech.flac"


def smooth(seed: int, frames: int = 200) -> Numbers:
    """A mouth that moves as mouths do: noise below some 5 Hz, (frames, 3)."""
    noise = np.random.default_rng(seed).normal(size=(frames + 8, 3))
    return np.asarray(np.stack([np.convolve(each, np.hanning(9)[:9], "valid") for each in noise.T], axis=1))


def everywhere(values: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    return np.ones(len(values), bool)


@pytest.mark.parametrize("lag", [-3, -1, 0, 2, 3])
def test_a_known_lag_is_found(lag: int) -> None:
    """Positive: the mouth is later than the speaker."""
    long = smooth(1, 220)
    real, made = long[10:210], 0.4 * long[10 - lag : 210 - lag] + 3
    likeness = compare(made, everywhere(made), real, everywhere(real))
    assert likeness is not None
    assert likeness.lag == int(lag)
    assert likeness.shifted == pytest.approx((1, 1, 1))
    assert likeness.frames == 200 - abs(lag)
    if abs(lag) < MOST_LAG:
        assert likeness.lag_ms == pytest.approx(40 * lag, abs=budgets.EVALUATE_LAG_MS)
    if abs(lag) > 1:
        assert max(likeness.raw) < budgets.EVALUATE_LAGGED_R


def test_a_lag_between_frames_is_found() -> None:
    times = np.arange(220.0)
    long = smooth(8, 220)
    late = np.stack([np.interp(times - 1.4, times, each) for each in long.T], axis=1)
    likeness = compare(late[10:210], np.ones(200, bool), long[10:210], np.ones(200, bool))
    assert likeness is not None
    assert likeness.lag_ms == pytest.approx(40 * 1.4, abs=budgets.EVALUATE_LAG_MS)


def test_correlation_is_that_of_numpy_and_ignores_what_is_not_seen() -> None:
    real = smooth(2)
    made = 0.6 * real + 0.8 * smooth(3)
    seen = everywhere(real)
    seen[40:90] = False
    made_seen = everywhere(real)
    made_seen[150:160] = False
    wrong = made.copy()
    wrong[40:90], wrong[150:160] = 99, -99
    likeness = compare(wrong, made_seen, real, seen)
    both = seen & made_seen
    assert likeness is not None
    assert likeness.lag == 0
    expected = [np.corrcoef(made[both, k], real[both, k])[0, 1] for k in range(3)]
    assert likeness.raw == pytest.approx(expected)
    assert likeness.frames == both.sum()


def test_a_mouth_that_stands_still_has_no_likeness() -> None:
    real = smooth(4)
    still = np.full_like(real, 0.3)
    assert pearson(still[:, 0], real[:, 0]) == 0
    likeness = compare(still, everywhere(real), real, everywhere(real))
    assert likeness is not None
    assert likeness.shifted == pytest.approx((0, 0, 0))
    assert compare(real, everywhere(real), still, everywhere(real)) is None
    assert compare(real, np.zeros(len(real), bool), real, everywhere(real)) is None
    assert compare(real[:10], everywhere(real[:10]), real, everywhere(real)) is None


def test_distance_of_lips_does_not_depend_on_their_size_or_place() -> None:
    rng = np.random.default_rng(5)
    ways = rng.normal(size=(3, 40, 2))
    moving, other = (np.einsum("nk,kpc->npc", smooth(seed), ways) for seed in (6, 7))
    seen = everywhere(moving)
    same = distance_of(0.3 * moving + 5, seen, moving, seen, 0)
    assert same is not None
    assert same[0] == pytest.approx(0, abs=1e-6)
    assert same[1] > 0
    apart = distance_of(other, seen, moving, seen, 0)
    assert apart is not None
    assert apart[0] == pytest.approx(np.sqrt(2), abs=budgets.EVALUATE_UNRELATED_DISTANCE)
    late = distance_of(np.roll(moving, 2, axis=0), seen, moving, seen, 2)
    assert late is not None
    assert late[0] < budgets.EVALUATE_SAME_DISTANCE
    assert distance_of(np.zeros_like(moving), seen, moving, seen, 0) is None
    assert len(set(LIPS)) == 40


def test_unrest_is_of_second_differences() -> None:
    seen = np.ones(50, bool)
    assert unrest(np.linspace(0, 1, 50), seen) == pytest.approx(0, abs=1e-12)
    assert unrest(np.tile([0.0, 1.0], 25), seen) == pytest.approx(2)
    hole = seen.copy()
    hole[20] = False
    jump = np.where(np.arange(50) == 20, 9.0, 0.0)
    assert unrest(jump, hole) == 0
    assert np.isnan(unrest(jump, np.zeros(50, bool)))


def phones_of(symbols: str) -> list[Phone]:
    made = [Phone(PAUSE, 0.0, 0.4)]
    for symbol in symbols:
        made.append(Phone(symbol, made[-1].end_s, made[-1].end_s + (0.07 if symbol in "pbm" else 0.16)))
    return [*made, Phone(PAUSE, made[-1].end_s, made[-1].end_s + 0.4)]


def test_cases_of_a_mouth_that_does_what_phones_ask_for() -> None:
    phones = phones_of("pabimulatisumabukipamibu")
    mouth = motion_targets(phones, int(25 * phones[-1].end_s)).astype(np.float64)
    cases = count_cases(mouth, phones)
    shares = case_shares([cases])
    assert shares["p, b, m closed"] == (1.0, 8)
    assert shares["/a/ wider open than /i/"] == (1.0, 4 * 4)
    assert shares["/a/ wider open than /u/"][0] == 1
    assert shares["/u/ narrower than /i/"] == (1.0, 4 * 4)
    # /i/ and /u/ are nearly closed themselves: only a mouth that opens wide between its closures shows that it is late.
    opening = phones_of("paabaamaapaabaamaabaapaamaabaa")
    wide = motion_targets(opening, int(25 * opening[-1].end_s)).astype(np.float64)
    assert case_shares([count_cases(wide, opening)])["p, b, m closed"] == (1.0, 10)
    late = count_cases(np.roll(wide, 4, axis=0), opening)
    assert case_shares([late])["p, b, m closed"][0] < budgets.EVALUATE_LATE_CLOSED
    turned = count_cases(-mouth + mouth.max(axis=0), phones)
    assert case_shares([turned])["/u/ narrower than /i/"][0] == 0
    assert case_shares([cases, late])["p, b, m closed"][1] == 18
    assert case_shares([Cases.none()])["p, b, m closed"][1] == 0
    still = count_cases(np.zeros_like(mouth), phones)
    assert case_shares([still])["p, b, m closed"] == (0.0, 8)


def test_who_speaks_for_the_evaluation_was_not_trained_on() -> None:
    everybody = voices(quick=False)
    assert {voice.name for _, voice in everybody if voice.synthesiser == "flite"} == set(FLITE_VOICES)
    variants = {f"+{voice.name.partition('+')[2]}" for _, voice in everybody if "+" in voice.name}
    assert variants
    assert not variants & set(ESPEAK_VARIANTS)
    quick = voices(quick=True)
    assert {voice.synthesiser for _, voice in quick} == {"espeak-ng", "flite"}
    assert len(quick) < len(everybody) / 4
    assert set(spoken.ESPEAK_VARIANTS) - variants == {""}


def clip(name: str, person: str, corpus: str, opening: float, *, raw: float | None = None, lag: int = 0) -> ClipScore:
    raw = opening if raw is None else raw
    likeness = Likeness(100, (raw, 0.1, 0.1), (opening, opening / 2, 0.2), lag, 40.0 * lag)
    return ClipScore(name, person, corpus, None, likeness, None, None, None, None, None)


CLIPS = (
    clip("a", "ann", "grid", 0.9),
    clip("b", "ann", "grid", 0.7, lag=1),
    clip("c", "bob", "talk", 0.5, raw=0.1, lag=2),
    clip("d", "cem", "talk", 0.3, lag=1),
)


def test_summary() -> None:
    both, grid, talk = summaries(CLIPS, lambda each: each.motion)
    assert (both.group, both.clips, both.persons) == ("all", 4, 3)
    assert both.opening == pytest.approx(0.6)
    assert both.raw == pytest.approx(0.5)
    assert both.width == pytest.approx(0.3)
    assert both.by_person == pytest.approx(0.5)
    assert both.better_half == pytest.approx(0.8)
    assert both.lag_ms == 40
    assert both.lags[1] == 2
    assert (grid.group, talk.group) == ("grid", "talk")
    assert grid.opening == pytest.approx(0.8)
    assert talk.better_half == pytest.approx(0.3)
    assert summaries(CLIPS, lambda each: each.picture) == []
    many = summaries([*CLIPS, *[clip(f"s1 {k}", "s1", "grid", 0.2) for k in range(9)]], lambda each: each.motion)
    assert [(each.group, each.clips) for each in many[:2]] == [("all", 13), ("all, at most 5 a person", 9)]
    assert many[1].opening == pytest.approx(0.2)


def test_report_is_whole_or_not_there(tmp_path: Path) -> None:
    quiet = spoken.Quiet("silence", "gate", "motion", float("nan"), 0.0, 0.0)
    done = Evaluation({"engine": "x"}, ("a note",), CLIPS, None, (quiet,), None)
    write_report(done, tmp_path)
    told = json.loads((tmp_path / "evaluate.json").read_text())
    assert told["motion"][0]["opening"] == pytest.approx(0.6)
    assert told["quiet"][0]["most"] is None
    text = (tmp_path / "evaluate.md").read_text()
    assert text == markdown(done)
    assert "a note" in text
    assert "nan" not in text
    for table in text.split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1
    (tmp_path / "kept").write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "kept", "not bytes")  # type: ignore[arg-type]
    assert (tmp_path / "kept").read_bytes() == b"old"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["evaluate.json", "evaluate.md", "kept"]


def track(name: str, person: str, corpus: str) -> Track:
    nothing = np.zeros((0, 468, 3), np.float32)
    return Track(name, Path(name), person, corpus, nothing, np.zeros(0, bool), np.zeros((80, 0), np.float32))


def test_clips_are_chosen_of_each_folder_and_person_in_turn() -> None:
    tracks = [track(f"s1 {k}", "s1", "grid") for k in range(50)]
    tracks += [track("s2", "s2", "grid"), track("ann 1", "ann", "talk"), track("ann 2", "ann", "talk")]
    assert chosen(tracks, None) == tracks
    names = [each.name for each in chosen(tracks, 5)]
    assert names == ["s1 0", "s1 1", "s2", "ann 1", "ann 2"]
    assert len(chosen(tracks, 30)) == 30


def test_folds_that_make_no_sense_are_said(tmp_path: Path) -> None:
    with pytest.raises(EvaluateError, match=r"folds\.json cannot be read"):
        read_folds(tmp_path)
    (tmp_path / "folds.json").write_text('{"a.mp4": "0"}')
    with pytest.raises(EvaluateError, match="holds something else"):
        read_folds(tmp_path)
    (tmp_path / "folds.json").write_text('{"a.mp4": 0, "b.mp4": 1}')
    (tmp_path / "fold_0").mkdir()
    with pytest.raises(EvaluateError, match="fold_1"):
        read_folds(tmp_path)
    (tmp_path / "fold_1").mkdir()
    assert read_folds(tmp_path) == {"a.mp4": 0, "b.mp4": 1}


def test_sheet_shows_faces_upright_and_of_one_size() -> None:
    points = np.zeros((468, 3), np.float32)
    points[[33, 133], 0], points[[263, 362], 1] = 100, 0
    points[[33, 133]], points[[263, 362]] = (100, 60, 0), (100, 140, 0)  # a head that lies on its side
    picture = np.zeros((200, 200, 3), np.uint8)
    picture[95:106, 30:60] = 255  # below the eyes of that head
    seen = tile(picture, points)
    rows, columns = np.nonzero(seen[:, :, 0] > 128)
    assert rows.mean() > seen.shape[0] / 2
    assert columns.mean() == pytest.approx(seen.shape[1] / 2, abs=3)
    strips = [Strip("one", [seen] * COLUMNS, [seen] * 3)] * 2
    assert sheet(strips).shape[1] == COLUMNS * seen.shape[1]
    opening = np.sin(np.arange(160)).astype(np.float32)
    frames = moments(opening, np.arange(160) >= 40)
    assert len(frames) == COLUMNS
    assert frames == sorted(frames)
    assert min(frames) >= 40


def run(*arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/evaluate"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=budgets.EVALUATE_DEADLINE_S,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    return done


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one clip: the demo face, spoken by the engine itself."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is missing")
    folder = tmp_path_factory.mktemp("clips")
    samples, rate_hz = soundfile.read(DEMO_SPEECH, dtype="int16")
    sound = folder / "speech.wav"
    soundfile.write(sound, samples[: int(3.2 * rate_hz)], rate_hz)
    job = Job(
        face=DEMO_FACE, audio=sound, output=folder / "own.mp4", engine="builtin", face_models=ROOT / "models/face"
    )
    render(job, lambda *_: None)
    sound.unlink()
    return folder


def test_what_the_engine_made_is_scored_as_its_own(clips: Path, tmp_path: Path) -> None:
    """The end-to-end run: sound and picture of a clip through everything but the synthesisers."""
    (tmp_path / "folds/fold_3").mkdir(parents=True)
    for file in (ROOT / "models/builtin").iterdir():
        shutil.copy(file, tmp_path / "folds/fold_3")
    (tmp_path / "folds/folds.json").write_text('{"own.mp4": 3}')
    out = tmp_path / "out"
    done = run("--clips", clips, "-o", out, "--no-speech", "--cache", tmp_path / "cache", "--folds", tmp_path / "folds")
    told = json.loads((out / "evaluate.json").read_text())
    (scored,) = told["clips"]
    assert scored["fold"] == 3
    for by in ("motion", "picture"):
        assert scored[by]["lag"] == 0
        assert scored[by]["shifted"][0] >= budgets.EVALUATE_OWN_OPENING
        assert scored[by]["shifted"][1] >= budgets.EVALUATE_OWN_WIDTH
        assert scored[by]["shifted"][2] >= budgets.EVALUATE_OWN_JAW
    assert min(scored["picture"]["shifted"]) >= budgets.EVALUATE_OWN_DRAWN
    assert scored["distance"] <= budgets.EVALUATE_OWN_DISTANCE
    assert abs(scored["sharpness"] - 1) <= budgets.EVALUATE_OWN_SHARPNESS
    assert (out / "evaluate.md").read_text().strip() in done.stdout
    assert (out / "sheet.png").stat().st_size > 0


def test_speech_silence_and_cost(clips: Path, tmp_path: Path) -> None:
    for synthesiser in ("espeak-ng", "flite"):
        if shutil.which(synthesiser) is None:
            reason = f"{synthesiser} is not installed (apt install {synthesiser})"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
    run("--clips", clips, "-o", tmp_path, "--quick", "--no-picture", "--no-clips")
    told = json.loads((tmp_path / "evaluate.json").read_text())
    assert {"espeak-ng", "flite"} == set(told["speech_shares"]["motion"])
    assert told["speech"]["picture"] is None
    for each in told["quiet"]:
        if each["sound"] == "silence":
            assert each["most"] <= budgets.EVALUATE_SILENT_OPENING
    assert 0 < told["cost"]["frame_ms"] <= told["cost"]["frame_p95_ms"]
    assert told["cost"]["prepare_ms"] > 0
    assert 0 < told["cost"]["engine_mib"] < told["cost"]["memory_mib"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clips", "nowhere"], "no such folder"),
        (["--clips", "{clips}", "--most", "0"], "--most 0"),
        (["--clips", "{clips}", "--engine", "wav2lip", "--model", "nowhere"], "scripts/fetch_models"),
        (["--clips", "{clips}", "--engine", "wav2lip", "--folds", "nowhere"], "--folds"),
        (["--clips", "{clips}", "--model", "nowhere"], "no such model folder"),
        (["--clips", "{clips}", "--face", "nowhere.png"], "nowhere.png: No such file"),
        (["--clips", "{clips}", "--no-clips", "--no-speech"], "nothing is left"),
        (["--clips", "{empty}", "--no-speech"], "no clip"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_a_line(
    arguments: Sequence[str], said: str, clips: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    filled = [each.format(clips=clips, empty=tmp_path / "empty") for each in arguments]
    done = run(*filled, "-o", tmp_path / "out", "--cache", tmp_path / "cache", expect=2)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("evaluate: ")
    assert said in line
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_nothing(clips: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/evaluate"), "--clips", str(clips), "-o", str(tmp_path / "out")]
    with subprocess.Popen([*command, "--cache", str(tmp_path / "cache")], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "synthetic speech" in line:
                break
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=budgets.EVALUATE_DEADLINE_S)
    assert process.returncode == 130
    assert rest.strip().splitlines()[-1] == "evaluate: stopped; nothing was written"
    assert "Traceback" not in rest
    assert not (tmp_path / "out").exists()


def test_a_clip_without_figures_is_no_figure() -> None:
    dumb = replace(CLIPS[0], name="dumb", motion=None)
    assert summaries([*CLIPS, dumb], lambda each: each.motion)[0].clips == 4
