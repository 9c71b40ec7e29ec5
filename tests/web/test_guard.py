"""Who may ask: mostly who may not."""

from __future__ import annotations

import pytest
from flask import Flask
from flask.testing import FlaskClient

from services.streamer.app import create_app
from services.streamer.guard import Guard
from tests.web.standin import StandIn

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
    assert control.calls == []


@pytest.mark.parametrize("headers", [{}, {"Origin": f"http://{GOOD}", "Sec-Fetch-Site": "same-origin"}])
def test_own_page_and_scripts_may(headers: dict[str, str]) -> None:
    control, web = client()
    assert web.post("/requests", data={"stop": "Stop"}, headers={"Host": GOOD, **headers}).status_code == 303
    assert control.calls == [("stop", None)]


def test_nothing_changes_by_get() -> None:
    control, web = client()
    for path in ("/", "/requests?start=Start", "/source?source=mic", "/face?index=1", "/upload", "/speak", "/healthz"):
        web.get(path, headers={"Host": GOOD})
    assert control.calls == []


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
        assert "SameSite=Strict" in cookie
        pair = cookie.split(";", 1)[0]
        assert web.get("/", headers={**headers, "Cookie": pair}).status_code == 200

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
