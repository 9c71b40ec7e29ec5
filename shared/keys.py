"""Keys of the bus: who may talk, and the door where ZeroMQ asks for it.

A key file is TOML with `name`, `public`, `secret` and `hub`: CurveZMQ keys (https://rfc.zeromq.org/spec/26) in Z85
(https://rfc.zeromq.org/spec/32), `hub` being the public key of the hub. All services of a hub share one key file; every
worker on another box has its own. The allow-list has one line for each key, `<public key> <name>`; a line that begins
with `# ` is a remark.
"""

from __future__ import annotations

import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
import zmq
from zmq.utils import z85

from shared.messages import Beat, Credit, Message, Patch
from shared.settings import Settings
from shared.topics import BY_NAME, TOPICS, ServiceName

__all__ = [
    "HUB",
    "AllowList",
    "Door",
    "KeyFile",
    "KeyFileError",
    "KeyName",
    "Keys",
    "load_keys",
    "may_say",
    "new_pair",
    "read_key",
]

Z85 = Annotated[str, msgspec.Meta(min_length=40, max_length=40, pattern=r"^[!-~]+$")]
KeyName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
HUB: Final = "hub"
"""name of the hub's own key on its list"""
MOST_BYTES: Final = 1_000_000
LOOK_EVERY_S: Final = 0.5
"""how often the allow-list is looked at"""
ZAP: Final = "inproc://zeromq.zap.01"
"""where ZeroMQ asks whether a key is welcome (https://rfc.zeromq.org/spec/27)"""


class KeyFileError(ValueError):
    """A key file or allow-list cannot be used; the text says which and what to do."""


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The key of one process."""

    name: KeyName
    public: Z85
    secret: Z85
    hub: Z85
    """public key of the hub; on the hub it is its own"""

    def __repr__(self) -> str:
        return f"KeyFile(name={self.name!r}, public={self.public!r})"

    @property
    def is_hub(self) -> bool:
        """Whether this is the key of the hub itself."""
        return self.hub == self.public


def read_key(path: Path) -> KeyFile:
    """Read a key file.

    Raises:
        KeyFileError: it is not there, not readable, or no key file.
    """
    try:
        return msgspec.convert(tomllib.loads(_text(path)), KeyFile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise KeyFileError(f"{path.name} is no key file of Mouthpiece ({error}); scripts/gen_keys makes one") from error


class AllowList:
    """The keys that may talk to a hub; the file is read again when it changes."""

    def __init__(self, path: Path, hub: KeyFile) -> None:
        """Read the list; the hub's own key is always on it.

        Raises:
            KeyFileError: it cannot be read, or a line is wrong.
        """
        self._path = path
        self._hub = hub
        self._stamp = _stamp(path)
        self._names = self._read()

    def name(self, public: str) -> str:
        """Whose key it is; empty when it may not talk."""
        return self._names.get(public, "")

    def changed(self) -> bool:
        """Read the file again if it is another than before.

        Returns:
            whether it was read.

        Raises:
            KeyFileError: it cannot be read; the list stays as it was, and the next look tries again.
        """
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return False
        self._names = self._read()
        self._stamp = stamp
        return True

    def _read(self) -> dict[str, str]:
        names = {self._hub.public: HUB}
        for number, line in enumerate(_text(self._path).splitlines(), 1):
            words = line.split()
            if not words or words[0] == "#":
                continue
            try:
                public, name = msgspec.convert(words, tuple[Z85, KeyName])
            except msgspec.ValidationError as error:
                raise KeyFileError(f"line {number} of {self._path.name} is not `<public key> <name>`") from error
            if name == HUB:
                raise KeyFileError(f"line {number} of {self._path.name}: the name {HUB} is the hub's own")
            names.setdefault(public, name)
        return names


@dataclass(frozen=True)
class Keys:
    """What makes the bus of one service private."""

    own: KeyFile
    allowed: AllowList | None = None
    """who may connect to the ports that we bind; None where nothing is bound"""


class Door:
    """Answers ZeroMQ's question whether a key may come in, from the list as it stands."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: AllowList) -> None:
        """Open the door of one context; sockets with a ZAP domain ask there."""
        self._allowed = allowed
        self._admitted: set[str] = set()
        self._looked_s = time.monotonic()
        self.closing = False
        """somebody is inside who is no longer welcome"""
        self.socket = context.socket(zmq.REP)
        self.socket.bind(ZAP)

    def answer(self) -> str:
        """Answer one question.

        Returns:
            why it was no, for the log; empty when it was yes.
        """
        version, request, domain, address, _identity, _mechanism, *told = self.socket.recv_multipart()
        public = z85.encode(told[0]).decode() if told and len(told[0]) == 32 else ""
        name = self._allowed.name(public)
        row = BY_NAME.get(domain.decode(errors="replace"))
        concerned = row is not None and "inference" in row.senders + row.receivers
        if name and name != HUB and not concerned:
            self.socket.send_multipart([version, request, b"400", b"this topic is the hub's own", b"", b""])
            return f"{name} at {address.decode(errors='replace')} was refused: {domain.decode()} is no worker's topic"
        if name:
            self._admitted.add(public)
            self.socket.send_multipart([version, request, b"200", b"OK", name.encode(), b""])
            return ""
        self.socket.send_multipart([version, request, b"400", b"this key is not on the list", b"", b""])
        return f"a program at {address.decode(errors='replace')} was refused: its key {public} is not on the allow-list"

    def look(self, now_s: float) -> str:
        """Look whether the list changed; `closing` says whether somebody has to leave.

        Returns:
            what there is to tell; empty when nothing changed.
        """
        if now_s - self._looked_s < LOOK_EVERY_S:
            return ""
        self._looked_s = now_s
        try:
            if not self._allowed.changed():
                return ""
        except KeyFileError as error:
            return f"the allow-list stays as it was: {error}"
        gone = {public for public in self._admitted if not self._allowed.name(public)}
        self._admitted -= gone
        self.closing = bool(gone)
        return f"{len(gone)} key(s) left the allow-list; their connections are closed" if gone else ""


def load_keys(service: ServiceName, settings: Settings) -> Keys | None:
    """Read the key that the settings name, and for a side that binds the allow-list.

    Returns:
        the keys; None when no key is set.

    Raises:
        KeyFileError: a file cannot be used; the text says which and why.
    """
    if not settings.key:
        return None
    own = read_key(Path(settings.key))
    try:
        fits = zmq.curve_public(own.secret.encode()).decode() == own.public
    except (ValueError, zmq.ZMQError):
        fits = False
    if not fits:
        raise KeyFileError(f"{settings.key}: the public and the secret key do not belong together")
    if not any(row.binds == service for row in TOPICS):
        return Keys(own)
    if not own.is_hub:
        raise KeyFileError(f"{settings.key} is the key of a worker; {service} needs that of the hub")
    listed = Path(settings.allowed) if settings.allowed else Path(settings.key).with_name("allowed")
    return Keys(own, AllowList(listed, own))


def new_pair() -> tuple[str, str]:
    """Make a CurveZMQ key pair: public and secret key in Z85."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def may_say(name: str, message: Message) -> bool:
    """Whether a message may come under the key of a worker: as inference, and under its own name.

    Args:
        name: of the key.
        message: what came.
    """
    match message:
        case Beat():
            return message.service == "inference"
        case Credit() | Patch():
            return message.worker.startswith(f"{name}.")
        case _:
            return False


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is no text"
        raise KeyFileError(f"{path} cannot be read: {words}; scripts/gen_keys makes one") from error


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        told = path.stat()
    except OSError:
        return (0, 0, 0)
    return (told.st_ctime_ns, told.st_size, told.st_ino)
