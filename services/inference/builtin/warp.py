"""Motion to picture: the photo bent so that the lips go where the motion says.

Two smooth displacement fields, one for what hangs on the skull (upper lip, cheeks), one for what goes with the jaw
(lower lip, chin), meet in the line between the lips and are the same beside the mouth. Each is a sum of a few fields
made once for a face on a coarse grid; a frame adds them up, turns them round by fixed-point iteration, samples the
photo twice, and lays the inside of the mouth between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.inference.builtin import lips, mouth, teeth
from services.inference.builtin.basis import AXES, MotionBasis, Pose
from services.inference.builtin.pictures import (
    Floats,
    Pixels,
    blurred,
    bytes_of,
    clamped,
    enlarged,
    fine_scale,
    floats,
    grey_of,
    mixed,
    picture_of,
    planes_of,
    sampled_field,
    sampled_fine,
    shifted,
    smoothstep,
)
from shared.messages import Face

__all__ = ["FaceWarp", "prepare", "render"]

UPPER_LINE: Final = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_LINE: Final = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
"""inner edge of each lip, from the person's right corner to the left"""
OUTER_LINE: Final = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
UPPER_OUTER: Final = (185, 40, 39, 37, 0, 267, 269, 270, 409)
LOWER_OUTER: Final = (146, 91, 181, 84, 17, 314, 405, 321, 375)
CORNERS: Final = (61, 291, 78, 308, 76, 306, 62, 292)
JAW_SHARE: Final = 0.72
"""How far the lower teeth go with the lower lip: a little less, so that a wide open mouth just shows them."""

# Lengths in eye distances.
CELL: Final = 1 / 24
"""Side of a cell of the coarse grid."""
EDGE: Final = 0.30
"""How far inside the mask the fields reach their full size."""
KERNEL: Final = 0.06
"""Roundness of the interpolation at a landmark."""
OVERHANG: Final = (0.05, 0.11, 0.18)
"""Where points are added over the edge of a lip."""
LOOSE: Final = 0.04
"""How loosely the interpolation follows each landmark."""
PARTED: Final = 0.022
"""A gap between the lips from which teeth are looked for."""
WIDE_OPEN: Final = 0.10
"""A gap from which the landmarks of both lips can be trusted."""
OPEN_PHOTO: Final = 0.055
"""A gap between the lips from which the photo counts as open-mouthed, teeth or none."""
UPPER_CLOSES: Final = 0.045
"""How far the upper lip comes down to close an open mouth; the lower one does the rest."""
UPPER_CLOSES_MOST: Final = 0.065
"""The same, of a broad smile."""
OPEN_FADE: Final = 0.06
CLOSED_FADE: Final = 0.09
"""How far from the corners the dark of an open mouth, and of the line between closed lips, stays."""
THIN_LIP: Final = 0.35
"""Most of a thin lip that is painted over at its edge."""
OPEN_REACH: Final = 0.5
"""How far beyond the landmarks of its inside, on the way to those of its corners, an open mouth ends on the photo."""
CLOSED_REACH: Final = 0.4
"""How far a closed one opens."""
TURNED: Final = 0.35
"""Sine of the turn of a head from which the far corner of its mouth is hidden."""
RELAX: Final = 0.12
"""How much narrower the mouth gets when it closes."""
CLEAN_FROM: Final = 0.05
"""A gap between the lips from which nothing is left of that line."""
OPEN_MOST: Final = 0.42
"""Widest opening that is drawn."""
CORNER_DROP: Final = 0.30
"""How far the corners come down for the opening, when it is wide."""
CORNER_REACH: Final = (0.30, 0.13, 0.28)
"""How far around the corners: outwards, inwards, up and down."""
ENTERS: Final = 0.07
"""A gap from which all the light falls in."""
TOUCHING: Final = 0.04
"""A gap up to which something is left of the line in which lips touch."""
LEAST_GAP_PX: Final = 0.3
LIP_SHADE: Final = 0.22
"""How much darker the lips are at their inner edge, where they turn in."""
WARM_SHADE: Final = 0.22
"""How much redder what is in the shade is, as a share of the shade."""
WARMER: Final[Floats] = np.array([-0.8, -0.4, 0.6], np.float32)[:, None, None]
"""How that changes blue, green and red."""
WIDE_GAP: Final = (0.22, 0.36)
"""From this gap to that one lips that are pushed forward hide ever less of the teeth."""
NARROW: Final = 0.13
"""A narrowing at which the lips hide most of the teeth."""
FINE_LINE: Final = 41
"""Points of the smooth line of a lip."""
ITERATIONS: Final = 3


@dataclass
class _Photo:
    """An enlarged photo in which the mouth is drawn anew when its lips part."""

    picture: Pixels
    """BGR and an empty channel, (sh, sw, 4)"""
    clean: float = 0.0
    """how far the line of contact has gone over into the edge of a lip, 0..1"""


@dataclass(frozen=True)
class _Layer:
    """What moves together."""

    fine: _Photo
    closed: Pixels
    """the mouth's box of it as photographed"""
    clean: Pixels
    """the mouth's box of it with the lip continued over its edge in place of the gap or the line of contact"""
    fields: Floats
    """displacement for 1 of each axis, of the dropping corners and, last, to rest, (axes + 2, gh, gw, 2) px"""
    line: Floats
    """inner edge of the lip on the photo, (n, 2) px"""
    line_moves: Floats
    """displacement of the line for the same, (axes + 2, n, 2) px"""


@dataclass(frozen=True)
class FaceWarp:
    """What is made once for a face."""

    x: int
    """left edge of the patch on the photo, px"""
    y: int
    """top edge, px"""
    unit: float
    """eye distance, px"""
    across: Floats
    """unit vector along the mouth, (2,)"""
    down: Floats
    """unit vector down the face, (2,)"""
    upper: _Layer
    lower: _Layer
    interior: mouth.Interior
    jaw_moves: Floats
    """displacement of the lower teeth for the same, (axes + 2, 2) px"""
    contact: float
    """how much of a line of contact is drawn between closed lips: 1 where the photo shows none, 0..1"""
    blur: float
    """how blurred the photo is beyond a sharp one, px"""
    coloured: float
    """0 for a picture in shades of one colour, 1 for one in colours"""
    cell: int
    """side of a cell of the coarse grid, px"""
    nodes: Floats
    """place of each node, in cells, (gh, gw, 2)"""
    scale: int
    """pixels of an enlarged photo for one of the photo, along each side"""
    places: Floats
    """place of each pixel on an enlarged photo, (h, w, 2)"""
    mask: Pixels
    """(h, w)"""
    rest: Pixels
    """the patch with the mouth at rest, BGR, (h, w, 3)"""


def prepare(face: Face, basis: MotionBasis) -> FaceWarp:
    """Make a face ready to move.

    Args:
        face: from face_prep.
        basis: the motion basis.
    """
    height, width = face.mask.shape
    x, y = face.mask_x, face.mask_y
    patch = np.ascontiguousarray(face.photo[y : y + height, x : x + width])
    pose_on_photo = basis.pose(face.landmarks)
    unit = pose_on_photo.scale
    pose = Pose(unit, pose_on_photo.rotation, pose_on_photo.shift - np.array([x, y, 0], np.float32))
    points = face.landmarks[:, :2] - np.array([x, y], np.float32)
    across, down = _unit(pose.rotation[:2, 0]), _unit(pose.rotation[:2, 1])

    box = _mouth_box(points, across, down, unit, (height, width))
    part = (slice(box[1], box[3]), slice(box[0], box[2]))
    crop = np.ascontiguousarray(patch[part])
    light = mouth.light_of(face.photo, face.landmarks, unit)
    turn = float(pose.rotation[2, 0])
    reaches = (float(np.clip(1 + turn / TURNED, 0, 1)), float(np.clip(1 - turn / TURNED, 0, 1)))
    found = _find_mouth(crop, points - np.array(box[:2], np.float32), light, down, unit, reaches)
    upper_line, lower_line = (line + np.array(box[:2], np.float32) for line in (found.upper_line, found.lower_line))
    points = points.copy()
    points[list(UPPER_LINE[1:-1])], points[list(LOWER_LINE[1:-1])] = upper_line[1:-1], lower_line[1:-1]
    if not found.open:
        points[[78, 308]] = upper_line[[0, -1]]

    moves = np.stack([pose.turned(axis) for axis in (*basis.axes, _corners_drop(basis.mean, reaches))])
    upper_rest, lower_rest = _rest(points, moves, upper_line, lower_line, down, unit, found.closes)
    is_upper, is_lower = _sides(basis.mean)  # upper: what the lower layer leaves out
    taper_mask = _taper(face.mask, unit)

    cell = max(1, round(CELL * unit))
    grid = (-(-height // cell), -(-width // cell))
    beside = _beside(grid, cell, points, across, unit)
    fields = []
    for own, numbers, rest, beyond in (
        (~is_lower, UPPER_LINE, upper_rest, down),
        (~is_upper, LOWER_LINE, lower_rest, -down),
    ):
        all_moves = np.concatenate([moves, rest[None]])
        # Over the edge of the lip the layer goes on as at the edge: nothing there is seen, but it must not fold.
        edge, edge_moves = points[list(numbers)], all_moves[:, list(numbers)]
        places = np.concatenate([points[own], *(edge + k * unit * beyond for k in OVERHANG)])
        values = np.concatenate([all_moves[:, own], *(edge_moves for _ in OVERHANG)], axis=1)
        loose = np.full(len(places), LOOSE)
        loose[np.isin(np.flatnonzero(own), CORNERS).nonzero()[0]] = LOOSE / 20  # the layers must agree there
        fields.append(_fields(places, values, loose, grid, cell, unit))
    room = (grid[0] * cell - height, grid[1] * cell - width)
    taper = cv2.copyMakeBorder(taper_mask, 0, room[0], 0, room[1], cv2.BORDER_CONSTANT, value=0)
    taper = cv2.resize(taper, grid[::-1], interpolation=cv2.INTER_AREA)[None, :, :, None]
    mean = (fields[0] + fields[1]) / 2
    fields = [np.ascontiguousarray((mean + beside[None, :, :, None] * (each - mean)) * taper) for each in fields]

    smooth = lips.spline(len(UPPER_LINE), FINE_LINE)
    scale = fine_scale(patch.shape)
    fine = enlarged(patch, scale)
    fine_part = (slice(box[1] * scale, box[3] * scale), slice(box[0] * scale, box[2] * scale))
    closed = fine[fine_part].copy()
    layers = []
    for clean, line, field in zip(found.cleaned, (smooth @ upper_line, smooth @ lower_line), fields, strict=True):
        line_moves = np.stack([_sample(each, line, cell) for each in field])
        cleaned = patch.copy()
        cleaned[part] = clean
        fine_clean = enlarged(cleaned, scale)
        layers.append(
            _Layer(
                fine=_Photo(fine_clean if found.open else fine.copy()),
                closed=closed,
                clean=fine_clean[fine_part].copy(),
                fields=field,
                line=floats(line),
                line_moves=line_moves,
            )
        )
    # At rest the lips meet exactly, whatever the grid has rounded.
    meeting = floats(np.mean([each.line + each.line_moves[-1] for each in layers], axis=0))
    layers = [
        replace(each, line_moves=np.concatenate([each.line_moves[:-1], (meeting - each.line)[None]])) for each in layers
    ]

    interior = mouth.paint(crop, light, pose, meeting, found.shown, box)
    jaw = pose.turned(np.stack([JAW_SHARE * axis[14] for axis in basis.axes]))
    jaw_moves = np.concatenate([jaw, np.zeros((2, 2), np.float32)])
    # Where the mask begins nothing moves yet, so it may rise faster than it came.
    mask = bytes_of(6.0 * face.mask)
    mask[[0, -1]] = 0
    mask[:, [0, -1]] = 0
    warp = FaceWarp(
        x=x,
        y=y,
        unit=unit,
        across=across,
        down=down,
        upper=layers[0],
        lower=layers[1],
        interior=interior,
        jaw_moves=jaw_moves,
        contact=1.0 if found.open else 0.0,
        blur=light.blur,
        coloured=light.coloured,
        cell=cell,
        nodes=_places(grid),
        scale=scale,
        places=scale * _places((height, width)),
        mask=mask,
        rest=patch,
    )
    rest_patch = render(warp, np.zeros(len(AXES), np.float32))
    rest_patch.flags.writeable = False
    return replace(warp, rest=rest_patch)


@dataclass(frozen=True)
class _Mouth:
    """The mouth of a photo, in pixels of its box."""

    upper_line: Floats
    """inner edge of the upper lip, (n, 2)"""
    lower_line: Floats
    """inner edge of the lower lip, the same where the lips are closed, (n, 2)"""
    open: bool
    shown: lips.Shown | None
    """the teeth"""
    cleaned: tuple[Pixels, Pixels]
    """the box with the upper and with the lower lip continued over its edge, BGR, (h, w, 3)"""
    closes: float
    """how far the upper lip comes down to close it, px"""


def _find_mouth(
    crop: Pixels, points: Floats, light: mouth.Light, down: Floats, unit: float, reaches: tuple[float, float]
) -> _Mouth:
    """Find lips and teeth in the box of the mouth.

    Args:
        crop: the box, BGR, (h, w, 3).
        points: landmarks, px of the box, (468, 2).
        light: on the mouth.
        down: unit vector down the face.
        unit: eye distance, px.
        reaches: how much of the person's right and left corner is seen, 0..1.
    """
    upper_line, lower_line = points[list(UPPER_LINE)], points[list(LOWER_LINE)]
    gap = float(np.median(((lower_line - upper_line) @ down)[3:8]))
    shown: lips.Shown | None = None
    edges = (upper_line, lower_line)
    # Where there are no colours, what they would tell would be wrong.
    seen = crop if light.coloured > 0.5 else grey_of(crop)
    if gap > PARTED * unit:
        if gap < WIDE_OPEN * unit:
            edges = lips.edges(seen, upper_line, lower_line, down, unit)
        shown = lips.shown_teeth(seen, *edges, down, unit)
    is_open = shown is not None or gap > OPEN_PHOTO * unit
    corners = points[[61, 291]]
    closes = UPPER_CLOSES * unit
    if is_open:
        upper_line, lower_line = edges
        for end, inner, corner, reach in ((0, 78, corners[0], reaches[0]), (-1, 308, corners[1], reaches[1])):
            upper_line[end] = lower_line[end] = points[inner] + OPEN_REACH * reach * (corner - points[inner])
        margin = (lips.LIP_MARGIN if shown is None else lips.TEETH_MARGIN) * unit
        if shown is not None:
            # Closed lips leave as much of the teeth below the upper one as everybody's.
            length = lips.length_of(shown, upper_line, down, unit)
            closes = float(np.clip(length - teeth.UPPER.edge * unit, closes, UPPER_CLOSES_MOST * unit))
    else:
        middle = floats((upper_line + lower_line) / 2)
        line = lips.seam(crop, floats(np.concatenate([corners[:1], middle, corners[1:]])), down, unit)
        along = np.linspace(1 - CLOSED_REACH * reaches[0], len(middle) + CLOSED_REACH * reaches[1], len(middle))
        upper_line = floats(lips.spline_at(len(line), along) @ line)
        lower_line = upper_line.copy()
        # Lips that are nearly closed have a thicker line of contact.
        margin = float(np.clip(0.7 * gap, lips.SEAM_MARGIN * unit, 1.6 * lips.SEAM_MARGIN * unit))
    margin += 0.8 * light.blur
    upper_thick, lower_thick = (
        abs(float(np.median((line[3:8] - points[list(outer)]) @ down)))
        for line, outer in ((upper_line, UPPER_OUTER[2:7]), (lower_line, LOWER_OUTER[2:7]))
    )
    cleaned = lips.without_gap(
        crop,
        upper_line,
        lower_line,
        down,
        unit,
        margins=(min(margin, THIN_LIP * upper_thick), min(margin, THIN_LIP * lower_thick)),
        fade=(OPEN_FADE if is_open else CLOSED_FADE) * unit,
    )
    return _Mouth(upper_line, lower_line, is_open, shown, cleaned, closes)


def render(warp: FaceWarp, coefficients: Floats, way: Floats | None = None) -> Pixels:
    """Draw the patch for a motion. Calls for one face must not overlap.

    Args:
        warp: from `prepare`.
        coefficients: of the basis' axes, eye distances, (4,); 0 is the mouth at rest.
        way: how far the head has carried each node of the grid, parts of its cell, (gh, gw, 2) px; None: it is where it
            is on the photo.

    Returns:
        BGR, (h, w, 3).
    """
    height, width = warp.mask.shape
    amounts = _amounts(coefficients)
    upper_line = floats(warp.upper.line + _summed(amounts, warp.upper.line_moves))
    lower_line = floats(warp.lower.line + _summed(amounts, warp.lower.line_moves))
    # Lips cannot pass through each other.
    crossed = np.minimum((lower_line - upper_line) @ warp.down, 0)[:, None] * warp.down
    upper_line, lower_line = floats(upper_line + crossed / 2), floats(lower_line - crossed / 2)
    nodes, shift = warp.nodes, mouth.NOWHERE
    if way is not None:
        lines = np.concatenate([upper_line, lower_line])
        gone = _sample(way, lines, warp.cell)
        upper_line, lower_line = np.split(floats(lines + gone), 2)
        # A node at p came from p - way(p): the head goes so little that this is the inverse too.
        nodes, shift = floats(warp.nodes - way / np.float32(warp.cell)), floats(gone.mean(axis=0))

    gap = float(((lower_line - upper_line) @ warp.down).max())
    clean = clamped(gap / (CLEAN_FROM * warp.unit), 0, 1) if warp.contact == 0 else 0.0
    # A layer is only drawn in the rows where it is seen.
    beside = np.array([0, width], np.float32)
    slope = warp.across[1] / max(float(warp.across[0]), 0.2)
    ends = np.concatenate([lower_line[end, 1] + slope * (beside - lower_line[end, 0]) for end in (0, -1)])
    ends = np.concatenate([ends, lower_line[:, 1], upper_line[:, 1]])
    top = int(clamped(ends.min() - 2, 0, height))
    bottom = int(clamped(ends.max() + 3, top, height))
    for layer in (warp.upper, warp.lower):
        _part_lips(warp, layer, clean)
    upper = _bent(warp, warp.upper, amounts, nodes, (0, bottom))
    lower = _bent(warp, warp.lower, amounts, nodes, (top, height))
    picture = np.empty((height, width, 3), np.uint8)
    picture[:top] = upper[:top]
    picture[bottom:] = lower[bottom - top :]
    if bottom > top:
        share = _below(warp, lower_line, top, bottom)
        picture[top:bottom] = mixed(lower[: bottom - top], upper[top:], share)
    _lay_interior(picture, warp, upper_line, lower_line, amounts, shift)
    return picture


def _amounts(coefficients: Floats) -> Floats:
    """How much of each field a motion takes; what no mouth can do is led back softly, (axes + 2,)."""
    opened = clamped(coefficients[0], 0, OPEN_MOST)
    wide = _held(float(coefficients[1]), 0.11 - 0.18 * max(0.0, opened - 0.10), 0.03)
    wide = -_held(-wide, 0.175 - 0.35 * max(0.0, opened - 0.15), 0.03)
    # The upper lip can come down only as far as there is room for it.
    lower_most = 0.003 + 0.5 * opened
    raised = -_held(-float(coefficients[2]), min(0.02, lower_most), min(0.01, 0.5 * lower_most))
    # Lips that are far apart cannot be pressed together.
    press = float(coefficients[3])
    if press > 0:
        press *= clamped(1.15 - opened / 0.20, 0.0, 1.0)
    drop = CORNER_DROP * opened**2 / (opened + 0.15)
    return np.array([opened, wide, _held(raised, 0.085, 0.01), press, drop, 1.0], np.float32)


def _summed(amounts: Floats, moves: Floats) -> Floats:
    """Sum of displacements, (k, ...), each so many times, (k,)."""
    # NumPy's tensordot does the same in three times the time.
    return floats((amounts @ moves.reshape(len(moves), -1)).reshape(moves.shape[1:]))


def _held(value: float, most: float, soft: float) -> float:
    """The value up to `most - soft`, `most` from `most + soft` on, smoothly between."""
    t = clamped((value - most + soft) / (2 * soft), 0, 1)
    return min(value, most - soft) + 2 * soft * (t - t * t / 2) if t > 0 else value


def _below(warp: FaceWarp, lower_line: Floats, top: int, bottom: int) -> Floats:
    """Share of each pixel of some rows that belongs to the lower layer, (bottom - top, w)."""
    shape = (bottom - top, warp.mask.shape[1])
    far = float(sum(warp.mask.shape))
    outline = np.concatenate(
        [
            [lower_line[0] - warp.across * far],
            lower_line,
            [lower_line[-1] + warp.across * far, lower_line[-1] + (warp.across + warp.down) * far],
            [lower_line[0] + (warp.down - warp.across) * far],
        ]
    ) - np.array([0, top], np.float32)
    share = np.zeros(shape, np.float32)
    cv2.fillPoly(share, [np.round(outline).astype(np.int32)], 1.0)
    # Only between the corners of the mouth the layers differ, so only there the edge must be smooth.
    low, high = _bounds(floats(lower_line - np.array([0, top])), 2, shape)
    if (high > low).all():
        part = share[low[1] : high[1], low[0] : high[0]]
        part[:] = lips.filled(floats(outline - low), part.shape[:2])
    return share


def _bounds(points: Floats, room: float, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Left and top, and right and bottom (exclusive), of what holds the points, within a picture."""
    # NumPy takes several times as long for so few points.
    sides = list(zip(points.T.tolist(), (shape[1], shape[0]), strict=True))
    low = [min(max(math.floor(min(along) - room), 0), most) for along, most in sides]
    high = [min(max(math.ceil(max(along) + room) + 1, 0), most) for along, most in sides]
    return np.array(low, np.intp), np.array(high, np.intp)


def _lay_interior(
    picture: Pixels, warp: FaceWarp, upper_line: Floats, lower_line: Floats, amounts: Floats, shift: Floats
) -> None:
    """Lay the inside of the mouth, and the line in which closed lips touch, on the picture of a head that was carried
    by `shift`."""
    inner = warp.interior
    low, high = _bounds(np.concatenate([upper_line, lower_line]), 2 + 0.04 * warp.unit, picture.shape)
    box_low = np.array([inner.x, inner.y])
    low = np.maximum(low, box_low)
    high = np.minimum(high, box_low + inner.sideways.shape[::-1])
    if (high <= low).any():
        return
    view = picture[low[1] : high[1], low[0] : high[0]]
    upper_line, lower_line = floats(upper_line - low), floats(lower_line - low)
    gap = float(((lower_line - upper_line) @ warp.down).max())
    shut = warp.contact * clamped(1 - gap / (TOUCHING * warp.unit), 0, 1)
    if shut > 0:
        _lay_contact(view, warp, floats((upper_line + lower_line) / 2), shut)
    if gap > LEAST_GAP_PX:
        _lay_opening(view, warp, (upper_line, lower_line), amounts, low, shift)


def _lay_contact(view: Pixels, warp: FaceWarp, line: Floats, shut: float) -> None:
    """Darken the line in which lips touch that the photo shows apart: no light reaches it."""
    shade = np.zeros(view.shape[:2], np.uint8)
    thick = max(1, round(0.012 * warp.unit))
    cv2.polylines(shade, [np.round(line * 16).astype(np.int32)], False, round(185 * shut), thick, cv2.LINE_AA, 4)
    lost = blurred(floats(shade), max(0.5, 0.010 * warp.unit)) / 255
    # Red is lost the least: it shines through the skin.
    red = (1 - 0.28 * warp.coloured) * lost
    view[:] = cv2.multiply(view, cv2.merge([1 - lost, 1 - lost, 1 - red]), dtype=cv2.CV_8U)


def _lay_opening(
    view: Pixels,
    warp: FaceWarp,
    lines: tuple[Floats, Floats],
    amounts: Floats,
    low: npt.NDArray[np.intp],
    head_shift: Floats,
) -> None:
    """Lay what lies between the lips on a part of the picture whose left and top edge is `low`."""
    inner, unit = warp.interior, warp.unit
    upper_line, lower_line = lines
    shape = (view.shape[0], view.shape[1])
    gap = float(((lower_line - upper_line) @ warp.down).max())
    share = lips.filled(np.concatenate([upper_line, lower_line[::-1]]), shape)
    share = share * np.float32(clamped((gap - LEAST_GAP_PX) / 1.2, 0, 1))
    if warp.blur > mouth.LEAST_BLUR:
        share = blurred(share, warp.blur)
    # Towards the edge the wet inside of the lips.
    near = blurred(share, max(0.6, 0.018 * unit))
    rim = np.clip(1.25 - 1.5 * near, 0, 0.85)
    part = (int(low[0]) - inner.x, int(low[1]) - inner.y, shape[1], shape[0])
    pursed = clamped(-amounts[1] / NARROW, 0, 1)
    jaw_shift = _summed(amounts, warp.jaw_moves)
    # Pushed forward they hide the teeth, unless they are far apart.
    hidden = 0.92 * pursed**2 * clamped((WIDE_GAP[1] - gap / unit) / (WIDE_GAP[1] - WIDE_GAP[0]), 0, 1)
    shown = inner.shown(jaw_shift, rim, part, 1 - hidden, head_shift)

    # The upper lip throws its shadow down; into the corners of the mouth, behind lips that are pushed forward and
    # between lips that are nearly closed falls little light.
    drop = 0.022 * unit * warp.down
    lit = floats(shifted(blurred(share, max(0.6, 0.026 * unit)), drop[0], drop[1], shape[::-1], extend=False))
    sideways = inner.sideways[part[1] : part[1] + part[3], part[0] : part[0] + part[2]]
    ends = inner.side_of(floats(lower_line[[0, -1]] + low))
    corner = np.clip(np.abs(sideways - ends.mean()) / max(float(np.ptp(ends)) / 2, 0.05), 0, 1)
    entering = (0.45 + 0.55 * min(1.0, gap / (ENTERS * unit)) ** 0.8) * (1 - 0.40 * pursed)
    lit = entering * (0.60 + 0.43 * lit) * (1 - 0.45 * np.square(np.square(corner)))
    warm = WARM_SHADE * warp.coloured * (1 - lit)
    shaded = shown * np.maximum(lit + WARMER * warm, 0)

    # The lips turn in towards their edge.
    shade = LIP_SHADE * np.clip(1.6 * near, 0, 1)
    lip = planes_of(view) * (1 - np.array([1, 1, 1 - 0.25 * warp.coloured], np.float32)[:, None, None] * shade)
    view[:] = picture_of(floats(lip + (shaded - lip) * share))


def _part_lips(warp: FaceWarp, layer: _Layer, clean: float) -> None:
    """Draw the mouth of the layer's photo: as the lips part, the line of contact goes over into the edge of a lip."""
    if layer.fine.clean == clean:
        return
    x, y = warp.scale * warp.interior.x, warp.scale * warp.interior.y
    height, width = layer.clean.shape[:2]
    layer.fine.picture[y : y + height, x : x + width] = cv2.addWeighted(layer.clean, clean, layer.closed, 1 - clean, 0)
    layer.fine.clean = clean


def _bent(warp: FaceWarp, layer: _Layer, amounts: Floats, origins: Floats, rows: tuple[int, int]) -> Pixels:
    """Sample an enlarged photo where the displaced pixels of some rows come from, by where the nodes come from that the
    head has carried."""
    first, end = rows
    cell, width, scale = warp.cell, warp.mask.shape[1], warp.scale
    # In cells: the source of node c is c - forward(source).
    forward = _summed(amounts / np.float32(cell), layer.fields)
    if end <= first or (origins is warp.nodes and not forward.any()):
        return np.ascontiguousarray(layer.fine.picture[first * scale : end * scale : scale, ::scale, :3])
    low, high = max(0, first // cell - 1), min(len(forward), end // cell + 2)
    nodes = origins[low:high]
    back = nodes - forward[low:high]
    for _ in range(ITERATIONS):
        back = nodes - sampled_field(forward, back)
    offset = (back - warp.nodes[low:high]) * np.float32(cell * scale)
    size = (offset.shape[1] * cell, offset.shape[0] * cell)
    wide = floats(cv2.resize(offset, size, interpolation=cv2.INTER_LINEAR))
    places = cv2.add(wide[first - low * cell : end - low * cell, :width], warp.places[first:end])
    return sampled_fine(layer.fine.picture, floats(places))


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-6), np.float32)


def _sides(mean: Floats) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which points the lower layer must not follow, and which the upper, by the mean face: the other lip, and the skin
    around it as far as the layer reaches over its own lip's edge."""
    outline = mean[list(OUTER_LINE), :2].astype(np.float32)
    inside = np.array([cv2.pointPolygonTest(outline, (float(x), float(y)), False) >= 0 for x, y in mean[:, :2]])
    line = (mean[list(UPPER_LINE), :2] + mean[list(LOWER_LINE), :2]) / 2
    seam = np.interp(mean[:, 0], line[:, 0], line[:, 1])
    half = float(mean[291, 0])
    near = inside | ((np.abs(mean[:, 0]) < half + 0.03) & (np.abs(mean[:, 1] - seam) < 0.45))
    upper = near & (mean[:, 1] < seam)
    lower = near & ~upper & (inside | (mean[:, 1] - seam < 0.30))
    upper[list(UPPER_LINE[1:-1])], lower[list(UPPER_LINE[1:-1])] = True, False
    lower[list(LOWER_LINE[1:-1])], upper[list(LOWER_LINE[1:-1])] = True, False
    upper[list(CORNERS)] = lower[list(CORNERS)] = False
    return upper, lower


def _corners_drop(mean: Floats, reaches: tuple[float, float]) -> Floats:
    """Displacement by which the corners of a wide open mouth come down and in, for 1 at the corners, (468, 3); less
    where `reaches` says that a corner is turned away.

    Landmarks follow the corners of an open mouth too little: they are nearly still in the basis.
    """
    right, left = (mean[[a, b], :2].mean(axis=0) for a, b in ((61, 78), (291, 308)))
    moves = np.zeros_like(mean)
    for corner, side, reach in ((right, -1.0, reaches[0]), (left, 1.0, reaches[1])):
        outward, below = side * (mean[:, 0] - corner[0]), mean[:, 1] - corner[1]
        sideways = np.where(outward > 0, *CORNER_REACH[:2])
        near = (0.3 + 0.7 * reach) * np.exp(-((outward / sideways) ** 2) - (below / CORNER_REACH[2]) ** 2)
        moves[:, 0] -= 0.25 * side * near
        moves[:, 1] += near
    # The lower lip is there already.
    moves[list(LOWER_LINE[1:-1])] *= 0.4
    moves[list(LOWER_OUTER)] *= 0.6
    return floats(moves)


def _rest(
    points: Floats,
    moves: Floats,
    upper_line: Floats,
    lower_line: Floats,
    down: Floats,
    unit: float,
    closes: float,
) -> tuple[Floats, Floats]:
    """Displacements that bring the lips together, of all points as the upper and as the lower layer sees them; the
    upper one does `closes` px of it."""
    gaps = np.maximum((lower_line - upper_line) @ down, 0)
    most = float(gaps.max())
    upper, lower = np.zeros_like(points), np.zeros_like(points)
    if most <= 0:
        return upper, lower
    part = min(0.60, closes / most)
    to_meet = lower_line - upper_line
    opening = moves[0]
    upper_inner, lower_inner = part * to_meet, (part - 1) * to_meet
    # The jaw closes as it opens; what is left over is done by the lips themselves.
    jaw = -min(float(np.median(gaps[3:8])) * (1 - part) / max(float(opening[14] @ down), 1e-3), 0.35 * unit)
    lower += jaw * opening
    upper += jaw * opening
    lip_upper = [*UPPER_LINE[1:-1]]
    lip_lower = [*LOWER_LINE[1:-1]]
    outer_upper, outer_lower = list(UPPER_OUTER), list(LOWER_OUTER)
    lower[lip_lower] = lower_inner[1:-1]
    upper[lip_upper] = upper_inner[1:-1]
    upper[outer_upper] = 0.45 * upper_inner[1:-1]
    lower[outer_upper] = upper[outer_upper]
    lower[outer_lower] = 0.5 * lower[outer_lower] + 0.5 * 0.8 * lower_inner[1:-1]
    upper[outer_lower] = lower[outer_lower]
    for corner in CORNERS:
        upper[corner] = lower[corner] = 0
    # A smile with closed lips is not as broad as one with teeth.
    relaxed = -RELAX * min(1.0, most / (0.15 * unit)) * moves[1]
    upper, lower = upper + relaxed, lower + relaxed
    return upper, lower


def _taper(mask: Pixels, unit: float) -> Floats:
    """Share of the motion, from 0 at the edge of the mask to 1 inside, (h, w)."""
    padded = cv2.copyMakeBorder((mask > 0).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inside = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return smoothstep((inside - 1.5) / (EDGE * unit))


def _places(shape: tuple[int, int]) -> Floats:
    """Column and row of each element, (h, w, 2)."""
    return np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), axis=-1).astype(np.float32)


def _nodes(grid: tuple[int, int], cell: int) -> Floats:
    """Where the nodes of the grid, the middles of its cells, lie on the patch, (gh, gw, 2) px."""
    rows, columns = ((np.arange(count, dtype=np.float32) + 0.5) * cell - 0.5 for count in grid)
    return np.stack(np.meshgrid(columns, rows), axis=-1)


def _sample(field: Floats, at: Floats, cell: int) -> Floats:
    """Read a field of the grid at pixels of the patch, (n, 2) to (n, 2)."""
    return floats(sampled_field(field, floats(((at + 0.5) / cell - 0.5)[None]))[0])


def _beside(grid: tuple[int, int], cell: int, points: Floats, across: Floats, unit: float) -> Floats:
    """1 in the middle of the mouth, falling to 0 at its corners, (gh, gw): where the layers may differ."""
    middle = (points[78] + points[308]) / 2
    half = float((points[308] - points[78]) @ across) / 2
    sideways = np.abs((_nodes(grid, cell) - middle) @ across)
    return smoothstep((half + 0.05 * unit - sideways) / (0.06 * unit))


def _fields(
    points: Floats,
    moves: Floats,
    loose: npt.NDArray[np.float64],
    grid: tuple[int, int],
    cell: int,
    unit: float,
) -> Floats:
    """Interpolate displacements of points smoothly over the grid.

    Multiquadric interpolation (Hardy 1971) with a constant term and points that stand still around the patch.

    Returns:
        (k, gh, gw, 2) px for moves (k, n, 2).
    """
    height, width = grid[0] * cell, grid[1] * cell
    room = 0.35 * unit
    ring = [
        (px, py)
        for px in np.linspace(-room, width + room, 7)
        for py in np.linspace(-room, height + room, 7)
        if px in (-room, width + room) or py in (-room, height + room)
    ]
    near = (points > -room).all(axis=1) & (points[:, 0] < width + room) & (points[:, 1] < height + room)
    centres = np.concatenate([points[near], np.array(ring, np.float32)]).astype(np.float64) / unit
    values = np.concatenate([moves[:, near], np.zeros((len(moves), len(ring), 2), np.float32)], axis=1)
    count = len(centres)

    def kernel(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
        return np.asarray(np.sqrt(np.maximum(squared, 0) + KERNEL**2))

    system = np.ones((count + 1, count + 1))
    system[:count, :count] = kernel(centres, centres)
    # Landmarks that nearly coincide must not fight: the fit may miss them by a little.
    system[:count, :count] -= np.diag(np.concatenate([loose[near], np.zeros(len(ring))]))
    system[count, count] = 0
    wanted = np.zeros((count + 1, len(moves) * 2))
    wanted[:count] = values.transpose(1, 0, 2).reshape(count, -1)
    weights = np.linalg.solve(system, wanted)
    nodes = _nodes(grid, cell).reshape(-1, 2).astype(np.float64) / unit
    field = kernel(nodes, centres) @ weights[:count] + weights[count]
    return np.ascontiguousarray(field.reshape(*grid, len(moves), 2).transpose(2, 0, 1, 3), np.float32)


def _mouth_box(
    points: Floats, across: Floats, down: Floats, unit: float, shape: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what the mouth can ever fill, px of the patch."""
    lips = points[list(OUTER_LINE)]
    grown = np.concatenate(
        [lips + sign * 0.08 * unit * across + 0.4 * unit * down * k for sign in (-1, 1) for k in (-0.2, 1)]
    )
    low = np.maximum(np.floor(grown.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(grown.max(axis=0)).astype(int) + 1, (shape[1], shape[0]))
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])
