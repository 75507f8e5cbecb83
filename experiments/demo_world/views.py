"""Views of a demo-world scene next to its photo: part mask, sketches, edges, painting.

Sketches and part mask are drawn from the parts' outlines, back to front; edges and painting are
made from the photo. Sizes are in sides of the picture, so that resolution changes nothing else.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFilter

from experiments.demo_world.objects import PART_NAMES
from experiments.demo_world.shapes import Outline, Points, between

SUPERSAMPLE = 3  # scenes are drawn this many times larger, then shrunk

_PEN = 0.03
_INK = 20

_STEP = 0.02  # between the points of a line drawn by hand
_WAVES = np.array([0.25, 0.45, 0.8])  # lengths of its wobble's waves
_WOBBLE = 0.008  # standard deviation of each wave's height
_SLIP = 0.006  # and of the line's place

_GRID = 32  # cells a side in which a painting takes its colours
_REACH = ImageFilter.BoxBlur(5)  # not zero within the longest stroke of a rim
_COLOURS = 8
# Strokes a side, their half length and width: a broad brush first, then a smaller one.
_BRUSHES = ((9, 0.09, 0.1), (17, 0.05, 0.055))


def _pixels(points: Float[np.ndarray, "*n 2"], side: int) -> Float[np.ndarray, "*n 2"]:
    # Pillow's pixel centres are whole numbers.
    return points * side - 0.5


def owners(outlines: tuple[Outline, ...], side: int) -> UInt8[np.ndarray, "side side"]:
    """For each pixel the number of the outline that is seen there, from 1; 0 is background."""
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    for number, outline in enumerate(outlines, 1):
        draw.polygon(_pixels(outline.points, side).ravel().tolist(), fill=number)
    return np.asarray(canvas)


def part_mask(outlines: tuple[Outline, ...], size: int) -> UInt8[np.ndarray, "size size"]:
    """Each pixel's most frequent part (index in PART_NAMES); 0 where most of it is background."""
    classes = np.array([0, *(PART_NAMES.index(outline.name) for outline in outlines)], np.uint8)
    step = SUPERSAMPLE
    blocks = classes[owners(outlines, size * step)].reshape(size, step, size, step)
    blocks = blocks.swapaxes(1, 2).reshape(size, size, step**2)
    covered = 2 * (blocks > 0).sum(axis=-1) > step**2
    voters = blocks[covered]
    votes = (voters[:, :, None] == voters[:, None, :]).sum(axis=-1, dtype=np.uint8)
    votes[voters == 0] = 0  # the pixel is an object's: background has no say
    parts = np.zeros((size, size), np.uint8)
    parts[covered] = np.take_along_axis(voters, votes.argmax(axis=1)[:, None], axis=1)[:, 0]
    return parts


def sketch(outlines: tuple[Outline, ...], size: int) -> UInt8[np.ndarray, "size size"]:
    """The outline drawing: each part's white fill hides the lines behind it."""
    side = size * SUPERSAMPLE
    canvas = Image.new("L", (side, side), 255)
    draw = ImageDraw.Draw(canvas)
    pen = max(round(_PEN * side), 1)

    def stroke(points):
        draw.line(points.ravel().tolist(), fill=_INK, width=pen)
        step = np.diff(points, axis=0)
        step = step / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-6)
        # Pillow leaves square ends, and notches where the turn is large for the pen: round both.
        smooth = 1 - 0.25 / pen**2
        sharp = np.concatenate([[True], (step[1:] * step[:-1]).sum(axis=1) < smooth, [True]])
        r = pen / 2 - 0.5
        for x, y in points[sharp].tolist():
            draw.ellipse((x - r, y - r, x + r, y + r), fill=_INK)

    for outline in outlines:
        points = _pixels(outline.points, side)
        draw.polygon(points.ravel().tolist(), fill=255)
        if outline.closed:
            stroke(np.concatenate([points, points[:1]]))
        for line in outline.strokes:
            stroke(_pixels(line, side))
    return np.array(canvas.reduce(SUPERSAMPLE))


def _corners(points: Points) -> Int[np.ndarray, "c"]:
    """The vertices of a closed polygon where it turns by more than 37 degrees."""
    before = points - np.concatenate([points[-1:], points[:-1]])
    after = np.concatenate([before[1:], before[:1]])
    lengths = np.hypot(before[:, 0], before[:, 1]) * np.hypot(after[:, 0], after[:, 1])
    return np.flatnonzero((before * after).sum(axis=1) < 0.8 * lengths)


def _shaky(
    points: Points, corners: Int[np.ndarray, "c"], rng: np.random.Generator
) -> tuple[Points, Int[np.ndarray, "c"]]:
    """A line with a slow wobble, in steps of about _STEP, and where its `corners` are now."""
    step = points[1:] - points[:-1]
    reach = np.zeros(len(points))
    np.cumsum(np.hypot(step[:, 0], step[:, 1]), out=reach[1:])
    count = max(int(np.ceil(reach[-1] / _STEP)), 4)
    at = np.sort(np.concatenate([np.linspace(0, reach[-1], count), reach[corners[1:-1]]]))
    line = np.stack([np.interp(at, reach, axis) for axis in points.T], axis=1)
    heights, phases = rng.normal(0, _WOBBLE, (3, 2)), rng.uniform(0, 2 * np.pi, (3, 2))
    waves = heights * np.sin(2 * np.pi * at[:, None, None] / _WAVES[:, None] + phases)
    calm = min(1, 0.4 + reach[-1])  # short lines are drawn with more care
    line += calm * waves.sum(axis=1) + rng.normal(0, _SLIP, 2)
    return line, np.searchsorted(at, reach[corners])


def _end(piece: Points, more: float) -> Points:
    """The piece drawn on by `more` at its end, or stopped short where that is negative."""
    if more < 0:
        return piece[: len(piece) - round(-more / _STEP)]
    away = piece[-1] - piece[-2]
    return np.concatenate([piece, piece[-1:] + away * (more / max(np.hypot(*away), 1e-6))])


def _pieces(
    line: Points, corners: Int[np.ndarray, "c"], rng: np.random.Generator
) -> Iterator[Points]:
    """The strokes of a hurried hand: one from corner to corner, too long or short, with gaps."""
    count = len(corners) - 1
    slips, chances = rng.normal(0, _SLIP / 2, (count, 2)), rng.uniform(size=(count, 5)).tolist()
    for number, (start, stop) in enumerate(itertools.pairwise(corners.tolist())):
        if stop - start < 2:
            continue
        piece = line[start : stop + 1] + slips[number]
        gap, at, wide, *more = chances[number]
        if len(piece) > 5:
            for chance in more:  # each end in turn
                piece = _end(piece, 0.06 * chance - 0.02)[::-1]
        middle, half = (0.2 + 0.6 * at) * len(piece), (0.02 + 0.025 * wide) / _STEP
        if gap < 0.3 and half + 2 <= middle <= len(piece) - half - 2:
            yield piece[: int(middle - half)]
            yield piece[int(middle + half) :]
        else:
            yield piece


def _ribbon(draw: ImageDraw.ImageDraw, points: Points, rng: np.random.Generator) -> None:
    """Draws a line (in pixels) whose width swells and shrinks."""
    along = np.empty_like(points)
    along[1:-1] = points[2:] - points[:-2]
    along[0], along[-1] = points[1] - points[0], points[-1] - points[-2]
    phase, press = rng.uniform(size=2)
    half = _PEN / 2 * draw.im.size[0] * (0.85 + 0.3 * press)
    half = half * (1 + 0.25 * np.sin(np.arange(len(points)) / 3 + 2 * np.pi * phase))
    normal = along[:, ::-1] * [1, -1]
    normal *= (half / np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-6))[:, None]
    draw.polygon(between(points + normal, points - normal).ravel().tolist(), fill=_INK)
    for end in (0, -1):
        (x, y), r = points[end].tolist(), max(float(half[end]) - 0.5, 0)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_INK)


def scribble(
    outlines: tuple[Outline, ...], size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size"]:
    """The sketch as drawn in a hurry.

    The drawing is a little tilted, stretched and displaced; lines wobble, slip, overshoot and
    have gaps, their width varies; some small parts and inner lines are missing.
    """
    side = size * SUPERSAMPLE
    canvas = Image.new("L", (side, side), 255)
    draw = ImageDraw.Draw(canvas)
    corners = np.concatenate([outline.points for outline in outlines])
    low, high = corners.min(axis=0), corners.max(axis=0)
    middle = (low + high) / 2
    tilt = rng.normal(0, 0.03)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    turn *= np.exp(rng.normal(0, 0.025, 2))
    shift = middle + rng.normal(0, 0.008, 2)

    def moved(points):
        return (points - middle) @ turn + shift

    for outline in outlines:
        bends = _corners(outline.points)
        first = bends[0] if len(bends) else int(rng.integers(len(outline.points)))
        points = moved(np.concatenate([outline.points[first:], outline.points[: first + 1]]))
        bends = np.concatenate([[0], bends[1:] - first, [len(points) - 1]])
        line, bends = _shaky(points, bends, rng)
        draw.polygon(_pixels(line, side).ravel().tolist(), fill=255)
        wide, tall = points.max(axis=0) - points.min(axis=0)
        small = wide * tall < 0.12 * (high - low).prod()
        if outline.closed and not (small and rng.uniform() < 0.12):
            for piece in _pieces(line, bends, rng):
                _ribbon(draw, _pixels(piece, side), rng)
        for stroke in outline.strokes:
            if rng.uniform() < 0.75:
                ends = np.array([0, len(stroke) - 1])
                for piece in _pieces(*_shaky(moved(stroke), ends, rng), rng):
                    _ribbon(draw, _pixels(piece, side), rng)
    return np.array(canvas.reduce(SUPERSAMPLE))


def edge_map(image: UInt8[np.ndarray, "size size 3"]) -> UInt8[np.ndarray, "size size"]:
    """The edges that Canny's detector finds in a photo, dark on white (255).

    Of the three colours the one with the steepest slope counts (Canny, 1986: smoothing,
    gradient, thinning across the edge, hysteresis).
    """
    size = len(image)
    # Slopes are per pixel, the thresholds for 48 of them. No wider blur than at 192: it would
    # leave slopes that eight bits cannot tell from rounding.
    coarse = 48 / min(size, 192)
    smooth = Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.8 / coarse))
    p = np.pad(np.asarray(smooth, np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = p[:-2] + 2 * p[1:-1] + p[2:]
    columns = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    slope = np.stack([rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]]) / 8
    steepest = (slope**2).sum(axis=0).argmax(axis=-1)[None, ..., None]
    dx, dy = np.take_along_axis(slope, steepest, axis=-1)[..., 0]
    height = np.pad(np.hypot(dx, dy), 1)

    # Thinning: keep what is higher than its neighbours across the edge, in one of 4 directions.
    direction = np.round(np.arctan2(dy, dx) / (np.pi / 4)).astype(int) % 4
    right, down = np.array([1, 1, 0, -1])[direction], np.array([0, 1, 1, 1])[direction]
    y, x = np.indices((size, size)) + 1
    here = height[y, x]
    ridge = (here >= height[y + down, x + right]) & (here > height[y - down, x - right])

    # Hysteresis: weak edges stay where they touch strong ones.
    weak, edges = ridge & (here > 5 * coarse), ridge & (here > 14 * coarse)
    around = np.zeros((size + 2, size + 2), bool)
    while True:
        around[1:-1, 1:-1] = edges
        rows = around[:-2] | around[1:-1] | around[2:]
        grown = weak & (rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:])
        if np.array_equal(grown, edges):
            break
        edges = grown
    ink = Image.fromarray(np.where(edges, _INK, 255).astype(np.uint8))
    width = 2 * max(round((size / 48 - 1) / 2), 0) + 1
    return np.array(ink.filter(ImageFilter.MinFilter(width)))


def painting(
    image: UInt8[np.ndarray, "size size 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """The photo in strokes of a broad brush and at most _COLOURS colours (mixed at their rims).

    A drawing like the stroke paintings that SDEdit starts from (Meng et al., 2022).
    """
    side = len(image) * SUPERSAMPLE
    coarse = Image.fromarray(image).resize((_GRID, _GRID), Image.Resampling.BOX)
    coarse = coarse.filter(ImageFilter.MedianFilter(3))
    quantized = coarse.quantize(_COLOURS, kmeans=1)
    index = np.asarray(quantized)
    # Strokes run along edges: of a mixture in which few pairs of colours look alike.
    soft = np.asarray(coarse.filter(ImageFilter.GaussianBlur(1)), np.float32) @ [0.5, 0.3, -0.4]
    down, right = np.gradient(soft)

    # Where one colour is all that a stroke could reach, none is needed.
    rim = np.zeros((_GRID, _GRID), bool)
    rim[:, 1:] |= index[:, 1:] != index[:, :-1]
    rim[1:] |= index[1:] != index[:-1]
    mixed = np.asarray(Image.fromarray(rim.astype(np.uint8) * 255).filter(_REACH)) > 0

    canvas = quantized.resize((side, side), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    for count, length, width in _BRUSHES:
        spots = np.stack(np.divmod(rng.permutation(count**2), count), axis=1) + 0.5
        spots = np.clip((spots + rng.normal(0, 0.2, spots.shape)) / count, 0, 0.999)
        x, y = (spots * _GRID).astype(int).T
        spots = spots[mixed[y, x]]
        x, y = (spots * _GRID).astype(int).T
        shake = rng.normal(0, 1, (2, len(spots)))
        angle = np.arctan2(right[y, x] + shake[0], -down[y, x] + shake[1])
        half = length * rng.uniform(0.6, 1.2, (len(spots), 1))
        way = half * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        lines = _pixels(np.stack([spots - way, spots + way], axis=1), side).reshape(-1, 4)
        for line, colour in zip(lines.tolist(), index[y, x].tolist(), strict=True):
            draw.line(line, fill=colour, width=round(width * side))
    return np.array(canvas.convert("RGB").reduce(SUPERSAMPLE))
