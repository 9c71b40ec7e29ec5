"""The pages are usable by keyboard and screen reader: axe-core finds nothing, the order is that of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.budgets import PLAYER_WAIT_S
from tests.web.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.web.conftest import Server

    Serve = Callable[..., AbstractContextManager[Server]]

LOOKS = {
    "light": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
    "phone dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


@pytest.fixture
def look(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    # axe-core is put into the page by evaluate, which the page's own policy would forbid.
    context = browser.new_context(bypass_csp=True, reduced_motion="reduce", **LOOKS[request.param])
    yield context.new_page()
    context.close()


def complaints(page: Any) -> list[str]:
    """What axe-core finds."""
    found = Axe().run(page, options=RULES).response["violations"]
    return [f"{rule['id']}: {node['html'][:160]}" for rule in found for node in rule["nodes"]]


def shown(page: Any, url: str) -> Any:
    page.goto(url, wait_until="domcontentloaded")
    assert until(lambda: page.evaluate("mouthpiecePlayer.stats().drawn > 0"), PLAYER_WAIT_S)
    return page


@pytest.mark.parametrize("look", LOOKS, indirect=True)
def test_axe_finds_nothing(serve: Serve, look: Any) -> None:
    with serve() as server:
        page = shown(look, server.url)
        assert complaints(page) == []
        page.get_by_role("button", name="Start").click()
        page.get_by_role("button", name="Record", exact=True).click()
        page.get_by_role("button", name="Stop recording").click()
        page.get_by_role("button", name="Delete the recording").wait_for()
        page.get_by_role("radio", name="My microphone").check()
        assert complaints(page) == []
        page.get_by_role("radio", name="A sound file").check()
        assert complaints(page) == []


@pytest.mark.parametrize("look", ["light", "phone"], indirect=True)
def test_axe_finds_nothing_when_much_is_wrong(serve: Serve, look: Any) -> None:
    with serve("nomic=1", "down=inference") as server:
        page = shown(look, server.url)
        page.set_input_files("#photo", {"name": "me.jpg", "mimeType": "image/jpeg", "buffer": b"no photo"})
        page.get_by_text("This is not a JPEG, PNG or WebP picture").wait_for()
        assert complaints(page) == []


@pytest.mark.parametrize("look", ["light"], indirect=True)
def test_axe_finds_nothing_on_the_bare_page_and_in_errors(serve: Serve, look: Any) -> None:
    with serve() as server:
        assert complaints(shown(look, server.url + "view/default")) == []
        look.goto(server.url + "nowhere", wait_until="domcontentloaded")
        assert complaints(look) == []


@pytest.mark.parametrize("look", ["light"], indirect=True)
def test_focus_goes_down_the_page(serve: Serve, look: Any) -> None:
    """By Tab alone everything is reached, in the order in which it is seen; each thing has a name."""
    with serve() as server:
        page = shown(look, server.url)
        page.get_by_role("button", name="Record", exact=True).wait_for()
        seen = []
        for _ in range(30):
            page.keyboard.press("Tab")
            here = page.evaluate(
                "document.activeElement.id || document.activeElement.value || document.activeElement.href"
            )
            if here in seen:
                break
            seen.append(here)
        wanted = ["sound-button", "start", "record", "clear", "photo", "demo"]
        assert [name for name in seen if name in wanted] == wanted
        # The choice of the voice is one stop; arrows go through it.
        page.focus("input[value=demo]")
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.value") == "network"
        page.get_by_text("Choose a sound file").wait_for()


@pytest.mark.parametrize("look", ["light"], indirect=True)
def test_focus_stays_when_start_turns_into_stop(serve: Serve, look: Any) -> None:
    with serve() as server:
        page = shown(look, server.url)
        page.focus("#start")
        page.keyboard.press("Enter")
        assert until(lambda: page.evaluate("document.activeElement.id") == "stop", PLAYER_WAIT_S)
        page.keyboard.press("Enter")
        assert until(lambda: page.evaluate("document.activeElement.id") == "start", PLAYER_WAIT_S)
        assert ["stop", None] in server.calls()
