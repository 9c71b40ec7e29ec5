"""Run the streamer and its page: `python -m services.streamer`."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2

from services.streamer.photos import Photos
from services.streamer.server import PortTakenError, serve
from services.streamer.stage import Stage
from shared.service import EXIT_FAILED, configured
from shared.settings import LOOPBACK, redacted

DEMO_FACE = Path(__file__).parent.parent / "face_prep" / "assets" / "demo_face.png"


def run() -> int:
    """Serve until a signal."""
    settings, log = configured("streamer")
    cv2.setNumThreads(1)  # pictures are small: more threads wait for each other longer than they work
    try:
        serve(
            settings.host,
            settings.port,
            lambda: Stage(settings, Photos(DEMO_FACE), log),
            token=settings.token,
            local=settings.published in LOOPBACK,
            max_viewers=settings.max_viewers,
            on_ready=lambda url: log.info("the page is at %s ; %s", url, redacted(settings)),
        )
    except PortTakenError as error:
        log.error("%s", error.strerror)  # noqa: TRY400  # the text is meant for a person
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(run())
