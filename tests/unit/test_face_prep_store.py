"""The store of faces: what is kept comes back, what is broken is set aside."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from services.face_prep.store import FaceStore
from shared.messages import Audio, Face, pack
from tests import budgets


def made(name: str, seed: int = 0) -> Face:
    random = np.random.default_rng(seed)
    return Face(
        face=name,
        index=0,
        box=(5, 6, 50, 60),
        mask_x=7,
        mask_y=20,
        photo=random.integers(0, 256, (80, 64, 3), np.uint8),
        landmarks=random.normal(size=(468, 3)).astype(np.float32),
        mask=random.integers(0, 256, (20, 30), np.uint8),
        boxes=np.array([[5, 6, 50, 60]], np.float32),
    )


def name_of(number: int) -> str:
    return f"{number:032x}"


def test_a_face_comes_back_after_a_restart(tmp_path: Path) -> None:
    face = made(name_of(1))
    FaceStore(tmp_path / "a" / "faces").save(face)
    back = FaceStore(tmp_path / "a" / "faces").load(name_of(1))
    assert back is not None
    assert [bytes(frame) for frame in pack(back)] == [bytes(frame) for frame in pack(face)]
    assert stat.S_IMODE((tmp_path / "a" / "faces").stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a" / "faces").iterdir()] == [0o600]


def test_preparations_that_never_ended_are_counted(tmp_path: Path) -> None:
    store = FaceStore(tmp_path)
    assert [store.begin(name_of(1)), store.begin(name_of(1)), store.begin(name_of(2))] == [0, 1, 0]
    store.finish(name_of(2))
    store.finish(name_of(2))
    store = FaceStore(tmp_path)
    assert [store.begin(name_of(1)), store.begin(name_of(2))] == [2, 0]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    store.delete(name_of(1))
    assert [path.stem for path in tmp_path.iterdir()] == [name_of(2)]
    os.utime(tmp_path / f"{name_of(2)}.tried", (0, 0))
    assert FaceStore(tmp_path).begin(name_of(2)) == 0, "long ago is forgotten"


def test_the_least_recently_used_leave(tmp_path: Path) -> None:
    store = FaceStore(tmp_path, max_faces=budgets.FACE_STORE_MOST)
    for number in range(budgets.FACE_STORE_MOST):
        store.save(made(name_of(number)))
        os.utime(tmp_path / f"{name_of(number)}.face", (number, number))
    assert store.list() == [name_of(number) for number in reversed(range(budgets.FACE_STORE_MOST))]
    assert store.load(name_of(0)) is not None  # used: face 1 is now the oldest
    store.save(made(name_of(99)))
    assert len(store.list()) == budgets.FACE_STORE_MOST
    assert name_of(0) in store.list()
    assert store.load(name_of(1)) is None


def test_any_damage_is_set_aside_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FaceStore(tmp_path)
    store.save(made(name_of(1)))
    path = tmp_path / f"{name_of(1)}.face"
    good = path.read_bytes()
    other = made(name_of(2))
    store.save(other)
    broken = [b"", b"hello", good[:-1], good + b"x", good[:100], (tmp_path / f"{name_of(2)}.face").read_bytes()]
    for at in (3, 20, 45, 60, len(good) // 2, len(good) - 1):
        flipped = bytearray(good)
        flipped[at] ^= 0x40
        broken.append(bytes(flipped))
    for data in broken:
        path.write_bytes(data)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert store.load(name_of(1)) is None
        assert "set aside" in caplog.text
        assert not path.exists()
        assert name_of(1) not in store.list()
    assert path.with_suffix(".damaged").exists()
    store.save(made(name_of(1)))
    assert store.load(name_of(1)) is not None
    assert store.load(name_of(2)) is not None


def test_another_message_in_place_of_a_face_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FaceStore(tmp_path)
    audio = Audio(session="s", epoch=0, stream="x", first_sample=0, captured_ns=0, pcm=np.zeros(320, np.int16))
    monkeypatch.setattr("services.face_prep.store.pack", lambda _: pack(audio))
    store.save(made(name_of(1)))
    assert store.load(name_of(1)) is None


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..", "", "a/b", "ABCDEF0123456789", "g" * 32, "0" * 65, "0" * 32 + "\n"]
)
def test_names_that_are_no_ids_touch_no_file(tmp_path: Path, name: str) -> None:
    store = FaceStore(tmp_path / "faces")
    assert store.load(name) is None
    with pytest.raises(ValueError, match="id of a face"):
        store.save(made(name))
    assert list(tmp_path.rglob("*")) == [tmp_path / "faces"]


def test_a_failed_write_leaves_the_old_face_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FaceStore(tmp_path)
    store.save(made(name_of(1), seed=1))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.save(made(name_of(1), seed=2))
    face = store.load(name_of(1))
    assert face is not None
    assert np.array_equal(face.photo, made(name_of(1), seed=1).photo)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_crash_left_is_cleared_and_strangers_stay(tmp_path: Path) -> None:
    (tmp_path / f"{name_of(1)}abc.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    store = FaceStore(tmp_path)
    assert store.list() == []
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
