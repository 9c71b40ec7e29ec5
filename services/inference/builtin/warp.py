"""Motion to picture: the photo bent so that the lips go where the motion says.

Two smooth displacement fields, one for what hangs on the skull (upper lip, cheeks), one for what goes with the jaw
(lower lip, chin), meet in the line between the lips and are the same beside the mouth. Each is a sum of a few fields
made once for a face on a coarse grid; a frame adds them up, turns them round by fixed-point iteration, samples the
photo twice, and lays the inside of the mouth between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.inference.builtin import lips, mouth
from services.inference.builtin.basis import AXES, MotionBasis, Pose
from services.inference.builtin.pictures import (
    Floats,
    Pixels,
    blurred,
    bytes_of,
    floats,
    mixed,
    sampled,
    sampled_field,
    shifted,
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
"""Most that the upper lip comes down to close an open mouth; the lower one does the rest."""
RELAX: Final = 0.12
"""How much narrower the mouth gets when it closes."""
CLEAN_FROM: Final = 0.05
"""A gap between the lips from which nothing is left of that line."""
FINE_LINE: Final = 41
"""Points of the smooth line of a lip."""
ITERATIONS: Final = 3


@dataclass(frozen=True)
class _Layer:
    """What moves together."""

    source: Pixels
    """the photo, BGR, (h, w, 3)"""
    clean: Pixels
    """the mouth's box of it, with the lip continued over its edge in place of the gap or the line of contact"""
    fields: Floats
    """displacement for 1 of each axis and, last, to rest, (axes + 1, gh, gw, 2) px"""
    line: Floats
    """inner edge of the lip on the photo, (n, 2) px"""
    line_moves: Floats
    """displacement of the line for 1 of each axis and to rest, (axes + 1, n, 2) px"""


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
    """displacement of the lower teeth for 1 of each axis and to rest, (axes + 1, 2) px"""
    contact: float
    """how much of a line of contact is drawn between closed lips: 1 where the photo shows none, 0..1"""
    cell: int
    """side of a cell of the coarse grid, px"""
    nodes: Floats
    """place of each node, in cells, (gh, gw, 2)"""
    pixels: Floats
    """place of each pixel, px, (h, w, 2)"""
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
    origin = np.array(box[:2], np.float32)
    crop = np.ascontiguousarray(patch[part])
    upper_line, lower_line = points[list(UPPER_LINE)] - origin, points[list(LOWER_LINE)] - origin
    gap = float(np.median(((lower_line - upper_line) @ down)[3:8]))
    shown: Pixels | None = None
    edges = (upper_line, lower_line)
    if gap > PARTED * unit:
        if gap < WIDE_OPEN * unit:
            edges = lips.edges(crop, upper_line, lower_line, down, unit)
        shown = lips.shown_teeth(crop, *edges, down, unit)
    open_photo = shown is not None or gap > OPEN_PHOTO * unit
    if open_photo:
        upper_line, lower_line = edges
        for end, inner, outer in ((0, 78, 61), (-1, 308, 291)):
            # The dark of an open mouth reaches further into its corners than the landmarks of its inside; not so on a
            # turned head, where the far corner is hidden.
            reach = 0.5 * max(0.0, 1.0 - abs(float(pose.rotation[2, 0])) / 0.35)
            upper_line[end] = lower_line[end] = points[inner] + reach * (points[outer] - points[inner]) - origin
    else:
        upper_line = lower_line = lips.seam(crop, floats((upper_line + lower_line) / 2), down, unit)
    margin = (lips.LIP_MARGIN if open_photo else lips.SEAM_MARGIN) * unit
    cleaned = lips.without_gap(crop, upper_line, lower_line, down, unit, margin)
    upper_line, lower_line = upper_line + origin, lower_line + origin
    points = points.copy()
    points[list(UPPER_LINE[1:-1])], points[list(LOWER_LINE[1:-1])] = upper_line[1:-1], lower_line[1:-1]

    moves = np.stack([pose.turned(axis) for axis in basis.axes])
    upper_rest, lower_rest = _rest(points, moves, upper_line, lower_line, down, unit)
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
    layers = []
    for clean, line, field in zip(cleaned, (smooth @ upper_line, smooth @ lower_line), fields, strict=True):
        line_moves = np.stack([_sample(each, line, cell) for each in field])
        source = patch
        if open_photo:
            source = patch.copy()
            source[part] = clean
        layers.append(_Layer(source, clean, field, floats(line), line_moves))
    # At rest the lips meet exactly, whatever the grid has rounded.
    meeting = floats(np.mean([each.line + each.line_moves[-1] for each in layers], axis=0))
    layers = [
        replace(each, line_moves=np.concatenate([each.line_moves[:-1], (meeting - each.line)[None]])) for each in layers
    ]

    light = mouth.light_of(face.photo, face.landmarks, unit)
    interior = mouth.paint(crop, light, pose, meeting, shown, box)
    jaw = pose.turned(np.stack([JAW_SHARE * axis[14] for axis in basis.axes]))
    jaw_moves = np.concatenate([jaw, np.zeros((1, 2), np.float32)])
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
        contact=1.0 if open_photo else 0.0,
        cell=cell,
        nodes=_places(grid),
        pixels=_places((height, width)),
        mask=mask,
        rest=patch,
    )
    rest_patch = render(warp, np.zeros(len(AXES), np.float32))
    rest_patch.flags.writeable = False
    return replace(warp, rest=rest_patch)


def render(warp: FaceWarp, coefficients: Floats) -> Pixels:
    """Draw the patch for a motion.

    Args:
        warp: from `prepare`.
        coefficients: of the basis' axes, eye distances, (4,); 0 is the mouth at rest.

    Returns:
        BGR, (h, w, 3).
    """
    height, width = warp.mask.shape
    amounts = floats(np.append(coefficients, 1))
    upper_line = floats(warp.upper.line + np.tensordot(amounts, warp.upper.line_moves, 1))
    lower_line = floats(warp.lower.line + np.tensordot(amounts, warp.lower.line_moves, 1))
    # Lips cannot pass through each other.
    crossed = np.minimum((lower_line - upper_line) @ warp.down, 0)[:, None] * warp.down
    upper_line, lower_line = floats(upper_line + crossed / 2), floats(lower_line - crossed / 2)

    gap = float(((lower_line - upper_line) @ warp.down).max())
    clean = float(np.clip(gap / (CLEAN_FROM * warp.unit), 0, 1)) if warp.contact == 0 else 0.0
    # A layer is only drawn in the rows where it is seen.
    beside = np.array([0, width], np.float32)
    slope = warp.across[1] / max(float(warp.across[0]), 0.2)
    ends = np.concatenate([lower_line[end, 1] + slope * (beside - lower_line[end, 0]) for end in (0, -1)])
    ends = np.concatenate([ends, lower_line[:, 1], upper_line[:, 1]])
    top = int(np.clip(ends.min() - 2, 0, height))
    bottom = int(np.clip(ends.max() + 3, top, height))
    upper = _bent(_source(warp, warp.upper, clean), warp, warp.upper, amounts, (0, bottom))
    lower = _bent(_source(warp, warp.lower, clean), warp, warp.lower, amounts, (top, height))
    picture = np.empty((height, width, 3), np.uint8)
    picture[:top] = upper[:top]
    picture[bottom:] = lower[bottom - top :]
    if bottom > top:
        share = _below(warp, lower_line)[top:bottom]
        picture[top:bottom] = mixed(lower[: bottom - top], upper[top:], share)
    _lay_interior(picture, warp, upper_line, lower_line, amounts)
    return picture


def _below(warp: FaceWarp, lower_line: Floats) -> Floats:
    """Share of each pixel that belongs to the lower layer, (h, w)."""
    far = float(sum(warp.mask.shape))
    outline = np.concatenate(
        [
            [lower_line[0] - warp.across * far],
            lower_line,
            [lower_line[-1] + warp.across * far, lower_line[-1] + (warp.across + warp.down) * far],
            [lower_line[0] + (warp.down - warp.across) * far],
        ]
    )
    share = np.zeros(warp.mask.shape, np.float32)
    cv2.fillPoly(share, [np.round(outline).astype(np.int32)], 1.0)
    # Only between the corners of the mouth the layers differ, so only there the edge must be smooth.
    low, high = _bounds(lower_line, 2, warp.mask.shape)
    if (high > low).all():
        part = share[low[1] : high[1], low[0] : high[0]]
        part[:] = lips.filled(floats(outline - low), part.shape[:2])
    return share


def _bounds(points: Floats, room: float, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Left and top, and right and bottom (exclusive), of what holds the points, within a picture."""
    size = np.array([shape[1], shape[0]])
    low = np.clip(np.floor(points.min(axis=0) - room), 0, size).astype(np.intp)
    high = np.clip(np.ceil(points.max(axis=0) + room) + 1, 0, size).astype(np.intp)
    return low, high


def _lay_interior(picture: Pixels, warp: FaceWarp, upper_line: Floats, lower_line: Floats, amounts: Floats) -> None:
    """Lay the inside of the mouth, and the line in which closed lips touch, on the picture."""
    lines = np.concatenate([upper_line, lower_line[::-1]])
    inner = warp.interior
    low, high = _bounds(lines, 2 + 0.04 * warp.unit, picture.shape)
    box_low = np.array([inner.x, inner.y])
    low = np.maximum(low, box_low)
    high = np.minimum(high, box_low + inner.cavity.shape[1::-1])
    if (high <= low).any():
        return
    view = picture[low[1] : high[1], low[0] : high[0]]
    shape = (view.shape[0], view.shape[1])
    gap = float(((lower_line - upper_line) @ warp.down).max())
    if warp.contact > 0:
        # Where lips that the photo shows apart now touch, light does not reach.
        line = (upper_line + lower_line) / 2 - low
        shut = warp.contact * float(np.clip(1 - gap / (0.04 * warp.unit), 0, 1))
        if shut > 0:
            shade = np.zeros(shape, np.uint8)
            thick = max(1, round(0.012 * warp.unit))
            cv2.polylines(
                shade, [np.round(line * 16).astype(np.int32)], False, round(185 * shut), thick, cv2.LINE_AA, 4
            )
            lost = blurred(floats(shade), max(0.5, 0.010 * warp.unit)) / 255
            # Red is lost the least: it shines through the skin.
            view[:] = cv2.multiply(view, cv2.merge([1 - lost, 1 - lost, 1 - 0.72 * lost]), dtype=cv2.CV_8U)
    if gap < 0.3:
        return
    share = lips.filled(lines - low, shape) * np.float32(min(1.0, gap / 1.5))
    # Towards the edge the wet inside of the lips; and the upper lip throws its shadow down.
    blur = blurred(share, max(0.6, 0.018 * warp.unit))
    rim = np.clip(1.25 - 1.5 * blur, 0, 0.85)
    jaw_shift = floats(np.tensordot(amounts, warp.jaw_moves, 1))
    part = (int(low[0]) - inner.x, int(low[1]) - inner.y, shape[1], shape[0])
    shown = inner.shown(jaw_shift, rim, part)
    drop = 0.015 * warp.unit * warp.down
    # Little light falls in between lips that are nearly closed.
    entering = 0.80 + 0.20 * min(1.0, gap / (0.12 * warp.unit))
    lit = entering * (0.58 + 0.44 * floats(shifted(blur, drop[0], drop[1], (shape[1], shape[0]), extend=False)))
    shaded = np.asarray(cv2.multiply(shown, cv2.merge([lit, lit, lit]), dtype=cv2.CV_8U), np.uint8)
    view[:] = mixed(shaded, view, share)


def _source(warp: FaceWarp, layer: _Layer, clean: float) -> Pixels:
    """The layer's photo; as the lips part, the line of contact goes over into the edge of a lip."""
    if clean <= 0:
        return layer.source
    inner = warp.interior
    source = layer.source.copy()
    part = source[inner.y : inner.y + inner.cavity.shape[0], inner.x : inner.x + inner.cavity.shape[1]]
    part[:] = cv2.addWeighted(layer.clean, clean, part, 1 - clean, 0)
    return source


def _bent(source: Pixels, warp: FaceWarp, layer: _Layer, amounts: Floats, rows: tuple[int, int]) -> Pixels:
    """Sample a photo where the displaced pixels of some rows come from."""
    first, end = rows
    cell, width = warp.cell, source.shape[1]
    # In cells: the source of node c is c - forward(source).
    forward = floats(np.tensordot(amounts / np.float32(cell), layer.fields, 1))
    if end <= first or not forward.any():
        return source[first:end]
    back = warp.nodes - forward
    for _ in range(ITERATIONS):
        back = warp.nodes - sampled_field(forward, back)
    low, high = max(0, first // cell - 1), min(len(back), end // cell + 2)
    offset = (back[low:high] - warp.nodes[low:high]) * np.float32(cell)
    size = (offset.shape[1] * cell, offset.shape[0] * cell)
    wide = floats(cv2.resize(offset, size, interpolation=cv2.INTER_LINEAR))
    places = cv2.add(wide[first - low * cell : end - low * cell, :width], warp.pixels[first:end])
    return sampled(source, floats(places))


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


def _rest(
    points: Floats,
    moves: Floats,
    upper_line: Floats,
    lower_line: Floats,
    down: Floats,
    unit: float,
) -> tuple[Floats, Floats]:
    """Displacements that bring the lips together, of all points as the upper and as the lower layer sees them."""
    gaps = np.maximum((lower_line - upper_line) @ down, 0)
    most = float(gaps.max())
    upper, lower = np.zeros_like(points), np.zeros_like(points)
    if most <= 0:
        return upper, lower
    part = min(0.45, UPPER_CLOSES * unit / most)
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
    share = np.clip((inside - 1.5) / (EDGE * unit), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


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
    share = np.clip((half + 0.03 * unit - sideways) / (0.08 * unit), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


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
