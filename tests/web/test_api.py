"""The sessions by REST, by example and against their description (openapi.json) by schemathesis."""

from __future__ import annotations

import io
import json
import re
import wave
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import cv2
import hypothesis
import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import strategies

from services.streamer import api
from services.streamer.app import create_app
from services.streamer.control import FaceStatus, Service, SourceChoice, Status
from services.streamer.guard import Guard
from tests.budgets import API_EXAMPLES
from tests.web.standin import StandIn, drawing

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from schemathesis import Case, SerializationContext

    from tests.web.conftest import Server

DESCRIBED = json.loads(Path(api.__file__).with_name("openapi.json").read_text())
PHOTO = cv2.imencode(".jpg", drawing(0, 48))[1].tobytes()


def wav(samples: int = 1600) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.zeros(samples, np.int16).tobytes())
    return buffer.getvalue()


# ---- by description


@schemathesis.serializer("audio/wav", "image/jpeg", "image/png", "image/webp")
def as_it_is(_context: SerializationContext, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


for suffix, of_kind in ((".jpg", "image/jpeg"), (".png", "image/png"), (".webp", "image/webp")):
    schemathesis.openapi.media_type(of_kind, strategies.just(cv2.imencode(suffix, drawing(0, 48))[1].tobytes()))
schemathesis.openapi.media_type("audio/wav", strategies.integers(1, 3200).map(wav))

schema = schemathesis.openapi.from_dict(DESCRIBED)


@schema.parametrize()
@hypothesis.settings(max_examples=API_EXAMPLES, deadline=None, derandomize=True, database=None)
def test_as_described(case: Case[Any], server: Server) -> None:
    case.call_and_validate(base_url=server.url)


def application(**options: Any) -> tuple[StandIn, Callable[..., Any]]:
    control = StandIn(publish=False, **options)
    client = create_app(control, Guard("127.0.0.1", 8080)).test_client()

    def ask(method: str, path: str, **fields: Any) -> Any:
        return client.open("/api" + path, method=method, base_url="http://127.0.0.1:8080", **fields)

    return control, ask


@pytest.mark.parametrize(
    ("kind", "name", "added"),
    [
        (Status, "Status", set()),
        (FaceStatus, "Face", set()),
        (SourceChoice, "SourceChoice", set()),
        (Service, "Service", {"words"}),
    ],
)
def test_what_is_told_is_described(kind: type, name: str, added: set[str]) -> None:
    described = DESCRIBED["components"]["schemas"][name]
    assert set(described["properties"]) == {field.name for field in fields(kind)} | added
    assert set(described["required"]) == set(described["properties"])


def test_sources_are_those_of_the_core() -> None:
    sources = get_args(get_type_hints(SourceChoice)["id"])
    assert sources == get_args(api.Source)
    assert list(sources) == DESCRIBED["components"]["schemas"]["Source"]["enum"]


def test_every_route_is_described() -> None:
    app = create_app(StandIn(publish=False), Guard("127.0.0.1", 8080))
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/api/"):
            path = re.sub(r"<(?:[^<>]+:)?(\w+)>", r"{\1}", rule.rule).replace("{session}", "{name}")
            for order in ("stop", "interrupt", "clear"):
                described = DESCRIBED["paths"][path.replace("{order}", order)]
                for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
                    assert method.lower() in described, (path, method)


def test_description_is_served(server: Server) -> None:
    answer = server.get("api/openapi.json")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == DESCRIBED


def test_life_of_a_session() -> None:
    control, ask = application()
    made = ask("POST", "/sessions", json={"name": "anna", "source": "network", "start": True})
    assert (made.status_code, made.headers["Location"]) == (201, "/api/sessions/anna")
    assert (made.json["session"], made.json["running"], made.json["source"]) == ("anna", True, "network")
    assert [one["name"] for one in ask("GET", "/sessions").json["sessions"]] == ["default", "anna"]
    assert ask("PUT", "/sessions/anna/face", data=PHOTO, content_type="image/jpeg").status_code == 200
    form = {"image": (io.BytesIO(PHOTO + b"three faces"), "me.jpg"), "index": "1", "box": "1,2,30,40"}
    assert ask("POST", "/sessions/anna/face", data=form).status_code == 200
    assert ask("POST", "/sessions/anna/face/index", json={"index": 2}).json["face"]["index"] == 2
    assert ask("PUT", "/sessions/anna/source", json={"source": "demo"}).json["source"] == "demo"
    assert ask("POST", "/sessions/anna/speak", data=wav(32_000), content_type="audio/wav").json == {"seconds": 2.0}
    for order in ("interrupt", "stop", "start", "clear"):
        answer = ask("POST", f"/sessions/anna/{order}")
        assert (answer.status_code, answer.json["running"]) == (200, order in {"start", "interrupt"})
    assert control.session("anna").calls == [
        ("start", "network"),
        ("source", "network"),
        ("upload", (len(PHOTO), 0, None)),
        ("upload", (len(PHOTO) + 11, 1, (1, 2, 30, 40))),
        ("face", 2),
        ("source", "demo"),
        ("speak", 32_000),
        ("interrupt", None),
        ("stop", None),
        ("start", None),
        ("clear", None),
    ]
    assert control.session().calls == []
    gone = ask("DELETE", "/sessions/anna")
    assert (gone.status_code, gone.data) == (204, b"")
    assert ask("GET", "/sessions/anna").status_code == 404


def test_photo_in_the_body_with_its_words_in_the_address() -> None:
    control, ask = application()
    path = "/sessions/default/face?index=2&box=10,20,30,40"
    assert ask("PUT", path, data=PHOTO, content_type="image/jpeg").status_code == 200
    assert control.session().calls == [("upload", (len(PHOTO), 2, (10, 20, 30, 40)))]


def test_a_session_that_cannot_begin_is_not_there() -> None:
    _, ask = application()
    for wanted in ({"source": "file", "start": True}, {"source": "file"}):
        assert ask("POST", "/sessions", json={"name": "anna", **wanted}).status_code == 409
    assert [one["name"] for one in ask("GET", "/sessions").json["sessions"]] == ["default"]


def test_limit_of_sessions_says_what_to_do() -> None:
    _, ask = application(sessions=2)
    first = ask("POST", "/sessions").json["session"]
    answer = ask("POST", "/sessions")
    assert answer.status_code == 429
    assert "Delete one" in answer.json["error"]
    assert ask("DELETE", f"/sessions/{first}").status_code == 204
    assert ask("POST", "/sessions").status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    [
        ("POST", "/sessions", {"json": {"name": "../etc"}}, 400),
        ("POST", "/sessions", {"json": {"name": "a\n"}}, 400),
        ("POST", "/sessions", {"json": {"name": ""}}, 400),
        ("POST", "/sessions", {"json": {"name": None}}, 400),
        ("POST", "/sessions", {"json": {"nam": "anna"}}, 400),
        ("POST", "/sessions", {"json": {"start": "yes"}}, 400),
        ("POST", "/sessions", {"json": ["anna"]}, 400),
        ("POST", "/sessions", {"data": b"{", "content_type": "application/json"}, 400),
        ("POST", "/sessions", {"data": b'"\xff"', "content_type": "application/json"}, 400),
        ("POST", "/sessions", {"data": b"{}", "content_type": "text/plain"}, 415),
        ("POST", "/sessions", {"json": {"name": "x" * 100_000}}, 413),
        ("POST", "/sessions", {"json": {"name": "default"}}, 409),
        ("PATCH", "/sessions", {}, 405),
        ("DELETE", "/sessions/default", {}, 409),
        ("DELETE", "/sessions/nobody", {}, 404),
        ("PUT", "/sessions/nobody/face", {"data": PHOTO, "content_type": "image/jpeg"}, 404),
        ("PUT", "/sessions/default/face", {"data": b"GIF89a", "content_type": "image/png"}, 415),
        ("PUT", "/sessions/default/face", {"data": PHOTO, "content_type": "image/gif"}, 415),
        ("PUT", "/sessions/default/face", {"data": PHOTO, "content_type": "text/plain"}, 415),
        ("PUT", "/sessions/default/face", {"data": b"", "content_type": "image/png"}, 400),
        ("PUT", "/sessions/default/face?box=1", {"data": PHOTO, "content_type": "image/jpeg"}, 400),
        ("PUT", "/sessions/default/face?index=64", {"data": PHOTO, "content_type": "image/jpeg"}, 400),
        ("PUT", "/sessions/default/face", {"data": bytes(11_000_000), "content_type": "image/jpeg"}, 413),
        ("POST", "/sessions/default/face/index", {"json": {"index": True}}, 400),
        ("POST", "/sessions/default/face/index", {"json": {"index": 64}}, 400),
        ("POST", "/sessions/default/face/index", {}, 400),
        ("POST", "/sessions/default/face/index", {"json": {"index": 7}}, 409),
        ("PUT", "/sessions/default/source", {"json": {"source": "radio"}}, 400),
        ("PUT", "/sessions/default/source", {"json": {"source": "file"}}, 409),
        ("POST", "/sessions/default/start", {"json": {"source": "file"}}, 409),
        ("POST", "/sessions/default/stop", {"json": {"now": True}}, 400),
        ("POST", "/sessions/default/dance", {}, 404),
        ("GET", "/sessions/default/stop", {}, 405),
        ("POST", "/sessions/default/speak", {"data": b"OggS", "content_type": "audio/wav"}, 415),
        ("POST", "/sessions/default/speak", {"data": wav(), "content_type": "audio/ogg"}, 415),
    ],
)
def test_wrong_requests_change_nothing_and_get_words(method: str, path: str, sent: dict[str, Any], status: int) -> None:
    control, ask = application()
    answer = ask(method, path, **sent)
    assert answer.status_code == status
    assert len(answer.json["error"]) > 10
    state = control.session().status()
    assert (control.sessions(), state.running, state.source, state.face.is_demo) == (["default"], False, "demo", True)
    if status == 405:
        assert method not in answer.headers["Allow"]
        assert "POST" in answer.headers["Allow"]


def test_over_the_real_server(serve: Callable[..., AbstractContextManager[Server]]) -> None:
    with serve("sessions=3") as server:
        where = server.post("api/sessions", json={"name": "anna"}).headers["Location"][1:]
        assert server.post(f"{where}/start").json()["running"] is True
        with requests.get(server.url + "video_feed?session=anna", stream=True, timeout=5) as stream:
            next(stream.iter_content(1000))
            assert server.get(where).json()["viewers"] == 1
            assert requests.delete(server.url + where, timeout=5).status_code == 204
            for _ in stream.iter_content(65536):  # the stream ends with its session
                pass
        assert server.get(where).status_code == 404
