"""scripts/fetch_models against a real server that does what servers, lines and disks do.

A full disk is a limit on the size of a file (EFBIG), and where mounting is allowed a small file system too (ENOSPC).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import budgets
from tests.rig.stack import ROOT, until

SIZE = budgets.FETCH_BYTES
HALF = SIZE // 2
CONTENT = b"\x80\x02" + random.Random(5).randbytes(SIZE - 2)
OTHER = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
ETAG = '"a-tag"'
PAGE = b"<!DOCTYPE html><title>Log in</title>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 435801865\n"
LICENCE = "For looking at only."
HURRIED = ("--timeout", str(budgets.FETCH_TIMEOUT_S))
"""for what must stall or trickle; elsewhere a machine that stands still for a while must not count as a try"""
CAP_SYS_ADMIN = 21


@dataclass
class Asked:
    """One request, as it came."""

    path: str
    range: str
    condition: str


@dataclass
class Shop:
    """What the server has been asked, and what its answers wait for."""

    asked: list[Asked] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    """ends what stalls"""
    half_sent: Callable[[], None] = lambda: None
    url: str = ""

    @property
    def ranges(self) -> list[str]:
        return [asked.range for asked in self.asked]


class Answer(http.server.BaseHTTPRequestHandler):
    """Each path answers in its own way; ``self.first`` is whether it is asked for the first time."""

    shop: Shop

    def do_GET(self) -> None:
        path = re.sub(r"^http://[^/]*", "", self.path)
        self.first = path not in [asked.path for asked in self.shop.asked]
        self.shop.asked.append(Asked(self.path, self.headers.get("Range", ""), self.headers.get("If-Range", "")))
        getattr(self, "answer_" + path.strip("/").replace("-", "_"), self.answer_missing)()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def head(self, code: int, length: int | None, **headers: str) -> None:
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def whole(self, content: bytes, length: int | None = None, **headers: str) -> None:
        self.head(200, len(content) if length is None else length, **headers)
        self.wfile.write(content)

    def answer_good(self, content: bytes = CONTENT, etag: str = ETAG) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if not start or self.headers.get("If-Range", etag) != etag:
            self.whole(content, ETag=etag)
            return
        self.head(206, SIZE - start, ETag=etag, Content_Range=f"bytes {start}-{SIZE - 1}/{SIZE}")
        self.wfile.write(content[start:])

    def half(self) -> None:
        self.head(200, SIZE, ETag=ETAG)
        self.wfile.write(CONTENT[:HALF])
        self.wfile.flush()
        self.shop.half_sent()

    def answer_missing(self) -> None:
        self.whole_error(404)

    def whole_error(self, code: int, **headers: str) -> None:
        self.head(code, len(PAGE), Content_Type="text/html", **headers)
        self.wfile.write(PAGE)

    def answer_no_range(self) -> None:
        self.whole(CONTENT)

    def answer_renewed(self) -> None:
        self.answer_good(etag='"another-tag"')

    def answer_weak(self) -> None:
        self.half() if self.first else self.answer_good(etag="W/" + ETAG)

    def answer_shifted(self) -> None:
        self.head(206, SIZE - HALF, Content_Range=f"bytes {HALF - 1}-{SIZE - 2}/{SIZE}")
        self.wfile.write(CONTENT[HALF - 1 : -1])

    def answer_no_rest(self) -> None:
        if self.headers.get("Range"):
            self.whole_error(416)
        else:
            self.answer_good()

    def answer_page(self) -> None:
        self.whole(PAGE, Content_Type="text/html; charset=utf-8")

    def answer_page_in_words(self) -> None:
        self.head(200, None, Content_Type="text/html")
        self.wfile.write(b"Please log in.")

    def answer_hidden_page(self) -> None:
        self.whole(PAGE.ljust(SIZE), Content_Type="application/octet-stream")

    def answer_pointer(self) -> None:
        self.whole(POINTER)

    def answer_hidden_pointer(self) -> None:
        self.head(200, None)
        self.wfile.write(POINTER)

    def answer_wrong(self) -> None:
        self.whole(OTHER)

    def answer_short(self) -> None:
        self.whole(CONTENT[:HALF])

    def answer_long(self) -> None:
        self.head(200, None)
        self.wfile.write(CONTENT + b"more")

    def answer_busy(self) -> None:
        self.whole_error(500) if self.first else self.answer_good()

    def answer_overrun(self) -> None:
        self.whole_error(503, Retry_After="1") if self.first else self.answer_good()

    def answer_always_busy(self) -> None:
        self.whole_error(502)

    def answer_broken(self) -> None:
        self.half() if self.first else self.answer_good()

    def answer_stalled(self) -> None:
        if self.headers.get("Range"):
            self.answer_good()
        else:
            self.half()
            self.shop.release.wait(budgets.FETCH_DEADLINE_S)

    def answer_trickle(self) -> None:
        self.head(200, SIZE)
        for index in range(SIZE):
            self.wfile.write(CONTENT[index : index + 1])
            if self.shop.release.wait(budgets.FETCH_TIMEOUT_S / 8):
                return

    def answer_moved(self) -> None:
        self.head(302, 0, Location="/good")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    server = Server(("127.0.0.1", 0), type("AnswerOfShop", (Answer,), {"shop": shop}))
    shop.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.02))
    thread.start()
    yield shop
    shop.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


class Bench:
    """A folder, a catalogue with one file of our own, and the script."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "downloads"
        self.target = self.out / "thing.pth"
        self.part = self.out / "thing.pth.part"
        self.note = self.out / "thing.pth.part.json"
        self.catalogue = folder / "catalogue.json"
        self.models = folder / "models"
        self.enter()

    def enter(self, **fields: Any) -> None:
        digest = hashlib.sha256(CONTENT).hexdigest()
        entry = {"file": "thing.pth", "size_bytes": SIZE, "sha256": digest, "licence": LICENCE}
        self.catalogue.write_text(json.dumps({"thing": entry | fields}))

    def command(self, *words: str) -> list[str]:
        script = [sys.executable, str(ROOT / "scripts/fetch_models"), "--out", str(self.out)]
        return [*script, "--catalogue", str(self.catalogue), "--timeout", str(budgets.FETCH_DEADLINE_S), *words]

    def environment(self, **more: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        return kept | {"MOUTHPIECE_MODELS_DIR": str(self.models)} | more

    def run(self, *words: str, before: tuple[str, ...] = (), **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*before, *self.command(*words)],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=self.environment(**more),
            timeout=budgets.FETCH_DEADLINE_S,
        )

    def fetch(self, *urls: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return self.run("thing", "--accept-licence", "--mirror", *urls, **more)

    def begin(self, content: bytes, url: str = "", etag: str = ETAG) -> None:
        """Leave what an earlier run would have left."""
        self.out.mkdir()
        self.part.write_bytes(content)
        if url:
            self.note.write_text(json.dumps({"address": url.removeprefix("http://"), "etag": etag}))

    def assert_only(self, *names: str) -> None:
        assert sorted(path.name for path in self.out.iterdir()) == sorted(names)

    def assert_fetched(self, result: subprocess.CompletedProcess[str]) -> None:
        assert result.returncode == 0, result.stderr
        assert self.target.read_bytes() == CONTENT
        self.assert_only("thing.pth")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_file_is_fetched_once(shop: Shop, bench: Bench):
    result = bench.fetch(shop.url + "/good")
    bench.assert_fetched(result)
    assert LICENCE in result.stderr
    assert "Traceback" not in result.stderr
    again = bench.fetch(shop.url + "/good")
    bench.assert_fetched(again)
    assert len(shop.asked) == 1


@pytest.mark.parametrize("path", ["/good", "/moved"])
def test_a_download_is_gone_on_with(path: str, shop: Shop, bench: Bench):
    bench.begin(CONTENT[:HALF], shop.url + path)
    bench.assert_fetched(bench.fetch(shop.url + path))
    assert {(asked.range, asked.condition) for asked in shop.asked} == {(f"bytes={HALF}-", ETAG)}


def test_a_tag_of_another_address_or_a_weak_one_is_no_condition(shop: Shop, bench: Bench):
    bench.begin(CONTENT[:HALF], shop.url + "/elsewhere")
    bench.assert_fetched(bench.fetch(shop.url + "/renewed"))
    bench.target.unlink()
    bench.assert_fetched(bench.fetch(shop.url + "/weak"))
    assert [asked.condition for asked in shop.asked] == ["", "", ETAG]
    assert shop.ranges == [f"bytes={HALF}-", "", f"bytes={HALF}-"]


@pytest.mark.parametrize("path", ["/no-range", "/renewed", "/no-rest"])
def test_what_cannot_be_gone_on_with_begins_anew(path: str, shop: Shop, bench: Bench):
    bench.begin(CONTENT[:HALF], shop.url + path)
    result = bench.fetch(shop.url + path)
    bench.assert_fetched(result)
    assert "anew" in result.stderr


@pytest.mark.parametrize("content", [OTHER, CONTENT + b"more", b"?" * HALF])
def test_a_spoilt_part_is_thrown_away(content: bytes, shop: Shop, bench: Bench):
    bench.begin(content, shop.url + "/good")
    bench.assert_fetched(bench.fetch(shop.url + "/good"))
    assert shop.ranges[-1] == ""


def test_a_whole_part_needs_no_server(bench: Bench):
    bench.begin(CONTENT)
    bench.assert_fetched(bench.fetch("http://127.0.0.1:9/nobody"))


def test_a_wrong_part_of_the_file_is_refused_and_the_next_mirror_asked(shop: Shop, bench: Bench):
    bench.begin(CONTENT[:HALF])
    result = bench.fetch(shop.url + "/shifted", shop.url + "/good")
    bench.assert_fetched(result)
    assert "another part" in result.stderr
    assert shop.ranges == [f"bytes={HALF}-"] * 2


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/page", "web page"),
        ("/page-in-words", "web page"),
        ("/hidden-page", "web page"),
        ("/pointer", "Git LFS pointer"),
        ("/hidden-pointer", "Git LFS pointer"),
        ("/wrong", "SHA-256 is wrong"),
        ("/short", f"offers {HALF} bytes instead of {SIZE}"),
        ("/long", "more than"),
        ("/missing", "HTTP 404"),
    ],
)
def test_what_is_not_the_file_is_refused(path: str, words: str, shop: Shop, bench: Bench):
    bench.enter(by_hand=["the attic"])
    result = bench.fetch(shop.url + path)
    assert result.returncode == 1
    assert words in result.stderr
    assert "--from" in result.stderr
    assert "the attic" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(shop.asked) == 1
    bench.assert_only()


def test_a_page_does_not_cost_the_part(shop: Shop, bench: Bench):
    bench.begin(CONTENT[:HALF])
    assert bench.fetch(shop.url + "/page", shop.url + "/hidden-page", shop.url + "/missing").returncode == 1
    assert bench.part.read_bytes() == CONTENT[:HALF]


@pytest.mark.parametrize("path", ["/busy", "/overrun"])
def test_a_busy_server_is_asked_again(path: str, shop: Shop, bench: Bench):
    bench.assert_fetched(bench.fetch(shop.url + path))
    assert len(shop.asked) == 2


def test_patience_ends(shop: Shop, bench: Bench):
    result = bench.fetch(shop.url + "/always-busy", "--tries", "2")
    assert result.returncode == 1
    assert "HTTP 502" in result.stderr
    assert len(shop.asked) == 2
    bench.assert_only()


def test_a_connection_that_breaks_is_taken_up_again(shop: Shop, bench: Bench):
    bench.assert_fetched(bench.fetch(shop.url + "/broken"))
    assert shop.ranges == ["", f"bytes={HALF}-"]
    assert shop.asked[1].condition == ETAG


def test_a_connection_that_stalls_is_taken_up_again(shop: Shop, bench: Bench):
    bench.assert_fetched(bench.fetch(shop.url + "/stalled", *HURRIED))
    assert re.fullmatch(r"bytes=\d+-", shop.ranges[-1])
    assert shop.asked[-1].condition == ETAG


def test_a_trickle_is_not_waited_for(shop: Shop, bench: Bench):
    result = bench.fetch(shop.url + "/trickle", shop.url + "/good", "--tries", "1", *HURRIED)
    bench.assert_fetched(result)
    assert "bytes a second" in result.stderr
    assert re.fullmatch(r"bytes=\d+-", shop.ranges[1])


def test_the_proxy_of_the_environment_is_used(shop: Shop, bench: Bench):
    bench.assert_fetched(bench.fetch("http://models.invalid/good", http_proxy=shop.url))
    assert shop.asked[0].path == "http://models.invalid/good"


def test_ctrl_c_keeps_what_has_arrived(shop: Shop, bench: Bench):
    command = bench.command("thing", "--accept-licence", "--mirror", shop.url + "/stalled")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=bench.environment()) as process:
        try:
            half = functools.partial(_is_at_least, bench.part, HALF)
            until(half, budgets.FETCH_DEADLINE_S, "the first half")
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=budgets.FETCH_DEADLINE_S)
        finally:
            process.kill()
    assert process.returncode == 130
    assert told.splitlines()[-1].startswith("fetch_models: stopped")
    assert "Traceback" not in told
    assert bench.part.read_bytes() == CONTENT[:HALF]
    bench.assert_fetched(bench.fetch(shop.url + "/stalled"))
    assert shop.ranges == ["", f"bytes={HALF}-"]


def test_two_at_once_do_not_meet(shop: Shop, bench: Bench):
    command = bench.command("thing", "--accept-licence", "--mirror", shop.url + "/stalled")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=bench.environment()) as process:
        try:
            half = functools.partial(_is_at_least, bench.part, HALF)
            until(half, budgets.FETCH_DEADLINE_S, "the first half")
            second = bench.fetch(shop.url + "/good")
        finally:
            process.kill()
    assert second.returncode == 1
    assert "another fetch_models" in second.stderr
    bench.assert_fetched(bench.fetch(shop.url + "/good"))


def test_a_full_disk_keeps_what_has_arrived(shop: Shop, bench: Bench):
    limit = ("bash", "-c", f'ulimit -f {HALF // 1024}; exec "$@"', "bash")
    result = bench.fetch(shop.url + "/good", before=limit)
    assert result.returncode == 1
    assert "the disk is full" in result.stderr
    kept = bench.part.read_bytes()
    assert len(kept) == HALF // 1024 * 1024
    assert CONTENT.startswith(kept)
    bench.assert_fetched(bench.fetch(shop.url + "/good"))
    assert shop.ranges[-1] == f"bytes={len(kept)}-"


def test_a_full_disk_leaves_no_half_copy(bench: Bench):
    source = bench.catalogue.with_name("copy.pth")
    source.write_bytes(CONTENT)
    limit = ("bash", "-c", f'ulimit -f {HALF // 1024}; exec "$@"', "bash")
    result = bench.run("thing", "--accept-licence", "--from", str(source), before=limit)
    assert result.returncode == 1
    assert "the disk is full" in result.stderr
    bench.assert_only()


def _is_at_least(path: Path, size_bytes: int) -> bool:
    return path.exists() and path.stat().st_size >= size_bytes


def _may_mount() -> bool:
    found = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> CAP_SYS_ADMIN & 1)


if _may_mount():

    def test_a_disk_that_fills_up_meanwhile_keeps_what_has_arrived(shop: Shop, bench: Bench):
        bench.out.mkdir()
        size = f"size={budgets.FETCH_DISK_BYTES}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(bench.out)], check=True, capture_output=True)
        filler = bench.out / "filler"

        def fill() -> None:
            until(functools.partial(_is_at_least, bench.part, HALF), budgets.FETCH_DEADLINE_S, "the first half")
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)

        shop.half_sent = fill
        try:
            result = bench.fetch(shop.url + "/broken")
            assert result.returncode == 1
            assert "No space left on device" in result.stderr
            kept = bench.part.stat().st_size
            assert kept >= HALF
            filler.unlink()
            bench.assert_fetched(bench.fetch(shop.url + "/good"))
            assert shop.ranges[-1] == f"bytes={kept}-"
        finally:
            subprocess.run(["umount", "--lazy", str(bench.out)], check=True)


def test_a_disk_without_room_is_seen_before_the_first_request(shop: Shop, bench: Bench):
    bench.enter(size_bytes=1 << 60)
    result = bench.fetch(shop.url + "/good")
    assert result.returncode == 1
    assert "are needed" in result.stderr
    assert not shop.asked
    bench.assert_only()


def test_without_a_terminal_the_licence_must_be_accepted_by_a_word(shop: Shop, bench: Bench):
    result = bench.run("thing", "--mirror", shop.url + "/good")
    assert result.returncode == 2
    assert LICENCE in result.stderr
    assert "--accept-licence" in result.stderr
    assert not shop.asked
    assert not bench.out.exists()


@pytest.mark.parametrize(("answer", "code"), [(b"yes\n", 0), (b"no\n", 2), (b"\n", 2)])
def test_on_a_terminal_the_licence_is_asked_for(answer: bytes, code: int, shop: Shop, bench: Bench):
    ours, theirs = pty.openpty()
    try:
        command = bench.command("thing", "--mirror", shop.url + "/good")
        environment = bench.environment(TERM="xterm", COLUMNS="120")
        with subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE, env=environment) as process:
            os.write(ours, answer)
            _, told = process.communicate(timeout=budgets.FETCH_DEADLINE_S)
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == code
    assert LICENCE.encode() in told
    assert bench.target.exists() == (code == 0)


def test_a_terminal_shows_a_bar(shop: Shop, bench: Bench):
    ours, theirs = pty.openpty()
    try:
        command = bench.command("thing", "--accept-licence", "--mirror", shop.url + "/good")
        environment = bench.environment(TERM="xterm", COLUMNS="120")
        done = subprocess.run(
            command, stdin=theirs, stderr=theirs, env=environment, check=False, timeout=budgets.FETCH_DEADLINE_S
        )
        told = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    assert "thing.pth ━" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told)
    assert "kB" in told


def test_a_file_that_is_here_is_copied(bench: Bench):
    source = bench.catalogue.with_name("my copy.pth")
    source.write_bytes(CONTENT)
    bench.assert_fetched(bench.run("thing", "--accept-licence", "--from", str(source)))
    assert source.stat().st_nlink == 1
    assert source.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (OTHER, "damaged"),
        (b"", "an empty file"),
        (PAGE, "a web page"),
        (POINTER, "Git LFS pointer"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><net/>", "OpenVINO"),
        (b"PK\x03\x04....", "zip"),
        (b"\x08\x07\x12\x07pytorch", "ONNX"),
        ((5).to_bytes(8, "little") + b'{"a":', "safetensors"),
        (CONTENT[:HALF], "ends too early"),
        (b"hello", "no kind of file"),
    ],
)
def test_a_wrong_file_gets_words(content: bytes, words: str, bench: Bench):
    source = bench.catalogue.with_name("mine.pth")
    source.write_bytes(content)
    result = bench.run("thing", "--accept-licence", "--from", str(source))
    assert result.returncode == 2
    assert words in result.stderr.splitlines()[-1]
    assert source.read_bytes() == content
    bench.assert_only()


def test_a_file_of_the_same_name_is_left_alone(shop: Shop, bench: Bench):
    bench.out.mkdir()
    bench.target.write_bytes(b"\x80my own")
    result = bench.fetch(shop.url + "/good")
    assert result.returncode == 2
    assert str(bench.target) in result.stderr
    assert not shop.asked
    assert bench.target.read_bytes() == b"\x80my own"


def test_the_converter_runs_and_its_failure_is_told(shop: Shop, bench: Bench):
    bench.enter(convert="wav2lip")
    result = bench.fetch(shop.url + "/good")
    assert result.returncode == 1
    assert re.search(r"^convert_model: ", result.stderr, re.MULTILINE)
    assert result.stderr.splitlines()[-1].startswith("fetch_models: ")
    assert "Traceback" not in result.stderr
    assert bench.target.read_bytes() == CONTENT
    bench.assert_fetched(bench.fetch(shop.url + "/good", "--no-convert"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "say what to fetch"),
        (("nothing",), "there are wav2lip, wav2lip_gan, mobilenet, thing"),
        (("thing", "mobilenet", "--from", "x"), "name one"),
        (("wav2lip", "wav2lip_gan", "--accept-licence"), "the same folder"),
        (("thing", "--accept-licence", "--from", "/nowhere/x.pth"), "not there"),
        (("thing", "--accept-licence", "--from", "/"), "not a file"),
        (("thing", "--mirror", "file:///etc/passwd"), "https://"),
        (("thing", "--mirror", "http://me:secret@h/x"), "no user name"),
        (("thing", "--mirror", "http://h:port/x"), "--mirror"),
        (("thing", "--timeout", "0"), "--timeout"),
    ],
)
def test_wrong_words_get_one_line(words: tuple[str, ...], told: str, bench: Bench):
    result = bench.run(*words)
    assert result.returncode == 2
    assert told in result.stderr.splitlines()[-1]
    assert "secret" not in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ("\xff\xfe", "not JSON"),
        ("[]", "is wrong"),
        ('{"new": {"file": "a.pth"}}', "size_bytes"),
        ('{"wav2lip": {"file": "../a.pth"}}', "file"),
        ('{"wav2lip": {"sha256": "abc"}}', "sha256"),
        ('{"wav2lip": {"hash": "abc"}}', "hash"),
        ('{"wav2lip": {"mirrors": ["ftp://h/x"]}}', "ftp://h/x"),
    ],
)
def test_a_wrong_catalogue_gets_one_line(content: str, told: str, bench: Bench):
    bench.catalogue.write_bytes(content.encode("latin-1"))
    result = bench.run("--list")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert str(bench.catalogue) in line
    assert told in line


def test_the_list_names_every_file_its_licence_and_its_mirrors(bench: Bench):
    bench.catalogue.write_text('{"mobilenet": {"mirrors": ["https://models.example/m.pth"]}}')
    result = bench.run("--list")
    assert result.returncode == 0
    told = result.stdout
    assert re.findall(r"^(\w+): \S+\.pth, [\d.]+ MB \(not here\)$", told, re.MULTILINE) == [
        "wav2lip",
        "wav2lip_gan",
        "mobilenet",
    ]
    assert len(set(re.findall(r"^  SHA-256 [0-9a-f]{64}$", told, re.MULTILINE))) == 3
    assert len(re.findall(r"personal purposes and research only", told)) == 2
    assert re.findall(r"^  (https://models\S+)$", told, re.MULTILINE) == ["https://models.example/m.pth"]
    assert len(re.findall(r"^  https://\S+\.pth$", told, re.MULTILINE)) == 7
