"""Settings: what is wrong is named, what is secret stays so."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.settings import SettingsError, load, redacted


def test_defaults_and_empty_values():
    assert load({}) == load({"MOUTHPIECE_PORT": "", "PATH": "/bin", "MOUTH": "x"})
    assert load({}).autostarts
    assert not load({"MOUTHPIECE_SOURCE": "mic"}).autostarts
    assert load({"MOUTHPIECE_SOURCE": "mic", "MOUTHPIECE_AUTOSTART": "yes"}).autostarts
    assert not load({"MOUTHPIECE_AUTOSTART": "no"}).autostarts


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"MOUTHPIECE_PROT": "1"}, "unknown setting MOUTHPIECE_PROT"),
        ({"MOUTHPIECE_PORT": "no"}, "MOUTHPIECE_PORT='no'"),
        ({"MOUTHPIECE_PORT": "70000"}, "MOUTHPIECE_PORT='70000'"),
        ({"MOUTHPIECE_SOURCE": "radio"}, "MOUTHPIECE_SOURCE='radio'"),
        ({"MOUTHPIECE_SOURCE": "file:/no/such.wav"}, "no such file"),
        ({"MOUTHPIECE_FACE": "/no/such.jpg"}, "no such file"),
        ({"MOUTHPIECE_ENGINE": "magic"}, "MOUTHPIECE_ENGINE='magic'"),
        ({"MOUTHPIECE_ENGINE": "wav2lip"}, "no converted model"),
        ({"MOUTHPIECE_HOST": "0.0.0.0"}, "MOUTHPIECE_TOKEN"),
        ({"MOUTHPIECE_HOST": "0.0.0.0", "MOUTHPIECE_TOKEN": "short"}, "shorter than 16"),
        ({"MOUTHPIECE_BUS_HOST": "0.0.0.0"}, "gen_keys"),
        ({"MOUTHPIECE_BUS_BIND": "10.0.0.1"}, "gen_keys"),
        ({"MOUTHPIECE_BUS_HOST": "hub.example"}, "MOUTHPIECE_KEY"),
        ({"MOUTHPIECE_BUS_HOST": "a b"}, "MOUTHPIECE_BUS_HOST"),
        ({"MOUTHPIECE_KEY": "/no/such.key"}, "no such file"),
    ],
)
def test_what_is_wrong_is_named(variables: dict[str, str], words: str):
    with pytest.raises(SettingsError, match=words):
        load(variables)


def test_secrets_and_paths_are_not_printed(tmp_path: Path):
    photo = tmp_path / "aunt_mary.jpg"
    photo.write_bytes(b"x")
    secret = {"MOUTHPIECE_TOKEN": "s3cret-s3cret-s3cret"}
    settings = load(secret | {"MOUTHPIECE_FACE": str(photo), "MOUTHPIECE_PORT": "8081"})
    shown = redacted(settings)
    assert "s3cret" not in shown
    assert "mary" not in shown
    assert "port=8081" in shown
    with pytest.raises(SettingsError) as raised:
        load({"MOUTHPIECE_TOKEN": "x" * 300})
    assert "xxx" not in str(raised.value)
