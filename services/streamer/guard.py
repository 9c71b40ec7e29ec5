"""Who may ask: a list of small checks that run before each request, the first refusal wins.

The page has no accounts. On the loopback interface its enemies are other web pages in the same browser: a foreign page
may post forms to us (told by Origin and Sec-Fetch-Site) or let its own name point to 127.0.0.1 (told by Host). Beyond
the loopback interface a token is needed as well.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode, urlsplit

from flask import redirect

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Request
    from werkzeug.wrappers import Response

__all__ = ["SAFE_METHODS", "Guard", "Refusal"]

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
COOKIE: Final = "mouthpiece_token"


@dataclass(frozen=True)
class Refusal:
    """A request that is turned away."""

    status: HTTPStatus
    text: str
    """why, and what to do, for a person"""


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

    def check(self, request: Request) -> Refusal | Response | None:
        """Run all checks.

        Returns:
            a refusal, a redirect that answers instead, or None to go on.
        """
        checks: tuple[Callable[[Request], Refusal | Response | None], ...] = (
            self._host,
            self._origin,
            self._token,
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
        if not wildcard and (port or 80) != self.port:
            return False
        known = {"127.0.0.1", "localhost", "::1", *(n.lower() for n in self.names)}
        if not wildcard:
            known.add(self.host.strip("[]").lower())
        return name in known or (wildcard and not self.local and _is_address(name))

    def _host(self, request: Request) -> Refusal | None:
        if self.knows_host(request.headers.get("Host", "")):
            return None
        return Refusal(
            HTTPStatus.FORBIDDEN,
            f"This server does not answer to that host name. Open http://127.0.0.1:{self.port}/ instead.",
        )

    def _origin(self, request: Request) -> Refusal | None:
        if request.method in SAFE_METHODS:
            return None
        foreign = Refusal(HTTPStatus.FORBIDDEN, "This came from another website, so nothing was done.")
        # "same-site" is not enough: another port of the same machine is the same site.
        if request.headers.get("Sec-Fetch-Site", "none") not in {"same-origin", "none"}:
            return foreign
        origin = request.headers.get("Origin")
        if origin is None:
            return None
        try:
            parts = urlsplit(origin)
        except ValueError:
            return foreign
        own = parts.scheme in {"http", "https"} and parts.netloc.lower() == request.headers.get("Host", "").lower()
        return None if own else foreign

    def _token(self, request: Request) -> Refusal | Response | None:
        if not self.token:
            return None
        asked = request.args.get("token")
        if asked is not None and self._matches(asked):
            if request.method != "GET" or not _is_navigation(request):
                return None
            rest = [(key, value) for key, value in request.args.items(multi=True) if key != "token"]
            answer = redirect(request.path + ("?" + urlencode(rest) if rest else ""), HTTPStatus.SEE_OTHER)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="Strict", secure=request.is_secure)
            return answer
        kind, _, value = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._matches(value.strip()):
            return None
        if self._matches(request.cookies.get(COOKIE, "")):
            return None
        return Refusal(
            HTTPStatus.UNAUTHORIZED,
            "This server asks for its token. Open its address with ?token=... at the end, as the operator gave it.",
        )

    def _matches(self, value: str) -> bool:
        return hmac.compare_digest(value.encode(), self.token.encode())


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
