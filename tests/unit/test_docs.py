"""What is written agrees with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from shared.settings import Settings
from shared.topics import TOPICS
from tests.budgets import MAIN_LINES

ROOT = Path(__file__).resolve().parents[2]


def test_protocol_page_is_made_from_the_tables():
    subprocess.run([sys.executable, "scripts/make_protocol", "--check"], cwd=ROOT, check=True, timeout=60)


def test_no_topic_or_zmq_outside_its_file():
    ports = {str(17_800 + topic.port) for topic in TOPICS}
    for path in [
        *ROOT.glob("shared/*.py"),
        *ROOT.glob("services/**/*.py"),
        *(p for p in ROOT.glob("scripts/**/*") if p.is_file() and p.suffix != ".pyc"),
    ]:
        text = path.read_text()
        if path.name not in {"bus.py", "keys.py"}:
            assert not re.search(r"^\s*(import zmq|from zmq)", text, re.MULTILINE), path
        if path.name not in {"topics.py", "settings.py"}:
            assert not any(port in text for port in ports), path


def test_entry_files_stay_short():
    for path in ROOT.glob("services/*/__main__.py"):
        assert len(path.read_text().splitlines()) <= MAIN_LINES, path


def test_every_setting_stands_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for name in Settings.__struct_fields__:
        assert f"MOUTHPIECE_{name.upper()}" in readme, name


def test_every_setting_is_used():
    code = "\n".join(
        path.read_text()
        for path in [*ROOT.glob("services/**/*.py"), *ROOT.glob("shared/*.py")]
        if path.name != "settings.py"
    )
    indirect = {
        "threads": "worker_threads",
        "autostart": "autostarts",
        "loop": "loops",
        "state_dir": "state_path",
        "models_dir": "models_path",
        "model": "wav2lip_path",
        "bus_host": "bus_calls",
    }
    for name in Settings.__struct_fields__:
        word = indirect.get(name, name)
        assert re.search(rf"settings\.{word}\b", code), name
