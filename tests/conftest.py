"""For all tests: nothing is left behind, and the host's own pauses are not held against the project."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from _pytest.runner import runtestprotocol

from tests.budgets import CALM_S, CALM_TRIES, LEAK_WAIT_S, STOLEN_S
from tests.rig.calm import Calm
from tests.rig.chromium import chromium
from tests.rig.stack import ROOT, ended, until

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a script began; tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

REAL = ("process", "web", "e2e")
"""folders whose tests run real programs in real time"""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Try a test that failed again if the machine stood still meanwhile; on a calm machine a failure is one.

    If the host took away most of the machine in each try, nothing can be said: the test counts as skipped, with words.
    """
    if item.path.parent.name not in REAL:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    calmest_s = float("inf")
    for left in reversed(range(CALM_TRIES)):
        with Calm() as calm:
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
        calmest_s = min(calmest_s, calm.longest_s)
        if not left or calm.longest_s < CALM_S or not any(report.failed for report in reports):
            break
        told = item.config.get_terminal_writer()
        told.line(f"\n{item.nodeid}: failed while the machine stood still for {calm.longest_s:.2f} s; tried again")
        # Fresh fixtures, those of the module too: a test does not expect what its failed try left in a running server.
        module = item.getparent(pytest.Module)
        try:
            item.session._setupstate.teardown_exact(module.parent)  # type: ignore[union-attr, arg-type]
        except Exception as error:  # noqa: BLE001  # whatever it is, it belongs to the try that counts no more
            told.line(f"{item.nodeid}: what it had begun ended with {error!r}")
        item._initrequest()  # type: ignore[attr-defined]  # as pytest's own reruns do
    for report in reports:
        if report.failed and calmest_s > STOLEN_S:
            where = (str(item.path), item.location[1] or 0)
            report.outcome = "skipped"
            report.longrepr = (
                *where,
                f"the host took {calmest_s:.1f} s of processor time within a second, or more, in each try",
            )
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A thread, child process or socket that a test leaves behind fails it."""
    if request.node.path.parent.name not in REAL:
        yield
        return
    before = _open()
    yield
    gc.collect()
    until(lambda: not _open() - before, LEAK_WAIT_S, f"the end of what {request.node.name} started: {_open() - before}")


def _open() -> set[Any]:
    """Threads, direct child processes and listening or connected sockets of this process."""
    own = psutil.Process()
    children = {("process", child.pid) for child in own.children() if not ended(child)}
    threads = {("thread", thread.name) for thread in threading.enumerate() if thread.name != "calm"}
    sockets = {("socket", str(c.laddr), str(c.raddr)) for c in own.net_connections() if c.status != "TIME_WAIT"}
    return children | threads | sockets


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium; without one the test is skipped, under CI it fails."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def converted_wav2lip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a converted Wav2Lip of random weights, without the 8-bit model. Read only."""
    import openvino as ov

    from scripts._wav2lip.convert import plain_ir
    from services.inference.wav2lip import files
    from services.inference.wav2lip.split import split
    from tests.networks import seeded_wav2lip

    folder: Path = tmp_path_factory.mktemp("converted")
    plain = plain_ir(seeded_wav2lip())
    both = split(plain)
    for name, model in ((files.PLAIN, plain), (files.FACE, both.face), (files.GENERATOR, both.generator)):
        ov.save_model(model, folder / name, compress_to_fp16=False)
    return folder


def pytest_report_header() -> str:
    """Say where it runs."""
    return f"project: {ROOT.name}, {psutil.cpu_count()} processors, load {psutil.getloadavg()[0]:.1f}"
