"""The routes. They read requests, ask the `Control`, and answer; nothing here knows the bus."""

from __future__ import annotations

import logging
import time
from functools import partial
from http import HTTPStatus
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from flask import Flask, Response, g, jsonify, render_template, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from services.streamer import api, feeds, recordings_api, sockets, whep
from services.streamer.answers import RefusedError, done, or_conflict, session_of, wants_json
from services.streamer.api import SERVICE_WORDS, status_json
from services.streamer.control import UnknownSessionError
from services.streamer.guard import Refusal
from services.streamer.rates import Places, peer_of
from services.streamer.uploads import (
    MAX_PHOTO_BYTES,
    MAX_SPEECH_S,
    MAX_WAV_BYTES,
    TOO_LARGE_PHOTO,
    TOO_LONG_SPEECH,
    read_index,
    read_photo,
    read_wav,
    sent_speech,
)
from shared.clock import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from werkzeug.wrappers import Response as AnyResponse

    from services.streamer.control import Control
    from services.streamer.guard import Guard

__all__ = ["MAX_PHOTO_BYTES", "MAX_SPEECH_S", "create_app", "read_wav"]

MAX_FORM_BYTES: Final = 64 * 1024
MAX_BODY_BYTES: Final = {
    **dict.fromkeys(("upload", "api.face"), MAX_PHOTO_BYTES + MAX_FORM_BYTES),
    **dict.fromkeys(("speak", "api.speak"), MAX_WAV_BYTES),
}
"""of the endpoints that take more than a form"""
TOO_LARGE: Final = {
    **dict.fromkeys(("upload", "api.face"), TOO_LARGE_PHOTO),
    **dict.fromkeys(("speak", "api.speak"), TOO_LONG_SPEECH),
}
STREAMS: Final = frozenset({"/video_feed", "/audio_feed", "/ws/player", "/ws/audio"})
"""paths whose answers last"""
NO_PLACE: Final = "As many streams are open as this server takes. Close one of them and try again."
MOST_UPLOADS: Final = (24, 8)
"""photos and sounds that are being received at once, each of which is held in memory: of all, and of one peer"""
NO_UPLOAD: Final = "As many files are being sent as this server takes at once. Try again when they are here."
BODY_TIMEOUT_S: Final = 15.0
"""longest pause inside the body of a request"""

MOST_DRAINED_BYTES: Final = 64 * 1024 * 1024
"""how much of a body that is too large is read before it is refused"""
DRAIN_S: Final = 10.0
"""and for how long"""

log = logging.getLogger(__name__)

CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'{socket}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Final = {
    "Cross-Origin-Resource-Policy": "same-origin",
    # With no-referrer a browser would send "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self)",
}


def create_app(control: Control, guard: Guard, *, max_streams: int = 88) -> Flask:
    """Make the WSGI application of one streamer.

    Args:
        control: what the routes act on.
        guard: what runs before each of them.
        max_streams: most requests to `STREAMS` at once; each holds a thread as long as it lasts.
    """
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_FORM_BYTES
    app.jinja_env.globals["service_words"] = SERVICE_WORDS

    places = BoundedSemaphore(max_streams)
    uploads = Places(*MOST_UPLOADS)

    @app.before_request
    def admit() -> AnyResponse | None:
        sock = request.environ.get("gunicorn.socket")
        if sock is not None:
            sock.settimeout(BODY_TIMEOUT_S)
        request.max_content_length = MAX_BODY_BYTES.get(request.endpoint or "", MAX_FORM_BYTES)
        g.holds_place = g.uploads = False
        answer = guard.check(request)
        if isinstance(answer, Refusal):
            response = _answer(answer.status, answer.text)
            response.headers.extend(answer.headers)
            return response
        if answer is None and request.path in STREAMS:
            g.holds_place = places.acquire(blocking=False)
            if not g.holds_place:
                raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, NO_PLACE)
        if answer is None and request.endpoint in MAX_BODY_BYTES:
            g.uploads = uploads.take(peer_of(request.remote_addr))
            if not g.uploads:
                raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, NO_UPLOAD)
        return answer

    @app.after_request
    def harden(response: Response) -> Response:
        if g.holds_place:
            response.call_on_close(places.release)
        if g.uploads:
            response.call_on_close(partial(uploads.leave, peer_of(request.remote_addr)))
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Content-Security-Policy", CONTENT_POLICY.format(socket=_own_socket(guard)))
        if request.endpoint != "static":
            response.headers.setdefault("Cache-Control", "no-store")
        else:
            response.headers["Cache-Control"] = "no-cache"
        return response

    @app.errorhandler(RefusedError)
    def refused(error: RefusedError) -> AnyResponse:
        return _answer(error.status, str(error))

    @app.errorhandler(UnknownSessionError)
    def session_gone(error: UnknownSessionError) -> AnyResponse:
        return _answer(HTTPStatus.NOT_FOUND, error.text)

    @app.errorhandler(TimeoutError)
    def late(_error: TimeoutError) -> AnyResponse:
        log.warning("%s took too long", request.endpoint)
        return _answer(HTTPStatus.SERVICE_UNAVAILABLE, "This took too long, so it was given up. Try again.")

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> AnyResponse:
        status = HTTPStatus(error.code or 500)
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            _drain()
        text = {
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE: _too_large(),
            HTTPStatus.NOT_FOUND: "There is no such page here.",
            HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take that kind of request.",
            HTTPStatus.INTERNAL_SERVER_ERROR: "Something went wrong here; the log of the streamer says what.",
        }.get(status, error.description or status.phrase)
        response = _answer(status, text)
        if isinstance(error, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return response

    @app.get("/")
    def page() -> str:
        return render_template("index.html", status=session_of(control).status())

    @app.get("/requests")
    def requests_page() -> str:
        return page()

    @app.get("/view/<name>")
    def view(name: str) -> str:
        background = request.args.get("background", "")
        return render_template(
            "view.html",
            session=session_of(control, name).name,
            background=background if background in {"transparent", "green"} else "",
        )

    @app.post("/requests")
    def requests() -> AnyResponse:
        form = request.form
        wanted = [name for name in ("start", "stop", "clear") if name in form]
        if len(wanted) != 1:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Send one of start=Start, stop=Stop and clear=clear.")
        if wanted == ["start"]:
            or_conflict(session_of(control).start, form.get("source") or None)
        elif wanted == ["stop"]:
            session_of(control).stop()
        else:
            session_of(control).clear()
        return done(status_json(session_of(control)))

    @app.post("/source")
    def source() -> AnyResponse:
        name = request.form.get("source", "")
        if not name:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Say which source of sound: source=mic, demo, network or file.")
        or_conflict(session_of(control).choose_source, name)
        return done(status_json(session_of(control)))

    @app.post("/face")
    def face() -> AnyResponse:
        or_conflict(session_of(control).choose_face, read_index(request.form.get("index", "")))
        return done(status_json(session_of(control)))

    @app.post("/upload")
    def upload() -> AnyResponse:
        return done({"face": or_conflict(session_of(control).upload, *read_photo())})

    @app.post("/speak")
    def speak() -> AnyResponse:
        pcm = sent_speech()
        or_conflict(session_of(control).speak, pcm)
        return done({"seconds": pcm.size / SAMPLE_RATE_HZ})

    @app.get("/healthz")
    def healthz() -> tuple[Response, HTTPStatus]:
        services = control.session().status().services
        ok = bool(services) and all(service.alive for service in services)
        body = {
            "ok": ok,
            "services": {
                s.name: {
                    "alive": s.alive,
                    "rate_hz": round(s.rate_hz, 2),
                    "expected_hz": s.expected_hz,
                    "last_error": s.last_error,
                    "age_s": round(s.age_s, 2),
                    "given_up": s.given_up,
                }
                for s in services
            },
        }
        return jsonify(body), HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(control.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")

    for part in (feeds, sockets, api, recordings_api, whep):
        app.register_blueprint(part.blueprint(control, guard))
    return app


def _answer(status: HTTPStatus, text: str) -> AnyResponse:
    if wants_json() or request.path.startswith("/api/"):
        response: Response = jsonify({"error": text})
    elif request.accept_mimetypes.accept_html and request.accept_mimetypes.best != "*/*":
        response = Response(
            render_template("error.html", text=text, status=status), content_type="text/html; charset=utf-8"
        )
    else:
        response = Response(text + "\n", content_type="text/plain; charset=utf-8")
    response.status_code = status
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = 'Bearer realm="mouthpiece"'
    return response


def _own_socket(guard: Guard) -> str:
    """Our own address as a source of WebSockets: browsers before 2022 do not take 'self' for it."""
    try:
        own = urlsplit(f"//{request.headers.get('Host', '')}")
        name, port = own.hostname or "", own.port
    except ValueError:
        return ""
    if ":" in name or not guard.knows_host(request.headers.get("Host", "")):  # policies know no IPv6 addresses
        return ""
    return f" {'wss' if request.is_secure else 'ws'}://{name}" + (f":{port}" if port else "")


def _drain() -> None:
    """Read a body that is refused for its size to its end, within bounds: a sender that is cut off while it still sends
    would never see why."""
    body = request.environ["wsgi.input"]
    left = min(request.content_length or 0, MOST_DRAINED_BYTES)
    deadline_s = time.monotonic() + DRAIN_S
    try:
        while left > 0 and time.monotonic() < deadline_s:
            piece = body.read(min(left, 256 * 1024))
            if not piece:
                return
            left -= len(piece)
    except OSError:
        log.debug("the sender of a large body went away")


def _too_large() -> str:
    return TOO_LARGE.get(request.endpoint or "", "This request is too large.")
