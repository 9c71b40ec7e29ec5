"""Which model runs, and its fingerprint: all workers of a hub must draw with the same one."""

from __future__ import annotations

import hashlib
from typing import Final

from shared.settings import Settings

__all__ = ["fingerprint", "wanted"]

BUILTIN: Final = ("motion.npz", "speech.bin", "speech.xml")


def wanted(settings: Settings) -> str:
    """Name the engine that the settings choose: `builtin` or `wav2lip`."""
    return (
        "wav2lip" if settings.engine == "wav2lip" or (settings.engine == "auto" and settings.has_wav2lip) else "builtin"
    )


def fingerprint(settings: Settings) -> str:
    """Give the SHA-256 over the files of the model that the settings choose.

    Of a converted Wav2Lip it is that of the plain network; what was split and quantised from it belongs to the box.

    Returns:
        64 hexadecimal digits; empty when no model lies there.
    """
    if wanted(settings) == "wav2lip":
        path = settings.wav2lip_path
        network = path if path.is_file() else path / "wav2lip.xml"
        files = [network, network.with_suffix(".bin")]
    else:
        files = [settings.models_path / "builtin" / name for name in BUILTIN]
    files = [path for path in files if path.is_file()]
    if not files:
        return ""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
