"""The bus between boxes: who has no key learns nothing, and a key that is taken away is gone at once."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from services.mel_features.service import MelFeatures
from services.mel_features.track import Due
from services.mel_features.waiting import Window
from shared.bus import Bus, Delivery, Event, Subscribed, Unsubscribed
from shared.keys import AllowList, Keys, new_pair, read_key
from shared.messages import Credit, SessionState, Work
from shared.service import Tally
from shared.topics import topic
from tests.budgets import KEY_BACK_S, KEY_GONE_S, KEY_REFUSED_S, KEY_WINDOWS
from tests.examples import EXAMPLES
from tests.rig.proxy import proxied
from tests.rig.stack import ROOT, free_ports

WORK = EXAMPLES["work"]
assert isinstance(WORK, Work)
SECRET = msgspec.structs.replace(WORK, mel=np.full((80, 16), 0.123456789, "<f4"))
MARKS = (SECRET.mel.tobytes()[:64], b"captured_ns", b"budget_ms", b"work.attic")
"""what a listener would find in plain messages"""


@dataclass
class Side:
    """One end of the bus and all that it was told."""

    bus: Bus
    told: list[Event] = field(default_factory=list)

    def turn(self) -> None:
        self.told += self.bus.receive(0.01)

    def works(self) -> int:
        return sum(isinstance(event, Delivery) and isinstance(event.message, Work) for event in self.told)


def turn(sides: list[Side], condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s} s; {[s.bus.last_refusal for s in sides]}")
        for side in sides:
            side.turn()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    subprocess.run(
        [sys.executable, "scripts/gen_keys", "--out", folder, "--worker", "attic", "--worker", "cellar"],
        cwd=ROOT,
        check=True,
        timeout=60,
        capture_output=True,
    )
    return folder


@pytest.fixture
def hub(keys: Path) -> Iterator[Side]:
    """The side that binds: mel_features."""
    own = read_key(keys / "hub.key")
    bus = Bus("mel_features", "127.0.0.1", free_ports(9), keys=Keys(own, AllowList(keys / "allowed", own)))
    bus.publishes("work")
    bus.receives("credit")
    yield Side(bus)
    bus.close()


def worker(base_port: int, name: str, keys: Keys | None) -> Side:
    bus = Bus("inference", "127.0.0.1", base_port, keys=keys)
    bus.publishes("credit")
    bus.receives("work")
    bus.subscribe("work", name)
    return Side(bus)


def give(hub: Side, name: str) -> Callable[[], bool]:
    """Send a window to a worker with each turn; for conditions."""

    def sent() -> bool:
        hub.bus.send("work", SECRET, name)
        return False

    return sent


def test_work_goes_encrypted_and_a_key_can_be_taken_away_and_given_back(hub: Side, keys: Path):
    base = hub.bus._base_port
    near = base + 20
    ports = {near + topic(name).port: base + topic(name).port for name in ("work", "credit")}
    with proxied(ports, listen=True) as wire:
        attic = worker(near, "attic", Keys(read_key(keys / "workers" / "attic.key")))
        cellar = worker(base, "cellar", Keys(read_key(keys / "workers" / "cellar.key")))
        sides = [hub, attic, cellar]
        try:
            turn(sides, lambda: Subscribed("work", "attic") in hub.told, KEY_BACK_S, "the worker joins")
            turn(sides, lambda: give(hub, "attic")() or attic.works() >= KEY_WINDOWS, KEY_BACK_S, "windows come")
            assert len(wire.heard) > KEY_WINDOWS * SECRET.mel.nbytes, "the wire was listened to"
            assert not [mark for mark in MARKS if mark in wire.heard]

            listed = (keys / "allowed").read_text()
            (keys / "allowed").write_text("\n".join(line for line in listed.splitlines() if " attic" not in line))
            turn(sides, lambda: Unsubscribed("work", "attic") in hub.told, KEY_GONE_S, "the key's connection ends")
            turn(sides, lambda: hub.told.count(Subscribed("work", "cellar")) == 2, KEY_BACK_S, "the other comes back")
            before = attic.works()
            give(hub, "attic")()
            turn(sides, lambda: give(hub, "cellar")() or cellar.works() >= KEY_WINDOWS, KEY_BACK_S, "the other works")
            turn(sides, lambda: "not on the allow-list" in hub.bus.last_refusal, KEY_REFUSED_S, "the hub tells it")
            turn(sides, lambda: "refuses us" in attic.bus.last_refusal, KEY_REFUSED_S, "the worker tells it")
            assert attic.works() == before

            hub.told.clear()
            (keys / "allowed").write_text(listed)
            turn(sides, lambda: Subscribed("work", "attic") in hub.told, KEY_BACK_S, "the key is welcome again")
            turn(sides, lambda: give(hub, "attic")() or attic.works() > before, KEY_BACK_S, "windows come again")
            assert not [mark for mark in MARKS if mark in wire.heard]
        finally:
            attic.bus.close()
            cellar.bus.close()


@pytest.mark.parametrize("kind", ["none", "unknown", "wrong hub"])
def test_who_has_no_key_of_ours_learns_nothing(hub: Side, keys: Path, kind: str):
    public, secret = new_pair()
    stranger_keys = {
        "none": None,
        "unknown": Keys(
            msgspec.structs.replace(read_key(keys / "workers" / "attic.key"), public=public, secret=secret)
        ),
        "wrong hub": Keys(msgspec.structs.replace(read_key(keys / "workers" / "attic.key"), hub=public)),
    }[kind]
    base = hub.bus._base_port
    near = base + 20
    with proxied({near + topic("work").port: base + topic("work").port}, listen=True) as wire:
        stranger = worker(near, "attic", stranger_keys)
        friend = worker(base, "attic", Keys(read_key(keys / "workers" / "attic.key")))
        sides = [hub, stranger, friend]
        try:
            turn(sides, lambda: Subscribed("work", "attic") in hub.told, KEY_BACK_S, "the friend joins")
            turn(
                sides,
                lambda: (
                    give(hub, "attic")()
                    or (
                        friend.works() >= KEY_WINDOWS
                        and any(name.startswith("refused.") for name in hub.bus.counters)
                        and wire.connections > 0
                    )
                ),
                KEY_REFUSED_S,
                "the stranger is refused while the friend works",
            )
            assert stranger.works() == 0
            assert not [mark for mark in MARKS if mark in wire.heard]
            assert not [event for event in stranger.told if isinstance(event, Delivery)]
            assert "refused" in hub.bus.last_refusal
        finally:
            stranger.bus.close()
            friend.bus.close()


def test_a_workers_key_opens_the_topics_of_workers_alone(keys: Path):
    own = read_key(keys / "hub.key")
    base = free_ports(9)
    hears = Bus("audio_capture", "127.0.0.1", base, keys=Keys(own, AllowList(keys / "allowed", own)))
    hears.publishes("audio")
    attic = Keys(read_key(keys / "workers" / "attic.key"))
    spies = Bus("mel_features", "127.0.0.1", base, keys=attic)
    spies.receives("audio")
    friend = Bus("streamer", "127.0.0.1", base, keys=Keys(own))
    friend._service = "mel_features"  # it calls instead of binding
    friend.receives("audio")
    hub, spy, ear = Side(hears), Side(spies), Side(friend)
    try:

        def heard() -> bool:
            hears.send("audio", EXAMPLES["audio"])
            return len(ear.told) >= KEY_WINDOWS and "no worker's topic" in hears.last_refusal

        turn([hub, spy, ear], heard, KEY_REFUSED_S, "the hub's own service hears, the worker is refused")
        assert not spy.told
    finally:
        for bus in (hears, spies, friend):
            bus.close()


def test_a_worker_speaks_for_itself_alone(hub: Side, keys: Path):
    attic = worker(hub.bus._base_port, "attic", Keys(read_key(keys / "workers" / "attic.key")))
    credit = EXAMPLES["credit"]
    assert isinstance(credit, Credit)
    try:

        def told() -> bool:
            for name in ("cellar.1", f"{attic.bus.prefix}1"):
                attic.bus.send("credit", msgspec.structs.replace(credit, worker=name))
            return len(workers()) >= KEY_WINDOWS

        def workers() -> list[str]:
            came = [event.message for event in hub.told if isinstance(event, Delivery)]
            return [message.worker for message in came if isinstance(message, Credit)]

        turn([hub, attic], told, KEY_BACK_S, "its own account comes")
        assert set(workers()) == {"attic.1"}
        assert "attic speaks for another one" in hub.bus.last_refusal
    finally:
        attic.bus.close()


def test_windows_that_were_held_when_a_key_goes_find_another_worker(keys: Path):
    own = read_key(keys / "hub.key")
    base = free_ports(9)
    bus = Bus("mel_features", "127.0.0.1", base, keys=Keys(own, AllowList(keys / "allowed", own)))
    mel = MelFeatures(bus, Tally(logging.getLogger("test")))
    names = ("attic", "cellar")
    sides = {name: worker(base, f"{name}.1", Keys(read_key(keys / "workers" / f"{name}.key"))) for name in names}
    credit = EXAMPLES["credit"]
    assert isinstance(credit, Credit)
    told: list[Event] = []

    def go_on() -> None:
        for event in bus.receive(0.01):
            told.append(event)
            mel.handle(event)
        for side in sides.values():
            side.turn()

    def until(condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + KEY_BACK_S
        while not condition():
            assert time.monotonic() < deadline, what
            go_on()

    def accounts() -> bool:
        for name, side in sides.items():
            side.bus.send("credit", msgspec.structs.replace(credit, worker=f"{name}.1", faces=("f0",)))
        return mel._pool.free() == 4

    try:
        until(accounts, "both workers are known")
        window = Window("s", 1, "f0", Due(1, SECRET.mel, 1.0, 0), time.monotonic() + 60.0, time.monotonic() + 60.0)
        mel.handle(Delivery("session", "", SessionState(session="s", epoch=1, running=True, source="demo", face="f0")))
        for frame in range(2):
            mel._waiting.put(replace(window, due=replace(window.due, frame=frame)))
        mel._hand_out()
        assert len(mel._waiting) == 0
        lines = (keys / "allowed").read_text().splitlines()
        (keys / "allowed").write_text("\n".join(line for line in lines if " attic" not in line))
        until(lambda: Unsubscribed("work", "attic.1") in told, "its connection ends")
        until(lambda: accounts() or sides["cellar"].works() >= 2, "the other one gets all of it")
    finally:
        for side in sides.values():
            side.bus.close()
        bus.close()


def test_an_open_port_without_keys_does_not_start(tmp_path: Path):
    for setting in ("MOUTHPIECE_BUS_BIND", "MOUTHPIECE_BUS_HOST"):
        ended = subprocess.run(
            [sys.executable, "-m", "services.mel_features"],
            cwd=ROOT,
            env={setting: "0.0.0.0", "MOUTHPIECE_STATE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 2
        assert "gen_keys" in ended.stdout
