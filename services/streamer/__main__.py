"""Run the streamer and its page: `python -m services.streamer`."""

from __future__ import annotations

import sys

import cv2

from services.streamer.server import CertificateError, PortTakenError, serve
from services.streamer.stage import Stage
from shared.service import EXIT_FAILED, configured
from shared.settings import LOOPBACK, redacted


def run() -> int:
    """Serve until a signal."""
    settings, log = configured("streamer")
    cv2.setNumThreads(1)  # pictures are small: more threads wait for each other longer than they work
    try:
        serve(
            settings.host,
            settings.port,
            lambda: Stage(settings, log),
            token=settings.token,
            names=tuple(filter(None, settings.names.split(","))),
            local=settings.published in LOOPBACK,
            tls=(settings.tls_cert, settings.tls_key) if settings.tls_cert else None,
            max_viewers=settings.max_viewers,
            max_sessions=settings.max_sessions,
            on_ready=lambda url: log.info("the page is at %s ; %s", url, redacted(settings)),
        )
    except (PortTakenError, CertificateError) as error:
        log.error("%s", error.args[-1])  # noqa: TRY400  # the text is meant for a person
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(run())
