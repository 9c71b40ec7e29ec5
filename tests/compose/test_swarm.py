"""The stack of Docker Swarm on a swarm of one node: it talks, and an update of the workers is not missed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.budgets import (
    COMPOSE_MOVING,
    COMPOSE_PAUSE_S,
    COMPOSE_READY_S,
    COMPOSE_STOP_S,
    COMPOSE_UPDATE_FRAMES,
    COMPOSE_UPDATE_S,
)
from tests.compose.engine import is_own
from tests.compose.project import SERVICES, Project, longest_pause_s, moving, watch
from tests.rig.stack import ROOT, until

pytestmark = pytest.mark.timeout(1800)

TOKEN = "0123456789abcdef"  # noqa: S105
STACK = "mouthpiece-test"


def answer(project: Project, token: str = TOKEN) -> int:
    """Status code of /healthz; 0 while nobody answers."""
    try:
        with urllib.request.urlopen(f"{project.url}/healthz?token={token}", timeout=5.0) as page:
            return int(page.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


@pytest.fixture(scope="module")
def swarm(images: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    if not is_own(images.environment):
        pytest.skip("the swarm is not tested: the Docker engine that runs here is somebody's, and stays as it is")
    folder: Path = tmp_path_factory.mktemp("swarm")
    (folder / "deploy").mkdir()
    shutil.copy(ROOT / "deploy/docker-stack.yml", folder / "deploy")
    command = [sys.executable, str(ROOT / "scripts/gen_keys"), "--out", str(folder / "keys"), "--worker", "swarm"]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "keys/token").write_text(TOKEN)
    images.environment["ENDPOINT_MODE"] = "vip" if Path("/proc/net/ip_vs").exists() else "dnsrr"
    images.docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:2377")
    try:
        node = images.docker("info", "--format", "{{.Swarm.NodeID}}")
        images.docker("node", "update", "--label-add", "mouthpiece=hub", node)
        images.docker("stack", "deploy", "--compose-file", str(folder / "deploy/docker-stack.yml"), STACK)
        until(lambda: answer(images) == HTTPStatus.OK, COMPOSE_READY_S, "all services of the stack alive")
        yield images
    finally:
        images.docker("stack", "rm", STACK)
        of_stack = ["--all", "--quiet", "--filter", f"label=com.docker.stack.namespace={STACK}"]
        until(lambda: not images.docker("ps", *of_stack), COMPOSE_READY_S, "the end of the stack")
        images.docker("swarm", "leave", "--force")
        images.docker("volume", "rm", "--force", f"{STACK}_faces", f"{STACK}_session")


def test_the_page_wants_its_token(swarm: Project) -> None:
    assert answer(swarm) == HTTPStatus.OK
    assert answer(swarm, "wrong") == HTTPStatus.UNAUTHORIZED


def test_all_replicas_run_hardened(swarm: Project) -> None:
    wanted = {f"{STACK}_{name} {'2/2' if name == 'inference' else '1/1'}" for name in SERVICES}
    listing = ("service", "ls", "--format", "{{.Name}} {{.Replicas}}")
    until(lambda: set(swarm.docker(*listing).splitlines()) == wanted, COMPOSE_READY_S, "all replicas")
    for container in swarm.docker("ps", "--quiet").split():
        told = swarm.inspect(container)
        assert told["Config"]["User"] == "10001:10001"
        assert told["HostConfig"]["ReadonlyRootfs"]
        assert told["HostConfig"]["CapDrop"] == ["ALL"]


def test_an_update_of_the_workers_is_not_missed(swarm: Project) -> None:
    service = f"{STACK}_inference"
    swarm.docker("service", "update", "--detach", "--force", service)
    shots = watch(f"{swarm.feed}?token={TOKEN}", COMPOSE_UPDATE_FRAMES, timeout_s=COMPOSE_UPDATE_S)
    assert longest_pause_s(shots) < COMPOSE_PAUSE_S
    assert moving(shots) > COMPOSE_MOVING
    state = "{{.UpdateStatus.State}}"
    until(
        lambda: swarm.docker("service", "inspect", "--format", state, service) == "completed",
        COMPOSE_UPDATE_S,
        "the end of the update",
    )


def test_a_worker_that_is_stopped_is_replaced(swarm: Project) -> None:
    of_workers = ("ps", "--quiet", "--filter", f"label=com.docker.swarm.service.name={STACK}_inference")
    before = set(swarm.docker(*of_workers).split())
    code, took_s = swarm.stop(min(before))
    assert code == 0
    assert took_s < COMPOSE_STOP_S
    until(lambda: len(set(swarm.docker(*of_workers).split()) - before) == 1, COMPOSE_READY_S, "another worker")
