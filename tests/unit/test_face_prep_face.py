"""From photo to prepared face, with the real networks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import skimage.data

from services.face_prep.detector import FaceDetector, iou
from services.face_prep.face import EYES, LIPS, FaceError, FaceMaker, mouth_mask
from services.face_prep.network import NetworkError
from shared.messages import Face, pack, unpack
from tests import budgets

MODELS = Path(__file__).resolve().parents[2] / "models" / "face"
NAME = "0" * 32
ASTRONAUT_BOX = (179, 57, 272, 178)
"""of skimage.data.astronaut(), looked at by eye"""

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def maker() -> FaceMaker:
    if not MODELS.is_dir() and not os.environ.get("CI"):
        pytest.skip("the face models are not fetched: run `make setup`")
    return FaceMaker(MODELS)


def astronaut() -> Pixels:
    rgb = np.asarray(skimage.data.astronaut(), np.uint8)
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), np.uint8)


def png(image: npt.NDArray[Any]) -> bytes:
    return bytes(cv2.imencode(".png", np.ascontiguousarray(image), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


def array(box: Sequence[float]) -> npt.NDArray[np.float32]:
    return np.array(box, np.float32)


def whole_mask(face: Face) -> Pixels:
    whole = np.zeros(face.photo.shape[:2], np.uint8)
    rows, columns = face.mask.shape
    whole[face.mask_y : face.mask_y + rows, face.mask_x : face.mask_x + columns] = face.mask
    return whole


def group(sides: tuple[int, ...]) -> tuple[Pixels, list[list[float]]]:
    """Astronauts of several sizes side by side, and where their faces are."""
    head = astronaut()[20:260, 110:350]
    canvas = np.full((440, sum(sides) + 10 * len(sides), 3), (120, 110, 100), np.uint8)
    boxes: list[list[float]] = []
    x = 0
    for side in sides:
        canvas[20 : 20 + side, x : x + side] = cv2.resize(head, (side, side), interpolation=cv2.INTER_AREA)
        scale = side / 240
        edges = np.array(ASTRONAUT_BOX) - (110, 20, 110, 20)
        boxes.append([float(edge) for edge in edges * scale + (x, 20, x, 20)])
        x += side + 10
    return canvas, boxes


def test_a_portrait_becomes_a_face_that_can_be_sent(maker: FaceMaker) -> None:
    face = maker.make(NAME, png(astronaut()))
    assert np.array_equal(face.photo, astronaut())
    assert iou(array(face.box), array(ASTRONAUT_BOX)) > budgets.FACE_IOU_MIN
    assert face.boxes.shape == (1, 4)
    assert np.abs(face.boxes[face.index] - face.box).max() <= 0.5
    again = unpack([bytes(frame) for frame in pack(face)], (Face,))
    assert isinstance(again, Face)
    assert np.array_equal(again.landmarks, face.landmarks)


def test_landmarks_lie_where_the_face_is(maker: FaceMaker) -> None:
    points = maker.make(NAME, png(astronaut())).landmarks
    right_eye, left_eye, nose, mouth = points[159, :2], points[386, :2], points[1, :2], points[13, :2]
    assert np.allclose(right_eye, (206, 105), atol=8)
    assert np.allclose(left_eye, (245, 106), atol=8)
    assert np.allclose(mouth, (228, 150), atol=10)
    assert right_eye[1] < nose[1] < mouth[1]
    assert points[1, 2] < points[234, 2]  # the nose is nearer than the ear


def test_landmarks_do_not_depend_on_the_size_of_the_photo(maker: FaceMaker) -> None:
    large = maker.make(NAME, png(cv2.resize(astronaut(), (1024, 1024), interpolation=cv2.INTER_CUBIC)))
    small = maker.make(NAME, png(astronaut()))
    eyes = float(np.linalg.norm(small.landmarks[33, :2] - small.landmarks[263, :2]))
    far = np.linalg.norm((large.landmarks[:, :2] + 0.5) / 2 - 0.5 - small.landmarks[:, :2], axis=1)
    assert far.mean() < budgets.FACE_LANDMARK_SCATTER_SHARE * eyes


def test_the_mask_covers_the_mouth_and_never_the_eyes(maker: FaceMaker) -> None:
    for angle in (0, 20, -35):
        turned = cv2.warpAffine(
            astronaut(), cv2.getRotationMatrix2D((256.0, 256.0), angle, 1.0), (512, 512), borderMode=cv2.BORDER_REFLECT
        )
        face = maker.make(NAME, png(turned))
        whole = whole_mask(face)
        lips = np.round(face.landmarks[list(LIPS), :2]).astype(int)
        assert (whole[lips[:, 1], lips[:, 0]] > 230).all()
        for eye in EYES:
            x, y = np.round(face.landmarks[list(eye), :2]).astype(int).T
            assert (whole[y, x] == 0).all()
        assert face.mask.max() == 255
        for edge in (face.mask[0], face.mask[-1], face.mask[:, 0], face.mask[:, -1]):
            assert (edge == 0).all()
        assert np.abs(np.diff(face.mask.astype(int), axis=0)).max() < 100  # soft


def test_the_mask_of_a_face_at_the_edge_stays_within_the_photo(maker: FaceMaker) -> None:
    face = maker.make(NAME, png(astronaut()[:172, 185:]))
    assert face.mask_x >= 0
    assert face.mask_x + face.mask.shape[1] <= face.photo.shape[1]
    assert face.mask_y + face.mask.shape[0] <= face.photo.shape[0]
    points = face.landmarks - np.array([0, 60, 0], np.float32)
    with pytest.raises(FaceError, match="edge"):
        mouth_mask(points - np.array([0, 200, 0], np.float32), 512, 512)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_photo_on_its_side_or_head_is_turned(maker: FaceMaker, quarter: int) -> None:
    upright = maker.make(NAME, png(astronaut()))
    face = maker.make(NAME, png(np.rot90(astronaut(), quarter)))
    assert np.array_equal(face.photo, astronaut())
    far = np.linalg.norm(face.landmarks[:, :2] - upright.landmarks[:, :2], axis=1)
    assert far.mean() < budgets.FACE_UPRIGHT_DIFFERENCE_PX


def test_the_largest_of_several_is_taken_and_another_can_be_chosen(maker: FaceMaker) -> None:
    picture, boxes = group((200, 400, 300))
    data = png(picture)
    for index, place in enumerate((1, 2, 0)):
        face = maker.make(NAME, data, index=index)
        assert face.index == index
        assert len(face.boxes) == 3
        assert iou(array(face.box), array(boxes[place])) > budgets.FACE_IOU_MIN
    areas = np.prod(face.boxes[:, 2:] - face.boxes[:, :2], axis=1)
    assert (np.diff(areas) < 0).all()
    with pytest.raises(FaceError, match="only 3 faces") as caught:
        maker.make(NAME, data, index=3)
    assert caught.value.code == "no_face"


def test_a_small_face_far_off_and_one_that_fills_the_picture_are_found(maker: FaceMaker) -> None:
    far = np.full((720, 1280, 3), 90, np.uint8)
    far[100:356, 1000:1256] = cv2.resize(astronaut(), (256, 256), interpolation=cv2.INTER_AREA)
    box = array([edge / 2 + shift for edge, shift in zip(ASTRONAUT_BOX, (1000, 100) * 2, strict=True)])
    assert iou(array(maker.make(NAME, png(far)).box), box) > budgets.FACE_IOU_MIN
    near = cv2.resize(astronaut()[57:178, 179:272], (372, 484), interpolation=cv2.INTER_CUBIC)
    assert iou(array(maker.make(NAME, png(near)).box), array((0, 0, 372, 484))) > budgets.FACE_IOU_MIN


@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket", "brick", "cell"])
def test_without_a_face_the_error_says_what_to_try(maker: FaceMaker, name: str) -> None:
    with pytest.raises(FaceError, match="by hand") as caught:
        maker.make(NAME, png(getattr(skimage.data, name)()))
    assert caught.value.code == "no_face"


def test_a_box_by_hand_is_taken_as_it_is(maker: FaceMaker) -> None:
    large = cv2.resize(astronaut(), (2048, 2048), interpolation=cv2.INTER_CUBIC)
    box = (4 * 175, 4 * 50, 4 * 280, 4 * 182)
    face = maker.make(NAME, png(large), box=box, max_side_px=1024)
    assert face.photo.shape == (1024, 1024, 3)
    assert face.box == (350, 100, 560, 364)
    assert face.boxes.tolist() == [[350, 100, 560, 364]]
    assert np.allclose(face.landmarks[13, :2], (2 * 228, 2 * 150), atol=20)


@pytest.mark.parametrize(
    ("box", "code"),
    [
        ((600, 600, 700, 700), "bad_box"),
        ((300, 300, 200, 200), "bad_box"),
        ((100, 100, 105, 300), "bad_box"),
        ((-300, -300, 10, 10), "bad_box"),
        ((330, 150, 480, 330), "no_face"),
        ((0, 0, 512, 512), "no_face"),
    ],
)
def test_a_senseless_box_is_refused_with_words(maker: FaceMaker, box: tuple[int, int, int, int], code: str) -> None:
    with pytest.raises(FaceError, match=r"[Dd]raw it") as caught:
        maker.make(NAME, png(astronaut()), box=box)
    assert caught.value.code == code


def test_missing_or_damaged_networks_say_what_to_do(maker: FaceMaker, tmp_path: Path) -> None:
    del maker  # it skips where the models are not there
    with pytest.raises(NetworkError, match="make setup"):
        FaceDetector(tmp_path)
    for path in MODELS.glob("*.tflite"):
        shutil.copy(path, tmp_path)
    (tmp_path / "face_detection_short_range.tflite").write_bytes(b"not a network")
    with pytest.raises(NetworkError, match="make setup"):
        FaceDetector(tmp_path)
    with pytest.raises(NetworkError, match="another device"):
        FaceDetector(MODELS, "NOSUCH")
