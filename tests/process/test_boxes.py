"""Two boxes with their own addresses, encrypted: a worker there draws for the page here."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.keys import read_key
from tests.budgets import BACK_S, BOX_BYTES, KEY_REFUSED_S, PROCESS_START_S
from tests.rig.box import Box, box, boxes_can_be_had
from tests.rig.fleet import Fleet, watching
from tests.rig.stack import ROOT, until

WHY_NOT = boxes_can_be_had() if sys.platform == "linux" else "network namespaces are Linux's"
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

MARKS = (b"captured_ns", b"budget_ms", b"landmarks", b"render_ms", b"session", b"builtin", b"work.")
"""words of our messages: none may be read on the cable"""


@pytest.fixture(scope="module")
def attic() -> Iterator[Box]:
    with box() as attic:
        yield attic


def make_keys(folder: Path, worker: str) -> Path:
    command = [sys.executable, "scripts/gen_keys", "--out", str(folder), "--worker", worker]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60, capture_output=True)
    return folder


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return make_keys(tmp_path / "keys", "attic")


@pytest.fixture
def hub(tmp_path: Path, keys: Path, attic: Box) -> Iterator[Fleet]:
    settings = {"MOUTHPIECE_KEY": str(keys / "hub.key"), "MOUTHPIECE_BUS_BIND": attic.hub}
    with Fleet(tmp_path / "hub", settings, model=True) as fleet:
        yield fleet


def there(attic: Box, key: Path, **more: str) -> dict[str, str]:
    return {"MOUTHPIECE_BUS_HOST": attic.hub, "MOUTHPIECE_BUS_BIND": "", "MOUTHPIECE_KEY": str(key), **more}


def test_a_worker_on_another_box_draws_and_a_listener_on_the_cable_reads_nothing(hub: Fleet, keys: Path, attic: Box):
    hub.work("attic", before=attic.inside, **there(attic, keys / "workers" / "attic.key"))
    hub.wait_ready()
    attic.heard.clear()
    with watching(hub) as watch:
        until(lambda: len(watch.moving()) > 50, BACK_S, "frames that were made there")
    assert len(attic.heard) > BOX_BYTES, "the cable was listened to"
    assert not [mark for mark in MARKS if mark in attic.heard]
    hub.workers["attic"].stop(10)


def test_a_worker_with_a_wrong_key_or_none_gets_nothing(hub: Fleet, keys: Path, attic: Box, tmp_path: Path):
    hub.work("here")
    hub.wait_ready()
    other = (make_keys(tmp_path / "other", "x") / "workers" / "x.key").read_text()
    ours = read_key(keys / "hub.key").public
    (tmp_path / "wrong.key").write_text("\n".join([*other.splitlines()[:-1], f'hub = "{ours}"']))
    attic.heard.clear()
    hub.work("wrong", before=attic.inside, **there(attic, tmp_path / "wrong.key"))
    until(lambda: "refuses us" in hub.workers["wrong"].text(), PROCESS_START_S, "it is told")
    until(lambda: "not on the allow-list" in hub.hub["mel_features"].text(), KEY_REFUSED_S, "the hub tells it")
    assert attic.address in hub.hub["mel_features"].text()
    none = hub.work("none", before=attic.inside, **there(attic, keys / "hub.key") | {"MOUTHPIECE_KEY": ""})
    assert none.wait(PROCESS_START_S) == 2
    assert "gen_keys" in none.text()
    del hub.workers["none"]
    assert hub.metric("mouthpiece_workers") == 1.0
    assert not [mark for mark in MARKS if mark in attic.heard]


def test_a_worker_with_another_model_is_told_both_fingerprints(hub: Fleet, keys: Path, attic: Box, tmp_path: Path):
    models = tmp_path / "models" / "builtin"
    models.mkdir(parents=True)
    for path in (ROOT / "models" / "builtin").iterdir():
        (models / path.name).write_bytes(path.read_bytes())
    with (models / "speech.xml").open("a") as file:
        file.write("<!-- another -->\n")
    key = there(attic, keys / "workers" / "attic.key", MOUTHPIECE_MODELS_DIR=str(models.parent))
    hub.work("attic", before=attic.inside, **key)
    told = until(
        lambda: re.search(r"its model is builtin (\w{64}), the hub's is builtin (\w{64})", hub.workers["attic"].text()),
        PROCESS_START_S,
        "it is told",
    )
    assert told.group(1) != told.group(2)
    until(lambda: told.group(0) in hub.hub["mel_features"].text(), BACK_S, "the hub tells it too")
    assert hub.metric("mouthpiece_messages_received_total", service="streamer", topic="patch") == 0.0


def test_the_command_of_the_docs_starts_a_worker(hub: Fleet, keys: Path, attic: Box, tmp_path: Path):
    words = ["--hub", attic.hub, "--key", str(keys / "workers" / "attic.key"), "--count", "2"]
    command = [*attic.inside, "scripts/run", "worker", *words]
    own = {"MOUTHPIECE_BUS_PORT": str(hub.bus_port), "MOUTHPIECE_STATE_DIR": str(tmp_path / "w")}
    clean = {name: value for name, value in hub.environment.items() if not name.startswith("MOUTHPIECE_")}
    with (tmp_path / "run.log").open("wb") as log:
        run = subprocess.Popen(
            [*command, "--count", "2"], cwd=ROOT, env=clean | own, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        until(lambda: hub.metric("mouthpiece_workers") == 2.0, PROCESS_START_S, "two workers")
        hub.wait_ready()
    finally:
        run.send_signal(2)
        assert run.wait(15) == 0, (tmp_path / "run.log").read_text()
    assert "Mouthpiece worker for" in (tmp_path / "run.log").read_text()
