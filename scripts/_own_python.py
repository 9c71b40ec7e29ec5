"""A script goes on with the project's own Python, whichever it was called with."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Final

__all__ = ["change_over", "own_python"]

ROOT: Final = Path(__file__).resolve().parents[1]
NEEDED: Final = "msgspec"
"""a package that all scripts with packages have set up with their others, and that few machines have by chance"""
CHANGED: Final = "MOUTHPIECE_CHANGED_OVER"
"""in the environment of a script that is started anew: a .venv that is none of its own must not do it for ever"""


def change_over() -> None:
    """Start the script that runs anew with .venv's Python, unless that runs it already or there is none that can."""
    home = ROOT / ".venv"
    own = home / "bin" / "python"
    if os.environ.pop(CHANGED, None) or Path(sys.prefix).resolve() == home.resolve() or not own.exists():
        return
    with contextlib.suppress(OSError):  # of another kind of machine, or nothing that can be run
        os.execve(own, [str(own), *sys.argv], {**os.environ, CHANGED: "yes"})  # noqa: S606 - its own words


def own_python() -> None:
    """Change over, where there is something to change to.

    Raises:
        SystemExit: the packages of the project are not installed; the text on standard error says what to do.
    """
    change_over()
    if importlib.util.find_spec(NEEDED) is None:
        name = Path(sys.argv[0]).name
        print(f"{name}: what it needs is not installed; {ROOT / 'scripts' / 'setup'} does that", file=sys.stderr)
        raise SystemExit(2)
