"""WebRTC for players: the WHEP endpoint `/whep`, where aiortc is installed.

The WebRTC-HTTP egress protocol (draft-ietf-wish-whep): a player posts an SDP offer, the answer has all our addresses,
so nothing is patched later; deleting the address that came with the answer ends it.
"""

from __future__ import annotations

import threading
from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import Blueprint, Response, request, url_for

from services.streamer.answers import NO_STORE, RefusedError, session_of
from services.streamer.mjpeg import HubClosedError, TooManyViewersError

if TYPE_CHECKING:
    from services.streamer.control import Control
    from services.streamer.guard import Guard
    from services.streamer.webrtc import Peers

__all__ = ["blueprint"]

SDP = "application/sdp"
MISSING = (
    "This server has no WebRTC, because the package aiortc is not installed. In the project's folder "
    "`.venv/bin/pip install --editable '.[webrtc]'` adds it; until then use /video_feed and /audio_feed."
)


def blueprint(control: Control, _guard: Guard) -> Blueprint:
    """The routes."""
    routes = Blueprint("whep", __name__)
    players = _Players()

    @routes.post("/whep")
    def connect() -> Response:
        peers = players.get()
        if request.mimetype != SDP:
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Send an SDP offer as {SDP}.")
        session = session_of(control)
        from services.streamer.webrtc import OfferError, TooManyPeersError  # noqa: PLC0415  # may not be installed

        try:
            resource, answer = peers.connect(session, request.get_data(as_text=True))
        except OfferError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from error
        except (TooManyPeersError, TooManyViewersError) as error:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
        except HubClosedError as error:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "The server is stopping.") from error
        except TimeoutError as error:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "The server is too busy. Try again.") from error
        headers = {**NO_STORE, "Location": url_for("whep.end", resource=resource)}
        return Response(answer, HTTPStatus.CREATED, headers, content_type=SDP)

    @routes.delete("/whep/<resource>")
    def end(resource: str) -> Response:
        try:
            ended = players.get().end(resource)
        except TimeoutError as error:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "The server is too busy. Try again.") from error
        if not ended:
            raise RefusedError(HTTPStatus.NOT_FOUND, "There is no such connection here. It may have ended already.")
        return Response(status=HTTPStatus.OK)

    @routes.after_request
    def tell(response: Response) -> Response:
        if request.method == "OPTIONS":
            response.headers["Accept-Post"] = SDP
        return response

    return routes


class _Players:
    """Those who are connected. What they need takes a fifth of a second to load: only when the first one comes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peers: Peers | None = None

    def get(self) -> Peers:
        with self._lock:
            if self._peers is None:
                try:
                    from services.streamer.webrtc import Peers  # noqa: PLC0415  # only where it is wanted
                except ImportError as error:
                    raise RefusedError(HTTPStatus.NOT_FOUND, MISSING) from error
                self._peers = Peers()
            return self._peers
