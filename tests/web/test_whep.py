"""WHEP: players that speak WebRTC get picture and sound, in step; who may not come is told why."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import requests
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.rtp import RtcpSrPacket

from services.streamer import whep
from services.streamer.app import create_app
from services.streamer.guard import Guard
from services.streamer.webrtc import MOST_PEERS
from tests.budgets import WHEP_BROWSER_SKEW_S, WHEP_FRAMES_HZ, WHEP_PLAYERS, WHEP_SKEW_S, WHEP_WAIT_S, WHEP_WATCH_S
from tests.web.conftest import until
from tests.web.standin import StandIn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractContextManager

    import numpy.typing as npt

    from tests.web.conftest import Server

    Serve = Callable[..., AbstractContextManager[Server]]

SDP = {"Content-Type": "application/sdp"}


@dataclass
class Heard:
    """What a receiver got of one track, and the sender's clock for it: that is how players keep lips in step."""

    frames: list[Any] = field(default_factory=list)
    first: int | None = None
    """RTP time of the first packet"""
    report: tuple[float, int] | None = None
    """the last sender report: sender's clock, s; RTP time"""

    def listen(self, receiver: Any) -> None:
        rtp, rtcp = receiver._handle_rtp_packet, receiver._handle_rtcp_packet

        async def media(packet: Any, arrival_time_ms: int) -> None:
            self.first = packet.timestamp if self.first is None else self.first
            await rtp(packet, arrival_time_ms)

        async def report(packet: Any) -> None:
            if isinstance(packet, RtcpSrPacket):
                info = packet.sender_info
                self.report = (info.ntp_timestamp / 2**32, info.rtp_timestamp)
            await rtcp(packet)

        receiver._handle_rtp_packet, receiver._handle_rtcp_packet = media, report

    def sent_s(self, pts: float, rate_hz: int) -> float:
        """When a moment of the track was, by the sender's clock."""
        assert self.report is not None
        assert self.first is not None
        return self.report[0] + (self.first + pts - self.report[1]) / rate_hz


class Player:
    """A WHEP client."""

    def __init__(self, server: Server, session: str = "default") -> None:
        self.url = f"{server.url}whep?session={session}"
        self.server = server
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.video, self.audio = Heard(), Heard()
        self.resource = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def offer(self, *kinds: str, codec: str = "") -> str:
        for kind in kinds:
            transceiver = self.pc.addTransceiver(kind, "recvonly")
            (self.video if kind == "video" else self.audio).listen(transceiver.receiver)
            if codec:
                known = RTCRtpReceiver.getCapabilities(kind)
                assert known is not None
                transceiver.setCodecPreferences([c for c in known.codecs if c.mimeType == codec])
        self.pc.on("track", lambda track: self._tasks.append(asyncio.ensure_future(self._take(track))))
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return str(self.pc.localDescription.sdp)

    async def _take(self, track: Any) -> None:
        heard = self.video if track.kind == "video" else self.audio
        while True:
            heard.frames.append(await track.recv())

    async def play(self, *kinds: str, codec: str = "") -> None:
        answer = await post(self.url, await self.offer(*(kinds or ("video", "audio")), codec=codec))
        assert answer.status_code == 201, answer.text
        assert answer.headers["Content-Type"] == "application/sdp"
        self.resource = answer.headers["Location"]
        await self.pc.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))

    async def close(self) -> None:
        await self.pc.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def post(url: str, sdp: str, **headers: str) -> requests.Response:
    return await asyncio.to_thread(requests.post, url, sdp, headers={**SDP, **headers}, timeout=15)


async def wait(what: Callable[[], Any], limit_s: float = WHEP_WAIT_S) -> None:
    deadline_s = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline_s, "not in time"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def playing(server: Server, *kinds: str, session: str = "default") -> AsyncIterator[Player]:
    player = Player(server, session)
    try:
        await player.play(*kinds)
        await wait(lambda: all((player.video if k == "video" else player.audio).frames for k in kinds or ("video",)))
        yield player
    finally:
        await player.close()


def udp_ports(server: Server) -> list[Any]:
    (worker,) = psutil.Process(server.process.pid).children()
    return worker.net_connections(kind="udp")


def claps(player: Player) -> tuple[list[float], list[float]]:
    """When flashes were shown and beeps heard, by the sender's clock, s."""
    greys = np.array([frame.to_ndarray(format="gray").mean() for frame in player.video.frames])
    bright = greys > (greys.min() + greys.max()) / 2
    flashes = [
        player.video.sent_s(frame.pts, 90_000)
        for frame, now, before in zip(player.video.frames[1:], bright[1:], bright[:-1], strict=True)
        if now and not before
    ]
    beeps: list[float] = []
    for frame in player.audio.frames:
        sound: npt.NDArray[np.float32] = np.abs(frame.to_ndarray().reshape(-1, 2)[:, 0] / 32768)
        if sound.max() > 0.2:
            beeps.append(player.audio.sent_s(frame.pts + int((sound > 0.2).argmax()), 48_000))
    return flashes, [b for b, gap in zip(beeps, np.diff(beeps, prepend=0.0), strict=True) if gap > 0.5]


def test_picture_and_sound_come_in_step(serve: Serve) -> None:
    async def watch(server: Server) -> None:
        async with playing(server) as player:
            await wait(lambda: len(player.audio.frames) > WHEP_WATCH_S / 0.02, WHEP_WATCH_S + WHEP_WAIT_S)
            await wait(lambda: player.video.report and player.audio.report)
            assert player.video.frames[-1].width == player.video.frames[-1].height == 480
            watched_s = (player.video.frames[-1].pts - player.video.frames[0].pts) / 90_000
            assert len(player.video.frames) / watched_s > WHEP_FRAMES_HZ
            flashes, beeps = claps(player)
            skews = [min((f - b for b in beeps), key=abs) for f in flashes]
            skews = [skew for skew in skews if abs(skew) < 0.5]
            assert len(skews) >= 2
            assert max(map(abs, skews)) < WHEP_SKEW_S, skews
            (stats,) = server.told()["viewers"]
            assert stats["sent"] >= len(player.video.frames)
            gone = await asyncio.to_thread(requests.delete, server.url + player.resource[1:], timeout=10)
            assert gone.status_code == 200
            await wait(lambda: player.pc.connectionState == "closed")
        assert until(lambda: server.told()["viewers"] == [], WHEP_WAIT_S)
        again = await asyncio.to_thread(requests.delete, server.url + player.resource[1:], timeout=10)
        assert again.status_code == 404

    with serve("run=", "clap=") as server:
        asyncio.run(watch(server))


def test_a_still_face_is_seen_at_once(serve: Serve) -> None:
    async def watch(server: Server) -> None:
        async with playing(server, "video") as first:
            assert "m=audio" not in first.pc.remoteDescription.sdp
            async with playing(server) as second:
                await wait(lambda: second.audio.frames)
        assert until(lambda: server.told()["viewers"] == [], WHEP_WAIT_S), "players that leave are noticed"

    with serve() as server:
        asyncio.run(watch(server))
        assert server.stop() == 0


def test_a_player_that_knows_no_h264_gets_vp8(serve: Serve) -> None:
    async def watch(server: Server) -> None:
        player = Player(server)
        try:
            await player.play("video", codec="video/VP8")
            assert "VP8" in player.pc.remoteDescription.sdp
            assert "H264" not in player.pc.remoteDescription.sdp
            await wait(lambda: len(player.video.frames) > 10)
        finally:
            await player.close()

    with serve("run=") as server:
        asyncio.run(watch(server))


def test_players_share_a_session_until_it_is_deleted(serve: Serve) -> None:
    async def watch(server: Server) -> None:
        players = [Player(server) for _ in range(WHEP_PLAYERS)]
        try:
            for player in players:
                await player.play()
            await wait(lambda: all(len(player.video.frames) > 10 and player.audio.frames for player in players))
            assert len(server.told()["viewers"]) == WHEP_PLAYERS
            assert udp_ports(server)
            assert await asyncio.to_thread(server.stop) == 0
        finally:
            for player in players:
                await player.close()

    with serve("run=") as server:
        asyncio.run(watch(server))


def test_refusals(serve: Serve) -> None:
    async def try_all(server: Server) -> None:
        player = Player(server)
        offer = await player.offer("video", "audio")
        for url, sdp, headers, status, word in (
            (player.url, "v=0\r\nm=video nonsense\r\n", {}, 400, "not understood"),
            (player.url, "", {}, 400, "asks for nothing"),
            (player.url, offer.replace("a=recvonly", "a=inactive"), {}, 400, "asks for nothing"),
            (player.url, offer + offer[offer.index("m=audio") :], {}, 400, "nothing else"),
            (player.url, offer + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n", {}, 400, "nothing else"),
            (player.url, offer + "a=candidate:1 1 udp 1 10.1.1.1 9 typ host\r\n" * 70, {}, 400, "64 addresses"),
            (player.url, offer, {"Content-Type": "text/plain"}, 415, "application/sdp"),
            (server.url + "whep?session=nobody", offer, {}, 404, "no session"),
            (player.url, offer, {"Origin": "http://elsewhere.example"}, 403, "another website"),
        ):
            answer = await post(url, sdp, **headers)
            assert (answer.status_code, word in answer.text) == (status, True), answer.text
        taken = [await post(player.url, offer) for _ in range(MOST_PEERS)]
        assert {answer.status_code for answer in taken} == {201}
        answer = await post(player.url, offer)
        assert answer.status_code == 503
        assert str(MOST_PEERS) in answer.text
        for answer in taken:
            await asyncio.to_thread(requests.delete, server.url + answer.headers["Location"][1:], timeout=10)
        assert server.told()["viewers"] == []
        assert until(lambda: not udp_ports(server), WHEP_WAIT_S), "each connection opens some"
        await player.close()

    with serve() as server:
        asyncio.run(try_all(server))
        assert server.get("whep").status_code == 405
        assert requests.patch(server.url + "whep/x", timeout=5).status_code == 405
        options = requests.options(server.url + "whep", timeout=5)
        assert (options.status_code, options.headers["Accept-Post"]) == (200, "application/sdp")
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiortc", None)
    monkeypatch.delitem(sys.modules, "services.streamer.webrtc")
    control = StandIn(publish=False)
    try:
        client = create_app(control, Guard("127.0.0.1", 80)).test_client()
        answer = client.post("/whep", data="v=0", headers=SDP, base_url="http://127.0.0.1")
        assert answer.status_code == 404
        assert answer.text.strip() == whep.MISSING
        assert ".[webrtc]" in answer.text
    finally:
        control.close()


PLAY = """async () => {
    const pc = new RTCPeerConnection();
    const video = document.createElement("video");
    video.muted = true;
    video.autoplay = true;
    const stream = new MediaStream();
    pc.ontrack = (event) => { stream.addTrack(event.track); video.srcObject = stream; };
    pc.addTransceiver("video", { direction: "recvonly" });
    pc.addTransceiver("audio", { direction: "recvonly" });
    await pc.setLocalDescription(await pc.createOffer());
    const answer = await fetch("/whep", {
        method: "POST", body: pc.localDescription.sdp, headers: { "Content-Type": "application/sdp" },
    });
    await pc.setRemoteDescription({ type: "answer", sdp: await answer.text() });
    document.body.append(video);
    await video.play();
    Object.assign(window, { pc, video, place: answer.headers.get("Location") });
    return answer.status;
}"""

TOLD = """async () => {
    const told = { width: video.videoWidth, time: video.currentTime };
    for (const report of (await pc.getStats()).values()) {
        if (report.type === "inbound-rtp") told[report.kind] = report;
        if (report.type === "codec") told[report.mimeType] = true;
    }
    return told;
}"""


def test_a_real_browser_plays_it(serve: Serve, browser: Any) -> None:
    with serve("run=", "clap=") as server:
        context = browser.new_context()
        page = context.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(server.url, wait_until="domcontentloaded")
        assert page.evaluate(PLAY) == 201
        page.mouse.click(5, 5)  # a browser lets nothing be heard before a person has done something
        page.evaluate("video.muted = false")

        def plays() -> Any:
            told = page.evaluate(TOLD)
            frames = told.get("video", {}).get("framesDecoded", 0)
            heard = told.get("audio", {}).get("totalAudioEnergy", 0.0)
            shown, said = (told.get(kind, {}).get("estimatedPlayoutTimestamp") for kind in ("video", "audio"))
            if not shown or not said or frames <= 50 or not heard or told["width"] != 480 or told["time"] <= 1:
                return None
            # by the browser's own estimate of the sender's clock: how far apart is what it plays now
            return told if abs(shown - said) / 1000 < WHEP_BROWSER_SKEW_S else None

        assert until(plays, WHEP_WAIT_S), page.evaluate(TOLD)
        status = page.evaluate("async () => (await fetch(place, { method: 'DELETE' })).status")
        assert status == 200
        page.evaluate("pc.close()")
        context.close()
        assert complaints == []
        assert until(lambda: server.told()["viewers"] == [], WHEP_WAIT_S)
