"""Which engine runs: chosen by the settings, and by what lies on the disk."""

from __future__ import annotations

from typing import Any

from services.inference.builtin.basis import BasisError
from services.inference.builtin.drive import SpeechError
from services.inference.builtin.engine import BuiltinEngine, LivingEngine
from services.inference.engine import Engine
from services.inference.model import fingerprint, wanted
from shared.settings import Settings

__all__ = ["load"]


def load(settings: Settings) -> tuple[Engine[Any], dict[str, str]]:
    """Load the engine that the settings name.

    Returns:
        the engine, and what is to be said of it.

    Raises:
        ValueError: it cannot be loaded; the text says what to do.
    """
    engine: Engine[Any]
    told = {"device": "CPU", "threads": str(settings.worker_threads)}
    if wanted(settings) == "wav2lip":
        from services.inference.wav2lip.engine import Wav2LipEngine  # noqa: PLC0415  # OpenVINO only where it is used

        engine = Wav2LipEngine(
            settings.wav2lip_path, settings.device, settings.precision, settings.alignment, settings.worker_threads
        )
        told["device"] = settings.device
    else:
        try:
            engine = BuiltinEngine(settings.models_path / "builtin")
            if settings.life == "yes":
                engine = LivingEngine(engine)
        except (BasisError, SpeechError) as error:
            raise ValueError(str(error)) from error
    return engine, {**told, **engine.info, "model": fingerprint(settings)}
