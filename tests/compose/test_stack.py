"""`docker compose up` on a real engine: images, stream, health, kills, scale, stop."""

from __future__ import annotations

import ipaddress
import json
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from tests.budgets import (
    COMPOSE_FRAMES,
    COMPOSE_HEALTHY_S,
    COMPOSE_IMAGE_MB,
    COMPOSE_MOVING,
    COMPOSE_PAUSE_S,
    COMPOSE_RATE_ERROR_HZ,
    COMPOSE_RATE_TRIES_S,
    COMPOSE_RESTART_S,
    COMPOSE_STOP_S,
    FRAME_RATE_HZ,
)
from tests.compose.project import HUB_FILES, SERVICES, Project, longest_pause_s, moving, watch
from tests.rig.stack import until

pytestmark = pytest.mark.timeout(1800)

UNWANTED = {
    "audio-capture": ("cv2", "openvino", "flask", "gunicorn"),
    "mel-features": ("cv2", "openvino", "flask", "gunicorn", "soxr", "soundfile", "pyaudio"),
    "face-prep": ("flask", "gunicorn", "soxr", "soundfile", "pyaudio"),
    "inference": ("flask", "gunicorn", "soxr", "soundfile", "pyaudio"),
    "streamer": ("openvino", "soundfile", "pyaudio", "aiortc"),
}
NOWHERE = ("torch", "librosa", "scipy", "pip", "setuptools", "openvino_telemetry", "pytest")


def rate_hz(shots: list[tuple[float, str]]) -> float:
    return (len(shots) - 1) / (shots[-1][0] - shots[0][0])


def test_the_page_and_the_stream_from_outside(stack: Project) -> None:
    assert b"<html" in stack.get("/")

    def steady() -> list[tuple[float, str]] | None:
        shots = watch(stack.feed, COMPOSE_FRAMES, timeout_s=60.0)
        return shots if abs(rate_hz(shots) - FRAME_RATE_HZ) < COMPOSE_RATE_ERROR_HZ else None

    shots = until(steady, COMPOSE_RATE_TRIES_S, f"{FRAME_RATE_HZ} frames a second")
    assert moving(shots) > COMPOSE_MOVING


@pytest.mark.parametrize("service", SERVICES)
def test_healthy_by_its_own_output(stack: Project, service: str) -> None:
    until(lambda: stack.health(service) == ["healthy"], COMPOSE_HEALTHY_S, f"{service} healthy")
    code, said = stack.inside(service, "python", "-m", "shared.health")
    assert (code, " works" in said) == (0, True), said


def test_a_service_that_stands_still_is_not_healthy(stack: Project) -> None:
    (container,) = stack.containers("mel-features")
    stack.signal(container, "STOP")
    try:
        code, said = stack.inside("mel-features", "python", "-m", "shared.health")
    finally:
        stack.signal(container, "CONT")
    assert code == 1
    assert "unhealthy" in said
    until(stack.ready, COMPOSE_HEALTHY_S, "all services again")


@pytest.mark.parametrize("service", SERVICES)
def test_hardened(stack: Project, service: str) -> None:
    (container,) = stack.containers(service)
    told = stack.inspect(container)
    host = told["HostConfig"]
    assert told["Config"]["User"] == "10001:10001"
    assert host["ReadonlyRootfs"]
    assert host["Init"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    said = stack.docker("exec", container, "cat", f"/proc/{stack.main_process(container)}/status")
    kernel = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert set(kernel["Uid"].split()) == {"10001"}
    assert int(kernel["CapEff"], 16) == int(kernel["CapBnd"], 16) == 0
    assert kernel["NoNewPrivs"] == "1"
    assert stack.inside(service, "touch", "/app/x")[0] != 0
    assert stack.inside(service, "touch", "/keys/x")[0] != 0


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_has_what_its_service_needs_and_no_more(stack: Project, service: str) -> None:
    names = (*NOWHERE, *UNWANTED[service])
    program = f"import importlib.util as u; print([n for n in {names!r} if u.find_spec(n)])"
    assert stack.inside(service, "python", "-c", program) == (0, "[]")
    assert stack.inside(service, "sh", "-c", "command -v gcc cc make")[0] != 0
    other = {name.replace("-", "_") for name in SERVICES} - {service.replace("-", "_")}
    code, found = stack.inside(service, "sh", "-c", "ls services/*/service.py")
    assert code == 0
    assert not [name for name in other if f"/{name}/" in found]


@pytest.mark.parametrize("service", SERVICES)
def test_image_size(stack: Project, service: str) -> None:
    size = int(stack.docker("image", "inspect", "--format", "{{.Size}}", f"mouthpiece-test/{service}"))
    assert size < COMPOSE_IMAGE_MB[service] * 1_000_000


def test_only_this_machine_gets_in(stack: Project) -> None:
    published: dict[str, list[str]] = {}
    for service in SERVICES:
        ports = stack.inspect(stack.containers(service)[0])["NetworkSettings"]["Ports"]
        published |= {service: [place["HostIp"] for places in ports.values() if places for place in places]}
    assert published == {service: ["127.0.0.1"] if service == "streamer" else [] for service in SERVICES}
    for name in ("evil.example", "192.168.1.5", f"172.18.0.2:{stack.port}"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            stack.get("/api/status", Host=name)
        refused.value.close()
        assert refused.value.code == 403
    told = json.loads(stack.docker("network", "inspect", f"{stack.name}_bus"))[0]
    assert told["Internal"]


def test_keys_are_for_the_services_alone_and_stay(stack: Project) -> None:
    listing = "stat -c '%n %a %u' /keys /keys/hub.key /keys/allowed /keys/workers/local.key && cat /keys/hub.key"
    code, before = stack.inside("mel-features", "sh", "-c", listing)
    assert code == 0
    modes = [line.split()[1:] for line in before.splitlines()[:4]]
    assert modes == [["700", "10001"], *[["600", "10001"]] * 3]
    stack.compose("up", "--detach", "--no-build")
    until(stack.ready, COMPOSE_RESTART_S, "all services")
    assert stack.inside("mel-features", "sh", "-c", listing) == (0, before)


def test_the_name_of_an_absent_service_is_answered_at_once(stack: Project) -> None:
    # The thread of ZeroMQ that asks for names also answers heartbeats: while it waits, healthy connections die.
    program = "import socket; socket.getaddrinfo('nowhere', 1)"
    code, said = stack.inside("mel-features", "timeout", "1", "python", "-c", program)
    assert code == 1
    assert "gaierror" in said


def test_three_workers(stack: Project) -> None:
    stack.compose("up", "--detach", "--no-build", "--scale", "inference=3")
    until(lambda: stack.workers() == 3, COMPOSE_RESTART_S, "three workers")


def test_a_killed_worker_is_not_missed_and_comes_back(stack: Project) -> None:
    stack.compose("up", "--detach", "--no-build", "--scale", "inference=2")
    until(lambda: stack.workers() == 2, COMPOSE_RESTART_S, "two workers")
    victim = stack.containers("inference")[0]
    stack.signal(victim, "KILL")  # as the kernel does when memory is short; `docker kill` is a wish of the operator
    shots = watch(stack.feed, COMPOSE_FRAMES, timeout_s=60.0)
    assert longest_pause_s(shots) < COMPOSE_PAUSE_S
    assert moving(shots) > COMPOSE_MOVING

    def back() -> bool:
        told = stack.inspect(victim)
        return bool(told["State"]["Running"]) and told["RestartCount"] == 1

    until(back, COMPOSE_RESTART_S, "the killed worker running again")
    until(lambda: stack.workers() == 2, COMPOSE_RESTART_S, "two workers")


def test_a_worker_that_the_operator_killed_comes_back_by_compose(stack: Project) -> None:
    victim = stack.containers("inference")[0]
    stack.docker("kill", victim)
    shots = watch(stack.feed, COMPOSE_FRAMES, timeout_s=60.0)
    assert longest_pause_s(shots) < COMPOSE_PAUSE_S
    assert moving(shots) > COMPOSE_MOVING
    stack.compose("up", "--detach", "--no-build", "--scale", "inference=2")
    until(lambda: stack.workers() == 2, COMPOSE_RESTART_S, "two workers")


def test_a_worker_of_another_project_comes_in_by_its_key(stack: Project, tmp_path: Path) -> None:
    network = json.loads(stack.docker("network", "inspect", "bridge"))[0]["IPAM"]["Config"][0]
    # An engine that found its bridge there when it started does not say which address is its own: the first one.
    bridge = network.get("Gateway") or str(next(ipaddress.ip_network(network["Subnet"]).hosts()))
    key = tmp_path / "other.key"
    box = ("deploy/docker-compose.worker.yml",)
    stack.compose("run", "--rm", "-T", "keys", "python", "scripts/gen_keys", "--out", "/keys", "--worker", "other")
    key.write_text(stack.inside("mel-features", "cat", "/keys/workers/other.key")[1] + "\n")
    key.chmod(0o644)  # whoever runs the tests may not be allowed to give it to user 10001
    stack.compose("up", "--detach", "--no-build", files=HUB_FILES, HUB=bridge)
    until(lambda: stack.ready() and stack.workers() == 1, COMPOSE_RESTART_S, "the hub open for workers")
    settings: dict[str, Any] = {"HUB": bridge, "KEY": str(key), "COMPOSE_PROJECT_NAME": f"{stack.name}-box"}
    try:
        stack.compose("up", "--detach", "--no-build", files=box, **settings)
        until(lambda: stack.workers() == 2, COMPOSE_RESTART_S, "the worker of the other project")
    finally:
        stack.compose("down", "--volumes", "--timeout", "3", files=box, **settings)
    stack.compose("up", "--detach", "--no-build")
    stack.docker("network", "rm", f"{stack.name}_hub")
    until(stack.ready, COMPOSE_RESTART_S, "the hub closed again")


@pytest.mark.parametrize("service", SERVICES)
def test_stop(stack: Project, service: str) -> None:
    (container,) = stack.containers(service)
    code, took_s = stack.stop(container)
    assert code == 0
    assert took_s < COMPOSE_STOP_S


def test_down_leaves_nothing(stack: Project) -> None:
    assert stack.left()
    stack.compose("down", "--volumes", "--remove-orphans")
    assert stack.left() == {}
