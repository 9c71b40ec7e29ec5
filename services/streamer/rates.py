"""How often a peer may ask: a token bucket for each address, in bounded memory."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Buckets", "Places", "Rate", "peer_of"]

MOST_PEERS: Final = 4096
"""addresses remembered; of more, the one that asked longest ago is forgotten"""
NEIGHBOURS_BITS: Final = 64
"""one subscriber of IPv6 has a whole network of this length: it counts as one peer"""


@dataclass(frozen=True)
class Rate:
    """What a peer may do."""

    per_s: float
    """times a second, for ever"""
    burst: float
    """times at once, after a pause"""


class Buckets:
    """One bucket for each peer, full at first. Safe to use from any thread."""

    def __init__(self, rate: Rate, near: Rate, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with full buckets.

        Args:
            rate: for each peer.
            near: for all programs of this machine together.
            clock: monotonic, s.
        """
        self._rate = rate
        self._near = near
        self._clock = clock
        self._lock = threading.Lock()
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, peer: str, much: float = 1.0) -> float:
        """Take out of a peer's bucket.

        Args:
            peer: as `peer_of` names it.
            much: how much; 0 to only look whether there is any.

        Returns:
            0 if it was there; otherwise nothing was taken, and this is how long it takes to be, s.
        """
        rate = self._near if peer == NEAR else self._rate
        with self._lock:
            now_s = self._clock()
            level, at_s = self._levels.pop(peer, (rate.burst, now_s))
            level = min(rate.burst, level + (now_s - at_s) * rate.per_s)
            missing = max(much, 1.0) - level
            if missing <= 0:
                level -= much
            self._levels[peer] = (level, now_s)
            if len(self._levels) > MOST_PEERS:
                self._levels.popitem(last=False)
        return max(0.0, missing / rate.per_s)

    def __len__(self) -> int:
        return len(self._levels)


class Places:
    """So many at once, and of one peer so many. Safe to use from any thread."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._lock = threading.Lock()
        self._taken = Counter[str]()

    def take(self, peer: str) -> bool:
        """Take a place, if there is one for this peer."""
        with self._lock:
            if self._taken[peer] >= self._most_of_one or self._taken.total() >= self._most:
                return False
            self._taken[peer] += 1
            return True

    def leave(self, peer: str) -> None:
        """Give a place back."""
        with self._lock:
            self._taken[peer] -= 1
            self._taken += Counter()  # those of nobody are not kept


NEAR: Final = "loopback"


def peer_of(address: str | None) -> str:
    """The peer that an address belongs to: itself, its IPv6 network, or this machine."""
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return address or ""
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return NEAR
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((ip, NEIGHBOURS_BITS), strict=False))
    return str(ip)
