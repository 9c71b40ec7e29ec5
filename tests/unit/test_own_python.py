"""A script goes on with the project's own Python, whichever it was called with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.budgets import SCRIPT_DEADLINE_S
from tests.rig.stack import ROOT

SYSTEM = Path(sys.executable).resolve()
"""the Python that .venv was made with"""


def call(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script by a Python that sees no packages (`-S`)."""
    command = [str(SYSTEM), "-S", str(script), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=SCRIPT_DEADLINE_S, check=False)


def elsewhere(folder: Path) -> Path:
    """The scripts in a folder where nothing is set up."""
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "scripts"


@pytest.mark.parametrize(
    "name",
    ["benchmark", "convert_model", "fetch_models", "gen_keys", "make_demo_face", "make_demo_speech", "render", "trace"],
)
def test_another_python_hands_over_to_that_of_the_project(name: str):
    result = call(ROOT / "scripts" / name, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: {name}")
    assert result.stderr == ""


def test_its_words_come_through(tmp_path: Path):
    result = call(ROOT / "scripts" / "gen_keys", "--out", str(tmp_path / "a folder"), "--worker", "attic")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "a folder" / "workers" / "attic.key").is_file()


def test_where_nothing_is_set_up_it_says_what_to_do(tmp_path: Path):
    result = call(elsewhere(tmp_path) / "render", "--help")
    assert result.returncode == 2
    assert f"what it needs is not installed; {tmp_path}/scripts/setup does that" in result.stderr
    assert "Traceback" not in result.stderr


def test_logs_are_read_where_nothing_is_set_up(tmp_path: Path):
    result = call(elsewhere(tmp_path) / "logs", "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: logs")


@pytest.mark.parametrize("kind", ["of the system", "not to be run"])
def test_a_python_that_is_not_its_own_ends_nothing(kind: str, tmp_path: Path):
    script = elsewhere(tmp_path) / "render"
    own = tmp_path / ".venv/bin/python"
    own.parent.mkdir(parents=True)
    if kind == "of the system":
        own.symlink_to(SYSTEM)
    else:
        own.write_bytes(b"\x7fELF of another machine")
        own.chmod(0o755)
    result = call(script, "--help")
    assert result.returncode == 2
    assert "what it needs is not installed" in result.stderr
    told = call(script.with_name("doctor"))
    assert "its Python does not run as its own" in told.stdout, told.stderr
    assert "rm -r .venv && make setup" in told.stdout
