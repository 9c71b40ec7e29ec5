"""Who may ask: a list of small checks that run before each request, the first refusal wins.

The page has no accounts. On the loopback interface its enemies are other web pages in the same browser: a foreign page
may post forms to us and open WebSockets (told by Origin and Sec-Fetch-Site) or let its own name point to 127.0.0.1
(told by Host). Beyond the loopback interface a token is needed as well, and how often a machine may ask, and how often
it may guess the token, is bounded.
"""

from __future__ import annotations

import hmac
import ipaddress
import math
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode, urlsplit

from flask import redirect

from services.streamer.rates import Buckets, Rate, peer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flask import Request
    from werkzeug.wrappers import Response

__all__ = ["SAFE_METHODS", "Guard", "Refusal", "opens_socket"]

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_SITES: Final = frozenset({"same-origin", "none"})
"""none: the user did it, or it is no browser"""
COOKIE: Final = "mouthpiece_token"
CHANGES: Final = (Rate(30, 60), Rate(300, 600))
"""requests that change something, and new sockets: of one machine on the network; of this machine"""
GUESSES: Final = (Rate(5, 10), Rate(5, 50))
"""wrong tokens: the same. Who sent too many is not listened to until there is room again, right token or not"""


@dataclass(frozen=True)
class Refusal:
    """A request that is turned away."""

    status: HTTPStatus
    text: str
    """why, and what to do, for a person"""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Guard:
    """The checks of one server."""

    host: str
    """address or name that the server is bound to"""
    port: int
    """port that it is bound to"""
    token: str = ""
    """secret that each request must carry; empty for none"""
    names: tuple[str, ...] = ()
    """further host names under which it may be reached"""
    local: bool = False
    """whether only this machine reaches it, however wide it is bound: a container's port published on loopback"""
    tls: bool = False
    """whether it speaks HTTPS itself"""
    changes: Buckets = field(default_factory=lambda: Buckets(*CHANGES))
    guesses: Buckets = field(default_factory=lambda: Buckets(*GUESSES))

    def check(self, request: Request) -> Refusal | Response | None:
        """Run all checks.

        Returns:
            a refusal, a redirect that answers instead, or None to go on.
        """
        checks: tuple[Callable[[Request], Refusal | Response | None], ...] = (
            self._host,
            self._origin,
            self._token,
            self._rate,
        )
        for check in checks:
            answer = check(request)
            if answer is not None:
                return answer
        return None

    def knows_host(self, header: str) -> bool:
        """Whether a Host header (or the host part of an Origin) names this server."""
        try:
            parts = urlsplit(f"//{header}")
            name, port = parts.hostname, parts.port
        except ValueError:
            return False
        if not name or parts.username is not None or parts.path or parts.query or parts.fragment:
            return False
        wildcard = self.host in {"", "0.0.0.0", "::"}  # noqa: S104
        # Behind a published container port or a proxy the outer port is another one; there the token guards, or the
        # publisher, who lets nobody else in.
        if not wildcard and (port or (443 if self.tls else 80)) != self.port:
            return False
        known = {"127.0.0.1", "localhost", "::1", *(n.lower() for n in self.names)}
        if not wildcard:
            known.add(self.host.strip("[]").lower())
        return name in known or (wildcard and not self.local and _is_address(name))

    def _host(self, request: Request) -> Refusal | None:
        if self.knows_host(request.headers.get("Host", "")):
            return None
        scheme = "https" if self.tls else "http"
        return Refusal(
            HTTPStatus.FORBIDDEN,
            f"This server does not answer to that host name. Open {scheme}://127.0.0.1:{self.port}/ instead, "
            "or let the operator name it in MOUTHPIECE_NAMES.",
        )

    def _origin(self, request: Request) -> Refusal | None:
        foreign = Refusal(HTTPStatus.FORBIDDEN, "This came from another website, so nothing was done.")
        site = request.headers.get("Sec-Fetch-Site", "none")
        origin = request.headers.get("Origin")
        if opens_socket(request):
            # Browsers let any page open a WebSocket to anybody, and always tell its origin.
            if origin is None:
                own = f"{request.scheme}://{request.host}"
                return Refusal(
                    HTTPStatus.FORBIDDEN, f"A WebSocket needs the header Origin; a program sends “Origin: {own}”."
                )
        elif request.method in SAFE_METHODS:
            # A link from elsewhere may lead here; a foreign page may not show what is here, nor use up its streams.
            mode, target = request.headers.get("Sec-Fetch-Mode"), request.headers.get("Sec-Fetch-Dest")
            return None if site in OWN_SITES or (mode == "navigate" and target == "document") else foreign
        # "same-site" is not enough: another port of the same machine is the same site.
        if site not in OWN_SITES:
            return foreign
        return None if origin is None or _is_own(origin, request) else foreign

    def _token(self, request: Request) -> Refusal | Response | None:
        if not self.token:
            return None
        kind, _, value = request.headers.get("Authorization", "").partition(" ")
        shown = {
            "address": request.args.get("token"),
            "header": value.strip() if kind.lower() == "bearer" else None,
            "cookie": request.cookies.get(COOKIE),
        }
        told = {where: given for where, given in shown.items() if given is not None}
        peer = peer_of(request.remote_addr)
        if told and (wait_s := self.guesses.take(peer, 0)):
            return _too_often("Too many wrong tokens came from there.", wait_s)
        right = [where for where, given in told.items() if self._matches(given)]
        if not right:
            if told:
                self.guesses.take(peer)
            return Refusal(
                HTTPStatus.UNAUTHORIZED,
                "This server asks for its token. Open its address with ?token=... at the end, as the operator gave it.",
            )
        if "address" not in right or request.method != "GET" or not _is_navigation(request):
            return None
        rest = [(key, value) for key, value in request.args.items(multi=True) if key != "token"]
        answer = redirect(request.path + ("?" + urlencode(rest) if rest else ""), HTTPStatus.SEE_OTHER)
        # Not Strict: behind a link in web mail the browser would not send it along with this redirect. That Lax lets it
        # go with links changes nothing, as no link does; posts and sockets are judged by their origin.
        answer.set_cookie(COOKIE, self.token, httponly=True, samesite="Lax", secure=request.is_secure)
        return answer

    def _matches(self, value: str) -> bool:
        return hmac.compare_digest(value.encode(), self.token.encode())

    def _rate(self, request: Request) -> Refusal | None:
        if request.method in SAFE_METHODS and not opens_socket(request):
            return None
        wait_s = self.changes.take(peer_of(request.remote_addr))
        return _too_often("Too many requests came from there.", wait_s) if wait_s else None


def opens_socket(request: Request) -> bool:
    """Whether a request asks for a WebSocket (RFC 6455, 4.1)."""
    return "websocket" in (word.strip().lower() for word in request.headers.get("Upgrade", "").split(","))


def _is_own(origin: str, request: Request) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme == request.scheme and parts.netloc.lower() == request.headers.get("Host", "").lower()


def _too_often(what: str, wait_s: float) -> Refusal:
    whole_s = math.ceil(wait_s)
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, f"{what} Try again in {whole_s} s.", {"Retry-After": str(whole_s)})


def _is_navigation(request: Request) -> bool:
    """A browser that opens a page. Players and scripts keep the token in the address: they may hold no cookies."""
    return "text/html" in request.headers.get("Accept", "")


def _is_address(name: str) -> bool:
    """An address, unlike a name, cannot be made to point elsewhere by a foreign name server."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
