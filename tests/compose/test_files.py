"""The files under deploy/ are what their own tools take, and fit each other and the table of topics."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.streamer.metrics import FAMILIES
from shared.settings import PREFIX, Settings, load
from shared.topics import TOPICS
from tests.budgets import KUBERNETES, SCRIPT_DEADLINE_S
from tests.compose.project import HUB_FILES, SERVICES, composer
from tests.rig.stack import ROOT

MANIFESTS = sorted(p for p in (ROOT / "deploy/kubernetes").glob("*.yaml") if p.name != "kustomization.yaml")
COMPOSE = {
    "one box": ("deploy/docker-compose.yml",),
    "microphone": ("deploy/docker-compose.yml", "deploy/docker-compose.mic.yml"),
    "hub": HUB_FILES,
    "worker": ("deploy/docker-compose.worker.yml",),
}
PORTS = {row.name: Settings().bus_port + row.port for row in TOPICS}


def manifests() -> list[dict[str, Any]]:
    return [part for path in MANIFESTS for part in yaml.safe_load_all(path.read_text())]


def pods() -> dict[str, dict[str, Any]]:
    return {part["metadata"]["name"]: part["spec"]["template"] for part in manifests() if part["kind"] == "Deployment"}


def ours(environment: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in environment.items() if name.startswith(PREFIX)}


def check_settings(environment: dict[str, str]) -> None:
    """What a container is told are settings, with good values; files that it has are left out."""
    load(
        {name: value for name, value in environment.items() if name not in {"MOUTHPIECE_KEY", "MOUTHPIECE_ALLOWED"}}
        | {"MOUTHPIECE_KEY": __file__}
    )


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field(version: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "kubernetes_validate", "--strict", "-k", version]
    done = subprocess.run([*command, *map(str, MANIFESTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count(" passed ") + done.stdout.count(" passed ") == len(manifests())


def test_kubernetes_refuses_what_is_no_field(tmp_path: Any) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((ROOT / "deploy/kubernetes/workers.yaml").read_text().replace("maxReplicas", "mostReplicas"))
    command = [sys.executable, "-W", "ignore", "-m", "kubernetes_validate", "--strict", "-k", KUBERNETES[0], str(wrong)]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


SCHEMA = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec")
"""what Compose 2 reads files by: the Compose Specification, as check-jsonschema brings it along"""


def test_compose_2_knows_every_field() -> None:
    files = {ROOT / name for names in COMPOSE.values() for name in names} | {ROOT / "deploy/docker-stack.yml"}
    done = subprocess.run([*SCHEMA, *map(str, sorted(files))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_2_refuses_what_is_no_field(tmp_path: Any) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text((ROOT / COMPOSE["one box"][0]).read_text().replace("pids_limit", "pids_most"))
    done = subprocess.run([*SCHEMA, str(wrong)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pids_most" in done.stdout


def test_kubernetes_parts_find_each_other() -> None:
    names = {(part["kind"], part["metadata"]["name"]) for part in manifests()}
    made = yaml.safe_load((ROOT / "deploy/kubernetes/kustomization.yaml").read_text())
    names |= {("Secret", part["name"]) for part in made["secretGenerator"]}
    assert {*made["resources"]} == {path.name for path in MANIFESTS}
    assert {image["name"] for image in made["images"]} == {f"localhost/mouthpiece/{service}" for service in SERVICES}
    for pod in pods().values():
        for volume in pod["spec"]["volumes"]:
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in names
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
    for part in manifests():
        if part["kind"] == "Service":
            chosen = [p for p in pods().values() if part["spec"]["selector"].items() <= p["metadata"]["labels"].items()]
            assert len(chosen) == 1, part["metadata"]["name"]


def test_kubernetes_services_bind_what_the_table_says() -> None:
    assert set(pods()) == set(SERVICES)
    for part in manifests():
        if part["kind"] != "Service" or part["metadata"]["name"] == "page":
            continue
        told = {port["name"]: port["port"] for port in part["spec"]["ports"]}
        service = part["metadata"]["name"].replace("-", "_")
        assert told == {row.name: PORTS[row.name] for row in TOPICS if row.binds == service}
    for policy in (part for part in manifests() if part["metadata"]["name"] == "bus"):
        for rule in (policy["spec"]["ingress"][0], policy["spec"]["egress"][0]):
            assert (rule["ports"][0]["port"], rule["ports"][0]["endPort"]) == (min(PORTS.values()), max(PORTS.values()))


@pytest.mark.parametrize("service", SERVICES)
def test_kubernetes_pods_are_hardened_and_well_told(service: str) -> None:
    spec = pods()[service]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    shared = next(part["data"] for part in manifests() if part["kind"] == "ConfigMap")
    check_settings(shared | {entry["name"]: entry.get("value", "x" * 16) for entry in container["env"]})


def test_the_autoscaler_follows_a_metric_that_there_is() -> None:
    (scaler,) = [part for part in manifests() if part["kind"] == "HorizontalPodAutoscaler"]
    metric = scaler["spec"]["metrics"][0]["external"]["metric"]
    assert set(metric["selector"]["matchLabels"]) <= set(FAMILIES[metric["name"]].labels)


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_takes_the_files(name: str) -> None:
    if not composer():
        pytest.skip("compose is missing: apt-get install docker-compose")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MOUTHPIECE_", "COMPOSE_"))}
    command = [*composer(), *(word for file in COMPOSE[name] for word in ("--file", str(ROOT / file))), "config"]
    environment = clean | {"HUB": "192.0.2.1", "KEY": "/dev/null"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for service in yaml.safe_load(done.stdout)["services"].values():
        check_settings(ours(service.get("environment", {})))


def test_swarm_takes_the_stack() -> None:
    if shutil.which("docker") is None:
        pytest.skip("the program docker is missing: apt-get install docker.io")
    command = ["docker", "stack", "config", "--compose-file", str(ROOT / "deploy/docker-stack.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unknown command" in done.stderr or "unknown flag" in done.stderr:
        pytest.skip("this docker is too old to check a stack without a swarm")
    assert done.returncode == 0, done.stderr
    stack = yaml.safe_load(done.stdout)
    assert set(stack["services"]) == set(SERVICES)
    for name, service in stack["services"].items():
        check_settings(ours(service["environment"]) | ({"MOUTHPIECE_TOKEN": "x" * 16} if name == "streamer" else {}))


def test_the_hub_opens_the_ports_that_workers_need() -> None:
    opened: set[int] = set()
    for service in yaml.safe_load((ROOT / HUB_FILES[1]).read_text())["services"].values():
        for port in service["ports"]:
            first, _, last = port.rpartition(":")[2].partition("-")
            opened |= set(range(int(first), int(last or first) + 1))
    assert opened == {PORTS[row.name] for row in TOPICS if "inference" in (*row.senders, *row.receivers)}


def test_the_scripts_of_the_image_find_there_what_they_import(tmp_path: Path) -> None:
    stage = (ROOT / "deploy/Dockerfile").read_text().split(" AS source\n")[1].split("\nFROM ")[0]
    copied = [line.split()[1:-1] for line in stage.splitlines() if line.startswith("COPY ")]
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert any("scripts/gen_keys" in paths for paths in copied)
    for path in (path for paths in copied for path in paths):
        assert path in admitted or path.rpartition("/")[0] in admitted, f"{path} is kept from the image"
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, tmp_path / path)
        else:
            (tmp_path / path).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / path, tmp_path / path)
    for script in (path for path in (tmp_path / "scripts").iterdir() if not path.suffix):
        done = subprocess.run(
            [sys.executable, script, "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=SCRIPT_DEADLINE_S,
        )
        assert done.returncode == 0, done.stderr
