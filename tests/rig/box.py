"""Another box: a network namespace with its own address on a cable of its own, and somebody who listens to that."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Box", "box", "boxes_can_be_had"]

ETH_P_ALL = 0x0003


def boxes_can_be_had() -> str:
    """Why no box can be made here; empty when one can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    tried = subprocess.run(["ip", "netns", "add", "mouthpiece-try"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"no network namespaces here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", "mouthpiece-try"], check=True)
    return ""


@dataclass
class Box:
    """One box beside this one."""

    name: str
    hub: str
    """our address on the cable"""
    address: str
    """its address"""
    heard: bytearray = field(default_factory=bytearray)
    """every packet that went over the cable"""

    @property
    def inside(self) -> list[str]:
        """What a command begins with to run there."""
        return ["ip", "netns", "exec", self.name]


@contextmanager
def box(number: int = 1) -> Iterator[Box]:
    """Make a box, and listen on its cable."""
    made = Box(f"mpbox{os.getpid()}-{number}", f"10.77.{number}.1", f"10.77.{number}.2")
    near, far = f"mp{os.getpid() % 100_000}n{number}", f"mp{os.getpid() % 100_000}f{number}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", made.name)
    ended = threading.Event()
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", made.name)
        ip("addr", "add", f"{made.hub}/24", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", made.name, "addr", "add", f"{made.address}/24", "dev", far)
        ip("-n", made.name, "link", "set", far, "up")
        ip("-n", made.name, "link", "set", "lo", "up")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as tap:
            tap.bind((near, 0))
            tap.settimeout(0.1)

            def listen() -> None:
                while not ended.is_set():
                    try:
                        made.heard.extend(tap.recv(65_536))
                    except TimeoutError:
                        continue

            listener = threading.Thread(target=listen, name="tap")
            listener.start()
            try:
                yield made
            finally:
                ended.set()
                listener.join(5)
    finally:
        subprocess.run(["ip", "netns", "del", made.name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", near], check=False, capture_output=True)
