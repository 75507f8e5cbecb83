"""The demo world: little drawn pictures of ten kinds of things, with their masks and sketches.

A scene is a list of parts, back to front (`world_objects`). A part is a closed polygon in the
object's own coordinates with a colour and a light function on the same coordinates
(`world_shapes`). Photo, mask and sketch are all made from these polygons, so they agree exactly.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

from maskgit_jax.errors import InputError
from maskgit_jax.world_objects import OBJECTS
from maskgit_jax.world_shapes import Colour, Kit, Part, noise, palette

CLASS_NAMES: tuple[str, ...] = tuple(OBJECTS)
BACKGROUNDS: tuple[str, ...] = ("white", "grass", "sea", "wood", "plain", "dark")
_BACKGROUND_SHARES = (0.25, 0.2, 0.13, 0.14, 0.16, 0.12)

_TONES = {
    "grass": palette("6fae45 86b84f 5f9a48"),
    "sea": palette("2f78b5 3a8fb8 3f7fa0"),
    "wood": palette("a87a4c 8a5f3a c09a6c 77553c"),
    "plain": palette("b9a7a0 a3b5b0 c4b890 a8a8c0 c7a9a0 9fb39a cfc8ba 8f9aa8"),
    "dark": palette("2a2d38 33282c 22332f 2c2440 1f2a40"),
}
_SKIES = {
    "grass": palette("7fb2e6 8fbdec b5cfe4"),
    "sea": palette("7fb2e6 9cc4ea b9cfe0 f0c9a0"),
}

_SUPERSAMPLE = 3
_MARGIN = 0.04  # of the side, kept free around the object
_PEN = 0.03  # of the side
_INK = 20

# Colours (..., 3) at x and y (...) in sides of the picture, given the height of the horizon.
_Painter = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One picture of the demo world and what is known about it."""

    label: int  # index in CLASS_NAMES
    background: str  # one of BACKGROUNDS
    image: UInt8[np.ndarray, "size size 3"]  # the photo
    mask: Bool[np.ndarray, "size size"]  # where the object is
    sketch: UInt8[np.ndarray, "size size"]  # outline drawing: dark lines on white (255)


@dataclasses.dataclass(frozen=True)
class _Placement:
    """From object to picture: x_picture = x_object @ matrix + shift, in sides of the picture."""

    matrix: Float[np.ndarray, "2 2"]
    shift: Float[np.ndarray, "2"]
    low: Float[np.ndarray, "2"]  # the object's upper left corner in the picture
    high: Float[np.ndarray, "2"]  # and its lower right one

    def place(self, part: Part, side: int) -> Part:
        """The part with its lines in pixels of a canvas; its light stays in object coordinates."""

        def pixels(points):
            # Pillow's pixel centres are whole numbers.
            return (points @ self.matrix + self.shift) * side - 0.5

        strokes = tuple(pixels(line) for line in part.strokes)
        return dataclasses.replace(part, points=pixels(part.points), strokes=strokes)


def _backdrop(kind: str, rng: np.random.Generator) -> tuple[Float[np.ndarray, "k 3"], _Painter]:
    """The background's main colours and its painter."""
    start = rng.uniform(size=2)
    jitter = rng.normal(0, 0.03, 3)
    turn = rng.uniform(0, 2 * np.pi)

    def pick(shades, spread=1.0) -> Colour:
        return shades[rng.integers(len(shades))] + spread * jitter

    if kind == "white":
        return np.ones((1, 3)), lambda x, y, horizon: np.ones((*x.shape, 3), np.float32)
    if kind in ("grass", "sea"):
        sky, ground = pick(_SKIES[kind]), pick(_TONES[kind])
        cloudy = rng.uniform(0, 0.35)
        hilly = rng.uniform(0, 0.03) if kind == "grass" else 0.0

        def paint(x, y, horizon):
            line = horizon + hilly * np.sin(6 * x + turn)
            depth = np.clip((y - line) / (1 - line), 0, 1)
            cloud = np.clip(noise(x * 0.25, y * 0.5, start) - 0.3, 0, 1) * cloudy
            haze = np.clip(0.35 * y / line + cloud, 0, 1)
            if kind == "grass":
                far = 1 / (depth + 0.15)
                level = 0.82 + 0.22 * depth + 0.06 * noise(x * 0.3 * far, far * 0.35, start)
            else:
                wave = np.sin(70 * depth / (depth + 0.5) + 2 * noise(x * 0.15, depth * 0.3, start))
                level = 1.12 - 0.25 * depth + 0.07 * wave
            below = (y > line)[..., None]
            return np.where(below, ground * level[..., None], sky + (1 - sky) * haze[..., None])

        return np.stack([ground, sky]), paint
    if kind == "wood":
        tone = pick(_TONES[kind])
        count, upright = int(rng.integers(3, 6)), rng.uniform() < 0.4
        levels = rng.uniform(0.86, 1.08, count + 1)

        def paint(x, y, horizon):
            along, across = (y, x) if upright else (x, y)
            plank = across * count + start[0]
            index = np.clip(plank.astype(int), 0, count)
            grain = noise(along * 0.06 + index * 0.37, across * 0.9, start)
            level = levels[index] + 0.07 * grain
            return tone * np.where((plank % 1) < 0.05, 0.55, level)[..., None]

        return tone[None], paint
    tone = pick(_TONES[kind], 1.0 if kind == "plain" else 0.5)
    slope = rng.uniform(0.1, 0.3) if kind == "plain" else rng.uniform(0.4, 0.9)

    def paint(x, y, horizon):
        ramp = (x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn)
        return tone * (1 + slope * ramp)[..., None]

    return tone[None], paint


def _pose(rng: np.random.Generator, rotation: float, aspect: float) -> Float[np.ndarray, "2 2"]:
    """A random rotation (degrees), mirroring and stretch."""
    angle = np.radians(rng.uniform(-rotation, rotation))
    flip = -1.0 if rng.uniform() < 0.5 else 1.0
    stretch = np.exp(rng.uniform(-aspect, aspect))
    c, s = np.cos(angle), np.sin(angle)
    return np.diag([flip * stretch, 1 / stretch]) @ np.array([[c, s], [-s, c]])


def _placement(rng: np.random.Generator, parts: list[Part], pose: np.ndarray) -> _Placement:
    """A random size and place in the picture for an object in its pose."""
    points = np.concatenate([part.points for part in parts])
    matrix = pose * (rng.uniform(0.58, 0.86) / np.ptp(points @ pose, axis=0).max())
    corners = points @ matrix
    low, high = corners.min(axis=0), corners.max(axis=0)
    room = 1 - 2 * _MARGIN - (high - low)
    shift = _MARGIN + room * rng.uniform((0.1, 0.25), (0.9, 1.0)) - low
    return _Placement(matrix, shift, low + shift, high + shift)


def _shadow(
    axis: Float[np.ndarray, "side"], where: _Placement, lean: float, height: float
) -> Float[np.ndarray, "side side"]:
    """How much light is left (0.5 to 1) around the object's foot; `lean` shifts it left."""
    wide = (where.high[0] - where.low[0]) / 2
    dx = (axis - (where.low[0] + where.high[0]) / 2 + lean) / (wide * 0.95)
    dy = (axis - where.high[1] + 0.01) / height
    soft = np.exp(-(dy**2))[:, None] * np.exp(-(dx**4))
    return (1 - 0.5 * soft).astype(np.float32)


def _owners(placed: list[Part], side: int) -> UInt8[np.ndarray, "side side"]:
    """For each pixel the number of the part that is seen there, from 1; 0 is background."""
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    for number, part in enumerate(placed, 1):
        draw.polygon(part.points.ravel().tolist(), fill=number)
    return np.asarray(canvas)


def _object_colours(
    parts: list[Part],
    owner: UInt8[np.ndarray, "side side"],
    inside: Int[np.ndarray, "n"],
    where: _Placement,
    *,
    flat: bool,
) -> Float[np.ndarray, "n 3"]:
    """The colours of the object's pixels `inside` (flat indices); `flat` leaves the light out."""
    side = len(owner)
    owners = owner.ravel()[inside]
    rgb = np.array([part.colour for part in parts], np.float32)[owners - 1]
    if flat:
        return rgb
    at = np.stack([inside % side, inside // side], axis=1).astype(np.float32)
    uv = ((at + 0.5) / side - where.shift) @ np.linalg.inv(where.matrix)
    uv = uv.astype(np.float32)
    level = np.empty(len(owners), np.float32)
    for number, part in enumerate(parts, 1):
        here = np.flatnonzero(owners == number)
        if len(here):
            level[here] = part.light(uv[here, 0], uv[here, 1])
    # Shade keeps a little blue, as from the sky; light above 1 goes to white.
    tint = np.array([0.0, 0.02, 0.07], np.float32)
    dim = np.clip(level, 0.25, 1)[:, None]
    rgb *= dim + (1 - dim) * tint
    rgb += (1 - rgb) * np.clip(level - 1, 0, 0.85)[:, None]
    return rgb


def _sketch(placed: list[Part], side: int) -> Image.Image:
    """The outline drawing (side, side): each part's white fill hides the lines behind it."""
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

    for part in placed:
        draw.polygon(part.points.ravel().tolist(), fill=255)
        if part.outline:
            stroke(np.concatenate([part.points, part.points[:1]]))
        for line in part.strokes:
            stroke(line)
    return canvas


def draw_scene(seed: int, index: int, *, size: int = 48, label: int | None = None) -> Scene:
    """Draw scene `index` of the world `seed`, `size` pixels a side.

    The scene depends on (seed, index) alone, and on `label` where given; `size` changes only
    the resolution. Raises InputError for a size below 16, an unknown label and negative numbers.
    """
    if size < 16:
        raise InputError(f"size is {size}: a scene needs at least 16 pixels a side")
    if label is not None and not 0 <= label < len(CLASS_NAMES):
        raise InputError(f"label is {label}: expected 0 to {len(CLASS_NAMES) - 1}")
    if min(seed, index) < 0:
        raise InputError(f"seed and index are {seed} and {index}: expected 0 or more")
    rng = np.random.default_rng([seed, index])
    drawn = int(rng.integers(len(CLASS_NAMES)))  # always drawn, so that `label` shifts nothing
    label = drawn if label is None else label
    kind = OBJECTS[CLASS_NAMES[label]]
    background = BACKGROUNDS[int(rng.choice(len(BACKGROUNDS), p=_BACKGROUND_SHARES))]
    flat = background == "white" and bool(rng.uniform() < 1 / 3)
    avoid, paint = _backdrop(background, rng)

    pose = _pose(rng, kind.rotation, kind.aspect)
    sun = np.array([rng.choice([-1, 1]) * rng.uniform(0.35, 0.7), -rng.uniform(0.4, 0.65)])
    local = pose @ sun  # the light comes from the same side of the picture in any pose
    local *= np.linalg.norm(sun) / np.linalg.norm(local)
    parts = kind.draw(Kit(rng, np.append(local, np.sqrt(1 - min(sun @ sun, 0.9))), avoid))
    where = _placement(rng, parts, pose)
    horizon = min(float(rng.uniform(0.35, 0.7)), float(where.high[1]) - 0.1)

    side = size * _SUPERSAMPLE
    placed = [where.place(part, side) for part in parts]
    owner = _owners(placed, side)
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = np.broadcast_to(axis, (side, side)), np.broadcast_to(axis[:, None], (side, side))
    # Contiguous, so that the reshape below is a view.
    picture = np.ascontiguousarray(paint(x, y, horizon), dtype=np.float32)
    if background != "white":
        height = 0.05 if kind.floats else 0.075
        picture *= _shadow(axis, where, 0.12 * sun[0], height)[..., None]
    inside = np.flatnonzero(owner)
    picture.reshape(-1, 3)[inside] = _object_colours(parts, owner, inside, where, flat=flat)

    photo = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
    covered = Image.fromarray((owner > 0).astype(np.uint8) * 255).reduce(_SUPERSAMPLE)
    return Scene(
        label=label,
        background=background,
        image=np.array(photo.reduce(_SUPERSAMPLE)),
        mask=np.asarray(covered) >= 128,
        sketch=np.array(_sketch(placed, side).reduce(_SUPERSAMPLE)),
    )
