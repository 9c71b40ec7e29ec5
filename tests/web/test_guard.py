"""Who may ask: mostly who may not."""

from __future__ import annotations

import contextlib
import select
import socket
from contextlib import ExitStack
from selectors import EVENT_READ
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from flask import Flask, Request
from flask.testing import FlaskClient
from gunicorn.config import Config
from gunicorn.http.errors import NoMoreData
from werkzeug.test import EnvironBuilder

from services.streamer.app import MOST_UPLOADS, create_app
from services.streamer.connections import HEAD_S, MOST_HEAD_BYTES, MOST_QUEUED, MOST_WAITING, Connection
from services.streamer.guard import Guard
from services.streamer.rates import MOST_PEERS, NEAR, Buckets, Places, Rate, peer_of
from services.streamer.server import SPARE_THREADS
from tests.budgets import GUARD_ANSWER_S, GUARD_CROWD, GUARD_THREADS, GUARD_WAIT_S
from tests.web.conftest import until
from tests.web.standin import StandIn

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.web.conftest import Server

    Serve = Callable[..., AbstractContextManager[Server]]

PORT = 8080
GOOD = f"127.0.0.1:{PORT}"


def application(guard: Guard) -> tuple[StandIn, Flask]:
    control = StandIn(publish=False)
    return control, create_app(control, guard)


def client(**fields: object) -> tuple[StandIn, FlaskClient]:
    control, app = application(Guard(**{"host": "127.0.0.1", "port": PORT, **fields}))  # type: ignore[arg-type]
    return control, app.test_client()


@pytest.mark.parametrize(
    "host",
    [f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"LOCALHOST:{PORT}", f"[::1]:{PORT}", f"box.lan:{PORT}"],
)
def test_own_names_are_answered(host: str) -> None:
    _, web = client(names=("box.lan",))
    assert web.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"evil.example:{PORT}",
        f"127.0.0.1.evil.example:{PORT}",
        "127.0.0.1",
        "127.0.0.1:9999",
        f"user@127.0.0.1:{PORT}",
        f"192.168.1.5:{PORT}",
        "127.0.0.1:port",
        f"[::1:{PORT}",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/video_feed", "/api/status", "/static/app.js"])
def test_foreign_host_is_refused(host: str, path: str) -> None:
    _, web = client()
    assert web.get(path, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": f"ftp://{GOOD}"},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": f"http://{GOOD}"},
    ],
)
@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/requests", {"start": "Start"}),
        ("/source", {"source": "mic"}),
        ("/face", {"index": "0"}),
        ("/upload", {}),
        ("/speak", {}),
    ],
)
def test_foreign_page_changes_nothing(headers: dict[str, str], path: str, data: dict[str, str]) -> None:
    control, web = client()
    answer = web.post(path, data=data, headers={"Host": GOOD, **headers})
    assert answer.status_code == 403
    assert control.session().calls == []


@pytest.mark.parametrize("headers", [{}, {"Origin": f"http://{GOOD}", "Sec-Fetch-Site": "same-origin"}])
def test_own_page_and_scripts_may(headers: dict[str, str]) -> None:
    control, web = client()
    assert web.post("/requests", data={"stop": "Stop"}, headers={"Host": GOOD, **headers}).status_code == 303
    assert control.session().calls == [("stop", None)]


def test_nothing_changes_by_get() -> None:
    control, web = client()
    for path in ("/", "/requests?start=Start", "/source?source=mic", "/face?index=1", "/upload", "/speak", "/healthz"):
        web.get(path, headers={"Host": GOOD})
    assert control.session().calls == []


class TestToken:
    TOKEN = "a long secret"  # noqa: S105

    @pytest.mark.parametrize("path", ["/", "/video_feed", "/api/status", "/metrics", "/healthz", "/static/app.js"])
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer "},
            {"Authorization": "Basic a long secret"},
            {"Cookie": "mouthpiece_token=wrong"},
            {"Cookie": "mouthpiece_token="},
            {"Authorization": "Bearer ünïcode"},
        ],
    )
    def test_without_it_nothing(self, path: str, headers: dict[str, str]) -> None:
        _, web = client(token=self.TOKEN)
        answer = web.get(path, headers={"Host": GOOD, **headers})
        assert answer.status_code == 401
        assert self.TOKEN not in answer.text
        assert web.get(path, query_string={"token": "wrong"}, headers={"Host": GOOD}).status_code == 401

    def test_link_sets_a_cookie_and_forgets_the_token(self) -> None:
        _, web = client(token=self.TOKEN)
        headers = {"Host": GOOD, "Accept": "text/html"}
        answer = web.get("/", query_string={"token": self.TOKEN, "a": "b"}, headers=headers)
        assert answer.status_code == 303
        assert answer.headers["Location"] == "/?a=b"
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        pair = cookie.split(";", 1)[0]
        assert web.get("/", headers={**headers, "Cookie": pair}).status_code == 200

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    def test_with_the_cookie_a_foreign_page_still_only_links(self, site: str) -> None:
        control, web = client(token=self.TOKEN)
        opened = web.get("/", query_string={"token": self.TOKEN}, headers={"Host": GOOD, "Accept": "text/html"})
        pair = opened.headers["Set-Cookie"].split(";", 1)[0]
        headers = {"Host": GOOD, "Cookie": pair, "Sec-Fetch-Site": site}
        linked = {**headers, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert web.get("/", headers=linked).status_code == 200
        foreign = {**linked, "Origin": "http://evil.example"}
        assert web.post("/requests", data={"start": "Start"}, headers=foreign).status_code == 403
        assert web.post("/requests", data={"start": "Start"}, headers=linked).status_code == 403
        assert web.get("/ws/audio", headers={**headers, **UPGRADE, "Origin": "http://evil.example"}).status_code == 403
        assert web.get("/snapshot.jpg", headers={**headers, "Sec-Fetch-Mode": "no-cors"}).status_code == 403
        assert control.session().calls == []

    def test_scripts_send_a_header_and_players_the_link(self) -> None:
        _, web = client(token=self.TOKEN)
        headers = {"Host": GOOD, "Authorization": f"Bearer {self.TOKEN}"}
        assert web.get("/api/status", headers=headers).status_code == 200
        answer = web.get("/api/status", query_string={"token": self.TOKEN}, headers={"Host": GOOD})
        assert answer.status_code == 200

    def test_redirect_stays_here(self) -> None:
        _, web = client(token=self.TOKEN)
        headers = {"Host": GOOD, "Accept": "text/html"}
        answer = web.get("//evil.example/", query_string={"token": self.TOKEN}, headers=headers)
        assert not answer.headers.get("Location", "").startswith(("//", "http://evil"))

    def test_open_bind_knows_any_address_but_no_foreign_name(self) -> None:
        _, web = client(host="0.0.0.0", token=self.TOKEN)
        right = {"Authorization": f"Bearer {self.TOKEN}"}
        assert web.get("/healthz", headers={"Host": "192.168.1.5:9000", **right}).status_code == 200
        assert web.get("/healthz", headers={"Host": "evil.example:8080", **right}).status_code == 403


def test_published_on_loopback_only_this_machine_s_names_are_answered() -> None:
    _, web = client(host="0.0.0.0", local=True)
    for name in ("127.0.0.1:9000", "localhost:9000", "[::1]:9000"):
        assert web.get("/healthz", headers={"Host": name}).status_code == 200
    for name in ("192.168.1.5:9000", "172.18.0.3:8080", "evil.example:9000", "streamer:8080"):
        assert web.get("/healthz", headers={"Host": name}).status_code == 403


# ---- sockets, schemes, foreign pages that only look

UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "x" * 24,
}


@pytest.mark.parametrize("path", ["/ws/player", "/ws/audio", "/", "/api/status"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": f"https://{GOOD}"},
        {"Origin": f"ws://{GOOD}"},
        {"Origin": f"http://{GOOD}", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_no_socket_without_our_own_origin(path: str, headers: dict[str, str]) -> None:
    _, web = client()
    for word in ("websocket", "WebSocket", "h2c, websocket"):
        answer = web.get(path, headers={"Host": GOOD, **UPGRADE, "Upgrade": word, **headers})
        assert answer.status_code == 403


def test_socket_from_our_own_page_passes_the_guard() -> None:
    guard = Guard("127.0.0.1", PORT)
    for site in ({}, {"Sec-Fetch-Site": "same-origin"}):
        headers = {**UPGRADE, "Origin": f"http://{GOOD}", **site}
        asked = EnvironBuilder("/ws/player", base_url=f"http://{GOOD}", headers=list(headers.items()))
        assert guard.check(Request(asked.get_environ())) is None


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_foreign_page_may_link_here_but_show_nothing(site: str) -> None:
    _, web = client()
    headers = {"Host": GOOD, "Sec-Fetch-Site": site}
    for path in ("/video_feed", "/snapshot.jpg", "/api/status", "/metrics"):
        for mode in ("no-cors", "cors"):
            assert web.get(path, headers={**headers, "Sec-Fetch-Mode": mode}).status_code == 403
    framed = {**headers, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
    assert web.get("/", headers=framed).status_code == 403
    linked = {**headers, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert web.get("/", headers=linked).status_code == 200


def test_over_https_the_origin_is_https_and_the_cookie_is_secure() -> None:
    token = "a long secret"  # noqa: S105
    _, web = client(tls=True, token=token)
    own: dict[str, Any] = {"base_url": f"https://{GOOD}"}
    right = {"Authorization": f"Bearer {token}"}
    form = {"stop": "Stop"}
    assert web.post("/requests", data=form, headers={**right, "Origin": f"https://{GOOD}"}, **own).status_code == 303
    assert web.post("/requests", data=form, headers={**right, "Origin": f"http://{GOOD}"}, **own).status_code == 403
    answer = web.get("/", query_string={"token": token}, headers={"Accept": "text/html"}, **own)
    assert "Secure" in answer.headers["Set-Cookie"]
    assert "Strict-Transport-Security" not in answer.headers
    assert Guard("box.lan", 443, tls=True).knows_host("box.lan")
    assert not Guard("box.lan", 443).knows_host("box.lan")


def test_headers_of_every_answer() -> None:
    _, web = client()
    for path in ("/", "/nothing", "/static/app.js", "/api/status"):
        answer = web.get(path, headers={"Host": GOOD})
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["connect-src"] == f"'self' ws://{GOOD}"
        assert policy["frame-ancestors"] == "'none'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "microphone=(self)" in answer.headers["Permissions-Policy"]
        assert answer.headers["Cache-Control"] == ("no-cache" if "static" in path else "no-store")
        answer.close()
    foreign = web.get("/", headers={"Host": "evil.example; script-src *"})
    assert "evil" not in foreign.headers["Content-Security-Policy"]


# ---- how often


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_bucket_gives_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    buckets = Buckets(Rate(2, 5), Rate(20, 50), clock=clock)
    assert [buckets.take("a") for _ in range(5)] == [0.0] * 5
    assert buckets.take("a") == pytest.approx(0.5)
    assert buckets.take("b") == 0.0
    clock.now_s += 1.0
    assert [buckets.take("a") > 0 for _ in range(3)] == [False, False, True]
    clock.now_s += 1e6
    assert sum(buckets.take("a") == 0.0 for _ in range(20)) == 5
    assert sum(buckets.take(NEAR) == 0.0 for _ in range(100)) == 50


def test_bucket_looked_at_stays_as_it_is() -> None:
    buckets = Buckets(Rate(1, 1), Rate(1, 1), clock=Clock())
    assert [buckets.take("a", 0) for _ in range(3)] == [0.0] * 3
    assert buckets.take("a") == 0.0
    assert buckets.take("a", 0) == pytest.approx(1.0)


def test_buckets_are_bounded() -> None:
    buckets = Buckets(Rate(1, 1), Rate(1, 1), clock=Clock())
    for number in range(3 * MOST_PEERS):
        buckets.take(f"peer {number}")
    assert len(buckets) == MOST_PEERS


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("127.0.0.1", "::1", True),
        ("127.0.0.1", "127.8.9.10", True),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("", "127.0.0.1", False),
    ],
)
def test_peers(one: str, other: str, same: bool) -> None:
    assert (peer_of(one) == peer_of(other)) is same


def test_too_many_changes_from_one_machine() -> None:
    control, web = client(
        host="0.0.0.0", token=TestToken.TOKEN, changes=Buckets(Rate(30, 60), Rate(300, 600), clock=Clock())
    )
    right = {"Host": "192.168.1.5:8080", "Authorization": f"Bearer {TestToken.TOKEN}", "Accept": "application/json"}

    def ask(method: str, address: str) -> Any:
        path, form = ("/requests", {"stop": "Stop"}) if method == "POST" else ("/api/status", None)
        return web.open(path, method=method, headers=right, data=form, environ_base={"REMOTE_ADDR": address})

    answers = [ask("POST", "192.168.1.9") for _ in range(61)]
    assert {answer.status_code for answer in answers[:60]} == {200}
    assert (answers[60].status_code, answers[60].headers["Retry-After"]) == (429, "1")
    assert "Try again in 1 s" in answers[60].json["error"]
    assert len(control.session().calls) == 60
    assert ask("GET", "192.168.1.9").status_code == 200
    assert ask("POST", "192.168.1.10").status_code == 200
    assert {ask("POST", "127.0.0.1").status_code for _ in range(100)} == {200}


def test_guessing_the_token_is_slow() -> None:
    clock = Clock()
    _, web = client(host="0.0.0.0", token=TestToken.TOKEN, guesses=Buckets(Rate(5, 10), Rate(5, 50), clock=clock))

    def ask(token: str, address: str = "192.168.1.9") -> int:
        headers = {"Host": "192.168.1.5:8080", **({"Authorization": f"Bearer {token}"} if token else {})}
        return web.get("/api/status", headers=headers, environ_base={"REMOTE_ADDR": address}).status_code

    assert [ask("") for _ in range(20)] == [401] * 20  # none at all is no guess
    assert [ask(TestToken.TOKEN) for _ in range(20)] == [200] * 20
    assert [ask(f"wrong {n}") for n in range(20)] == [401] * 10 + [429] * 10
    assert ask(TestToken.TOKEN) == 429
    assert ask(TestToken.TOKEN, "192.168.1.10") == 200
    clock.now_s += 1.0
    assert ask(TestToken.TOKEN) == 200


# ---- the real server: connections that never become a request, and too many streams


def half_open(server: Server, data: bytes) -> socket.socket:
    host, port = server.url.removeprefix("http://").rstrip("/").rsplit(":", 1)
    sock = socket.create_connection((host, int(port)), timeout=GUARD_WAIT_S)
    sock.sendall(data)
    return sock


def threads_of(server: Server) -> int:
    """Of the server and its worker."""
    process = psutil.Process(server.process.pid)
    return sum(each.num_threads() for each in [process, *process.children()])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"G",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ",
        b"GET /healthz HTTP/1.1\r\nHost: HOST\r\n\r\nGET / HTTP/1.1\r\nHost: 127",
        b"GET /healthz HTTP/1.0\r\nHost: HOST\r\n\r\n",
    ],
    ids=["nothing", "a byte", "half a head", "half a second head", "answered and never closed"],
)
def test_half_requests_hold_up_nobody(server: Server, data: bytes) -> None:
    with ExitStack() as stack:
        before = threads_of(server)
        host = server.url.removeprefix("http://").rstrip("/").encode()
        for _ in range(GUARD_CROWD):
            stack.enter_context(half_open(server, data.replace(b"HOST", host)))
        assert server.get("healthz").elapsed.total_seconds() < GUARD_ANSWER_S
        assert threads_of(server) - before < GUARD_THREADS


def test_half_a_request_is_closed_in_the_end(server: Server) -> None:
    with half_open(server, b"GET / HTTP/1.1\r\n") as sock:
        sock.settimeout(HEAD_S + GUARD_WAIT_S)
        assert sock.recv(100) == b""


def test_of_too_many_the_greedy_peer_loses_its_oldest(server: Server) -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(half_open(server, b"GET")) for _ in range(MOST_WAITING + 5)]
        assert server.get("healthz").status_code == 200
        assert crowd[0].recv(100) == b""
        crowd[-1].sendall(f" /healthz HTTP/1.1\r\nHost: {server.url[7:-1]}\r\n\r\n".encode())
        assert b" 200 OK" in crowd[-1].recv(1000)


def test_head_without_end_is_refused(server: Server) -> None:
    with half_open(server, b"GET / HTTP/1.1\r\nX: " + b"x" * (MOST_HEAD_BYTES + 1)) as sock:
        assert b" 431 " in sock.recv(1000)


def test_more_streams_than_places(serve: Serve) -> None:
    with serve("viewers=1") as server, ExitStack() as stack:  # so there are two places
        assert server.post("api/sessions", json={"name": "anna"}).status_code == 201
        assert server.post("api/sessions", json={"name": "ben"}).status_code == 201
        streams = []
        for name in ("default", "anna"):
            head = f"GET /video_feed?session={name} HTTP/1.1\r\nHost: {server.url[7:-1]}\r\n\r\n".encode()
            streams.append(stack.enter_context(half_open(server, head)))
            assert b" 200 OK" in streams[-1].recv(1000)
        answer = server.get("video_feed?session=ben")
        assert answer.status_code == 503
        assert answer.text.startswith("As many streams are open")
        assert server.get("healthz").status_code == 200
        streams[0].close()

        def again() -> bool:
            with server.get("video_feed?session=ben", stream=True) as answer:
                return answer.status_code == 200

        assert until(again, GUARD_WAIT_S)


def slow_body(server: Server) -> bytes:
    kind = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 10"
    return f"POST /requests HTTP/1.1\r\nHost: {server.url[7:-1]}\r\n{kind}\r\n\r\nstart".encode()


def test_slow_bodies_hold_up_nobody(serve: Serve) -> None:
    with serve("viewers=1") as server, ExitStack() as stack:  # so there are two threads beside the spare ones
        slow = [stack.enter_context(half_open(server, slow_body(server))) for _ in range(SPARE_THREADS + 2)]
        answer = server.post("requests", data={"stop": "Stop"})
        assert answer.status_code == 200
        assert slow[0].recv(100) == b"", "it was the oldest"
        for sock in slow[2:]:
            sock.sendall(b"=Star")
        assert {sock.recv(1000).split()[1] for sock in slow[2:]} == {b"303"}, "one thread was enough"
        assert "Traceback" not in server.log.read_text()


def test_more_requests_than_may_wait(serve: Serve) -> None:
    with serve("viewers=1") as server, ExitStack() as stack:
        crowd = SPARE_THREADS + 2 + MOST_QUEUED
        socks = [stack.enter_context(half_open(server, slow_body(server))) for _ in range(crowd + 1)]
        assert b" 503 " in socks[-1].recv(1000)
        for sock in socks:
            sock.close()
        assert until(lambda: server.get("healthz").status_code == 200, GUARD_WAIT_S)


TELLTALE = "nobody-may-read-this"


def test_the_log_does_not_quote_what_is_not_understood(serve: Serve) -> None:
    with serve(f"token={TELLTALE}") as server:
        for head, status in (
            (f"GET /video_feed?token={TELLTALE}&session=Zo\u00eb HTTP/1.1", 400),
            (f"GET /healthz HTTP/1.1\r\nCookie {TELLTALE}", 400),
            (f"GET /{TELLTALE * 400} HTTP/1.1", 414),
        ):
            with half_open(server, f"{head}\r\n\r\n".encode()) as sock:
                assert sock.recv(1000).startswith(f"HTTP/1.1 {status} ".encode())
        assert server.stop() == 0
        assert server.log.read_text().count("a request was not understood") == 3
        assert TELLTALE not in server.log.read_text()


def test_only_so_many_files_are_received_at_once(serve: Serve) -> None:
    head = "POST /upload HTTP/1.1\r\nHost: {}\r\nContent-Type: image/png\r\nContent-Length: 10\r\n\r\nabc"
    with serve() as server, ExitStack() as stack:
        data = head.format(server.url[7:-1]).encode()
        slow = [stack.enter_context(half_open(server, data)) for _ in range(MOST_UPLOADS[1] + 1)]
        (refused,), _, _ = select.select(slow, [], [], GUARD_WAIT_S)
        assert b" 503 " in refused.recv(1000)
        assert server.post("requests", data={"stop": "Stop"}).status_code == 200
        slow.remove(refused)
        slow[0].sendall(b"defghij")
        assert b" 415 " in slow[0].recv(1000)
        assert until(lambda: server.post("upload", files={"image": b"abc"}).status_code == 415, GUARD_WAIT_S)


def test_places_are_shared_out() -> None:
    places = Places(3, 2)
    assert [places.take(peer) for peer in ("a", "a", "a", "b", "b")] == [True, True, False, True, False]
    places.leave("a")
    assert places.take("b")


@pytest.mark.parametrize("length", ["Content-Length: 10", "Transfer-Encoding: chunked"])
def test_body_that_never_comes_is_cut_off(length: str) -> None:
    ours, theirs = socket.socketpair()
    worker: Any = SimpleNamespace(cfg=Config(), tls=None)
    conn = Connection(worker, ours, ("192.168.1.9", 1), ("192.168.1.5", 8080))
    with ours, theirs:
        theirs.settimeout(GUARD_WAIT_S)
        conn.begin()
        theirs.sendall(f"POST / HTTP/1.1\r\nHost: a\r\n{length}\r\n".encode())
        assert conn.advance() == EVENT_READ
        theirs.sendall(b"\r\n5\r\nab")
        assert conn.advance() == 0
        request = next(conn.parser)
        assert conn.sends_body
        conn.cut()
        assert theirs.recv(10) == b""
        with contextlib.suppress(NoMoreData):
            assert len(request.body.read()) < 10


def test_whole_request_sends_nothing_more() -> None:
    ours, theirs = socket.socketpair()
    worker: Any = SimpleNamespace(cfg=Config(), tls=None)
    conn = Connection(worker, ours, ("192.168.1.9", 1), ("192.168.1.5", 8080))
    with ours, theirs:
        conn.begin()
        theirs.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nokGET / HTTP/1.1\r\n\r\n")
        assert conn.advance() == 0
        assert next(conn.parser).body.read() == b"ok"
        assert not conn.sends_body
        conn.begin()
        assert conn.advance() == 0  # the second one came with the first
        assert next(conn.parser).method == "GET"
        assert not conn.sends_body
