"""The routes. They read requests, ask the `Control`, and answer; nothing here knows the bus."""

from __future__ import annotations

import io
import logging
import time
import wave
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from flask import Flask, Response, jsonify, redirect, render_template, request
from werkzeug.exceptions import HTTPException

from services.streamer.control import UploadError
from services.streamer.guard import Refusal
from services.streamer.line import TcpLine
from services.streamer.mjpeg import CONTENT_TYPE, HubClosedError, TooManyViewersError, parts
from shared.clock import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    import numpy.typing as npt
    from werkzeug.wrappers import Response as AnyResponse

    from services.streamer.control import Control
    from services.streamer.guard import Guard

__all__ = ["MAX_PHOTO_BYTES", "MAX_SPEECH_S", "create_app", "read_wav"]

MAX_PHOTO_BYTES: Final = 10 * 1024 * 1024
MAX_WAV_BYTES: Final = 20 * 1024 * 1024
MAX_FORM_BYTES: Final = 64 * 1024
MAX_SPEECH_S: Final = 600
SESSION: Final = "default"
BODY_TIMEOUT_S: Final = 15.0
"""longest pause inside the body of a request"""

MOST_DRAINED_BYTES: Final = 64 * 1024 * 1024
"""how much of a body that is too large is read before it is refused"""
DRAIN_S: Final = 10.0
"""and for how long"""

log = logging.getLogger(__name__)

SERVICE_WORDS: Final = {
    "audio_capture": "Sound",
    "mel_features": "Speech",
    "face_prep": "Face",
    "inference": "Lips",
    "streamer": "Picture",
}

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    # With no-referrer a browser would send "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

NO_STORE: Final = {"Cache-Control": "no-store", "X-Generated-By": "Mouthpiece", "X-Synthetic": "yes"}


class RefusedError(Exception):
    """A request is refused; the text is for the person who sent it."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


def create_app(control: Control, guard: Guard) -> Flask:
    """Make the WSGI application of one streamer."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_FORM_BYTES
    app.jinja_env.globals["service_words"] = SERVICE_WORDS

    @app.before_request
    def admit() -> AnyResponse | None:
        sock = request.environ.get("gunicorn.socket")
        if sock is not None:
            sock.settimeout(BODY_TIMEOUT_S)
        if request.endpoint == "upload":
            request.max_content_length = MAX_PHOTO_BYTES + MAX_FORM_BYTES
        elif request.endpoint == "speak":
            request.max_content_length = MAX_WAV_BYTES
        answer = guard.check(request)
        if isinstance(answer, Refusal):
            raise RefusedError(answer.status, answer.text)
        return answer

    @app.after_request
    def harden(response: Response) -> Response:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        if request.endpoint != "static":
            response.headers.setdefault("Cache-Control", "no-store")
        else:
            response.headers["Cache-Control"] = "no-cache"
        return response

    @app.errorhandler(RefusedError)
    def refused(error: RefusedError) -> AnyResponse:
        return _answer(error.status, str(error))

    @app.errorhandler(UploadError)
    def upload_refused(error: UploadError) -> AnyResponse:
        return _answer(error.status, str(error))

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
        return _answer(status, text)

    @app.get("/")
    def page() -> str:
        return render_template("index.html", status=control.status())

    @app.get("/requests")
    def requests_page() -> str:
        return page()

    @app.post("/requests")
    def requests() -> AnyResponse:
        form = request.form
        wanted = [name for name in ("start", "stop", "clear") if name in form]
        if len(wanted) != 1:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Send one of start=Start, stop=Stop and clear=clear.")
        if wanted == ["start"]:
            _or_conflict(control.start, form.get("source") or None)
        elif wanted == ["stop"]:
            control.stop()
        else:
            control.clear()
        return _done(_status_json(control))

    @app.post("/source")
    def source() -> AnyResponse:
        name = request.form.get("source", "")
        if not name:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Say which source of sound: source=mic, demo, network or file.")
        _or_conflict(control.choose_source, name)
        return _done(_status_json(control))

    @app.post("/face")
    def face() -> AnyResponse:
        _or_conflict(control.choose_face, _index(request.form.get("index", "")))
        return _done(_status_json(control))

    @app.post("/upload")
    def upload() -> AnyResponse:
        file = request.files.get("image")
        if file is None:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "No photo came with it. Choose one and try again.")
        data = file.stream.read(MAX_PHOTO_BYTES + 1)
        if not data:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The photo is empty. Choose another one and try again.")
        if len(data) > MAX_PHOTO_BYTES:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_large())
        if not _is_photo(data):
            raise RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "This is not a JPEG, PNG or WebP picture, whatever its name says. Save it as one and try again.",
            )
        index = _index(request.form.get("index") or "0")
        face_id = control.upload(data, index, _box(request.form.get("box", "")))
        return _done({"face": face_id})

    @app.post("/speak")
    def speak() -> AnyResponse:
        try:
            pcm = read_wav(request.get_data(cache=False))
        except ValueError as error:
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error)) from error
        _or_conflict(control.speak, pcm)
        return _done({"seconds": pcm.size / SAMPLE_RATE_HZ})

    @app.get("/video_feed")
    def video_feed() -> Response:
        _know_session()
        sock = request.environ.get("gunicorn.socket")
        if sock is None:
            raise RefusedError(HTTPStatus.NOT_IMPLEMENTED, "The stream needs the server that scripts/run starts.")
        with ExitStack() as stack:
            try:
                viewer = stack.enter_context(control.frames.viewer())
            except TooManyViewersError as error:
                raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
            except HubClosedError as error:
                raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "The server is stopping.") from error
            try:
                line = TcpLine(sock)
            except OSError:  # it has gone before it got an answer
                return Response(status=HTTPStatus.NO_CONTENT)
            body = _Body(parts(control.frames, viewer, line), stack.pop_all())
        return Response(body, content_type=CONTENT_TYPE, headers={**NO_STORE, "X-Accel-Buffering": "no"})

    @app.get("/snapshot.jpg")
    def snapshot() -> Response:
        _know_session()
        frame = control.frames.latest()
        if frame is None:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "There is no picture yet. Try again in a second.")
        jpeg = control.frames.jpeg(frame, control.frames.rungs[0])
        headers = {**NO_STORE, "X-Frame": str(frame.seq), "X-Media-Time": str(frame.media_time)}
        return Response(jpeg, content_type="image/jpeg", headers=headers)

    @app.get("/api/status")
    def api_status() -> Response:
        return jsonify(_status_json(control))

    @app.get("/healthz")
    def healthz() -> tuple[Response, HTTPStatus]:
        services = control.status().services
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

    return app


class _Body(Iterator[bytes]):
    """The parts of a stream, and what to give back when it ends.

    A generator would not do: one that was never started does not run its `finally`, and the place of a viewer that
    left before the first byte would stay taken.
    """

    def __init__(self, body: Iterator[bytes], stack: ExitStack) -> None:
        self._body = body
        self._stack = stack

    def __next__(self) -> bytes:
        return next(self._body)

    def close(self) -> None:
        self._stack.close()


def read_wav(data: bytes) -> npt.NDArray[np.int16]:
    """Read a WAV file of the only kind that the page makes: PCM16, 16 kHz, mono, at most `MAX_SPEECH_S` long.

    Returns:
        samples, full scale 32768, (samples,)

    Raises:
        ValueError: it is another kind of file; the text says which kind is wanted.
    """
    wanted = "Send a WAV file with 16-bit samples, 16 kHz, mono."
    try:
        with wave.open(io.BytesIO(data)) as file:
            layout = (file.getsampwidth(), file.getnchannels(), file.getframerate())
            if layout != (2, 1, SAMPLE_RATE_HZ):
                found = f"{8 * layout[0]} bits, {layout[1]} channels and {layout[2]} Hz"
                raise ValueError(f"This sound has {found}. {wanted}")
            told = file.getnframes()
            if told > MAX_SPEECH_S * SAMPLE_RATE_HZ:
                raise ValueError(f"This sound is longer than {MAX_SPEECH_S // 60} minutes. Cut it and try again.")
            raw = file.readframes(told)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"This is not a sound file that can be read here. {wanted}") from error
    if len(raw) != 2 * told:
        raise ValueError("This sound file ends before its end: it was cut off on its way. Try again.")
    if not raw:
        raise ValueError("This sound file holds no sound.")
    return np.frombuffer(raw, "<i2").astype(np.int16)


def _status_json(control: Control) -> dict[str, Any]:
    status = asdict(control.status())
    for service in status["services"]:
        service["words"] = SERVICE_WORDS.get(service["name"], service["name"])
    return status


def _done(body: dict[str, Any]) -> AnyResponse:
    """The answer after something was done: JSON for scripts, the page for forms."""
    return jsonify(body) if _wants_json() else redirect("/", HTTPStatus.SEE_OTHER)


def _answer(status: HTTPStatus, text: str) -> AnyResponse:
    if _wants_json() or request.path.startswith("/api/"):
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


def _wants_json() -> bool:
    accepted = request.accept_mimetypes
    return accepted["application/json"] > accepted["text/html"]


def _or_conflict(do: Any, argument: Any) -> None:
    try:
        do(argument)
    except UploadError:
        raise
    except ValueError as error:
        raise RefusedError(HTTPStatus.CONFLICT, str(error)) from error


def _know_session() -> None:
    name = request.args.get("session", SESSION)
    if name != SESSION:
        raise RefusedError(HTTPStatus.NOT_FOUND, f"There is no such session. The only one here is “{SESSION}”.")


def _too_large() -> str:
    if request.endpoint == "speak":
        return f"This sound is too long: at most {MAX_SPEECH_S // 60} minutes. Cut it and try again."
    if request.endpoint == "upload":
        return "This photo is larger than 10 MB. Make it smaller and try again."
    return "This request is too large."


def _is_photo(data: bytes) -> bool:
    """Whether a file begins as JPEG, PNG or WebP files do. What is behind it is looked at by face_prep."""
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or webp


def _index(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:4]) < 64 and len(text) < 4):
        raise RefusedError(HTTPStatus.BAD_REQUEST, "index must be a whole number from 0 (the largest face) to 63.")
    return int(text)


def _box(text: str) -> tuple[int, int, int, int] | None:
    if not text.strip():
        return None
    words = text.replace(",", " ").split()
    if len(words) == 4 and all(word.isascii() and word.isdecimal() and len(word) < 6 for word in words):
        x1, y1, x2, y2 = (int(word) for word in words)
        if x1 < x2 <= 2**15 and y1 < y2 <= 2**15:
            return x1, y1, x2, y2
    raise RefusedError(
        HTTPStatus.BAD_REQUEST,
        "box must be four whole numbers, left,top,right,bottom of the face in pixels, as in box=120,80,360,400.",
    )
