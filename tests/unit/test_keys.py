"""Keys: what is wrong with a file is said, nothing is overwritten, secrets stay secret."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shared.keys import AllowList, KeyFileError, load_keys, read_key
from shared.settings import load, redacted

ROOT = Path(__file__).resolve().parents[2]


def gen_keys(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/gen_keys", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    made = gen_keys("--out", tmp_path / "keys", "--worker", "attic")
    assert made.returncode == 0, made.stderr
    return tmp_path / "keys"


def test_files_belong_together_and_are_private(keys: Path):
    hub, worker = read_key(keys / "hub.key"), read_key(keys / "workers" / "attic.key")
    assert hub.is_hub
    assert worker.hub == hub.public
    assert not worker.is_hub
    assert len({hub.public, worker.public, hub.secret, worker.secret}) == 4
    listed = AllowList(keys / "allowed", hub)
    assert listed.name(worker.public) == "attic"
    assert listed.name(hub.public) == "hub"
    assert not listed.name(hub.secret)
    for path in (keys / "hub.key", keys / "workers" / "attic.key", keys / "allowed"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert hub.secret not in repr(hub)


def test_nothing_is_overwritten(keys: Path):
    before = {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()}
    again = gen_keys("--out", keys)
    assert again.returncode == 2
    assert "--worker" in again.stderr
    again = gen_keys("--out", keys, "--worker", "attic")
    assert again.returncode == 2
    assert "attic" in again.stderr
    assert gen_keys("--out", keys, "--worker", "attic", "--if-missing").returncode == 0
    assert {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()} == before
    assert gen_keys("--out", keys, "--worker", "cellar").returncode == 0
    assert before.items() - {path: path.read_bytes() for path in before}.items() == {
        (keys / "allowed", before[keys / "allowed"])
    }
    assert gen_keys("--out", keys, "--worker", "../etc").returncode == 2


def test_a_list_whose_last_line_is_open_takes_another_key(keys: Path):
    (keys / "allowed").write_text((keys / "allowed").read_text().rstrip("\n"))
    assert gen_keys("--out", keys, "--worker", "cellar").returncode == 0
    listed = AllowList(keys / "allowed", read_key(keys / "hub.key"))
    for name in ("attic", "cellar"):
        assert listed.name(read_key(keys / "workers" / f"{name}.key").public) == name


def test_a_list_that_changes_is_read_again(keys: Path):
    hub, worker = read_key(keys / "hub.key"), read_key(keys / "workers" / "attic.key")
    listed = AllowList(keys / "allowed", hub)
    assert not listed.changed()
    (keys / "allowed").write_text(f"# {worker.public} attic\n")
    assert listed.changed()
    assert not listed.name(worker.public)
    (keys / "allowed").write_text("half a line\n")
    with pytest.raises(KeyFileError, match="line 1"):
        listed.changed()
    assert listed.name(hub.public), "the list stays as it was"
    (keys / "allowed").unlink()
    with pytest.raises(KeyFileError, match="cannot be read"):
        listed.changed()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no key file"),
        ("name = 3", "no key file"),
        ("\x00\xff", "no key file"),
        ('name = "hub"\npublic = "short"\nsecret = "short"\nhub = "short"', "no key file"),
    ],
)
def test_what_is_no_key_file_is_named(tmp_path: Path, text: str, words: str):
    path = tmp_path / "hub.key"
    path.write_text(text)
    with pytest.raises(KeyFileError, match=words):
        read_key(path)


def test_keys_fit_their_place(keys: Path):
    hub = load({"MOUTHPIECE_KEY": str(keys / "hub.key")})
    worker = load({"MOUTHPIECE_KEY": str(keys / "workers" / "attic.key")})
    found = load_keys("mel_features", hub)
    assert found is not None
    assert found.allowed is not None
    found = load_keys("inference", worker)
    assert found is not None
    assert found.allowed is None
    with pytest.raises(KeyFileError, match="needs that of the hub"):
        load_keys("mel_features", worker)
    text = (keys / "hub.key").read_text().splitlines()
    other = (keys / "workers" / "attic.key").read_text().splitlines()
    (keys / "mixed.key").write_text("\n".join([*text[:2], other[2], *text[3:]]))
    with pytest.raises(KeyFileError, match="do not belong together"):
        load_keys("inference", load({"MOUTHPIECE_KEY": str(keys / "mixed.key")}))
    assert str(keys) not in redacted(hub)
