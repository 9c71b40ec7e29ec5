"""A script goes on with the project's own Python, whichever it was called with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.budgets import SCRIPT_DEADLINE_S
from tests.rig.stack import ROOT


def call(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script by a Python that sees no packages (`-S`)."""
    command = [sys.executable, "-S", str(script), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=SCRIPT_DEADLINE_S, check=False)


@pytest.mark.parametrize("name", ["benchmark", "convert_model", "fetch_models", "gen_keys", "render", "train_builtin"])
def test_a_python_without_packages_hands_over_to_that_of_the_project(name: str):
    result = call(ROOT / "scripts" / name, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: {name}")
    assert result.stderr == ""


def test_its_words_come_through(tmp_path: Path):
    result = call(ROOT / "scripts" / "gen_keys", "--out", str(tmp_path / "a folder"), "--worker", "attic")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "a folder" / "workers" / "attic.key").is_file()


def test_where_nothing_is_set_up_it_says_what_to_do(tmp_path: Path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    result = call(tmp_path / "scripts" / "render", "--help")
    assert result.returncode == 2
    assert f"what it needs is not installed; {tmp_path}/scripts/setup does that" in result.stderr
    assert "Traceback" not in result.stderr
