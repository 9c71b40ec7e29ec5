"""What all routes share: how a request is refused, how it is answered, which session it means."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from flask import jsonify, redirect, request

from services.streamer.control import DEFAULT, LimitError, TakenError, UnknownSessionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from werkzeug.wrappers import Response as AnyResponse

    from services.streamer.control import Control, SessionControl

__all__ = ["NO_STORE", "SYNTHETIC", "RefusedError", "done", "or_conflict", "session_of", "wants_json"]

SYNTHETIC: Final = {"X-Generated-By": "Mouthpiece", "X-Synthetic": "yes"}
"""headers of everything that was made: it says so"""
NO_STORE: Final = {"Cache-Control": "no-store", **SYNTHETIC}


class RefusedError(Exception):
    """A request is refused; the text is for the person who sent it."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


def session_of(control: Control, name: str | None = None) -> SessionControl:
    """The session that a request means: `name`, or what stands in `?session=`, or the default one.

    Raises:
        RefusedError: there is no such session.
    """
    try:
        return control.session(name or request.args.get("session") or DEFAULT)
    except UnknownSessionError as error:
        raise RefusedError(HTTPStatus.NOT_FOUND, error.text) from error


def or_conflict(do: Callable[..., Any], *arguments: Any) -> Any:
    """Do something that a session may refuse.

    Raises:
        RefusedError: it refuses; 409, or 429 where there are as many as there may be, or 404 if it has just ended.
    """
    try:
        return do(*arguments)
    except UnknownSessionError as error:
        raise RefusedError(HTTPStatus.NOT_FOUND, error.text) from error
    except LimitError as error:
        raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, str(error)) from error
    except (TakenError, ValueError) as error:
        raise RefusedError(HTTPStatus.CONFLICT, str(error)) from error


def done(body: dict[str, Any]) -> AnyResponse:
    """The answer after something was done: JSON for scripts, the page for forms."""
    if wants_json():
        return jsonify(body)
    named = request.args.get("session")
    return redirect("/" + (f"?{urlencode({'session': named})}" if named else ""), HTTPStatus.SEE_OTHER)


def wants_json() -> bool:
    """Whether a request prefers JSON to a page."""
    accepted = request.accept_mimetypes
    return accepted["application/json"] > accepted["text/html"]
