"""The engine, the images (built once) and the stack that the tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.budgets import COMPOSE_BUILD_S, COMPOSE_READY_S
from tests.compose.engine import NoEngineError, base_image, engine, package_index
from tests.compose.project import HUB_FILES, Project, composer
from tests.rig.stack import until


@pytest.fixture(scope="session")
def docker() -> Iterator[tuple[dict[str, str], str]]:
    """An engine and the name of the base image; where there is none the tests are skipped, with the reason."""
    if not composer():
        pytest.skip("containers are not tested: compose is missing (apt-get install docker-compose)")
    try:
        with engine(dict(os.environ)) as environment:
            yield environment, base_image(environment)
    except NoEngineError as error:
        pytest.skip(f"containers are not tested: {error}")


@pytest.fixture(scope="session")
def images(docker: tuple[dict[str, str], str]) -> Project:
    """All images, built as `docker compose build` does."""
    environment, base = docker
    project = Project(environment, base, package_index(environment))
    project.compose("build", timeout_s=COMPOSE_BUILD_S)
    return project


@pytest.fixture(scope="module")
def stack(images: Project) -> Iterator[Project]:
    """The whole of it, up and talking."""
    try:
        images.compose("up", "--detach", "--no-build")
        until(images.ready, COMPOSE_READY_S, "all services alive and the face prepared")
        yield images
    except (AssertionError, TimeoutError) as error:
        raise AssertionError(f"{error}\n{images.compose('logs', '--no-color', '--tail', '40')}") from error
    finally:
        images.compose("down", "--volumes", "--remove-orphans", "--timeout", "3", files=HUB_FILES, HUB="127.0.0.1")
