"""On what machine it was measured, and what else went on there meanwhile."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from tests.rig.calm import Calm

__all__ = ["Machine", "Meanwhile", "Watch", "all_cores", "machine"]

TELLING_FLAGS: Final = ("avx2", "fma", "f16c", "avx_vnni", "avx512", "amx")
"""flags of the processor that these computations hang on, by how they begin"""
LIBRARIES: Final = ("openvino", "torch", "onnxruntime", "nncf", "numpy", "opencv-python-headless")


@dataclass(frozen=True)
class Machine:
    """What does not change."""

    processor: str
    flags: tuple[str, ...]
    cores: int
    """physical ones that this process may use"""
    logical_processors: int
    memory_gib: float
    system: str
    python: str
    libraries: dict[str, str]


@dataclass(frozen=True)
class Meanwhile:
    """What went on while it was measured."""

    seconds: float
    load_before: float
    """load average of the last minute before it began"""
    stolen_s: float
    """processor time that the host gave to others, all processors"""
    others_s: float
    """processor time of other processes"""
    longest_stall_s: float
    """longest time for which the machine stood still"""


def all_cores() -> int:
    """Physical cores that this process may use: a second thread on a core adds little to these computations."""
    allowed = len(psutil.Process().cpu_affinity() or []) or os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def machine() -> Machine:
    """Ask the system."""
    told = _cpuinfo()
    return Machine(
        processor=told.get("model name") or platform.processor() or platform.machine(),
        flags=tuple(sorted(flag for flag in told.get("flags", "").split() if flag.startswith(TELLING_FLAGS))),
        cores=all_cores(),
        logical_processors=os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=platform.platform(),
        python=platform.python_version(),
        libraries={name: version(name) for name in LIBRARIES},
    )


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


class Watch:
    """Looks at the machine while something is measured."""

    def __init__(self) -> None:
        self._calm = Calm()
        self._load = os.getloadavg()[0]
        self._began_s = 0.0
        self._before = (0.0, 0.0, 0.0)
        self.meanwhile: Meanwhile | None = None
        """set at the end"""

    def __enter__(self) -> Self:
        self._calm.__enter__()
        self._began_s, self._before = time.monotonic(), _used()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._calm.__exit__(kind, error, where)
        stolen, busy, own = (after - before for after, before in zip(_used(), self._before, strict=True))
        self.meanwhile = Meanwhile(
            seconds=round(time.monotonic() - self._began_s, 1),
            load_before=round(self._load, 2),
            stolen_s=round(stolen, 2),
            others_s=round(max(0.0, busy - own), 2),
            longest_stall_s=round(self._calm.longest_s, 3),
        )


def _used() -> tuple[float, float, float]:
    """Processor time: stolen; used by everybody; used by this process and its children, s."""
    times, own = psutil.cpu_times(), os.times()
    busy = times.user + times.nice + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0)
    return getattr(times, "steal", 0.0), busy, own.user + own.system + own.children_user + own.children_system
