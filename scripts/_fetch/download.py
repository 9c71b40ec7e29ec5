"""Fetch a published file over HTTP, or copy one that is here: what arrives is byte for byte the published file.

A download goes into ``NAME.part`` and is renamed when its SHA-256 is right. It is gone on with by a range request
(RFC 9110, section 14), under the condition that the file has not changed (If-Range, section 13.1.5) where the same
address gave the first part with a strong ETag; the ETag stands in ``NAME.part.json``. The hash has the last word.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

import msgspec

from .catalogue import CATALOGUE, HEAD_BYTES, Entry, recognise

CHUNK_BYTES: Final = 1 << 18
SPARE_BYTES: Final = 1 << 20
"""what must stay free on the disk beside the file"""
PROGRESS_BYTES: Final = 1 << 20
"""a try that brought the download on by so much does not count as failed"""
SLOWEST_BYTES_PER_S: Final = 1024
LONGEST_WAIT_S: Final = 30.0
PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP codes that may be gone at the next try"""


class FetchError(RuntimeError):
    """The file could not be had; the text says why and what to do."""


class WrongFileError(ValueError):
    """A file of the person's own is not the published one; the text says what it seems to be."""


class RefusedError(Exception):
    """A mirror is of no use; the next one is tried."""


class BrokenError(Exception):
    """A try failed in a way that the next one may not."""

    def __init__(self, text: str, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class Watch(Protocol):
    """Who is told how it goes."""

    def reached(self, done_bytes: int) -> None:
        """So much of the file is here; less than before when it begins anew."""

    def say(self, text: str) -> None:
        """Something that a person should know."""


@dataclass(frozen=True)
class Patience:
    """How long a mirror is waited for, and how often it is asked."""

    timeout_s: float = 20.0
    """without a byte; three times as long for less than 1 KiB/s"""
    tries: int = 4
    """in a row that bring nothing, per mirror"""
    first_wait_s: float = 0.5
    """before the second try; doubled each time, 30 s at most"""


class Part:
    """The beginning of a file on the disk, hashed as it grows. Without content it leaves nothing behind.

    Raises:
        FetchError: the disk refuses, with what is written so far kept.
    """

    def __init__(self, folder: Path, entry: Entry) -> None:
        self._entry = entry
        self._path = folder / f"{entry.file}.part"
        self._note = folder / f"{entry.file}.part.json"
        with _disk(self._path):
            self._file = self._path.open("a+b", buffering=0)
            self._file.seek(0)
            self._digest = hashlib.file_digest(self._file, "sha256")
            self.size_bytes = self._file.tell()
        if self.size_bytes > entry.size_bytes or (self.whole and not self.right):
            self.restart()

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return self.size_bytes == self._entry.size_bytes

    @property
    def right(self) -> bool:
        """Whether it is the published file."""
        return self._digest.hexdigest() == self._entry.sha256

    def write(self, data: bytes) -> None:
        """Append."""
        rest = memoryview(data)
        with _disk(self._path):
            while rest:
                written = self._file.write(rest)
                self._digest.update(rest[:written])
                self.size_bytes += written
                rest = rest[written:]

    def restart(self) -> None:
        """Throw away what is there."""
        with _disk(self._path):
            self._file.truncate(0)
            self._note.unlink(missing_ok=True)
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def remember(self, url: str, etag: str) -> None:
        """Keep the ETag of the file at an address."""
        with _disk(self._note):
            self._note.write_bytes(msgspec.json.encode({"address": shown(url), "etag": etag}))

    def etag(self, url: str) -> str:
        """The strong ETag that came with the part if it is of this address, otherwise nothing."""
        try:
            note = msgspec.json.decode(self._note.read_bytes(), type=dict[str, str])
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return ""
        etag = note.get("etag", "")
        return etag if note.get("address") == shown(url) and re.fullmatch(r'"[\x21\x23-\x7e]*"', etag) else ""

    def publish(self, target: Path) -> None:
        """Give it its name, on the disk for good."""
        with _disk(target):
            os.fsync(self._file.fileno())
            self._path.replace(target)
            self._note.unlink(missing_ok=True)
            _sync(target.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self.size_bytes:
            self._path.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)


class Download:
    """One file on its way from one of its mirrors into a part."""

    def __init__(self, entry: Entry, part: Part, patience: Patience, watch: Watch) -> None:
        self._entry = entry
        self._part = part
        self._patience = patience
        self._watch = watch
        self._opener = urllib.request.build_opener()
        self._opener.addheaders = [("User-Agent", "Mouthpiece"), ("Accept", "*/*")]

    def receive(self, url: str) -> None:
        """Make the part whole and right from one address.

        Raises:
            RefusedError: the mirror cannot do it, or not in so many tries.
            FetchError: the disk refuses.
        """
        failed = 0
        furthest_bytes = self._part.size_bytes
        while not self._part.whole:
            try:
                self._try(url)
            except BrokenError as error:
                if self._part.size_bytes >= furthest_bytes + PROGRESS_BYTES:
                    furthest_bytes = self._part.size_bytes
                    failed = 0
                failed += 1
                if failed >= self._patience.tries:
                    raise RefusedError(f"{error} ({failed} tries)") from error
                wait_s = min(max(self._patience.first_wait_s * 2 ** (failed - 1), error.wait_s), LONGEST_WAIT_S)
                self._watch.say(f"{shown(url)}: {error}; trying again in {wait_s:.1f} s")
                time.sleep(wait_s)

    def _try(self, url: str) -> None:
        begun_bytes = self._part.size_bytes
        try:
            with self._ask(url) as response:
                if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                    begun_bytes = 0
                self._look(response, begun_bytes)
                self._fill(response, url, begun_bytes)
        except (OSError, http.client.HTTPException) as error:
            raise BrokenError(_reason(error, self._patience.timeout_s)) from error
        if not self._part.whole:
            raise BrokenError(f"the connection ended after {_mb(self._part.size_bytes)} of {self._of}")
        if not self._part.right:
            self._part.restart()
            if begun_bytes:
                raise BrokenError("its end does not fit what had been fetched before; beginning anew")
            raise RefusedError("its SHA-256 is wrong: this is not the published file")

    def _ask(self, url: str) -> Any:
        """The open answer with its headers read."""
        request = urllib.request.Request(url)  # noqa: S310 - the catalogue and the script let only http and https pass
        if self._part.size_bytes:
            request.add_header("Range", f"bytes={self._part.size_bytes}-")
            etag = self._part.etag(url)
            if etag:
                request.add_header("If-Range", etag)
        try:
            return self._opener.open(request, timeout=self._patience.timeout_s)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and self._part.size_bytes:
                self._part.restart()
                raise BrokenError("it does not have the rest of what was fetched before; beginning anew") from error
            words = f"HTTP {error.code} {error.reason}"
            if error.code not in PASSING:
                raise RefusedError(words) from error
            after = error.headers.get("Retry-After", "")
            raise BrokenError(words, float(after) if re.fullmatch(r"\d{1,6}", after) else 0.0) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise RefusedError(f"its certificate is not trusted: {error.reason.verify_message}") from error
            raise

    def _look(self, response: Any, begun_bytes: int) -> None:
        """Refuse by the headers what cannot be the file, or the part of it that was asked for."""
        headers = response.headers
        if headers.get_content_type() in {"text/html", "application/xhtml+xml"}:
            raise RefusedError("it answers with a web page instead of the file (a log-in, or a network's own page?)")
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            told = headers.get("Content-Range", "")
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", told.strip())
            if span is None or int(span[1]) != begun_bytes or span[2] not in {"*", str(self._entry.size_bytes)}:
                raise RefusedError(f"it sends another part than was asked for (Content-Range: {told or 'none'})")
            return
        length = headers.get("Content-Length", "")
        if response.status != http.HTTPStatus.OK:
            raise RefusedError(f"it answers with HTTP {response.status}")
        if length and length != str(self._entry.size_bytes):
            kind = recognise(response.read1(HEAD_BYTES))
            raise RefusedError(f"it offers {length} bytes instead of {self._entry.size_bytes}; they seem to be {kind}")

    def _fill(self, response: Any, url: str, begun_bytes: int) -> None:
        """Read the answer into the part, after a look at its first bytes where it begins the file."""
        fresh = not begun_bytes
        for data in self._chunks(response):
            if fresh:
                self._begin(data)
                self._part.remember(url, response.headers.get("ETag", ""))
                fresh = False
            if self._part.size_bytes + len(data) > self._entry.size_bytes:
                self._part.restart()
                raise RefusedError(f"it sends more than the {self._entry.size_bytes} bytes of the file")
            self._part.write(data)
            self._watch.reached(self._part.size_bytes)

    def _begin(self, head: bytes) -> None:
        kind = recognise(head[:HEAD_BYTES])
        if head.lstrip().startswith(b"<") or "Git LFS" in kind:
            raise RefusedError(f"it sends {kind} instead of the file")
        if self._part.size_bytes:
            self._watch.say("it sends the whole file instead of the rest; beginning anew")
            self._part.restart()

    def _chunks(self, response: Any) -> Iterator[bytes]:
        """What arrives, unless it trickles."""
        window_s = 3 * self._patience.timeout_s
        since_s, arrived = time.monotonic(), 0
        while data := response.read1(CHUNK_BYTES):
            yield data
            arrived += len(data)
            if time.monotonic() - since_s >= window_s:
                if arrived < SLOWEST_BYTES_PER_S * window_s:
                    raise BrokenError(f"less than {SLOWEST_BYTES_PER_S} bytes a second for {window_s:.0f} s")
                since_s, arrived = time.monotonic(), 0

    @property
    def _of(self) -> str:
        return _mb(self._entry.size_bytes)


def fetch(entry: Entry, urls: Sequence[str], folder: Path, patience: Patience, watch: Watch) -> Path:
    """Fetch a file from the first of some addresses that gives it.

    Returns:
        Its path, ``folder / entry.file``. A file that is there already and right is left as it is.

    Raises:
        FetchError: no address gave it, the disk is full or refuses, or another run is at work in the folder.
            What has arrived stays in the ``.part`` and is gone on with next time.
        WrongFileError: another file has its name.
    """
    target = folder / entry.file
    with _alone(folder):
        if is_right(entry, target):
            return target
        complaints = []
        with Part(folder, entry) as part:
            _need(folder, entry.size_bytes - part.size_bytes)
            watch.reached(part.size_bytes)
            download = Download(entry, part, patience, watch)
            for url in urls:
                try:
                    download.receive(url)
                except RefusedError as error:
                    complaints.append(f"  {shown(url)}: {error}")
                    watch.say(complaints[-1].strip())
                else:
                    part.publish(target)
                    return target
    places = "".join(f"\n  {place}" for place in entry.by_hand)
    raise FetchError(
        "\n".join([f"{entry.file} could not be fetched:", *(complaints or ["  no address is known"])])
        + f"\nTry again later, give another address with --mirror, or fetch it with a browser and use --from:{places}"
    )


def copy(entry: Entry, source: Path, folder: Path) -> Path:
    """Copy a file that was fetched elsewhere, whole or not at all.

    Returns:
        Its path, ``folder / entry.file``.

    Raises:
        WrongFileError: the source, or a file that has its name in the folder, is not the published one.
        FetchError: the disk is full or refuses, or another run is at work in the folder.
    """
    target = folder / entry.file
    with _alone(folder):
        if is_right(entry, target):
            return target
        _check_size(entry, source)
        _need(folder, entry.size_bytes)
        fresh = folder / f"{entry.file}.new"
        digest = hashlib.sha256()
        try:
            with _disk(fresh), source.open("rb") as read, fresh.open("wb") as write:
                while data := read.read(CHUNK_BYTES):
                    digest.update(data)
                    write.write(data)
                write.flush()
                os.fsync(write.fileno())
            if digest.hexdigest() != entry.sha256:
                raise WrongFileError(_otherwise(entry, source))
            with _disk(target):
                fresh.replace(target)
                _sync(folder)
        finally:
            fresh.unlink(missing_ok=True)
    return target


def is_right(entry: Entry, path: Path) -> bool:
    """Whether a path holds the published file; False when nothing is there.

    Raises:
        WrongFileError: something else is there, which is left alone.
    """
    if not path.exists():
        return False
    try:
        _check_size(entry, path)
        with path.open("rb") as file:
            right = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    except OSError as error:
        raise WrongFileError(f"cannot read {path}: {error.strerror}") from error
    if not right:
        raise WrongFileError(_otherwise(entry, path))
    return True


def shown(url: str) -> str:
    """An address without what may be secret in it: user, password, query."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _check_size(entry: Entry, path: Path) -> None:
    if not path.is_file():
        raise WrongFileError(f"{path} is {'not a file' if path.exists() else 'not there'}")
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            kind = recognise(file.read(HEAD_BYTES))
    except OSError as error:
        raise WrongFileError(f"cannot read {path}: {error.strerror}") from error
    if size_bytes != entry.size_bytes:
        twin = next((name for name, other in CATALOGUE.items() if other.size_bytes == size_bytes), "")
        short = " that ends too early" if 0 < size_bytes < entry.size_bytes and "PyTorch" in kind else ""
        hint = f"; {twin} has that size" if twin else short
        raise WrongFileError(
            f"{path} is not the published {entry.file}: it has {size_bytes} bytes instead of {entry.size_bytes} and "
            f"seems to be {kind}{hint}"
        )


def _otherwise(entry: Entry, path: Path) -> str:
    return (
        f"{path} is not the published {entry.file}: it has the right size and another SHA-256, so it is damaged or "
        "was changed"
    )


def _need(folder: Path, missing_bytes: int) -> None:
    with _disk(folder):
        free_bytes = shutil.disk_usage(folder).free
    if free_bytes < missing_bytes + SPARE_BYTES:
        raise FetchError(
            f"the disk of {folder} has {_mb(free_bytes)} free and {_mb(missing_bytes + SPARE_BYTES)} are needed; make "
            "room, or choose another folder with --out"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make a folder and keep other runs out of it; the lock goes with the process, however it ends."""
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _disk(folder):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FetchError(f"another fetch_models is at work in {folder}; let it finish") from error
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into words."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise FetchError(
                f"the disk is full ({error.strerror}) at {path}; make room and run the same command again (a download "
                "goes on where it stopped)"
            ) from error
        raise FetchError(f"cannot write {path}: {error.strerror}") from error


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception, timeout_s: float) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(inner, http.client.IncompleteRead):
        return "the connection broke"
    return (inner.strerror if isinstance(inner, OSError) else None) or str(inner) or type(inner).__name__


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
