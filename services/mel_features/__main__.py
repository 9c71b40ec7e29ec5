"""Run mel extraction: `python -m services.mel_features`."""

from __future__ import annotations

import sys

from services.inference.model import fingerprint, wanted
from services.mel_features.service import MelFeatures
from shared.bus import Bus
from shared.service import Tally, main
from shared.settings import Settings


def build(settings: Settings, bus: Bus, tally: Tally) -> MelFeatures:
    """Nothing to load; but what the workers draw with has to be what the hub has."""
    return MelFeatures(bus, tally, wanted(settings), fingerprint(settings))


if __name__ == "__main__":
    sys.exit(main("mel_features", build))
