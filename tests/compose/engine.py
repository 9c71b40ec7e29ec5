"""A Docker engine for the tests: the one that runs, or one of our own; and a base image made without any registry.

What takes long is kept between runs in CACHE: the base system, and the images that our own engine built.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.budgets import COMPOSE_ENGINE_S
from tests.rig.stack import until

__all__ = ["NoEngineError", "base_image", "engine", "is_own", "package_index", "run"]

CACHE: Final = Path("/var/cache/mouthpiece-tests")
RELEASE: Final = "bookworm"
PACKAGES: Final = ("python3", "python3-pip", "python3-venv", "ca-certificates")
KEPT_FOR: Final = "until=24h"
"""layers that no image uses are kept for a day: the next build finds its packages in them"""


class NoEngineError(RuntimeError):
    """There is no Docker engine and none can be started; the text says why."""


def run(*command: str, environment: Mapping[str, str], timeout_s: float = 60.0, check: bool = True) -> str:
    """Run a program to its end.

    Returns:
        what it wrote to stdout, stripped.

    Raises:
        AssertionError: it failed; the text holds what it wrote.
    """
    done = subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if check and done.returncode:
        raise AssertionError(
            f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return done.stdout.strip()


@contextlib.contextmanager
def engine(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Find a running engine, or start one with a socket and folders of its own and end it afterwards.

    Args:
        environment: of the programs that will talk to it.

    Yields:
        the same with what leads to the engine.

    Raises:
        NoEngineError: there is none, and none can be started.
    """
    if shutil.which("docker") is None:
        raise NoEngineError("the program docker is missing: apt-get install docker.io")
    if _answers(environment):
        yield environment
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        raise NoEngineError(
            "no Docker engine runs, and starting one needs root and: apt-get install docker.io iptables"
        )
    folder = CACHE / "run"
    folder.mkdir(parents=True, exist_ok=True)
    own = environment | {"DOCKER_HOST": f"unix://{folder}/docker.sock"}
    command = ["dockerd", "--host", own["DOCKER_HOST"], "--data-root", str(CACHE / "docker")]
    command += ["--exec-root", str(folder / "exec"), "--pidfile", str(folder / "docker.pid")]
    with (folder / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        try:
            until(lambda: _answers(own) or daemon.poll() is not None, COMPOSE_ENGINE_S, "an answer of dockerd")
        except TimeoutError as error:
            raise NoEngineError(f"dockerd does not answer: {_why(folder)}") from error
        if daemon.poll() is not None:
            raise NoEngineError(f"dockerd cannot run here: {_why(folder)}")
        yield own
        run("docker", "image", "prune", "--force", "--filter", KEPT_FOR, environment=own, check=False)
    finally:
        daemon.terminate()
        try:
            daemon.wait(COMPOSE_ENGINE_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def is_own(environment: Mapping[str, str]) -> bool:
    """Whether the engine was started for the tests alone, so that it may be turned into a swarm."""
    return str(CACHE) in environment.get("DOCKER_HOST", "")


def _answers(environment: Mapping[str, str]) -> bool:
    command = ["docker", "info", "--format", "{{.ServerVersion}}"]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=30, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())


def _why(folder: Path) -> str:
    lines = (folder / "dockerd.log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def base_image(environment: Mapping[str, str]) -> str:
    """Make the image that all others begin with: Debian and Python by debootstrap, with this machine's certificates.

    Returns:
        its name.

    Raises:
        NoEngineError: debootstrap is missing, or nothing can be fetched.
    """
    certificates = Path(ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt")
    trusted = certificates.read_bytes() if certificates.is_file() else b""
    name = f"mouthpiece-test/base:{RELEASE}-{hashlib.sha256(trusted).hexdigest()[:12]}"
    if run("docker", "image", "ls", "--quiet", name, environment=environment):
        return name
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise NoEngineError("the base image is made by root with debootstrap: apt-get install debootstrap")
    CACHE.mkdir(parents=True, exist_ok=True)
    root = CACHE / RELEASE
    if not root.is_dir():
        fresh = CACHE / f"{RELEASE}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", RELEASE, str(fresh)]
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoEngineError(f"debootstrap failed: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
        for waste in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(fresh / waste)
            (fresh / waste).mkdir()
        fresh.replace(root)
    if trusted:
        (root / "etc/ssl/certs/ca-certificates.crt").write_bytes(trusted)
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as archive:
        subprocess.run(
            ["docker", "import", "-", name],
            env=dict(environment),
            stdin=archive.stdout,
            capture_output=True,
            check=True,
        )
    return name


def package_index(environment: Mapping[str, str]) -> str:
    """The package index that this machine's pip is set to, for the build; empty: pip's own."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    return environment.get("PIP_INDEX_URL") or (done.stdout.strip() if done.returncode == 0 else "")
