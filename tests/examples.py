"""One valid message of each kind."""

from __future__ import annotations

from typing import Final

import numpy as np

from shared.messages import (
    Audio,
    Beat,
    Credit,
    Face,
    FaceProblem,
    Flush,
    Forget,
    Gap,
    Message,
    Patch,
    Pcm,
    Photo,
    Refusal,
    SessionState,
    SourceState,
    Work,
)

_RNG = np.random.default_rng(7)


def _bytes(*shape: int) -> np.ndarray:
    return _RNG.integers(0, 256, shape, dtype=np.uint8)


_PCM = _RNG.integers(-3000, 3000, 320).astype("<i2")

EXAMPLES: Final[dict[str, Message]] = {
    message.KIND: message
    for message in (
        Audio(session="default", epoch=3, stream="a1", first_sample=640, captured_ns=12, pcm=_PCM),
        Gap(session="default", epoch=3, stream="a1", first_sample=640, samples=320, reason="overflow"),
        SourceState(session="default", epoch=3, state="waiting", text="No sound has come yet."),
        Forget(face="gone-for-good"),
        Flush(session="default", epoch=3, first_sample=640),
        Work(
            session="default",
            epoch=3,
            frame=9,
            face="f0",
            seq=4,
            budget_ms=150.0,
            gain=0.5,
            captured_ns=12,
            mel=_RNG.uniform(-4, 4, (80, 16)).astype("<f4"),
        ),
        Credit(
            worker="w1", engine="builtin", capacity=2, held=0, done=-1, back=24, ahead=7, shift=0, faces=("f0", "f1")
        ),
        Refusal(worker="w1", text="its model is another one"),
        Face(
            face="f0",
            index=0,
            box=(10, 12, 40, 50),
            mask_x=8,
            mask_y=20,
            photo=_bytes(64, 48, 3),
            landmarks=_RNG.uniform(0, 48, (468, 3)).astype("<f4"),
            mask=_bytes(20, 20),
            boxes=np.array([[10, 12, 40, 50]], "<f4"),
        ),
        FaceProblem(face="f0", code="no_face", text="No face was found."),
        Patch(
            session="default",
            epoch=3,
            frame=9,
            on=8,
            face="f0",
            worker="w1",
            rest=False,
            x=-2,
            y=5,
            captured_ns=12,
            render_ms=3.5,
            image=_bytes(20, 30, 3),
            mask=_bytes(20, 30),
        ),
        SessionState(session="default", epoch=3, running=True, source="demo", face="f0"),
        Photo(face="f0", index=0, box=None, data=_bytes(100)),
        Pcm(session="default", epoch=3, first_sample=0, pcm=_PCM),
        Beat(
            service="inference",
            instance="i1",
            pid=12,
            uptime_s=1.5,
            cpu_s=0.2,
            rss_bytes=1000,
            counters={"frames": 2.0},
            gauges={"queue": 0.0},
            info={"engine": "builtin"},
            last_error="",
        ),
    )
}
