"""The page in a real browser: what a person does reaches the server, and what the server says is seen."""

from __future__ import annotations

import base64
import functools
import io
import wave
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest

from services.streamer.connections import BODY_S
from tests.web.conftest import until
from tests.web.standin import drawing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.web.conftest import Server

    Serve = Callable[..., AbstractContextManager[Server]]

WAIT_S = 10.0
SEEN = "document.getElementById('picture').naturalWidth > 0 || window.mouthpiecePlayer?.hasPicture"


class Page:
    """A page, and all that the browser complained about."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, url: str) -> Any:
        # The stream never ends, so the page is never "loaded" for good.
        self.page.goto(url, wait_until="domcontentloaded")
        self.until(SEEN)
        return self.page

    def until(self, expression: str) -> None:
        """Wait until an expression is true (the browser's own waiting needs eval, which the page's policy forbids)."""
        assert until(lambda: self.page.evaluate(expression), WAIT_S), expression

    def mouth(self) -> bytes:
        """What is seen of the mouth."""
        box = self.page.locator("#canvas:visible, #picture:visible").first.bounding_box()
        clip = {"x": box["x"] + box["width"] * 0.3, "y": box["y"] + box["height"] * 0.55}
        clip |= {"width": box["width"] * 0.4, "height": box["height"] * 0.3}
        shot: bytes = self.page.screenshot(clip=clip)
        return shot


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    yield Page(context.new_page())
    context.close()


def photo(words: bytes = b"") -> bytes:
    return cv2.imencode(".jpg", drawing(3, 96))[1].tobytes() + words


def sound(seconds: float) -> bytes:
    """A tone as stereo WAV at 44.1 kHz."""
    tone = np.sin(np.arange(int(44_100 * seconds)) * 0.05) * 8000
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((2, 2, 44_100, 0, "NONE", ""))
        file.writeframes(np.repeat(tone.astype("<i2"), 2).tobytes())
    return buffer.getvalue()


def give(page: Any, kind: str, data: bytes, name: str, mime: str) -> None:
    """Let a file fall onto the page, or paste it, as a person does: by a real DataTransfer."""
    page.evaluate(
        """([kind, text, name, mime]) => {
            const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], name, { type: mime }));
            const options = { bubbles: true, cancelable: true };
            if (kind === "paste") {
                document.body.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: carried }));
            } else {
                for (const step of ["dragenter", "dragover", "drop"]) {
                    document.body.dispatchEvent(new DragEvent(step, { ...options, dataTransfer: carried }));
                }
            }
        }""",
        [kind, base64.b64encode(data).decode(), name, mime],
    )


def test_start_moves_the_face_and_stop_stills_it(serve: Serve, page: Page) -> None:
    with serve() as server:
        web = page.open(server.url)
        web.get_by_role("button", name="Start").click()
        page.until("document.getElementById('pill-text').textContent.startsWith('Live')")
        first = page.mouth()
        assert until(lambda: page.mouth() != first, WAIT_S)
        meter = web.get_by_role("meter", name="Level")
        assert until(lambda: meter.get_attribute("aria-valuenow") == "-18", WAIT_S)
        web.get_by_role("button", name="Stop").click()
        page.until("document.getElementById('pill-text').textContent === 'Paused'")

        def still() -> bool:
            before = page.mouth()
            web.wait_for_timeout(300)
            return page.mouth() == before

        assert until(still, WAIT_S)
        web.get_by_role("button", name="Clear").click()
        assert until(lambda: ["clear", None] in server.calls(), WAIT_S)
        assert [name for name, _ in server.calls() if name != "heard"] == ["start", "stop", "clear"]
        assert page.complaints == []


def _last_call_is(server: Server, wanted: list[Any]) -> bool:
    return server.calls()[-1:] == [wanted]


def test_a_photo_comes_in_by_button_drop_and_paste(serve: Serve, page: Page) -> None:
    with serve() as server:
        web = page.open(server.url)
        data = photo(b"three faces")
        for way in ("button", "drop", "paste"):
            if way == "button":
                web.set_input_files("#photo", {"name": "me.jpg", "mimeType": "image/jpeg", "buffer": data})
            else:
                give(web, way, data, "me.jpg", "image/jpeg")
            wanted = ["upload", [len(data), 0, None]]
            assert until(functools.partial(_last_call_is, server, wanted), WAIT_S), way
            web.get_by_text("Your photo is ready.").wait_for()
            assert web.locator("#dropping").is_hidden()
            data += b"."
        web.get_by_role("button", name="Face 3").click()
        page.until("document.querySelectorAll('.chip')[2].getAttribute('aria-pressed') === 'true'")
        assert server.calls()[-1] == ["face", 2]
        assert page.complaints == []


def test_a_link_with_the_token_in_a_foreign_page_opens_ours(serve: Serve, page: Page) -> None:
    token = "a long secret of a test"  # noqa: S105
    with serve(f"token={token}") as server:
        mail = f'<a href="{server.url}?token={quote(token)}">Have a look</a>'
        page.page.route("http://mail.example/", lambda route: route.fulfill(body=mail, content_type="text/html"))
        page.page.goto("http://mail.example/")
        page.page.get_by_role("link", name="Have a look").click(no_wait_after=True)
        page.page.wait_for_url(server.url, wait_until="commit")
        page.until(SEEN)


def test_words_of_the_server_are_shown(serve: Serve, page: Page) -> None:
    with serve("nomic=1", "down=inference") as server:
        web = page.open(server.url)
        status = web.get_by_role("status")
        assert "No microphone was found" in status.inner_text()
        # Where the server is the same machine a microphone of its own that it lacks is not offered.
        assert web.locator("[data-source=mic]").is_hidden()
        assert "not answering" in web.locator("[data-name=inference]").inner_text()
        give(web, "drop", photo(b"no face"), "wall.jpg", "image/jpeg")
        web.get_by_text("There is no face in this photo.").wait_for()
        give(web, "drop", b"words", "notes.txt", "text/plain")
        web.get_by_text("This is not a JPEG, PNG or WebP picture").wait_for()
        give(web, "drop", photo(bytes(11_000_000)), "big.jpg", "image/jpeg")
        web.get_by_text("larger than 10 MB").wait_for()
        # The browser itself notes each answer that is a 4xx; nothing else may be there.
        assert [c for c in page.complaints if "status of 4" not in c] == []


def test_own_sound_file_is_spoken(serve: Serve, page: Page) -> None:
    with serve() as server:
        web = page.open(server.url)
        web.get_by_role("radio", name="A sound file").check()
        choose = web.locator("#sound")
        choose.set_input_files({"name": "talk.wav", "mimeType": "audio/wav", "buffer": sound(1.5)})
        spoken = web.get_by_text("Speaking “talk.wav” (2 s).")
        spoken.wait_for()
        spoken.wait_for(state="detached")
        assert server.calls() == [["speak", 24_000]]
        choose.set_input_files({"name": "broken.mp3", "mimeType": "audio/mpeg", "buffer": b"no sound at all"})
        web.get_by_text("This browser cannot read the sound in “broken.mp3”").wait_for()
        assert page.complaints == []


def test_that_the_server_did_not_answer_is_said_until_it_does(serve: Serve, page: Page) -> None:
    page.page.route("**/requests", lambda route: route.abort(), times=1)
    with serve() as server:
        web = page.open(server.url)
        web.get_by_role("button", name="Start").click()
        words = web.get_by_text("The server does not answer. Check that it runs")
        words.wait_for()
        words.wait_for(state="detached")


def test_a_line_too_slow_for_the_file_is_said(serve: Serve, page: Page) -> None:
    page.page.add_init_script(
        """const after = AbortSignal.timeout.bind(AbortSignal);
        AbortSignal.timeout = (ms) => {
            window.mostMs = Math.max(window.mostMs ?? 0, ms);
            return after(ms > 60_000 ? 200 : ms);
        };"""
    )
    page.page.route("**/upload", lambda _route: None)  # nothing comes back
    with serve() as server:
        web = page.open(server.url)
        give(web, "drop", photo(), "me.jpg", "image/jpeg")
        web.get_by_text("Sending took too long.").wait_for()
        assert web.evaluate("mostMs") > 1000 * BODY_S  # the server gives up first, and says so
        assert web.locator("#veil").is_hidden()


def test_keyboard_alone_is_enough(serve: Serve, page: Page) -> None:
    with serve() as server:
        web = page.open(server.url)
        seen = set()
        for _ in range(20):
            web.keyboard.press("Tab")
            seen.add(
                web.evaluate("document.activeElement.id || document.activeElement.value || document.activeElement.href")
            )
        assert {"start", "clear", "photo", "demo"} <= seen
        web.focus("#start")
        web.keyboard.press("Enter")
        assert until(lambda: ["start", None] in server.calls(), WAIT_S)


def test_picture_comes_back_after_the_server_was_gone(serve: Serve, page: Page) -> None:
    with serve() as server:
        page.open(server.url)
        port = int(server.url.rstrip("/").rsplit(":", 1)[1])
        assert server.stop() == 0
        page.until("document.getElementById('pill-text').textContent.startsWith('Reconnecting')")
    with serve(port=port) as server:
        page.until("document.getElementById('pill-text').textContent === 'Paused'")
        assert until(lambda: len(server.told()["viewers"]) == 1, WAIT_S)
        page.until("mouthpiecePlayer.hasPicture")


@pytest.mark.parametrize("width", [390, 320])
def test_phone_needs_no_sideways_scrolling(server: Server, browser: Any, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844})
    web = Page(context.new_page()).open(server.url)
    assert web.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_forms_work_without_scripts(serve: Serve, browser: Any) -> None:
    with serve() as server:
        context = browser.new_context(java_script_enabled=False)
        web = context.new_page()
        web.goto(server.url, wait_until="commit")
        web.get_by_role("button", name="Start").click()
        assert until(lambda: ["start", None] in server.calls(), WAIT_S)
        web.set_input_files("#photo", {"name": "me.jpg", "mimeType": "image/jpeg", "buffer": photo()})
        web.get_by_role("button", name="Send it").click()
        assert until(lambda: any(name == "upload" for name, _ in server.calls()), WAIT_S)
        context.close()


def test_sound_waits_for_a_touch(serve: Serve, page: Page) -> None:
    # A browser that is steered counts as touched from the start; this says otherwise until there is a real click.
    page.page.add_init_script(
        """addEventListener("pointerdown", () => { window.touched = true; }, true);
        Object.defineProperty(Navigator.prototype, "userActivation",
            { get: () => ({ hasBeenActive: Boolean(window.touched) }) });"""
    )
    with serve("run=1") as server:
        web = page.open(server.url)
        button = web.get_by_role("button", name="Sound on")
        button.wait_for()
        page.until("mouthpiecePlayer.stats().drawn > 5")
        assert not web.evaluate("mouthpiecePlayer.sounding")
        button.click()
        web.get_by_role("button", name="Mute").click()
        button.wait_for()
        assert not web.evaluate("mouthpiecePlayer.sounding")
        assert page.complaints == []


def test_without_web_sockets_the_plain_stream_is_shown(serve: Serve, page: Page) -> None:
    page.page.add_init_script(
        """window.WebSocket = class extends WebSocket {
            constructor(url) { super(String(url).replace("/ws/", "/nowhere/")); }
        };"""
    )
    with serve("run=1") as server:
        page.open(server.url)
        first = page.mouth()
        assert until(lambda: page.mouth() != first, WAIT_S)
        assert page.page.locator("#picture").is_visible()


def test_a_player_at_the_end_of_a_dead_line_connects_again(serve: Serve, page: Page) -> None:
    with serve() as server:
        with page.page.expect_websocket() as opened:
            web = page.open(server.url)
        opened.value.wait_for_event("framesent", lambda data: '"here"' in str(data))
        web.evaluate(
            """() => {
                const player = mouthpiecePlayer;
                const dead = player.socket;
                for (const name of ["hear", "receive"]) {
                    const does = player[name];
                    player[name] = (what) => { if (player.socket !== dead) does.call(player, what); };
                }
            }"""
        )
        assert server.post("requests", data={"start": "Start"}).ok
        page.until("mouthpiecePlayer.stats().reconnects === 1")
        page.until("mouthpiecePlayer.running && mouthpiecePlayer.hasPicture")
        assert page.complaints == []


def test_a_page_acts_on_its_session(serve: Serve, page: Page) -> None:
    with serve() as server:
        assert server.post("api/sessions", json={"name": "ada"}).ok
        page.page.add_init_script("delete URLSearchParams.prototype.size")  # as in browsers before 2023
        web = page.open(server.url + "?session=ada")
        web.get_by_text("Session ada").wait_for()
        web.get_by_role("button", name="Start").click()
        assert until(lambda: ["start", None] in server.told()["sessions"]["ada"], WAIT_S)
        web.get_by_role("button", name="Stop").wait_for()
        assert server.calls() == []
        assert page.complaints == []


def test_recordings_are_made_listed_and_deleted(serve: Serve, page: Page) -> None:
    with serve("run=1") as server:
        web = page.open(server.url)
        web.get_by_role("button", name="Record", exact=True).click()
        web.get_by_text("being made").wait_for()
        assert until(lambda: "0:01" in web.locator("#record-text").inner_text(), WAIT_S)
        web.get_by_role("button", name="Stop recording").click()
        with web.expect_download() as download:
            web.get_by_role("link", name="Download the recording").click()
        assert download.value.suggested_filename.endswith(".mp4")
        page.until("document.querySelector('.thumbnail').naturalWidth > 0")
        web.get_by_role("button", name="Delete the recording").click()
        assert len(server.get("api/sessions/default/recordings").json()["recordings"]) == 1  # it asks first
        web.get_by_role("button", name="Really?").click()
        web.get_by_text("is deleted").wait_for()
        assert server.get("api/sessions/default/recordings").json()["recordings"] == []
        assert page.complaints == []


def test_recordings_are_there_though_the_first_look_at_them_failed(serve: Serve, page: Page) -> None:
    page.page.route("**/recordings", lambda route: route.abort(), times=1)
    with serve("run=1") as server:
        web = page.open(server.url)
        web.get_by_role("button", name="Record", exact=True).click()
        web.get_by_text("being made").wait_for()


@pytest.mark.parametrize(
    ("asked", "colour"),
    [
        ("transparent", "rgba(0, 0, 0, 0)"),
        ("green", "rgb(0, 177, 64)"),
        ("%23123456", "rgb(18, 52, 86)"),
        ("url(//x)", "rgb(0, 0, 0)"),
    ],
)
def test_bare_page_has_the_background_asked_for(server: Server, page: Page, asked: str, colour: str) -> None:
    web = page.open(f"{server.url}view/default?sound=off&background={asked}")
    assert web.evaluate("getComputedStyle(document.body).backgroundColor") == colour
    assert web.locator("button, a, input").count() == 0
    assert page.complaints == []


def test_bare_page_of_no_session_says_so(server: Server) -> None:
    answer = server.get("view/nobody", headers={"Accept": "text/html"})
    assert answer.status_code == HTTPStatus.NOT_FOUND
    assert "There is no session" in answer.text
