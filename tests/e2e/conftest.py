"""A running stack for each module, and what a module's tests have in common."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import pytest
import skimage.data

from tests.rig.stack import Stack


@pytest.fixture(scope="session")
def astronaut() -> bytes:
    """A public-domain photo of a smiling face, JPEG."""
    done, data = cv2.imencode(".jpg", skimage.data.astronaut()[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert done
    return data.tobytes()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The services with the demo speech and face, talking."""
    with Stack(tmp_path_factory.mktemp("stack") / "var") as running:
        yield running
