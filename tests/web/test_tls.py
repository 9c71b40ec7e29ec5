"""The page over HTTPS, with a pair made as the documentation says."""

from __future__ import annotations

import re
import shlex
import socket
import ssl
import struct
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import requests

from services.streamer import server as module
from services.streamer.server import CertificateError
from tests.budgets import GUARD_ANSWER_S, GUARD_CROWD, TLS_FRAMES, TLS_RESETS, TLS_WAIT_S
from tests.rig.chromium import chromium
from tests.web.conftest import ROOT, Server, serving
from tests.web.standin import StandIn

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = re.search(r"^openssl req .*$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)


def make_pair(folder: Path) -> tuple[Path, Path]:
    assert COMMAND
    folder.mkdir(exist_ok=True)
    subprocess.run(shlex.split(COMMAND.group()), cwd=folder, check=True, capture_output=True, timeout=TLS_WAIT_S)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, pair: tuple[Path, Path]) -> Iterator[Server]:
    cert, key = pair
    log = tmp_path_factory.mktemp("tls") / "server.log"
    with serving(log, "run=1", "names=box.lan", f"cert={cert}", f"key={key}") as running:
        yield running


def address(server: Server) -> tuple[str, int]:
    host, port = server.url.removeprefix("https://").rstrip("/").rsplit(":", 1)
    return host, int(port)


def test_answers_who_trusts_the_certificate(secure: Server, pair: tuple[Path, Path]) -> None:
    assert secure.url.startswith("https://127.0.0.1:")
    with requests.Session() as session:
        for _ in range(3):  # on one connection
            assert session.get(secure.url + "healthz", verify=str(pair[0]), timeout=5).status_code == 200
        answer = session.get(secure.url, verify=str(pair[0]), timeout=5)
        assert f"connect-src 'self' wss://127.0.0.1:{address(secure)[1]};" in answer.headers["Content-Security-Policy"]
        photo = b"\xff\xd8\xff" + bytes(3_000_000)
        where, headers = secure.url + "api/sessions/default/face", {"Content-Type": "image/jpeg"}
        assert session.put(where, photo, headers=headers, verify=str(pair[0]), timeout=5).status_code == 200
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(secure.url, timeout=5)
    assert secure.process.poll() is None


def test_plain_http_on_its_port_is_told(secure: Server) -> None:
    host, port = address(secure)
    answer = requests.get(f"http://{host}:{port}/", timeout=5)
    assert answer.status_code == 400
    assert "https://" in answer.text


def test_origin_of_plain_http_is_foreign(secure: Server, pair: tuple[Path, Path]) -> None:
    host, port = address(secure)
    for scheme, status in (("http", 403), ("https", 200)):
        headers = {"Origin": f"{scheme}://{host}:{port}"}
        answer = requests.post(
            secure.url + "api/sessions/default/interrupt", headers=headers, verify=str(pair[0]), timeout=5
        )
        assert answer.status_code == status


def test_half_handshakes_hold_up_nobody(secure: Server, pair: tuple[Path, Path]) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    whole = outgoing.read()
    with ExitStack() as stack:
        for number in range(GUARD_CROWD):
            sock = stack.enter_context(socket.create_connection(address(secure), timeout=5))
            sock.sendall(whole[: (0, 1, 100, len(whole))[number % 4]])
        answer = requests.get(secure.url + "healthz", verify=str(pair[0]), timeout=5)
        assert answer.elapsed.total_seconds() < GUARD_ANSWER_S


def test_resets_in_the_handshake_end_nothing(secure: Server, pair: tuple[Path, Path]) -> None:
    def answers() -> bool:
        return requests.get(secure.url + "healthz", verify=str(pair[0]), timeout=5).status_code == 200

    assert answers()
    (before,) = psutil.Process(secure.process.pid).children()
    for _ in range(TLS_RESETS):
        sock = socket.create_connection(address(secure), timeout=5)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its close is a reset
        sock.sendall(b"\x16")
        sock.close()
        assert answers()
    assert psutil.Process(secure.process.pid).children() == [before]
    assert "Traceback" not in secure.log.read_text()


def test_ffmpeg_reads_the_stream(secure: Server) -> None:
    command = ["ffmpeg", "-v", "error", "-tls_verify", "0", "-f", "mpjpeg", "-i", secure.url + "video_feed"]
    command += ["-frames:v", str(TLS_FRAMES), "-f", "framemd5", "-"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TLS_WAIT_S)
    frames = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert len(frames) == TLS_FRAMES
    assert len({line.split(",")[-1] for line in frames}) > 1


def test_browser_has_a_secure_context_and_a_socket(secure: Server) -> None:
    _, port = address(secure)
    flags = ["--ignore-certificate-errors", "--host-resolver-rules=MAP box.lan 127.0.0.1"]
    with chromium(*flags) as browser:
        page = browser.new_page()
        page.goto(f"https://box.lan:{port}/api/status")
        assert page.evaluate("window.isSecureContext") is True
        assert page.evaluate("typeof navigator.mediaDevices.getUserMedia") == "function"
        first: Any = page.evaluate(
            """url => new Promise((done, failed) => {
                const socket = new WebSocket(url);
                socket.onmessage = event => { socket.close(); done(JSON.parse(event.data)); };
                socket.onclose = () => failed(new Error("closed"));
            })""",
            f"wss://box.lan:{port}/ws/player",
        )
        assert first["type"] == "hello"


def test_unusable_pairs_are_refused_with_words(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    cert, key = pair
    _, other = make_pair(tmp_path / "other")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    locked = tmp_path / "locked.pem"
    lock = ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(lock, check=True, capture_output=True, timeout=TLS_WAIT_S)
    for certificate, private, words in (
        (cert, other, "not the key of the certificate"),
        (cert, text, "must be PEM files"),
        (text, key, "must be PEM files"),
        (key, cert, "must be PEM files"),
        (tmp_path / "none", key, "MOUTHPIECE_TLS_CERT: the file cannot be read"),
        (cert, tmp_path, "MOUTHPIECE_TLS_KEY: the file cannot be read"),
        (cert, locked, "asks for a password"),
    ):
        with pytest.raises(CertificateError, match=words):
            module.serve("127.0.0.1", 0, StandIn, tls=(str(certificate), str(private)))
