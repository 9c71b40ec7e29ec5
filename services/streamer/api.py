"""The sessions by REST: `/api/sessions`, as openapi.json tells."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import msgspec
from flask import Blueprint, Response, jsonify, request, url_for

from services.streamer.answers import RefusedError, or_conflict, session_of
from services.streamer.control import UnknownSessionError
from services.streamer.uploads import read_photo, sent_speech
from shared.clock import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from services.streamer.control import Control, SessionControl
    from services.streamer.guard import Guard

__all__ = ["SERVICE_WORDS", "blueprint", "status_json"]

SERVICE_WORDS: Final = {
    "audio_capture": "Sound",
    "mel_features": "Speech",
    "face_prep": "Face",
    "inference": "Lips",
    "streamer": "Picture",
}
"""what the page calls the services"""
WAV_TYPES: Final = frozenset({"audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"})
PHOTO_TYPES: Final = frozenset({"multipart/form-data", "image/jpeg", "image/png", "image/webp"})
DESCRIPTION: Final = (Path(__file__).parent / "openapi.json").read_bytes()

Source = Literal["mic", "browser", "demo", "network", "file"]


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body without fields."""


class Creation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a new session is to be."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,32}\Z")] | msgspec.UnsetType = msgspec.UNSET
    source: Source | msgspec.UnsetType = msgspec.UNSET
    start: bool = False


class Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to start."""

    source: Source | msgspec.UnsetType = msgspec.UNSET


class Sourced(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the sound comes from."""

    source: Source


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which face of the photo."""

    index: Annotated[int, msgspec.Meta(ge=0, le=63)]


Body = TypeVar("Body", bound=msgspec.Struct)


def blueprint(control: Control, _guard: Guard) -> Blueprint:
    """The routes."""
    routes = Blueprint("api", __name__, url_prefix="/api")

    @routes.get("/openapi.json")
    def openapi() -> Response:
        return Response(DESCRIPTION, content_type="application/json", headers={"Cache-Control": "no-cache"})

    @routes.get("/status")
    def status() -> Response:
        return jsonify(status_json(session_of(control)))

    @routes.get("/sessions")
    def listed() -> Response:
        return jsonify({"sessions": _short_states(control)})

    @routes.post("/sessions")
    def create() -> tuple[Response, HTTPStatus, dict[str, str]]:
        wanted = _body(Creation)
        session: SessionControl = or_conflict(control.create, wanted.name or None)
        source = wanted.source or None
        try:
            if wanted.start:
                or_conflict(session.start, source)
            elif source is not None:
                or_conflict(session.choose_source, source)
        except RefusedError:
            with contextlib.suppress(UnknownSessionError):
                control.delete(session.name)
            raise
        location = url_for("api.state", name=session.name)
        return jsonify(status_json(session)), HTTPStatus.CREATED, {"Location": location}

    @routes.get("/sessions/<name>")
    def state(name: str) -> Response:
        return jsonify(status_json(session_of(control, name)))

    @routes.delete("/sessions/<name>")
    def delete(name: str) -> Response:
        session_of(control, name)
        or_conflict(control.delete, name)
        answer = Response(status=HTTPStatus.NO_CONTENT)
        del answer.headers["Content-Type"]
        return answer

    @routes.route("/sessions/<name>/face", methods=["PUT", "POST"])
    def face(name: str) -> Response:
        session = session_of(control, name)
        _typed(PHOTO_TYPES, "Send the photo as image/jpeg, image/png or image/webp, or in the field image of a form.")
        return jsonify({"face": or_conflict(session.upload, *read_photo())})

    @routes.post("/sessions/<name>/face/index")
    def face_index(name: str) -> Response:
        session = session_of(control, name)
        or_conflict(session.choose_face, _body(Chosen).index)
        return jsonify(status_json(session))

    @routes.put("/sessions/<name>/source")
    def source(name: str) -> Response:
        session = session_of(control, name)
        or_conflict(session.choose_source, _body(Sourced).source)
        return jsonify(status_json(session))

    @routes.post("/sessions/<name>/start")
    def start(name: str) -> Response:
        session = session_of(control, name)
        or_conflict(session.start, _body(Start).source or None)
        return jsonify(status_json(session))

    @routes.post("/sessions/<name>/<any(stop, interrupt, clear):order>")
    def orders(name: str, order: str) -> Response:
        session = session_of(control, name)
        _body(Nothing)
        or_conflict({"stop": session.stop, "interrupt": session.interrupt, "clear": session.clear}[order])
        return jsonify(status_json(session))

    @routes.post("/sessions/<name>/speak")
    def speak(name: str) -> Response:
        session = session_of(control, name)
        _typed(WAV_TYPES, "Send the sound as audio/wav: 16-bit samples, 16 kHz, mono.")
        pcm = sent_speech()
        or_conflict(session.speak, pcm)
        return jsonify({"seconds": pcm.size / SAMPLE_RATE_HZ})

    return routes


def status_json(session: SessionControl) -> dict[str, Any]:
    """The whole state of a session, as `/api/status` tells it."""
    status = asdict(session.status())
    for service in status["services"]:
        service["words"] = SERVICE_WORDS.get(service["name"], service["name"])
    return status


def _short_states(control: Control) -> list[dict[str, Any]]:
    """What a list of sessions shows; one that ends meanwhile is left out."""
    shown = []
    for name in control.sessions():
        with contextlib.suppress(UnknownSessionError):
            status = control.session(name).status()
            shown.append(
                {
                    "name": name,
                    "running": status.running,
                    "source": status.source,
                    "epoch": status.epoch,
                    "face": {"id": status.face.id, "state": status.face.state, "is_demo": status.face.is_demo},
                    "viewers": status.viewers,
                    "recording": status.recording,
                }
            )
    return shown


def _body(kind: type[Body]) -> Body:
    """The JSON of the request; no body is an empty object.

    Raises:
        RefusedError: it is not JSON, or not what is wanted.
    """
    data = request.get_data(cache=False)
    if data:
        _typed({"application/json"}, "Send JSON, with the header Content-Type: application/json.")
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"This is not what is wanted here: {error}.") from error


def _typed(allowed: frozenset[str] | set[str], text: str) -> None:
    if request.mimetype not in allowed:
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, text)
