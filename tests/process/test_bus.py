"""What the bus does with peers that come, go and lag."""

from __future__ import annotations

import subprocess
import sys

import zmq

from shared.topics import topic
from tests.budgets import BUS_LEAVINGS, PROCESS_START_S, PROCESS_STOP_S
from tests.rig.stack import ROOT, free_ports

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
