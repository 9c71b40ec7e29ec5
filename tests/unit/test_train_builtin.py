"""The training of the built-in engine: what it learns from, what it learns, and its command."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest
import torch

from scripts._builtin.babble import babble
from scripts._builtin.card import Figures, write_card
from scripts._builtin.learn import Plan, Score, Task, aligned, balanced, folds_of, hear, learn, learn_all, score, usual
from scripts._builtin.lessons import FRAMES, Lesson, columns, draw, lesson_of, padded, silenced
from scripts._builtin.network import (
    BACK,
    DILATIONS,
    LENGTH,
    PRESSING_DILATIONS,
    Dropout,
    Hearing,
    save_network,
    shares,
)
from scripts._builtin.phonemes import OPEN_VOWELS, Voice, speak
from scripts._builtin.sentences import VOICE_OF
from scripts._builtin.spoken import _lesson
from scripts._builtin.tracks import Track, TrackError, measured, read_tracks
from services.inference.builtin.basis import MotionBasis
from services.inference.builtin.drive import WINDOW, on_level
from services.inference.builtin.engine import MODELS
from services.mel_features.windows import Windows
from tests import budgets

ROOT = Path(__file__).resolve().parents[2]
Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def basis() -> MotionBasis:
    return MotionBasis.load(MODELS)


def voice(seconds: float, seed: int = 0) -> tuple[Floats, Floats]:
    """Mel frames whose loudness is what the mouth does: mel (80, n), opening of each video frame, 0..1."""
    rng = np.random.default_rng(seed)
    frames = int(seconds * 25)
    knots = rng.uniform(0, 1, frames // 4 + 3) * (rng.uniform(0, 1, frames // 4 + 3) > 0.3)
    opening = np.interp((np.arange(frames) + 0.5) / 4, np.arange(len(knots)), knots).astype(np.float32)
    at = np.arange(frames * 80 // 25) * 25 / 80 - 0.5
    loud = np.interp(at, np.arange(frames), opening)
    mel = -3.5 + 4.5 * loud[None] + rng.normal(0, 0.1, (80, len(loud)))
    return np.clip(mel, -4, 4).astype(np.float32), opening


def lesson(name: str, person: str, *, seconds: float = 6, seed: int = 0, offset: int = 0) -> Lesson:
    mel, opening = voice(seconds, seed)
    motion = np.zeros((len(opening), 4), np.float32)
    motion[:, 0] = np.roll(opening, offset)
    motion[:, 1] = -0.5 * np.roll(opening, offset)
    return Lesson(name, person, mel, motion, np.ones(len(opening), bool))


def moved(basis: MotionBasis, opening: Floats, *, width: Floats | None = None) -> Floats:
    """Landmarks, px, of a turning head that speaks, (n, 468, 3)."""
    made = []
    for k, gap in enumerate(opening):
        face = basis.mean + gap * basis.axes[0] + (0 if width is None else width[k]) * basis.axes[1]
        angle = 0.1 * np.sin(k / 9)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        made.append(90 * face @ turn.T + (200 + k % 7, 180, 0))
    return np.array(made, np.float32)


def test_the_window_is_the_engines():
    assert (WINDOW.back, WINDOW.length) == (BACK, LENGTH)


@pytest.mark.parametrize("dilations", [DILATIONS, PRESSING_DILATIONS])
def test_a_window_is_heard_as_in_the_sequence(dilations: tuple[int, ...]):
    torch.manual_seed(0)
    network = Hearing(channels=16, dilations=dilations).eval()
    mel = torch.randn(2, 80, LENGTH + 12)
    with torch.no_grad():
        whole = network(mel)
        alone = torch.stack([network.window(mel[:, :, k : k + LENGTH]) for k in range(13)], dim=2)
    assert whole.shape == (2, 4, 13)
    torch.testing.assert_close(alone, whole)


def test_sequences_hear_what_live_windows_hear():
    mel, opening = voice(4)
    live = dict(Windows(WINDOW).push(0, mel))
    given, at = padded(mel), columns(len(opening))
    for frame, window in live.items():
        np.testing.assert_array_equal(given[:, at[frame] : at[frame] + LENGTH], window)
    assert len(live) > 80


def test_the_saved_network_is_the_mean_in_the_usual_measure(tmp_path: Path):
    torch.manual_seed(1)
    networks = [Hearing(channels=8).eval() for _ in range(2)]
    pressing = Hearing(channels=6, dilations=PRESSING_DILATIONS).eval()
    save_network(networks, pressing, (0.5, 0.25), tmp_path / "speech.xml")
    mel = np.random.default_rng(0).normal(0, 1, (3, 80, LENGTH)).astype(np.float32)
    compiled = ov.Core().compile_model(tmp_path / "speech.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert compiled.input(0).partial_shape == ov.PartialShape([-1, 80, LENGTH])
    assert compiled.output(0).partial_shape == ov.PartialShape([-1, 4])
    with torch.no_grad():
        wanted = torch.stack([network.window(torch.from_numpy(mel)) for network in networks]).mean(dim=0).numpy()
        wanted[:, 3] = shares(pressing.window(torch.from_numpy(mel)))[:, 3]
    np.testing.assert_allclose(compiled([mel])[0], wanted * (2, 4, 2, 1), atol=budgets.BUILTIN_HALF_ERROR)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speech.bin", "speech.xml"]


def test_a_lesson_is_in_the_speakers_own_measure(basis: MotionBasis):
    opening = np.abs(np.sin(np.arange(120) / 5)).astype(np.float32) * 0.2
    width = 0.05 * np.cos(np.arange(120) / 7).astype(np.float32)
    seen = np.ones(120, bool)
    seen[50:60] = False
    track = Track("a", Path("a.mp4"), "a", "clips", moved(basis, opening, width=width), seen, voice(4.8)[0])
    made = lesson_of(track, basis)
    lips = made.motion[:, 0] + made.motion[:, 2]
    assert np.quantile(lips[seen], 0.95) == pytest.approx(1, abs=budgets.TRAIN_MEASURE_ERROR)
    assert np.corrcoef(lips, opening)[0, 1] > budgets.TRAIN_OPENING_SEEN
    assert np.corrcoef(made.motion[:, 1], width)[0, 1] > budgets.TRAIN_WIDTH_SEEN
    assert 2 * made.motion[seen, 1].std() == pytest.approx(1, abs=budgets.TRAIN_MEASURE_ERROR)
    assert not made.pressed


def test_measures_do_not_depend_on_the_pose(basis: MotionBasis):
    found = measured(moved(basis, np.full(30, 0.15, np.float32)), basis)
    assert found.std(axis=0).max() < budgets.TRAIN_POSE_ERROR
    closed = measured(moved(basis, np.zeros(1, np.float32)), basis)
    assert found[0, 0] - closed[0, 0] == pytest.approx(0.15, abs=budgets.TRAIN_OPENING_ERROR)
    assert found[0, 2] > closed[0, 2]


def test_drawn_sequences_keep_sound_and_motion_together():
    batch = draw([lesson("a", "a", seconds=12)], 24, np.random.default_rng(0))
    assert batch.mel.shape[2] >= LENGTH + int(columns(FRAMES)[-1])
    agreement = []
    for mel, motion, known in zip(batch.mel.numpy(), batch.motion.numpy(), batch.known.numpy(), strict=True):
        if motion[:, 0].max() > 0.3 and known[:, 0].all():
            loud = mel.mean(axis=0)[BACK + columns(FRAMES) + 1]
            agreement.append(np.corrcoef(loud, motion[:, 0])[0, 1])
    assert len(agreement) > 12
    assert np.median(agreement) > budgets.TRAIN_TOGETHER
    assert batch.known[..., 3].mean() < budgets.TRAIN_SILENT_MOST  # only in silence pressing is known


def test_noise_after_speech_shuts_the_mouth():
    mel, _ = voice(5.2)
    rng = np.random.default_rng(2)
    cuts = []
    for _ in range(40):
        made, spoken, silent = silenced(mel, rng)
        assert made.shape == mel.shape
        assert 0 <= spoken <= silent <= FRAMES
        if silent:
            cuts.append(spoken)
            heard = int(columns(FRAMES)[spoken - 1]) + LENGTH if spoken else 0
            np.testing.assert_array_equal(made[:, :heard], mel[:, :heard])
            told = int(columns(FRAMES)[silent - 1]) + BACK
            assert np.abs(made[:, told:] - mel[:, told:]).max() > 0.1
    assert len(set(cuts)) > 5


def test_dropout_leaves_out_its_share_in_training_alone():
    torch.manual_seed(0)
    dropout, ones = Dropout(0.25), torch.ones(40, 7, 101)
    made = dropout.train()(ones)
    assert float((made == 0).float().mean()) == pytest.approx(0.25, abs=budgets.TRAIN_MEASURE_ERROR)
    assert float(made.mean()) == pytest.approx(1, abs=budgets.TRAIN_MEASURE_ERROR)
    assert dropout.eval()(ones) is ones


@pytest.mark.parametrize("language", ["en", "ru", "hi", "ja", "zh"])
def test_random_syllables_bring_the_lips_together(language: str):
    text = " ".join(babble(language, np.random.default_rng(seed)) for seed in range(3))
    assert text == " ".join(babble(language, np.random.default_rng(seed)) for seed in range(3))
    said = speak(text, Voice("espeak-ng", VOICE_OF[language]))
    phones = [phone.symbol for phone in said.phones]
    assert {"p", "m"} <= set(phones)  # Mandarin has no b
    assert OPEN_VOWELS & set(phones)


def test_a_short_training_learns_and_the_score_finds_the_offset():
    pupils = [lesson(f"clip {k}", f"person {k}", seconds=8, seed=k) for k in range(6)]
    network = learn(balanced(pupils), [], Plan(steps=120, batch=8, spoken=0, channels=32, dropout=0.0), lambda _: None)
    late = lesson("new", "new", seconds=8, seed=77, offset=2)
    found = score(late, hear([network], late.mel, len(late.motion)))
    assert found.offset == 2
    assert found.opening > budgets.BUILTIN_TOY_CORRELATION
    assert found.raw_opening < found.opening
    opening, width = usual([network], pupils)
    assert 0.2 < opening < 2
    assert width > 0


def test_networks_that_are_trained_at_once_are_what_they_are_alone():
    pupils = [lesson(f"clip {k}", f"person {k}", seed=k) for k in range(2)]
    spoken = [lesson("said", "flite", seed=9)]
    plans = [Plan(steps=3, batch=2, spoken=1, channels=8, seed=seed) for seed in (1, 2, 3)]
    together = learn_all([Task(f"network {plan.seed}", pupils, plan) for plan in plans], spoken)
    for plan, network in zip(plans, together, strict=True):
        alone = learn(pupils, spoken, plan, lambda _: None)
        assert not network.training
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], value, msg=name)


def test_clips_out_of_step_are_corrected_or_left_out():
    lessons = [lesson(name, name) for name in ("good", "late", "dubbed")]
    scores = [
        Score("good", "good", 0.8, 0.5, 0.8, 0),
        Score("late", "late", 0.6, 0.5, 0.2, 3),
        Score("dubbed", "dubbed", 0.05, 0.0, 0.0, 1),
    ]
    told: list[str] = []
    kept = aligned(lessons, scores, told.append)
    assert [(each.name, each.offset) for each in kept] == [("good", 0), ("late", 3)]
    assert "dubbed" in told[0]


def test_folds_keep_people_apart_and_are_even():
    lessons = [lesson(f"{k}", f"person {k % 11}", seconds=1) for k in range(44)]
    fold = folds_of(lessons, 5, 1)
    assert set(fold) == {f"person {k}" for k in range(11)}
    sizes = np.bincount([fold[each.person] for each in lessons], minlength=5)
    assert sizes.min() >= 8
    assert fold == folds_of(lessons, 5, 1)


def test_long_clips_do_not_crowd_out_other_people():
    lessons = balanced([lesson("long", "a", seconds=40), lesson("short", "b", seconds=2.5)])
    assert lessons[0].weight / lessons[1].weight == pytest.approx(4, rel=budgets.TRAIN_WEIGHT_ERROR)


def test_synthesised_speech_shuts_the_mouth_where_lips_meet():
    made = _lesson("Mamma Mia, Papa!", Voice("flite", "slt"), np.random.default_rng(0))
    said = speak("Mamma Mia, Papa!", Voice("flite", "slt"))
    first = next(phone for phone in said.phones if phone.symbol == "m")
    frame = int(((first.start_s + first.end_s) / 2 + 0.4) * 25)
    around = made.motion[frame - 1 : frame + 2]
    assert (around[:, 0] + around[:, 2]).min() < budgets.TRAIN_SHUT
    assert around[:, 3].max() > budgets.TRAIN_PRESSED
    assert made.motion[:, 0].max() > budgets.TRAIN_OPEN
    assert made.pressed


def test_the_card_keeps_what_people_wrote(tmp_path: Path):
    card = tmp_path / "CARD.md"
    card.write_text("# Card\n\nBy hand.\n\n## Limits\nSome.\n", encoding="utf-8")
    figures = Figures(
        [Score("a", "grid a", 0.7, 0.5, 0.6, 1)], [lesson("a", "grid a")], ["b"], [], Plan(10), Plan(15), 2
    )
    write_card(card, figures)
    write_card(card, replace(figures, left_out=["c"]))
    text = card.read_text(encoding="utf-8")
    assert text.startswith("# Card\n\nBy hand.")
    assert "| all clips | 1 | 0.700 | 0.500 | 0.600 |" in text
    assert "`c`" in text
    assert "`b`" not in text
    assert text.count("Pearson") == 1


def test_the_card_counts_few_clips_of_those_who_have_many(tmp_path: Path):
    card = tmp_path / "CARD.md"
    card.write_text("# Card\n", encoding="utf-8")
    many = [Score(f"a{k}", "grid a", 0.9, 0.2, 0.9, 0) for k in range(7)]
    others = [Score(who, who, 0.5, 0.6, 0.5, 0) for who in "bcdefg"]
    write_card(card, Figures([*many, *others], [lesson("a", "grid a")], [], [], Plan(10), Plan(15), 1))
    text = card.read_text(encoding="utf-8")
    assert "| all clips | 13 | 0.900 | 0.200 | 0.900 |" in text
    assert "| at most 5 of each person | 11 | 0.500 | 0.600 | 0.500 |" in text


def test_a_folder_without_clips_is_told(tmp_path: Path):
    with pytest.raises(TrackError, match="no clip"):
        read_tracks(tmp_path, tmp_path / "cache", lambda _: None)


@pytest.mark.parametrize(("given", "told"), [(["nowhere"], "no such folder"), ([".", "--steps", "1"], "2 at least")])
def test_the_command_tells_what_is_wrong(given: list[str], told: str, tmp_path: Path):
    command = [sys.executable, str(ROOT / "scripts/train_builtin"), "--clips", *given, "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_mel_of_a_lesson_is_heard_on_one_level():
    mel, _ = voice(4)
    np.testing.assert_allclose(on_level(mel - np.float32(0.4)), on_level(mel), atol=budgets.TRAIN_LEVEL_ERROR)
