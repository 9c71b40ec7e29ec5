"""Run mel extraction: `python -m services.mel_features`."""

from __future__ import annotations

import sys

from services.mel_features.service import MelFeatures
from shared.bus import Bus
from shared.service import Tally, main
from shared.settings import Settings


def build(_settings: Settings, bus: Bus, tally: Tally) -> MelFeatures:
    """Nothing to load."""
    return MelFeatures(bus, tally)


if __name__ == "__main__":
    sys.exit(main("mel_features", build))
