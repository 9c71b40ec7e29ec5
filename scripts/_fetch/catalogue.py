"""What can be fetched: name, size, SHA-256, licence and addresses of each published file; and what a file seems to be.

The sizes and hashes are those that several public mirrors state alike. A mirror that saved the weights anew, so that
its hash is not known, is not here: only a file that is byte for byte the published one is accepted.
"""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]

WAV2LIP_LICENCE: Final = (
    "The Wav2Lip weights were trained on LRS2, which the BBC gives out for research. Their authors let them be used "
    "for personal purposes and research only; commercial use is not allowed. Mouthpiece's own licence does not cover "
    "them."
)
RETINAFACE_LICENCE: Final = (
    "RetinaFace (MobileNet 0.25), from biubug6's PyTorch port, whose code is under the MIT licence. The weights were "
    "trained on WIDER FACE, a data set that is given out for research; ask its authors before any other use. "
    "Mouthpiece's own licence does not cover them."
)
HEAD_BYTES: Final = 64
"""how much of a file ``recognise`` wants to see"""
STARTS: Final = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer: 130 bytes that stand for the file in a repository",
    ),
    (b"PK\x03\x04", "a zip: weights saved by a newer PyTorch, or an archive"),
    (b"\x80", "weights saved by an older PyTorch, or another pickle"),
    (b"\x08", "perhaps an ONNX model"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
)


class CatalogueError(ValueError):
    """A catalogue file is not one; the text says where."""


def check_address(url: str) -> None:
    """Let only whole http and https addresses pass.

    Raises:
        ValueError: it is none; the text says why.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not url.isascii() or not url.isprintable():
        raise ValueError(f"{url!r} is not an address that begins with https:// or http://")
    if parts.username is not None or parts.port == 0 or " " in url:
        raise ValueError(f"an address must hold no user name, no blank and no port 0: the one at {parts.hostname} does")


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One published file."""

    file: Name
    """its name in the folder of downloads"""
    size_bytes: Annotated[int, msgspec.Meta(gt=0)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    licence: str
    """what a person must know and accept, in words"""
    mirrors: tuple[str, ...] = ()
    """addresses that give the file to a program, tried in this order"""
    by_hand: tuple[str, ...] = ()
    """places where a person with a browser finds it"""
    convert: Literal["wav2lip", "detector", "no"] = "no"
    """which converter makes a model of it"""

    def __post_init__(self) -> None:
        for url in self.mirrors:
            check_address(url)


CATALOGUE: Final[dict[str, Entry]] = {
    "wav2lip": Entry(
        file="wav2lip.pth",
        size_bytes=435_807_851,
        sha256="b78b681b68ad9fe6c6fb1debc6ff43ad05834a8af8a62ffc4167b7b34ef63c37",
        licence=WAV2LIP_LICENCE,
        mirrors=(
            "https://huggingface.co/Nekochu/Wav2Lip/resolve/main/wav2lip.pth",
            "https://huggingface.co/rippertnt/wav2lip/resolve/main/checkpoints/wav2lip.pth",
            "https://github.com/Winfredy/SadTalker/releases/download/v0.0.2/wav2lip.pth",
        ),
        by_hand=("Google Drive, folder 153HLrqlBNxzZcHi17PEvP09kkAfzRshM, Wav2Lip (not GAN)",),
        convert="wav2lip",
    ),
    "wav2lip_gan": Entry(
        file="wav2lip_gan.pth",
        size_bytes=435_801_865,
        sha256="ca9ab7b7b812c0e80a6e70a5977c545a1e8a365a6c49d5e533023c034d7ac3d8",
        licence=WAV2LIP_LICENCE,
        mirrors=(
            "https://huggingface.co/camenduru/Wav2Lip/resolve/main/checkpoints/wav2lip_gan.pth",
            "https://huggingface.co/numz/wav2lip_studio/resolve/main/Wav2lip/wav2lip_gan.pth",
            "https://huggingface.co/Nekochu/Wav2Lip/resolve/main/wav2lip_gan.pth",
        ),
        by_hand=("Google Drive, file 15G3U08c8xsCkOqQxE38Z2XXDnPcOptNk",),
        convert="wav2lip",
    ),
    "mobilenet": Entry(
        file="mobilenet.pth",
        size_bytes=1_789_735,
        sha256="2979b33ffafda5d74b6948cd7a5b9a7a62f62b949cef24e95fd15d2883a65220",
        licence=RETINAFACE_LICENCE,
        mirrors=(
            "https://github.com/elliottzheng/face-detection/releases/download/0.0.1/mobilenet0.25_Final.pth",
            "https://github.com/xinntao/facexlib/releases/download/v0.1.0/detection_mobilenet0.25_Final.pth",
        ),
        convert="detector",
    ),
}


def read_catalogue(path: Path | None) -> dict[str, Entry]:
    """The built-in catalogue, with the entries of a JSON file laid over it.

    The file is an object of entries by name. A field given there replaces that of the entry of the same name, so
    ``{"wav2lip": {"mirrors": ["https://models.example/wav2lip.pth"]}}`` is a whole file; a new name needs the fields
    ``file``, ``size_bytes``, ``sha256`` and ``licence``.

    Raises:
        CatalogueError: the file cannot be read, is not JSON, or an entry lacks a field or has a wrong or unknown one.
    """
    entries = dict(CATALOGUE)
    if path is None:
        return entries
    try:
        given = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Any]])
        for name, fields in given.items():
            known: dict[str, Any] = msgspec.to_builtins(entries[name]) if name in entries else {}
            entries[name] = msgspec.convert({**known, **fields}, Entry)
    except OSError as error:
        raise CatalogueError(f"cannot read the catalogue {path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise CatalogueError(f"the catalogue {path} is wrong: {error}") from error
    except msgspec.DecodeError as error:
        raise CatalogueError(f"the catalogue {path} is not JSON: {error}") from error
    return entries


def recognise(head: bytes) -> str:
    """What a file seems to be, in words, by its first bytes (``HEAD_BYTES`` of them, or all if it is shorter)."""
    if not head:
        return "an empty file"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "an XML file, perhaps an OpenVINO model" if b"<?xml" in head else "a web page"
    if head[8:9] == b"{" and not any(head[4:8]):
        return "a safetensors file"
    return next((kind for start, kind in STARTS if head.startswith(start)), "no kind of file that is known here")
