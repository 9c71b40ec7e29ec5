"""The life of a face: when it blinks and sways, how its eyes close, how its head moves, and that a setting stops it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
import skimage.data

from services.face_prep.face import FaceMaker
from services.inference import engines
from services.inference.builtin import eyes
from services.inference.builtin.drive import Motion
from services.inference.builtin.engine import BuiltinEngine, LivingEngine
from services.inference.builtin.eyes import Eyelid
from services.inference.builtin.life import FRAMES_A_SECOND, ROLL_DEG, SIDEWAYS, STILL, UPWARDS, Life, life_of
from services.inference.engine import Drive, MelWindow
from services.mel_features.mel import MEL_FLOOR
from services.mel_features.track import REST_EVERY, Track
from services.streamer.compositor import compose
from shared.clock import FRAME_SAMPLES
from shared.messages import Credit, Face, Patch, SessionState, Work
from shared.settings import Settings
from tests import budgets
from tests.rig.peer import Peer, Process
from tests.rig.stack import ROOT

FACE_MODELS = ROOT / "models" / "face"
DEMO_FACE = ROOT / "services" / "face_prep" / "assets" / "demo_face.png"
MINUTES = 40
SHARES = (0.3, 0.6, 1.0)
AWAY = Life(0.0, SIDEWAYS, UPWARDS, np.radians(ROLL_DEG))


@pytest.fixture(scope="module")
def still() -> BuiltinEngine:
    return BuiltinEngine()


@pytest.fixture(scope="module")
def engine(still: BuiltinEngine) -> LivingEngine:
    return LivingEngine(still)


@pytest.fixture(scope="module")
def maker() -> FaceMaker:
    return FaceMaker(FACE_MODELS)


@pytest.fixture(scope="module")
def demo(maker: FaceMaker) -> Face:
    return maker.make("demo", DEMO_FACE.read_bytes())


@pytest.fixture(scope="module")
def astronaut(maker: FaceMaker) -> Face:
    photo = np.ascontiguousarray(skimage.data.astronaut()[:300, 80:380, ::-1])
    large = np.asarray(cv2.resize(photo, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), np.uint8)
    ok, data = cv2.imencode(".png", large)
    assert ok
    return maker.make("astronaut", data.tobytes())


@pytest.fixture(params=["demo", "astronaut"])
def face(request: pytest.FixtureRequest) -> Face:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Face)
    return found


def drive(still: BuiltinEngine, session: str = "", frame: float = 0.0, gain: float = 0.0) -> Drive:
    return Drive(np.full((80, still.window.length), MEL_FLOOR, np.float32), gain, session, frame)


def eyelids(still: BuiltinEngine, face: Face) -> tuple[Eyelid, ...]:
    state = still.prepare(face)
    return eyes.prepare(face, state.unit, state.down)


def shut(still: BuiltinEngine, face: Face) -> Face:
    """The same face with its eyes closed."""
    photo = face.photo.copy()
    for eye in eyelids(still, face):
        drawn = eyes.closed(eye, 1.0)
        photo[eye.y : eye.y + drawn.shape[0], eye.x : eye.x + drawn.shape[1]] = drawn
    return msgspec.structs.replace(face, photo=photo)


# The schedule.


def test_life_is_the_same_in_every_process_and_another_in_every_session():
    frames = (0, 3, 77.5, 1234, 90_001)
    told = "from services.inference.builtin.life import life_of\n"
    told += f"print([repr(life_of('default', frame)) for frame in {frames}])"
    elsewhere = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == str([repr(life_of("default", frame)) for frame in frames])
    assert life_of("default", 1234) != life_of("other", 1234)
    assert life_of("default", 0) == life_of("default", -5) == STILL


def blinks(session: str) -> list[list[float]]:
    """How far the eyes are closed in the frames of each blink."""
    found: list[list[float]] = []
    begun: list[int] = []
    for frame in range(MINUTES * 60 * FRAMES_A_SECOND):
        closed = life_of(session, frame).closed
        assert 0 <= closed <= 1
        if closed > 0:
            if not begun or frame != begun[-1] + len(found[-1]):
                found.append([])
                begun.append(frame)
            found[-1].append(closed)
    waits = np.diff(begun) / FRAMES_A_SECOND
    pairs = waits < budgets.LIFE_PAIR_S
    low, high = budgets.LIFE_PAIRS
    assert low < pairs.mean() < high
    low, high = budgets.LIFE_WAIT_S
    assert (waits[~pairs] > low).all()
    assert (waits < high).all()
    assert waits[~pairs].std() > budgets.LIFE_WAIT_SPREAD_S
    return found


@pytest.mark.parametrize("session", ["default", "another"])
def test_blinks_come_and_go_as_those_of_people(session: str):
    found = blinks(session)
    low, high = budgets.LIFE_BLINKS_A_MINUTE
    assert low <= len(found) / MINUTES <= high
    for blink in found:
        assert max(blink) == 1.0, "there is a frame in which the eye is closed"
        falling = blink.index(1.0) + 1
        rising = len(blink) - (len(blink) - 1 - blink[::-1].index(1.0))
        assert falling <= budgets.LIFE_FALL_FRAMES
        assert budgets.LIFE_RISE_FRAMES[0] <= rising <= budgets.LIFE_RISE_FRAMES[1]
        assert np.abs(np.diff([0.0, *blink, 0.0])).max() <= budgets.LIFE_LID_STEP


def test_the_head_sways_little_and_without_jumps():
    lives = [life_of("default", frame) for frame in range(10 * 60 * FRAMES_A_SECOND)]
    way = np.array([(life.right, life.down) for life in lives])
    roll = np.degrees([life.roll for life in lives])
    assert np.hypot(*way.T).max() <= budgets.LIFE_HEAD_MOST
    assert np.hypot(*way.T).std() >= budgets.LIFE_HEAD_LEAST
    assert np.abs(roll).max() <= budgets.LIFE_ROLL_MOST_DEG
    assert np.hypot(*np.diff(way, axis=0).T).max() <= budgets.LIFE_HEAD_STEP
    assert np.abs(np.diff(roll)).max() <= budgets.LIFE_ROLL_STEP_DEG
    assert np.abs(way[:3]).max() <= budgets.LIFE_HEAD_STEP, "a time line begins with the photo"


# The eyelids.


def test_closed_eyes_show_nothing_of_the_eyeball(still: BuiltinEngine, face: Face):
    found = eyelids(still, face)
    assert len(found) == 2
    for eye in found:
        skin = np.maximum(eye.skin.mean(axis=2), 1)
        opening = eye.lower - eye.upper
        edge = eye.upper + eyes.MEET * opening
        seen = (eye.within == 1) & (eye.height > eye.upper) & (eye.height < edge - 3 * eyes.LASHES * eye.unit)
        under = (eye.within == 1) & (eye.height > edge) & (eye.height < eye.lower)
        under &= eye.height > edge + 3 * eyes.LASHES * eye.unit
        before = (eye.photo.mean(axis=2) / skin)[seen]
        after = (eyes.closed(eye, 1.0).mean(axis=2) / skin)[seen | under]
        dark, bright = budgets.LIFE_IRIS_LIGHT, budgets.LIFE_WHITE_LIGHT
        assert (before < dark).mean() > budgets.LIFE_IRIS_SHARE
        assert (after < dark).mean() == 0, "neither iris nor pupil"
        assert (after > bright).mean() <= budgets.LIFE_WHITE_LEFT, "nor the white"


def test_the_eyeball_is_covered_and_not_squeezed(still: BuiltinEngine, face: Face):
    for eye in eyelids(still, face):
        share = 0.3
        opening = eye.lower - eye.upper
        edge = eye.upper + share * eyes.MEET * opening
        open_still = (eye.height > edge + 3 * eyes.LASHES * eye.unit) & (
            eye.height < eye.lower - share * (1 - eyes.MEET) * opening - 1
        )
        assert open_still.sum() > budgets.LIFE_CLEAR_PIXELS
        before, after = eye.photo[open_still].astype(int), eyes.closed(eye, share)[open_still].astype(int)
        # The same pixels at the same places, some of them in the shadow of the lid.
        assert (after <= before + budgets.LIFE_ROUNDING).all()
        assert (after >= (1 - eyes.SHADE) * before - budgets.LIFE_ROUNDING).all()


def test_a_lid_falls_steadily_and_what_is_around_the_eye_stays(still: BuiltinEngine, face: Face):
    for eye in eyelids(still, face):
        covered = []
        for share in SHARES:
            drawn = eyes.closed(eye, share)
            change = np.abs(drawn.astype(int) - eye.photo).max(axis=2)
            border = np.concatenate(
                [change[:3].ravel(), change[-3:].ravel(), change[:, :3].ravel(), change[:, -3:].ravel()]
            )
            assert border.max() <= 1
            brow = eye.height < eye.fold - 1
            assert change[brow].max() <= budgets.LIFE_ROUNDING
            covered.append(float((change > 12).mean()))
        assert covered == sorted(covered)
        nearly = np.abs(eyes.closed(eye, 0.01).astype(int) - eye.photo)
        assert nearly.mean() <= budgets.LIFE_NEARLY_OPEN, "an eye that begins to close is the photo's"


def painted(face: Face, colour: tuple[int, int, int], sides: int) -> Face:
    """Dark glasses, or a patch over one eye."""
    photo = face.photo.copy()
    corners = face.landmarks[[33, 133, 362, 263], :2].reshape(2, 2, 2)
    unit = float(np.linalg.norm(corners[0].mean(axis=0) - corners[1].mean(axis=0)))
    for pair in corners[:sides]:
        x, y = np.round(pair.mean(axis=0)).astype(int)
        cv2.ellipse(photo, (int(x), int(y)), (round(0.38 * unit), round(0.27 * unit)), 0, 0, 360, colour, -1)
    return msgspec.structs.replace(face, photo=photo)


def smaller(face: Face, scale: float) -> Face:
    def shrunk(picture: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)

    x, y = round(face.mask_x * scale), round(face.mask_y * scale)
    landmarks = face.landmarks * np.float32(scale)
    return msgspec.structs.replace(
        face, photo=shrunk(face.photo), mask=shrunk(face.mask), mask_x=x, mask_y=y, landmarks=landmarks
    )


def test_eyes_that_cannot_blink_are_left_alone(still: BuiltinEngine, maker: FaceMaker, astronaut: Face):
    assert len(eyelids(still, astronaut)) == 2
    assert eyelids(still, painted(astronaut, (20, 20, 22), 2)) == (), "dark glasses"
    assert eyelids(still, painted(astronaut, (20, 20, 22), 1)) == (), "nobody winks because of a patch"
    ok, data = cv2.imencode(".png", shut(still, astronaut).photo)
    assert ok
    assert eyelids(still, maker.make("asleep", data.tobytes())) == (), "they are closed"
    assert eyelids(still, smaller(astronaut, 0.2)) == (), "they are a few pixels large"


def test_the_rim_of_glasses_stays_as_it_is(still: BuiltinEngine, astronaut: Face):
    photo = astronaut.photo.copy()
    rims = np.zeros(photo.shape[:2], np.uint8)
    corners = astronaut.landmarks[[33, 133, 362, 263], :2].reshape(2, 2, 2)
    unit = float(np.linalg.norm(corners[0].mean(axis=0) - corners[1].mean(axis=0)))
    for pair in corners:
        x, y = np.round(pair.mean(axis=0)).astype(int)
        cv2.ellipse(
            rims, (int(x), int(y)), (round(0.37 * unit), round(0.27 * unit)), 0, 0, 360, 255, round(0.03 * unit)
        )
    photo[rims > 0] = (30, 30, 34)
    glasses = msgspec.structs.replace(astronaut, photo=photo)
    assert len(eyelids(still, glasses)) == 2
    moved = np.abs(shut(still, glasses).photo.astype(int) - photo).max(axis=2)
    assert moved[rims > 0].mean() <= budgets.LIFE_RIM_CHANGE
    assert moved.max() > 50


# The head.


def test_without_life_the_patch_is_that_of_the_mouth(still: BuiltinEngine, engine: LivingEngine, demo: Face):
    state, calm = engine.prepare(demo), still.prepare(demo)
    (first,) = engine.render([state], [drive(still, "default", 0)])
    (later,) = still.render([calm], [drive(still, "default", 500)])
    for rendered in (first, later):
        assert np.array_equal(rendered.image, calm.rest)
        assert np.array_equal(rendered.mask, calm.mask)
        assert (rendered.x, rendered.y) == (calm.x, calm.y)


def test_only_the_head_changes(engine: LivingEngine, face: Face):
    state = engine.prepare(face)
    rendered = engine.living(state, Motion(0.2, 0, 0.02, 0), AWAY)
    assert rendered.mask.size == 0, "all of its rectangle is taken, which is as in the photo where nothing moves"
    height, width = rendered.image.shape[:2]
    share = state.head.share[..., 0]
    fine = cv2.resize(share, (share.shape[1] * state.head.cell, share.shape[0] * state.head.cell))[:height, :width]
    moves = np.zeros(face.photo.shape[:2], np.uint8)
    moves[rendered.y : rendered.y + height, rendered.x : rendered.x + width] = fine > 0
    change = np.abs(compose(face.photo, rendered).astype(int) - face.photo).max(axis=2)
    assert not change[moves == 0].any()
    # No seam: where the motion ends nothing has moved yet, nor at the edge of the patch.
    rim = (moves > 0) & (cv2.erode(moves, np.ones((7, 7), np.uint8)) == 0)
    edge = np.zeros_like(moves)
    edge[rendered.y : rendered.y + height, rendered.x : rendered.x + width] = 1
    edge[rendered.y + 1 : rendered.y + height - 1, rendered.x + 1 : rendered.x + width - 1] = 0
    assert change[rim | (edge > 0)].max() <= budgets.LIFE_SEAM


def test_mouth_and_eyes_go_with_the_head(engine: LivingEngine, astronaut: Face):
    state = engine.prepare(astronaut)
    spoken = Motion(0.2, 0, 0.02, 0)
    here = compose(astronaut.photo, engine.living(state, spoken, Life(1.0, 1e-6, 0, 0)))
    unit = state.warp.unit
    step = 2.0 * state.warp.across + 1.0 * state.warp.down
    away = engine.living(state, spoken, Life(1.0, 2.0 / unit, 1.0 / unit, 0))
    height, width = here.shape[:2]
    wanted = cv2.warpAffine(here, np.array([[1, 0, step[0]], [0, 1, step[1]]], np.float32), (width, height))
    moved = compose(astronaut.photo, away)
    for numbers in ([61, 291, 0, 17], [33, 133, 159, 145], [263, 362, 386, 374]):
        points = astronaut.landmarks[numbers, :2]
        (x1, y1), (x2, y2) = np.floor(points.min(axis=0)).astype(int), np.ceil(points.max(axis=0)).astype(int)
        part = (slice(y1, y2), slice(x1, x2))
        assert np.abs(moved[part].astype(int) - wanted[part]).mean() <= budgets.LIFE_CARRIED
        assert np.abs(moved[part].astype(int) - here[part]).mean() >= 5 * budgets.LIFE_CARRIED


def test_skin_stays_sharp_while_it_moves(engine: LivingEngine, astronaut: Face):
    state = engine.prepare(astronaut)
    spoken = Motion(0, 0, 0, 0)
    x, y = np.round(astronaut.landmarks[168, :2]).astype(int)
    reach = round(0.5 * state.warp.unit)

    def sharpness(life: Life) -> float:
        picture = compose(astronaut.photo, engine.living(state, spoken, life))[
            y - reach : y + reach, x - reach : x + reach
        ]
        return float(cv2.Laplacian(picture.astype(np.float32), cv2.CV_32F).std())

    shifts = [sharpness(Life(0, (shift + 1e-6) / state.warp.unit, 0, 0)) for shift in np.linspace(0, 1, 9)]
    assert min(shifts) >= budgets.LIFE_SHARPNESS * max(shifts)


@pytest.mark.parametrize("shift", [(-250, 0), (0, 190), (150, 150)])
def test_face_at_the_edge_of_the_photo(engine: LivingEngine, astronaut: Face, shift: tuple[int, int]):
    left, top = max(0, -shift[0]), max(0, -shift[1])
    height, width = astronaut.photo.shape[:2]
    photo = np.ascontiguousarray(astronaut.photo[top : height - max(0, shift[1]), left : width - max(0, shift[0])])
    mask_x, mask_y = astronaut.mask_x - left, astronaut.mask_y - top
    cut = astronaut.mask[
        max(0, -mask_y) : photo.shape[0] - mask_y,
        max(0, -mask_x) : photo.shape[1] - mask_x,
    ]
    face = msgspec.structs.replace(
        astronaut,
        photo=photo,
        landmarks=astronaut.landmarks - np.array([left, top, 0], np.float32),
        mask=np.ascontiguousarray(cut),
        mask_x=max(0, mask_x),
        mask_y=max(0, mask_y),
    )
    state = engine.prepare(face)
    spoken = Motion(0.1, 0, 0, 0)
    for closed in (0.0, 0.5, 1.0):
        rendered = engine.living(state, spoken, Life(closed, AWAY.right, AWAY.down, AWAY.roll))
        bottom, right = rendered.y + rendered.image.shape[0], rendered.x + rendered.image.shape[1]
        assert 0 <= rendered.x < right <= photo.shape[1]
        assert 0 <= rendered.y < bottom <= photo.shape[0]


def test_each_frame_of_a_batch_has_its_own_life(
    still: BuiltinEngine, engine: LivingEngine, demo: Face, astronaut: Face
):
    states = [engine.prepare(demo), engine.prepare(astronaut)]
    drives = [drive(still, "a", 100), drive(still, "b", 333)]
    for state, each, rendered in zip(states, drives, engine.render(states, drives), strict=True):
        (single,) = engine.render([state], [each])
        assert np.array_equal(single.image, rendered.image)
    with pytest.raises(ValueError, match="argument"):
        engine.render(states, drives[:1])


def test_a_head_that_stays_is_drawn_as_one_that_was_just_moved(engine: LivingEngine, demo: Face):
    kept = engine.prepare(demo)
    drawn = []
    for frame, opening in ((300, 0.2), (301, 0.0), (302, 0.1), (303, 0.2), (300, 0.0)):
        life = life_of("default", frame)
        spoken = Motion(opening, 0, 0, 0)
        drawn.append(engine.living(kept, spoken, life).image)
        fresh = engine.prepare(demo)
        assert np.array_equal(drawn[-1], engine.living(fresh, spoken, life).image), "nothing stays of the frame before"
    assert not np.array_equal(drawn[1], drawn[2])
    pairs = [[life_of("default", frame + step) for step in (0, 1)] for frame in range(100, 400, 2)]
    assert all((one.right, one.down, one.roll) == (two.right, two.down, two.roll) for one, two in pairs)


def test_what_has_changed_alone_gives_the_same_picture(engine: LivingEngine, astronaut: Face):
    """Speech, silence and blinks of some seconds, each frame laid on the one that was given whole before."""
    kept, fresh = engine.prepare(astronaut), engine.prepare(astronaut)
    known, under = -1.0, astronaut.photo
    sizes: dict[bool, list[int]] = {False: [], True: []}
    changes: set[tuple[bool, bool, bool]] = set()
    blink = next(frame for frame in range(100, 1000) if life_of("default", frame).closed > 0)
    for frame in range(blink - 30, blink + 30):
        life, moment = life_of("default", frame), ("default", float(frame))
        opening = 0.0 if frame % 20 < 6 else 0.1 + 0.1 * np.sin(frame)
        spoken = Motion(opening, 0, 0, 0)
        rendered = engine.living(kept, spoken, life, moment, known)
        picture = compose(under if rendered.on_known else astronaut.photo, rendered)
        assert np.array_equal(picture, compose(astronaut.photo, engine.living(fresh, spoken, life))), frame
        sizes[rendered.on_known].append(rendered.image.size)
        changes.add((rendered.on_known, life.closed > 0, opening == 0))
        if not rendered.on_known:
            known, under = float(frame), picture
    assert len(changes) == 8, "each kind of frame was there"
    assert len(sizes[True]) == len(sizes[False]), "the head stays for two frames"
    assert np.median(sizes[True]) <= budgets.LIFE_CHANGED * np.median(sizes[False])
    assert min(sizes[True]) == 3, "a mouth at rest and open eyes have not changed"


def test_a_frame_is_whole_unless_the_one_that_is_known_is_the_one_that_is_kept(engine: LivingEngine, demo: Face):
    state = engine.prepare(demo)
    spoken = Motion(0.1, 0, 0, 0)

    def on_known(session: str, frame: float, known: float) -> bool:
        return engine.living(state, spoken, life_of("default", frame), (session, frame), known).on_known

    assert not on_known("default", 300, -1), "none is known"
    assert not on_known("default", 301, 299), "another is known"
    assert on_known("default", 301, 301)
    assert not on_known("other", 301, 301), "another session's"
    assert not on_known("default", 302, 301), "the head has moved"


# The setting, and frames in silence.


def test_the_setting_chooses():
    assert engines.load(Settings(engine="builtin"))[0].window.in_silence
    calm, _ = engines.load(Settings(engine="builtin", life="no"))
    assert isinstance(calm, BuiltinEngine)
    assert not calm.window.in_silence


@pytest.mark.parametrize("in_silence", [True, False])
def test_silence_has_frames_where_faces_live(in_silence: bool):
    track = Track(0, "s")
    track.set_window(MelWindow(back=80, ahead=7, in_silence=in_silence))
    due = []
    for index in range(8 * FRAMES_A_SECOND):
        pcm = np.zeros(FRAME_SAMPLES, np.int16)
        due += track.push(index * FRAME_SAMPLES, pcm, 40_000_000 * (index + 1))
    assert {item.gain for item in due} == {0.0}
    numbers = [item.frame for item in due]
    if in_silence:
        assert numbers == list(range(numbers[-1] + 1))
        assert len(numbers) > 7 * FRAMES_A_SECOND
        assert track.silent_frames == 0
    else:
        assert set(np.diff(numbers)) == {REST_EVERY}


@pytest.mark.parametrize("life", ["yes", "no"])
def test_a_worker_lets_the_face_of_each_session_live(life: str, still: BuiltinEngine, demo: Face, tmp_path: Path):
    """A real worker: it wants frames in silence, and what it draws is what the schedule says of session and frame."""
    face = msgspec.structs.replace(demo, face="f0")
    peer = Peer("inference")
    settings = {"MOUTHPIECE_BUS_PORT": str(peer.base_port), "MOUTHPIECE_ENGINE": "builtin", "MOUTHPIECE_LIFE": life}
    process = Process("inference", tmp_path, settings)
    try:
        (worker,) = peer.subscriptions("work", budgets.PROCESS_START_S)
        peer.subscriptions("session", budgets.PROCESS_START_S)
        shown = SessionState(session="default", epoch=1, running=True, source="demo", face="f0")
        peer.send("session", shown)
        assert peer.subscriptions("face", budgets.PROCESS_START_S) == {"f0"}
        peer.send("face", face, "f0")
        given = Work(
            session="default",
            epoch=1,
            frame=777,
            face="f0",
            seq=0,
            budget_ms=10_000.0,
            gain=0.0,
            captured_ns=0,
            mel=np.full((80, still.window.length), MEL_FLOOR, np.float32),
        )
        peer.drain("patch")  # a socket that nobody asks subscribes to nothing
        peer.beat_where("faces_prepared", 1, budgets.PROCESS_START_S)
        peer.send("session", shown)  # as each second, or it is forgotten
        peer.send("work", given, worker)
        resting = peer.receive("patch", Patch, budgets.PROCESS_START_S)
        assert isinstance(resting, Patch)
        assert resting.rest
        assert resting.frame == 0
        patch = peer.receive("patch", Patch, budgets.PROCESS_START_S)
        assert isinstance(patch, Patch)
        peer.drain("credit")
        credit = peer.receive("credit", Credit, budgets.PROCESS_START_S)
        assert isinstance(credit, Credit)
        assert credit.in_silence == (life == "yes")
        if life == "no":
            assert patch.rest
            assert np.array_equal(patch.image, resting.image)
        else:
            assert not patch.rest, "it is no picture to go back to"
            engine = LivingEngine(still)
            (wanted,) = engine.render([engine.prepare(demo)], [drive(still, "default", 777)])
            assert np.array_equal(patch.image, wanted.image)
            assert np.array_equal(patch.mask, wanted.mask)
        assert process.stop(budgets.PROCESS_STOP_S) == 0, process.text()
    finally:
        process.close()
        peer.close()
