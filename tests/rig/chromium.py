"""A real Chromium for the tests of the page."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACES = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """A running browser; without one the test is skipped, under CI it fails."""
    found = next((place for place in PLACES if Path(place).exists()), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is missing; under CI the page must be tested. Install it: apt-get install chromium")
        pytest.skip("Chromium is missing; install it to test the page: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *flags]
        )
        yield running
        running.close()
