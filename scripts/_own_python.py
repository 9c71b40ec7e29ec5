"""A script that was called with another Python goes on with the project's own."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Final

__all__ = ["change_over", "own_python"]

ROOT: Final = Path(__file__).resolve().parents[1]
NEEDED: Final = "msgspec"
"""a package that every script with packages needs, and that few machines have by chance"""


def change_over() -> None:
    """Start the script that runs anew with .venv's Python, unless that runs it already or there is none."""
    home = ROOT / ".venv"
    own = home / "bin" / "python"
    if own.exists() and Path(sys.prefix).resolve() != home.resolve():
        os.execv(own, [str(own), *sys.argv])  # noqa: S606 - the very words that it was called with


def own_python() -> None:
    """Change over, if this Python has no packages of the project.

    Raises:
        SystemExit: there is no .venv, or it lacks them too; the text on standard error says what to do.
    """
    if importlib.util.find_spec(NEEDED) is not None:
        return
    change_over()
    name = Path(sys.argv[0]).name
    print(f"{name}: what it needs is not installed; {ROOT / 'scripts' / 'setup'} does that", file=sys.stderr)
    raise SystemExit(2)
