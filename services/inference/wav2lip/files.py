"""A folder with a converted Wav2Lip: which files it holds and what is said of them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import msgspec

__all__ = [
    "FACE",
    "GENERATOR",
    "GENERATOR_INT8",
    "MANIFEST",
    "PLAIN",
    "Manifest",
    "PrecisionReport",
    "digest",
    "read_manifest",
    "write_manifest",
]

PLAIN: Final = "wav2lip.xml"
"""the whole network, as published"""
FACE: Final = "face.xml"
"""what depends on the face alone"""
GENERATOR: Final = "generator.xml"
"""what is left for each frame, 32-bit"""
GENERATOR_INT8: Final = "generator_int8.xml"
"""the same, most layers in 8 bits"""
MANIFEST: Final = "model.json"
FORMAT: Final = 1
MOST_BYTES: Final = 1 << 20
PIECE: Final = 1 << 20


class PrecisionReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How near the lower half of the picture comes to the original in one precision."""

    max_difference: float
    """largest difference of a pixel value, 0..1"""
    worst_psnr_db: float
    """of the worst window, dB"""
    windows: int
    """how many were compared"""
    kept: tuple[str, ...] = ()
    """layers that stay in a higher precision"""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of the converted model."""

    source: str
    """what it was made from: "checkpoint" or "ir" """
    source_sha256: str
    digest: str
    """SHA-256 over the files of the networks"""
    known_as: str = ""
    """name of the published weights if the source is known by its hash"""
    precisions: dict[str, PrecisionReport] = {}
    """by name: f32, bf16, f16, int8"""
    format: int = FORMAT


def digest(folder: Path) -> str:
    """SHA-256 over name and bytes of all ``.xml`` and ``.bin`` of a folder, in order of their names; hexadecimal."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".xml", ".bin")):
        whole.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                whole.update(piece)
    return whole.hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """What is said of a converted model; None if there is no manifest.

    Raises:
        ValueError: it is there and cannot be understood; the text says what to do.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(
                f"{path} is larger than {MOST_BYTES} bytes; convert the model again: scripts/convert_model"
            )
        found = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}; convert the model again: scripts/convert_model") from error
    if found.format != FORMAT:
        raise ValueError(f"{path} has format {found.format}, this version reads {FORMAT}; convert the model again")
    return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it whole or not at all."""
    path = folder / MANIFEST
    draft = path.with_suffix(".tmp")
    with draft.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
