"""Outside the mask every pixel stays; patches that reach over the edge are cut."""

from __future__ import annotations

import msgspec
import numpy as np

from services.streamer.compositor import compose, marked
from shared.messages import Patch
from tests.examples import EXAMPLES


def patch(x: int, y: int, mask: np.ndarray) -> Patch:
    example = EXAMPLES["patch"]
    assert isinstance(example, Patch)
    image = np.random.default_rng(1).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    return msgspec.structs.replace(example, x=x, y=y, image=image, mask=mask)


PHOTO = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_pixels_stay_where_the_mask_is_zero_and_are_the_patch_where_it_is_full():
    mask = np.zeros((30, 40), np.uint8)
    mask[10:20, 10:30] = 255
    mask[9, 10:30] = 128
    before = PHOTO.copy()
    laid = patch(5, 7, mask)
    out = compose(PHOTO, laid)
    inside = out[7:37, 5:45]
    np.testing.assert_array_equal(inside[mask == 255], laid.image[mask == 255])
    np.testing.assert_array_equal(inside[mask == 0], PHOTO[7:37, 5:45][mask == 0])
    outside = np.ones(PHOTO.shape[:2], bool)
    outside[7:37, 5:45] = False
    np.testing.assert_array_equal(out[outside], PHOTO[outside])
    np.testing.assert_array_equal(PHOTO, before)
    half = inside[9, 10:30].astype(int)
    between = (laid.image[9, 10:30].astype(int) * 128 + PHOTO[16, 15:35].astype(int) * 127) / 255
    assert np.abs(half - between).max() <= 1


def test_a_soft_edge_anywhere_is_mixed_of_both_pictures():
    mask = np.full((30, 40), 255, np.uint8)
    mask[:8] = 0
    mask[20:26, 5:18] = np.random.default_rng(2).integers(0, 256, (6, 13))
    for x, y in ((5, 7), (-10, -22), (60, 40)):
        laid = patch(x, y, mask)
        out = compose(PHOTO, laid)
        top, left = max(0, y), max(0, x)
        bottom, right = min(60, y + 30), min(80, x + 40)
        cut = (slice(top - y, bottom - y), slice(left - x, right - x))
        under, share = PHOTO[top:bottom, left:right].astype(float), mask[cut][..., None] / 255
        wanted = laid.image[cut] * share + under * (1 - share)
        assert np.abs(out[top:bottom, left:right] - wanted).max() <= 1
        hard = mask[cut] % 255 == 0
        np.testing.assert_array_equal(out[top:bottom, left:right][hard], wanted[hard])


def test_a_patch_over_the_edge_is_cut_and_one_outside_changes_nothing():
    mask = np.full((30, 40), 255, np.uint8)
    for x, y in ((-10, -5), (60, 50), (70, -20)):
        out = compose(PHOTO, patch(x, y, mask))
        assert out.shape == PHOTO.shape
        assert not np.array_equal(out, PHOTO)
    for x, y in ((200, 0), (-100, 0), (0, 300)):
        assert compose(PHOTO, patch(x, y, mask)) is PHOTO
    assert compose(PHOTO, None) is PHOTO


def test_a_mark_stands_in_its_corner_only():
    photo = np.full((400, 600, 3), 90, np.uint8)
    assert marked(photo, "", "top-left") is photo
    for corner, rows, columns in (
        ("top-left", slice(0, 200), slice(0, 300)),
        ("bottom-right", slice(200, 400), slice(300, 600)),
    ):
        out = marked(photo, "synthetic", corner)
        changed = (out != photo).any(axis=2)
        assert changed.any()
        assert changed.sum() == changed[rows, columns].sum()
    narrow = marked(np.full((64, 64, 3), 90, np.uint8), "a rather long mark for a small picture", "top-right")
    assert narrow.shape == (64, 64, 3)
