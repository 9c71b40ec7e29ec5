"""The recordings of a session by REST: list, start, stop, fetch, delete."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, jsonify, send_file, url_for
from werkzeug.routing import BaseConverter

from services.streamer.answers import NO_STORE, RefusedError, or_conflict, session_of
from services.streamer.recordings import ID, UnknownRecordingError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flask.sansio.blueprints import BlueprintSetupState

    from services.streamer.control import Control
    from services.streamer.guard import Guard
    from services.streamer.recordings import Recording

__all__ = ["blueprint"]

ALL = "/api/sessions/<session>/recordings"
ONE = ALL + "/<recording:recording>"


def blueprint(control: Control, _guard: Guard) -> Blueprint:
    """The routes."""
    routes = Blueprint("recordings_api", __name__)

    @routes.record_once
    def know_ids(state: BlueprintSetupState) -> None:
        state.app.url_map.converters["recording"] = _Id

    @routes.get(ALL)
    def every(session: str) -> Response:
        recordings = session_of(control, session).recordings
        told = [_json(session, recording) for recording in recordings.list()]
        return jsonify({"current": recordings.current, "recordings": told})

    @routes.post(ALL)
    def start(session: str) -> tuple[Response, HTTPStatus, dict[str, str]]:
        recording = or_conflict(session_of(control, session).recordings.start)
        place = url_for("recordings_api.look", session=session, recording=recording.id)
        return jsonify(_json(session, recording)), HTTPStatus.CREATED, {"Location": place}

    @routes.post(ALL + "/stop")
    def stop(session: str) -> Response:
        recording = session_of(control, session).recordings.stop()
        if recording is None:
            raise RefusedError(HTTPStatus.CONFLICT, "Nothing is being recorded.")
        return jsonify(_json(session, recording))

    @routes.get(ONE)
    def look(session: str, recording: str) -> Response:
        return jsonify(_json(session, _or_missing(session_of(control, session).recordings.get, recording)))

    @routes.delete(ONE)
    def delete(session: str, recording: str) -> Response:
        _or_missing(session_of(control, session).recordings.delete, recording)
        answer = Response(status=HTTPStatus.NO_CONTENT)
        del answer.headers["Content-Type"]  # there is nothing that it could be of
        return answer

    @routes.get(ONE + ".mp4")
    def movie(session: str, recording: str) -> Response:
        path = _or_missing(session_of(control, session).recordings.path, recording)
        return _send(path, "video/mp4", f"mouthpiece-{recording}.mp4")

    @routes.get(ONE + ".jpg")
    def thumbnail(session: str, recording: str) -> Response:
        path = _or_missing(session_of(control, session).recordings.thumbnail, recording)
        return _send(path, "image/jpeg")

    return routes


class _Id(BaseConverter):
    """The id of a recording in an address; everything else is no address here."""

    regex = ID.pattern


def _or_missing(do: Callable[[str], Any], recording: str) -> Any:
    try:
        return do(recording)
    except UnknownRecordingError as error:
        raise RefusedError(HTTPStatus.NOT_FOUND, error.text) from error


def _json(session: str, recording: Recording) -> dict[str, Any]:
    return {
        "id": recording.id,
        "started": f"{recording.started:%Y-%m-%dT%H:%M:%SZ}",
        "seconds": round(recording.seconds, 2),
        "bytes": recording.bytes,
        "state": recording.state,
        "text": recording.text,
        "url": url_for("recordings_api.movie", session=session, recording=recording.id),
        "thumbnail": url_for("recordings_api.thumbnail", session=session, recording=recording.id),
    }


def _send(path: Path, kind: str, name: str | None = None) -> Response:
    """A file, or the part of it that was asked for (RFC 9110, 14)."""
    try:
        answer = send_file(path, kind, as_attachment=name is not None, download_name=name, conditional=True)
    except FileNotFoundError as error:  # deleted this moment
        raise RefusedError(HTTPStatus.NOT_FOUND, UnknownRecordingError(path.stem).text) from error
    answer.headers.update(NO_STORE)
    return answer
