"""The web sockets: `/ws/player` (pictures and sound with one media time) and `/ws/audio` (sound in)."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NoReturn

from flask import Blueprint, Response, request

from services.streamer import player, speech
from services.streamer.answers import RefusedError, session_of
from services.streamer.control import DEFAULT, UnknownSessionError
from services.streamer.mjpeg import HubClosedError, TooManyViewersError
from services.streamer.websocket import (
    GOING_AWAY,
    INTERNAL,
    ClosedError,
    Handshake,
    NoWebSocketError,
    WebSocket,
    handshake,
)

if TYPE_CHECKING:
    from services.streamer.control import Control, SessionControl
    from services.streamer.guard import Guard

__all__ = ["blueprint"]

MOST_SPEAKERS: Final = 16
"""audio sockets at once"""
SESSION_DELETED: Final = 4404
"""close code"""

log = logging.getLogger(__name__)


def blueprint(control: Control, _guard: Guard) -> Blueprint:
    """The routes."""
    routes = Blueprint("sockets", __name__)
    speakers = _Places(MOST_SPEAKERS, "sound is being sent")

    @routes.get("/ws/player", websocket=True)
    def player_socket() -> Response:
        sock, shake = _asked()
        session = session_of(control)
        wants = player.Wants(request.args.get("frames") != "no", request.args.get("sound") != "no")
        with ExitStack() as stack:
            try:
                viewer = stack.enter_context(session.frames.viewer()) if wants.frames else None
                tap = stack.enter_context(session.sound.tap()) if wants.sound else None
                line = player.Line(sock)
            except TooManyViewersError as error:
                raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
            except HubClosedError as error:
                raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "The server is stopping.") from error
            except OSError:  # it has gone before it got an answer
                return _Ended()
            return _serve(sock, shake, control, session, lambda web: player.play(web, session, line, viewer, tap))

    @routes.get("/ws/audio", websocket=True)
    def audio_socket() -> Response:
        sock, shake = _asked()
        session = session_of(control)
        with speakers.take():
            return _serve(sock, shake, control, session, lambda web: speech.listen(web, session))

    @routes.get("/ws/player")
    @routes.get("/ws/audio")
    def plain() -> NoReturn:
        _asked()
        raise RefusedError(HTTPStatus.BAD_REQUEST, "This request asks for a WebSocket in a wrong way.")

    @routes.after_request
    def say_which(response: Response) -> Response:
        if response.status_code == HTTPStatus.UPGRADE_REQUIRED:
            response.headers["Upgrade"] = "websocket"
            response.headers["Connection"] = "Upgrade"
            response.headers["Sec-WebSocket-Version"] = "13"
        return response

    return routes


class _Places:
    """So many at once, and no more."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._free = threading.BoundedSemaphore(most)

    @contextmanager
    def take(self) -> Iterator[None]:
        """Be one of them.

        Raises:
            RefusedError: there are as many as there may be.
        """
        if not self._free.acquire(blocking=False):
            raise RefusedError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"On {self._most} connections {self._what} already, which is the most this server takes. "
                "Close one of them and try again.",
            )
        try:
            yield
        finally:
            self._free.release()


class _Ended(Response):
    """Answers nothing: the connection has ended.

    Gunicorn takes a StopIteration from the application for a connection that ends here, and closes it without a word,
    neither onto the socket nor into the log.
    """

    def __call__(self, _environ: dict[str, Any], _start_response: Callable[..., Any]) -> NoReturn:
        self.close()
        raise StopIteration


def _asked() -> tuple[socket.socket, Handshake]:
    """The socket of a request that asks for a WebSocket.

    Raises:
        RefusedError: it does not.
    """
    try:
        shake = handshake(dict(request.headers))
    except NoWebSocketError as error:
        raise RefusedError(error.status, str(error)) from error
    sock = request.environ.get("gunicorn.socket")
    if sock is None:
        raise RefusedError(HTTPStatus.NOT_IMPLEMENTED, "WebSockets need the server that scripts/run starts.")
    return sock, shake


def _serve(
    sock: socket.socket,
    shake: Handshake,
    control: Control,
    session: SessionControl,
    handle: Callable[[WebSocket], None],
) -> Response:
    """Open the WebSocket and serve it to its end. It blocks as long as that takes: the thread is the connection's."""
    web = None
    try:
        web = WebSocket(sock, shake)
        handle(web)
        web.close()
    except (ClosedError, ConnectionError) as error:
        log.debug("a web socket ended: %s", error)
    except HubClosedError:
        if web is not None:
            web.close(*_why_closed(control, session))
    except Exception:
        log.exception("a web socket failed")
        if web is not None:
            web.close(INTERNAL, "Something went wrong here; the log of the streamer says what.")
    finally:
        if web is not None:
            web.shut()
    return _Ended()


def _why_closed(control: Control, session: SessionControl) -> tuple[int, str]:
    """The streams of a session have ended: was it deleted, or does the server stop?"""
    if session.name != DEFAULT:
        try:
            control.session(session.name)
        except UnknownSessionError as error:
            return SESSION_DELETED, error.text
    return GOING_AWAY, "The server stops."
