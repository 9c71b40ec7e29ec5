"""What the bus does with peers that come, go and lag."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing

import zmq

from shared.bus import Bus, Delivery
from shared.topics import topic
from tests.budgets import BUS_ASLEEP_S, BUS_LEAVINGS, PROCESS_START_S, PROCESS_STOP_S
from tests.examples import EXAMPLES
from tests.rig.stack import ROOT, free_ports, until

PUBLISHER = """
import sys
import msgspec
import numpy as np
from shared.bus import Bus, Subscribed
from shared.messages import Face
from tests.examples import EXAMPLES

face = msgspec.structs.replace(EXAMPLES["face"], photo=np.zeros((1000, 1000, 3), np.uint8))
bus = Bus("face_prep", "127.0.0.1", int(sys.argv[1]))
bus.publishes("face")
while not any(isinstance(event, Subscribed) for event in bus.receive(1.0)):
    pass
for _ in range(3):
    bus.send("face", face, "x")
print("sent", flush=True)
sys.stdin.readline()
bus.close()
"""


def test_a_peer_that_leaves_in_the_middle_of_a_message_does_not_end_a_service_that_is_leaving_too():
    """Seen with linger 0: libzmq aborts in one of six (zeromq/libzmq issue 3442)."""
    base = free_ports(9)
    for _ in range(BUS_LEAVINGS):
        leaving = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(base)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with leaving, zmq.Context() as context, context.socket(zmq.SUB) as reader:
            assert leaving.stdout is not None
            reader.set(zmq.RCVHWM, 1)
            reader.set(zmq.RCVBUF, 65_536)
            reader.set(zmq.LINGER, 0)
            reader.subscribe(b"face.x\0")
            reader.connect(f"tcp://127.0.0.1:{base + topic('face').port}")
            assert reader.poll(int(PROCESS_START_S * 1000.0))
            leaving.stdout.readline()
            assert leaving.stdin is not None
            leaving.stdin.write("\n")
            leaving.stdin.flush()
            reader.close()
            _, told = leaving.communicate(timeout=PROCESS_STOP_S)
            assert leaving.returncode == 0, told


def test_what_wakes_nobody_is_given_with_the_next_thing_and_wakes_again_when_told_to():
    base = free_ports(9)
    with (
        closing(Bus("mel_features", "127.0.0.1", base)) as hub,
        closing(Bus("inference", "127.0.0.1", base)) as worker,
        closing(Bus("audio_capture", "127.0.0.1", base)) as ear,
    ):
        ear.publishes("audio")
        hub.receives("credit", "audio")
        worker.publishes("credit")

        def given(timeout_s: float) -> list[str]:
            return [event.topic for event in hub.receive(timeout_s) if isinstance(event, Delivery)]

        def heard(bus: Bus, name: str) -> bool:
            list(bus.receive(0.0))
            bus.send(name, EXAMPLES[name])
            return name in given(0.1)

        until(lambda: heard(worker, "credit"), PROCESS_START_S, "the worker's way to the hub")
        until(lambda: heard(ear, "audio"), PROCESS_START_S, "the ear's way to the hub")
        while given(0.1):
            pass

        hub.wakes("credit", wake=False)
        hub.wakes("credit", wake=False)
        worker.send("credit", EXAMPLES["credit"])
        began_s = time.monotonic()
        came = given(BUS_ASLEEP_S)
        assert time.monotonic() - began_s > 0.9 * BUS_ASLEEP_S
        ear.send("audio", EXAMPLES["audio"])
        while not {"credit", "audio"} <= set(came):
            assert time.monotonic() - began_s < PROCESS_START_S
            came += given(0.1)
        while given(0.1):
            pass

        hub.wakes("credit", wake=True)
        worker.send("credit", EXAMPLES["credit"])
        began_s = time.monotonic()
        assert given(PROCESS_START_S) == ["credit"]
        assert time.monotonic() - began_s < 0.5 * PROCESS_START_S
        hub.wakes("credit", wake=False)  # and it can be closed so
