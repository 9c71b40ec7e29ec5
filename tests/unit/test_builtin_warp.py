"""Motion to picture, and the engine as a whole."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
import skimage.data

from services.face_prep.face import FaceMaker
from services.face_prep.landmarks import FaceMesh, Landmarks
from services.inference.builtin import drive, lips, mouth, teeth, warp
from services.inference.builtin.basis import STABLE, BasisError, MotionBasis, Pose, similarity
from services.inference.builtin.drive import Motion
from services.inference.builtin.engine import MODELS, BuiltinEngine
from services.inference.builtin.pictures import LUMA, grey_of
from services.inference.engine import Drive
from services.mel_features.mel import MEL_FLOOR
from services.streamer.compositor import compose
from shared.messages import Face
from tests import budgets

FACE_MODELS = Path(__file__).resolve().parents[2] / "models" / "face"
REST = Motion(0, 0, 0, 0)
OPEN = Motion(0.2, 0, 0.02, 0)
SHAPES = (Motion(0.06, 0.07, 0.01, 0), Motion(0.07, -0.16, 0, 0), Motion(0, 0, 0, 0.02), Motion(0.28, -0.02, 0.03, 0))


@pytest.fixture(scope="module")
def engine() -> BuiltinEngine:
    return BuiltinEngine()


@pytest.fixture(scope="module")
def smiling() -> Face:
    """A woman who smiles with her teeth."""
    photo = np.ascontiguousarray(skimage.data.astronaut()[:300, 80:380, ::-1])
    large = np.asarray(cv2.resize(photo, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), np.uint8)
    ok, data = cv2.imencode(".png", large)
    assert ok
    return FaceMaker(FACE_MODELS).make("smiling", data.tobytes())


@pytest.fixture(scope="module")
def drawn(engine: BuiltinEngine) -> Face:
    """The mean face of the basis as a plain drawing with closed lips: nothing but landmarks, a mask and a line."""
    size, unit = 512, 110.0
    landmarks = engine._basis.mean * np.float32(unit) + np.array([256, 170, 0], np.float32)
    upper, lower = list(warp.UPPER_LINE), list(warp.LOWER_LINE)
    landmarks[upper] = landmarks[lower] = (landmarks[upper] + landmarks[lower]) / 2
    grain = np.random.default_rng(5).normal(0, 4, (size, size, 3))
    photo = np.clip(np.array([130, 160, 205]) + cv2.GaussianBlur(grain, (0, 0), 1.5) * 3, 0, 255).astype(np.uint8)
    lips = np.round(landmarks[list(warp.OUTER_LINE), :2]).astype(np.int32)
    cv2.fillPoly(photo, [lips], (90, 90, 180), cv2.LINE_AA)
    cv2.polylines(photo, [np.round(landmarks[upper, :2]).astype(np.int32)], False, (40, 40, 80), 2, cv2.LINE_AA)
    disc = np.zeros((size, size), np.uint8)
    centre = (256, int(170 + 1.25 * unit))
    cv2.ellipse(disc, centre, (int(1.0 * unit), int(1.0 * unit)), 0, 0, 360, 255, -1)
    mask = np.asarray(cv2.GaussianBlur(cv2.erode(disc, np.ones((25, 25), np.uint8)), (0, 0), 6), np.uint8)
    y, x = (int(np.flatnonzero(mask.any(axis=axis))[0]) for axis in (1, 0))
    y2, x2 = (int(np.flatnonzero(mask.any(axis=axis))[-1]) + 1 for axis in (1, 0))
    return Face(
        face="drawn",
        index=0,
        box=(140, 100, 370, 390),
        mask_x=x,
        mask_y=y,
        photo=photo,
        landmarks=landmarks.astype(np.float32),
        mask=np.ascontiguousarray(mask[y:y2, x:x2]),
        boxes=np.array([[140, 100, 370, 390]], np.float32),
    )


def measured_gap(face: Face, picture: np.ndarray, mesh: FaceMesh) -> float:
    """Distance of the inner lips by FaceMesh, eye distances."""
    found = Landmarks(face.landmarks, 1.0)
    for _ in range(3):
        found = mesh.refined(picture, found)
    eyes = np.linalg.norm(found.points[[33, 133], :2].mean(axis=0) - found.points[[263, 362], :2].mean(axis=0))
    return float(np.linalg.norm(found.points[13, :2] - found.points[14, :2]) / eyes)


def test_patch_is_soft_at_its_border_and_leaves_the_rest(engine: BuiltinEngine, drawn: Face):
    state = engine.prepare(drawn)
    for motion in SHAPES:
        rendered = engine.posed(state, motion)
        assert rendered.image.shape == (*rendered.mask.shape, 3)
        assert not rendered.mask[[0, -1]].any()
        assert not rendered.mask[:, [0, -1]].any()
        moved = np.abs(compose(drawn.photo, rendered).astype(int) - drawn.photo).max(axis=2)
        outside = np.ones(drawn.photo.shape[:2], bool)
        height, width = drawn.mask.shape
        outside[drawn.mask_y : drawn.mask_y + height, drawn.mask_x : drawn.mask_x + width] = drawn.mask == 0
        assert not moved[outside].any()
        assert moved.max() > 20


def test_closed_lips_at_rest_are_the_photo(engine: BuiltinEngine, drawn: Face):
    state = engine.prepare(drawn)
    assert np.array_equal(compose(drawn.photo, engine.posed(state, REST)), drawn.photo)


def test_rest_closes_a_smile_and_opening_opens_it(engine: BuiltinEngine, smiling: Face):
    state, mesh = engine.prepare(smiling), FaceMesh(FACE_MODELS)
    assert measured_gap(smiling, smiling.photo, mesh) > 2 * budgets.BUILTIN_REST_GAP
    assert measured_gap(smiling, compose(smiling.photo, engine.posed(state, REST)), mesh) <= budgets.BUILTIN_REST_GAP
    assert measured_gap(smiling, compose(smiling.photo, engine.posed(state, OPEN)), mesh) >= budgets.BUILTIN_OPENED_GAP


def test_small_motion_changes_the_picture_little(engine: BuiltinEngine, smiling: Face, drawn: Face):
    for face in (smiling, drawn):
        state = engine.prepare(face)
        near = engine.posed(state, Motion(0.002, 0.002, 0, 0)).image.astype(int)
        assert np.abs(near - state.rest).mean() <= budgets.BUILTIN_SMALL_CHANGE
        # Rest moves the lips of a smile, but the chin and the cheeks stay what they are.
        patch = face.photo[state.y : state.y + state.mask.shape[0], state.x : state.x + state.mask.shape[1]]
        rest = cv2.GaussianBlur(state.rest, (0, 0), 4).astype(int) - cv2.GaussianBlur(patch, (0, 0), 4)
        assert np.abs(rest).mean() <= budgets.BUILTIN_REST_CHANGE


def test_opening_is_as_wide_as_told(engine: BuiltinEngine, drawn: Face):
    state = engine.prepare(drawn)
    upper, lower = state.upper, state.lower
    gap = lower.line_moves[0] - upper.line_moves[0]
    assert 0.75 <= float((gap @ state.down).max() / state.unit) <= 1.1
    assert np.abs(gap[[0, -1]]).max() < 0.12 * state.unit  # the corners stay together


def test_upper_teeth_do_not_move_with_the_mouth(engine: BuiltinEngine, smiling: Face):
    interior = engine.prepare(smiling).interior
    assert interior.skull[..., 3].max() > 0.9  # her own teeth
    height, width = interior.skull[..., 3].shape
    part = (0, 0, width, height)
    rim = np.zeros((height, width), np.float32)
    near = interior.shown(np.array([0, 5], np.float32), rim, part)
    far = interior.shown(np.array([0, 30], np.float32), rim, part)
    teeth = interior.skull[..., 3] > 0.999
    assert np.abs(near - far)[:, teeth].max() < budgets.BUILTIN_STILL_TEETH
    assert (near != far).any()  # while the jaw goes
    carried = interior.shown(np.array([0, 5], np.float32), rim, part, head_shift=np.array([3, 2], np.float32))
    still = teeth[:-2, :-3] & teeth[2:, 3:]
    assert np.abs(carried[:, 2:, 3:] - near[:, :-2, :-3])[:, still].max() < budgets.BUILTIN_STILL_TEETH
    assert np.abs(carried - near)[:, teeth].max() > 10 * budgets.BUILTIN_STILL_TEETH, "they go with the head"


def test_painted_teeth_keep_their_light_and_place(engine: BuiltinEngine, drawn: Face):
    interior = engine.prepare(drawn).interior
    teeth = interior.skull[..., 3] > 0.99
    assert teeth.any()
    blue, green, red = np.median(interior.skull[teeth, :3], axis=0)
    assert red > green > blue  # ivory, not grey
    luma = interior.skull[teeth, :3] @ LUMA
    skin = drawn.photo[300, 200] @ LUMA
    assert 0.6 * skin < np.median(luma) < 1.4 * skin


def test_batch_of_two_faces_is_two_single_renders(engine: BuiltinEngine, drawn: Face, smiling: Face):
    rng = np.random.default_rng(1)
    length = engine.window.length
    drives = [Drive(rng.uniform(-3, 1, (80, length)).astype(np.float32), 1.0) for _ in range(2)]
    states = [engine.prepare(drawn), engine.prepare(smiling)]
    batch = engine.render(states, drives)
    for state, each, rendered in zip(states, drives, batch, strict=True):
        (single,) = engine.render([state], [each])
        assert (single.x, single.y) == (rendered.x, rendered.y)
        assert np.array_equal(single.image, rendered.image)
        assert np.array_equal(single.mask, rendered.mask)
    assert not np.array_equal(batch[0].image, states[0].rest)


def test_silence_is_exactly_the_rest_patch(engine: BuiltinEngine, smiling: Face):
    state = engine.prepare(smiling)
    silence = np.full((80, engine.window.length), MEL_FLOOR, np.float32)
    loud = np.full((80, engine.window.length), 1.0, np.float32)
    for quiet in (Drive(silence, 1.0), Drive(silence, 0.0), Drive(loud, 0.0)):
        assert np.array_equal(engine.render([state], [quiet])[0].image, state.rest)


def test_a_frame_does_not_depend_on_those_before(engine: BuiltinEngine, drawn: Face, smiling: Face):
    for face in (drawn, smiling):
        state = engine.prepare(face)
        first = [engine.posed(state, motion).image for motion in SHAPES]
        for motion, image in zip(SHAPES[::-1], first[::-1], strict=True):
            assert np.array_equal(engine.posed(state, motion).image, image)


def test_two_engines_agree(drawn: Face):
    first, second = BuiltinEngine(), BuiltinEngine()
    for motion in SHAPES:
        one, other = first.posed(first.prepare(drawn), motion), second.posed(second.prepare(drawn), motion)
        assert np.array_equal(one.image, other.image)


@pytest.mark.parametrize("shift", [(-250, 0), (0, 190), (150, 150)])
def test_face_at_the_edge_of_the_photo(engine: BuiltinEngine, drawn: Face, shift: tuple[int, int]):
    """Half of the mask lies beyond the photo."""
    x, y = max(0, shift[0]) or 0, max(0, shift[1]) or 0
    left, top = max(0, -shift[0]), max(0, -shift[1])
    height, width = drawn.photo.shape[:2]
    photo = np.ascontiguousarray(drawn.photo[top : height - y, left : width - x])
    mask_x, mask_y = drawn.mask_x - left, drawn.mask_y - top
    cut = drawn.mask[max(0, -mask_y) : photo.shape[0] - mask_y, max(0, -mask_x) : photo.shape[1] - mask_x]
    face = Face(
        face="edge",
        index=0,
        box=drawn.box,
        mask_x=max(0, mask_x),
        mask_y=max(0, mask_y),
        photo=photo,
        landmarks=drawn.landmarks - np.array([left, top, 0], np.float32),
        mask=np.ascontiguousarray(cut),
        boxes=drawn.boxes,
    )
    state = engine.prepare(face)
    for motion in SHAPES:
        rendered = engine.posed(state, motion)
        assert rendered.image.shape[:2] == cut.shape
        assert not rendered.mask[[0, -1]].any()


def test_pose_is_found(engine: BuiltinEngine):
    mean = engine._basis.mean
    angle = np.radians(25)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]], np.float32)
    pose = engine._basis.pose((80 * mean @ turn.T + np.array([200, 150, 0])).astype(np.float32))
    assert pose.scale == pytest.approx(80, rel=1e-3)
    np.testing.assert_allclose(pose.rotation, turn, atol=1e-3)
    np.testing.assert_allclose(pose.shift[:2], [200, 150], atol=0.1)
    same = similarity(mean[list(STABLE)], mean[list(STABLE)])
    np.testing.assert_allclose(same.rotation, np.eye(3), atol=1e-5)


def test_basis_means_what_it_says():
    basis = MotionBasis.load(MODELS)
    opened, widened, raised, pressed = basis.axes
    assert opened[14, 1] == pytest.approx(1.0, abs=0.1)
    assert abs(opened[13, 1]) < 0.1
    assert 0.3 < opened[152, 1] < 1.0  # the chin goes along
    assert widened[291, 0] - widened[61, 0] == pytest.approx(1.0, abs=0.1)
    assert raised[13, 1] == pytest.approx(-1.0, abs=0.1)
    assert (pressed[17, 1] - pressed[0, 1]) - (pressed[14, 1] - pressed[13, 1]) == pytest.approx(-1.0, abs=0.2)
    assert np.abs(basis.axes[:, [33, 263, 10, 151]]).max() < 0.35
    assert drive.REST.coefficients.shape == (len(basis.axes),)


def test_missing_or_broken_basis_says_what_to_do(tmp_path: Path):
    with pytest.raises(BasisError, match="scripts/"):
        BuiltinEngine(tmp_path)
    (tmp_path / "motion.npz").write_bytes(b"no zip")
    with pytest.raises(BasisError, match="restore it"):
        BuiltinEngine(tmp_path)
    np.savez(tmp_path / "motion.npz", mean=np.zeros((3, 3)), axes=np.zeros((1, 3, 3)), names=np.array(["x"]))
    with pytest.raises(BasisError, match="another version"):
        BuiltinEngine(tmp_path)


def test_as_many_states_as_drives(engine: BuiltinEngine):
    with pytest.raises(ValueError, match="argument"):
        engine.render([], [Drive(np.zeros((80, engine.window.length), np.float32), 1.0)])


def corner_motions() -> list[Motion]:
    """All corners of what a motion may be."""
    ranges = ((0.0, 0.40), (-0.17, 0.10), (-0.02, 0.08), (-0.01, 0.03))
    return [Motion(*values) for values in itertools.product(*ranges)]


def test_whatever_is_asked_for_lips_do_not_cross_nor_the_picture_fold(
    engine: BuiltinEngine, smiling: Face, drawn: Face
):
    for face in (smiling, drawn):
        state = engine.prepare(face)
        for motion in corner_motions():
            amounts = warp._amounts(motion.coefficients)
            lines = [each.line + np.tensordot(amounts, each.line_moves, 1) for each in (state.upper, state.lower)]
            crossed = -((lines[1] - lines[0]) @ state.down) / state.unit
            assert crossed.max() <= budgets.BUILTIN_CROSSED
            for layer in (state.upper, state.lower):
                moved = np.tensordot(amounts, layer.fields, 1) / state.cell
                down = np.diff(moved[..., 1], axis=0)
                assert down.min() > -1  # no row overtakes the one below it
            assert engine.posed(state, motion).image.shape == (*state.mask.shape, 3)


def test_what_no_mouth_can_do_is_led_back_softly():
    rest = warp._amounts(REST.coefficients)
    assert rest.tolist() == [0, 0, 0, 0, 0, 1]
    for motion in SHAPES[:3]:
        assert warp._amounts(motion.coefficients)[:2] == pytest.approx(motion.coefficients[:2], abs=0.005)
    narrow = [warp._amounts(Motion(opened, -0.17, 0, 0).coefficients)[1] for opened in np.linspace(0, 0.4, 81)]
    assert narrow[0] == pytest.approx(-0.17, abs=0.01)
    assert narrow[-1] > -0.12  # a wide open mouth is not as narrow
    assert np.abs(np.diff(narrow)).max() < 0.003
    assert warp._amounts(Motion(0, 0, -0.02, 0).coefficients)[2] > -0.01  # no room to come down
    assert warp._amounts(Motion(0.3, 0, 0, 0.03).coefficients)[3] == 0  # lips far apart are not pressed


def test_slow_motion_does_not_flicker(engine: BuiltinEngine, smiling: Face, drawn: Face):
    """The edges of the lips move by parts of a pixel."""
    for face in (smiling, drawn):
        state = engine.prepare(face)
        slow = [Motion(0.02 + 0.001 * k, 0.0005 * k, 0.0001 * k, 0) for k in range(30)]
        frames = np.array([engine.posed(state, motion).image for motion in slow], np.float32).mean(axis=3)
        jumps = np.abs(np.diff(frames, 2, axis=0))
        assert jumps.max() <= budgets.BUILTIN_JUMP


def parted(drawn: Face, between: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The drawing with its lips 0.12 eye distances apart and that colour between them; its lines and down."""
    unit = 110.0
    points = drawn.landmarks[:, :2]
    upper, lower = points[list(warp.UPPER_LINE)].copy(), points[list(warp.LOWER_LINE)].copy()
    lower[1:-1, 1] += 0.12 * unit
    photo = drawn.photo.copy()
    red = np.round(points[list(warp.OUTER_LINE)] + [0, 0.06 * unit]).astype(np.int32)
    cv2.fillPoly(photo, [red], (90, 90, 180), cv2.LINE_AA)
    cv2.fillPoly(photo, [np.round(np.concatenate([upper, lower[::-1]])).astype(np.int32)], between, cv2.LINE_AA)
    return photo, upper, lower, np.array([0, 1], np.float32)


def test_teeth_of_a_photo_are_found_a_light_on_the_lip_is_none(drawn: Face):
    photo, upper, lower, down = parted(drawn, (205, 220, 230))
    shown = lips.shown_teeth(photo, upper, lower, down, 110.0)
    assert shown is not None
    assert shown.known.sum() > 500
    above = upper[5].astype(int) - [0, 6]
    assert shown.share[above[1], above[0]] > 0.9  # what the lip hides of them is there too
    assert not shown.known[above[1], above[0]]
    assert lips.length_of(shown, upper, down, 110.0) == pytest.approx(0.12 * 110, abs=4)
    grey = lips.shown_teeth(grey_of(photo), upper, lower, down, 110.0)
    assert grey is not None
    assert grey.known.sum() > 500
    lit = (125, 125, 215)  # the colour of the lips, a little brighter
    assert lips.shown_teeth(*parted(drawn, lit), 110.0) is None
    dark = lips.shown_teeth(*parted(drawn, (20, 15, 30)), 110.0)
    assert dark is None or not dark.known.any()


def test_teeth_that_a_photo_hides_are_painted_beside_those_that_it_shows(engine: BuiltinEngine, drawn: Face):
    """Of the row only the two in the middle are seen."""
    photo, upper, lower, _ = parted(drawn, (25, 20, 45))
    left, top = np.round(upper[5]).astype(int) - [14, 0]
    photo[top + 1 : top + 9, left : left + 28] = (190, 210, 225)
    landmarks = drawn.landmarks.copy()
    landmarks[list(warp.LOWER_LINE), :2] = lower
    inner = engine.prepare(msgspec.structs.replace(drawn, photo=photo, landmarks=landmarks)).interior
    row = top + 4 - (inner.y + drawn.mask_y)
    assert inner.skull[row, left + 14 - (inner.x + drawn.mask_x), 3] > 0.9
    assert inner.skull[row, left + 14 - (inner.x + drawn.mask_x), :3] @ LUMA > 190
    covered = np.flatnonzero(inner.skull[row, :, 3] > 0.9)
    assert (np.diff(covered) == 1).all()
    assert np.ptp(inner.sideways[row, covered]) > budgets.BUILTIN_TEETH_WIDTH
    # Nor do they hang below those that are seen.
    below = top + 13 - (inner.y + drawn.mask_y)
    assert inner.skull[below, :, 3].max() < 0.5


def recoloured(face: Face, factors: tuple[float, float, float]) -> Face:
    return msgspec.structs.replace(face, photo=np.clip(face.photo * np.array(factors), 0, 255).astype(np.uint8))


def test_teeth_are_lit_like_the_face(engine: BuiltinEngine, drawn: Face):
    """Ivory in white light, yellower under varnish, never green, darker in the dark, grey in a grey photo."""
    lights = {
        name: mouth.light_of(face.photo, face.landmarks, 110.0)
        for name, face in {
            "white": drawn,
            "varnish": recoloured(drawn, (0.5, 0.95, 0.95)),
            "dark": recoloured(drawn, (0.4, 0.4, 0.4)),
            "grey": msgspec.structs.replace(drawn, photo=grey_of(drawn.photo)),
        }.items()
    }
    for light in lights.values():
        blue, green, red = light.teeth
        assert red >= 0.999 * green
        assert blue <= 1.001 * green
    assert (
        lights["varnish"].teeth[0] / lights["varnish"].teeth[1]
        < 0.9 * lights["white"].teeth[0] / lights["white"].teeth[1]
    )
    assert lights["dark"].teeth @ LUMA < 0.5 * lights["white"].teeth @ LUMA
    assert np.ptp(lights["grey"].teeth) < 1
    assert lights["grey"].coloured == 0
    assert lights["white"].coloured == 1
    grey = msgspec.structs.replace(drawn, photo=grey_of(drawn.photo))
    image = engine.posed(engine.prepare(grey), Motion(0.27, 0, 0.03, 0)).image.astype(int)
    assert np.ptp(image, axis=2).max() <= budgets.BUILTIN_ROUNDING


def test_a_blurred_photo_gets_a_blurred_mouth(drawn: Face):
    photo = drawn.photo.copy()
    rng = np.random.default_rng(3)
    eyes = drawn.landmarks[[33, 263], :2].mean(axis=0).astype(int)
    photo[eyes[1] - 20 : eyes[1] + 20, eyes[0] - 60 : eyes[0] + 60] = np.kron(
        rng.integers(0, 2, (10, 30, 1)) * 200, np.ones((4, 4, 3))
    )
    sharp = mouth.light_of(photo, drawn.landmarks, 110.0).blur
    soft = mouth.light_of(np.asarray(cv2.GaussianBlur(photo, (0, 0), 2.0)), drawn.landmarks, 110.0).blur
    assert sharp < 0.3
    assert 1.0 < soft < 3.0


def test_pursed_lips_hide_the_teeth(engine: BuiltinEngine, drawn: Face):
    state = engine.prepare(drawn)
    spread = engine.posed(state, Motion(0.09, 0.0, 0.01, 0)).image @ LUMA
    pursed = engine.posed(state, Motion(0.09, -0.16, 0.01, 0)).image @ LUMA
    middle = (state.upper.line[20] + 0.03 * state.unit * state.down).astype(int)
    part = (slice(middle[1] - 2, middle[1] + 3), slice(middle[0] - 15, middle[0] + 16))
    assert np.median(pursed[part]) < 0.5 * np.median(spread[part])


def test_lips_that_nearly_touch_show_a_dark_line(engine: BuiltinEngine, drawn: Face):
    """Not a light one, as if light fell in; else the mouth would flash whenever it opens."""
    state = engine.prepare(drawn)
    at = state.upper.line[20]
    part = (slice(int(at[1]) - 3, int(at[1]) + 6), slice(int(at[0]) - 15, int(at[0]) + 16))
    skin = np.median(drawn.photo[300:320, 180:200] @ LUMA)
    for opened in (0.008, 0.014, 0.02):
        rows = np.median(engine.posed(state, Motion(opened, 0, 0, 0)).image[part] @ LUMA, axis=1)
        assert rows[2:6].max() < budgets.BUILTIN_DARK_LINE * skin


def test_far_side_of_a_turned_row_is_foreshortened():
    box = (0, 0, 120, 60)
    angle = np.radians(30)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]], np.float32)
    shares = []
    for rotation in (np.eye(3, dtype=np.float32), turn):
        pose = Pose(100.0, rotation, np.zeros(3, np.float32))
        arch = teeth.Arch.behind(pose, np.array([60, 20], np.float32), box)
        _, share = teeth.painted(teeth.UPPER, np.full(3, 200, np.float32), np.full(3, 100, np.float32), arch, 1.0)
        row = share[15]
        shares.append((row[:60].sum(), row[60:].sum()))
    assert shares[0][0] == pytest.approx(shares[0][1], rel=0.05)
    assert min(shares[1]) < 0.8 * max(shares[1])
