"""The demo world: little drawn pictures of ten kinds of things, with their masks and sketches.

A scene is a list of parts, back to front (`world_objects`). A part is a closed polygon in the
object's own coordinates with a colour and a light function on the same coordinates
(`world_shapes`). Photo, masks and sketches are all made from these polygons, so they agree exactly
(`world_views` draws all but the photo).
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from experiments.demo_world import views
from experiments.demo_world.objects import OBJECTS, ObjectClass
from experiments.demo_world.objects import PART_NAMES as PART_NAMES  # part of what a scene shows
from experiments.demo_world.shapes import Colour, Kit, Outline, Part, palette
from maskgit_jax.errors import InputError

CLASS_NAMES: tuple[str, ...] = tuple(OBJECTS)
BACKGROUNDS: tuple[str, ...] = ("white", "grass", "sea", "table", "plain", "dark")
_BACKGROUND_SHARES = (0.2, 0.16, 0.12, 0.14, 0.28, 0.1)

# Few colours and flat backgrounds: a small codebook then has codes to spare for the objects.
_TONES = {
    "grass": palette("6fae45 5f9a48"),
    "sea": palette("2f78b5 3a8fb8"),
    "table": palette("a87a4c 77553c c09a6c"),
    "plain": palette("c9a9a0 9fb3a4 cdbf8f a3a8c8 8f9aa8"),
    "dark": palette("2a2d38 33282c 22332f"),
}
_FAR = {  # behind the ground: sky or wall
    "grass": palette("8fbdec b5cfe4"),
    "sea": palette("8fbdec f0c9a0"),
    "table": palette("d8d2c4 b9c7d0"),
}

_MARGIN = 0.04  # of the side, kept free around the object

# Each has random numbers of its own, so that asking for one changes nothing else.
_SCRIBBLE, _PAINTING, _COMPANION = 1, 2, 3

# Colours (..., 3) at x and y (...) in sides of the picture, given the height of the horizon.
_Painter = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def _view_rng(seed: int, index: int, view: int) -> np.random.Generator:
    return np.random.default_rng([seed, index, view])


@dataclasses.dataclass(frozen=True)
class Scene:
    """One picture of the demo world and what is known about it.

    Views that take time are drawn when first asked for.
    """

    seed: int
    index: int
    label: int  # index in CLASS_NAMES
    background: str  # one of BACKGROUNDS
    image: UInt8[np.ndarray, "size size 3"]  # the photo
    mask: Bool[np.ndarray, "size size"]  # where the object is seen
    sketch: UInt8[np.ndarray, "size size"]  # outline drawing: dark lines on white (255)
    outlines: tuple[Outline, ...] = dataclasses.field(repr=False)  # back to front

    @functools.cached_property
    def parts(self) -> UInt8[np.ndarray, "size size"]:
        """The semantic class of each pixel: an index in PART_NAMES, 0 is background."""
        return views.part_mask(self.outlines, len(self.mask))

    @functools.cached_property
    def scribble(self) -> UInt8[np.ndarray, "size size"]:
        """The sketch as drawn in a hurry: shaky, with gaps and without some of the lines."""
        rng = _view_rng(self.seed, self.index, _SCRIBBLE)
        return views.scribble(self.outlines, len(self.mask), rng)

    @functools.cached_property
    def edges(self) -> UInt8[np.ndarray, "size size"]:
        """The photo's edges as a detector finds them, dark on white (255)."""
        return views.edge_map(self.image)

    @functools.cached_property
    def painting(self) -> UInt8[np.ndarray, "size size 3"]:
        """The photo painted with a broad brush in a few colours, as the strokes of SDEdit."""
        return views.painting(self.image, _view_rng(self.seed, self.index, _PAINTING))


@dataclasses.dataclass(frozen=True)
class _Placement:
    """From object to picture: x_picture = x_object @ matrix + shift, in sides of the picture."""

    matrix: Float[np.ndarray, "2 2"]
    shift: Float[np.ndarray, "2"]
    low: Float[np.ndarray, "2"]  # the object's upper left corner in the picture
    high: Float[np.ndarray, "2"]  # and its lower right one


@dataclasses.dataclass(frozen=True)
class _Object:
    """A drawn object in its place."""

    parts: list[Part]
    where: _Placement
    floats: bool
    flat: bool  # without light

    def outlines(self, hidden: bool) -> list[Outline]:
        """The parts' lines in the picture; `hidden` drops the lines and keeps what they cover."""

        def picture(points):
            return points @ self.where.matrix + self.where.shift

        return [
            Outline(
                part.name,
                picture(part.points),
                part.outline and not hidden,
                () if hidden else tuple(map(picture, part.strokes)),
            )
            for part in self.parts
        ]


def _backdrop(kind: str, rng: np.random.Generator) -> tuple[Float[np.ndarray, "k 3"], _Painter]:
    """The background's main colours and its painter."""

    def pick(shades) -> Colour:
        return shades[rng.integers(len(shades))]

    if kind == "white":
        return np.ones((1, 3)), lambda x, y, horizon: np.ones((*x.shape, 3), np.float32)
    tone = pick(_TONES[kind])
    if kind in _FAR:
        far = pick(_FAR[kind])
        hilly = rng.uniform(0, 0.04) if kind == "grass" else 0.0
        start = rng.uniform(0, 2 * np.pi)

        def paint(x, y, horizon):
            line = horizon + hilly * np.sin(6 * x + start)
            return np.where((y > line)[..., None], tone, far)

        return np.stack([tone, far]), paint
    return tone[None], lambda x, y, horizon: np.broadcast_to(tone, (*x.shape, 3))


def _pose(rng: np.random.Generator, rotation: float, aspect: float) -> Float[np.ndarray, "2 2"]:
    """A random rotation (degrees), mirroring and stretch."""
    angle = np.radians(rng.uniform(-rotation, rotation))
    flip = -1.0 if rng.uniform() < 0.5 else 1.0
    stretch = np.exp(rng.uniform(-aspect, aspect))
    c, s = np.cos(angle), np.sin(angle)
    return np.diag([flip * stretch, 1 / stretch]) @ np.array([[c, s], [-s, c]])


def _scaled(
    parts: list[Part], pose: Float[np.ndarray, "2 2"], extent: float
) -> tuple[Float[np.ndarray, "2 2"], Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """The pose scaled so that the parts span `extent`, and their corners under it."""
    points = np.concatenate([part.points for part in parts])
    matrix = pose * (extent / np.ptp(points @ pose, axis=0).max())
    corners = points @ matrix
    return matrix, corners.min(axis=0), corners.max(axis=0)


def _anywhere(rng: np.random.Generator, parts: list[Part], pose: np.ndarray) -> _Placement:
    """A random size and place in the picture for an object in its pose."""
    matrix, low, high = _scaled(parts, pose, rng.uniform(0.44, 0.72))
    room = 1 - 2 * _MARGIN - (high - low)
    shift = _MARGIN + room * rng.uniform(size=2) - low
    return _Placement(matrix, shift, low + shift, high + shift)


def _beside(
    rng: np.random.Generator, parts: list[Part], pose: np.ndarray, other: _Placement, *, front: bool
) -> _Placement:
    """A smaller size and a place over the rim of the `other` object, where there is more room."""
    matrix, low, high = _scaled(parts, pose, rng.uniform(0.3, 0.42))
    rim = other.high[0] if other.low[0] + other.high[0] < 1 else other.low[0]
    foot = other.high[1] + (0.04 if front else -0.08)
    shift = np.array([rim - (low[0] + high[0]) / 2, foot - high[1]]) + rng.normal(0, 0.02, 2)
    shift = np.clip(shift, _MARGIN - low, 1 - _MARGIN - high)
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


def _object_colours(
    thing: _Object, owner: UInt8[np.ndarray, "side side"], inside: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "n 3"]:
    """The colours of the object's pixels `inside` (flat indices)."""
    side = len(owner)
    owners = owner.ravel()[inside]
    rgb = np.array([part.colour for part in thing.parts], np.float32)[owners - 1]
    if thing.flat:
        return rgb
    at = np.stack([inside % side, inside // side], axis=1).astype(np.float32)
    uv = ((at + 0.5) / side - thing.where.shift) @ np.linalg.inv(thing.where.matrix)
    uv = uv.astype(np.float32)
    level = np.empty(len(owners), np.float32)
    for number, part in enumerate(thing.parts, 1):
        here = np.flatnonzero(owners == number)
        if len(here):
            level[here] = part.light(uv[here, 0], uv[here, 1])
    # Shade keeps a little blue, as from the sky; light above 1 goes to white.
    tint = np.array([0.0, 0.02, 0.07], np.float32)
    dim = np.clip(level, 0.25, 1)[:, None]
    rgb *= dim + (1 - dim) * tint
    rgb += (1 - rgb) * np.clip(level - 1, 0, 0.85)[:, None]
    return rgb


def _draw_parts(
    rng: np.random.Generator,
    kind: ObjectClass,
    pose: Float[np.ndarray, "2 2"],
    sun: Float[np.ndarray, "2"],
    avoid: Float[np.ndarray, "k 3"],
) -> list[Part]:
    """The object's parts, under a sun (2,) that shines alike in the picture in any pose."""
    local = pose @ sun
    local *= np.linalg.norm(sun) / np.linalg.norm(local)
    return kind.draw(Kit(rng, np.append(local, np.sqrt(1 - min(sun @ sun, 0.9))), avoid))


def _companion(
    rng: np.random.Generator, main: _Object, label: int, sun: np.ndarray, avoid: np.ndarray
) -> tuple[_Object, bool]:
    """A smaller object of another class that overlaps the main one, and whether it is in front."""
    other = (label + int(rng.integers(1, len(CLASS_NAMES)))) % len(CLASS_NAMES)
    kind = OBJECTS[CLASS_NAMES[other]]
    front = bool(rng.uniform() < 0.5)
    pose = _pose(rng, kind.rotation, kind.aspect)
    avoid = np.concatenate([avoid, [part.colour for part in main.parts]])
    parts = _draw_parts(rng, kind, pose, sun, avoid)
    where = _beside(rng, parts, pose, main.where, front=front)
    return _Object(parts, where, kind.floats, main.flat), front


def draw_scene(
    seed: int, index: int, *, size: int = 48, label: int | None = None, companion: bool = False
) -> Scene:
    """Draw scene `index` of the world `seed`, `size` pixels a side.

    The scene depends on (seed, index) alone, and on `label` where given; `size` changes only
    the resolution. With `companion` a smaller object of another class stands before or behind
    the scene's own: it is in the photo and among the parts, and the mask and the sketches lose
    what it hides. Raises InputError for a size below 16, an unknown label and negative numbers.
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
    parts = _draw_parts(rng, kind, pose, sun, avoid)
    main = _Object(parts, _anywhere(rng, parts, pose), kind.floats, flat)
    horizon = min(float(rng.uniform(0.35, 0.7)), float(main.where.high[1]) - 0.1)
    things = [main]  # back to front
    if companion:
        other, front = _companion(_view_rng(seed, index, _COMPANION), main, label, sun, avoid)
        things.insert(1 if front else 0, other)

    side = size * views.SUPERSAMPLE
    outlines = tuple(outline for thing in things for outline in thing.outlines(thing is not main))
    owner = views.owners(outlines, side)
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = np.broadcast_to(axis, (side, side)), np.broadcast_to(axis[:, None], (side, side))
    # Contiguous, so that the reshape below is a view.
    picture = np.ascontiguousarray(paint(x, y, horizon), dtype=np.float32)
    if background != "white":
        for thing in things:
            height = 0.05 if thing.floats else 0.075
            picture *= _shadow(axis, thing.where, 0.12 * sun[0], height)[..., None]
    first = 0
    for thing in things:
        last = first + len(thing.parts)
        own = np.where((owner > first) & (owner <= last), owner - first, 0).astype(np.uint8)
        inside = np.flatnonzero(own)
        picture.reshape(-1, 3)[inside] = _object_colours(thing, own, inside)
        if thing is main:
            covered = Image.fromarray((own > 0).astype(np.uint8) * 255)
        first = last

    photo = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
    return Scene(
        seed=seed,
        index=index,
        label=label,
        background=background,
        image=np.array(photo.reduce(views.SUPERSAMPLE)),
        mask=np.asarray(covered.reduce(views.SUPERSAMPLE)) >= 128,
        sketch=views.sketch(outlines, size),
        outlines=outlines,
    )
