"""The demo world: little drawn pictures of ten kinds of things, with their masks and sketches.

A scene is a list of parts, back to front. A part is a closed polygon in the object's own
coordinates (about -1..1, y down) with a colour and a light function on the same coordinates.
Photo, mask and sketch are all made from these polygons, so they agree exactly.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from maskgit_jax.errors import InputError

CLASS_NAMES: tuple[str, ...] = (
    "ball",
    "box",
    "cone",
    "star",
    "tree",
    "house",
    "fish",
    "mushroom",
    "cup",
    "flower",
)
BACKGROUNDS: tuple[str, ...] = ("white", "grass", "sea", "wood", "plain", "dark")
_BACKGROUND_SHARES = (0.25, 0.2, 0.13, 0.14, 0.16, 0.12)

_SUPERSAMPLE = 3
_MARGIN = 0.04  # of the side, kept free around the object
_PEN = 0.03  # of the side
_INK = 20

Points = Float[np.ndarray, "_ 2"]
Colour = Float[np.ndarray, "3"]
# Light at the points (u, v): 0 is black, 1 the part's own colour, 2 white.
Light = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One picture of the demo world and what is known about it."""

    label: int  # index in CLASS_NAMES
    background: str  # one of BACKGROUNDS
    image: UInt8[np.ndarray, "size size 3"]  # the photo
    mask: Bool[np.ndarray, "size size"]  # where the object is
    sketch: UInt8[np.ndarray, "size size"]  # outline drawing: dark lines on white (255)


@dataclasses.dataclass(frozen=True)
class _Part:
    points: Points
    colour: Colour
    light: Light
    outline: bool = True  # whether the sketch shows the part's edge
    strokes: tuple[Points, ...] = ()  # open lines that only the sketch shows


def _palette(codes: str) -> Float[np.ndarray, "k 3"]:
    return np.array([[int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)] for c in codes.split()])


_BRIGHT = _palette("d93a32 e9822b efc233 3f9b49 2d6fc0 7a4bb0 d9558f 27a3a0 b5312f 4a58c8")
_WARM = _palette("e9822b efb52f d93a32 e46a4a d9558f")
_GREEN = _palette("2f7d3a 3f8f35 5c9a34 26683f 7aa83a")
_CROWN = _palette("2b7035 3c8636 1f5f3f 5f9a32 8aa52f c9822a b5532a")
_WOOD = _palette("6e4526 7d5130 8a5a34")
_CARDBOARD = _palette("c1915a b5824c a8794a cfa26b")
_WALL = _palette("e6d3a8 d98f73 c9d3d8 e8c15f b8654b a9c4a0 d8a9a0 8fb0cc")
_ROOF = _palette("a63c2e 7a3b34 4a5a78 5a4a48 33705f 8a4a25")
_CAP = _palette("c9302a b82a3a d9652b a8693a 8a5230 c98a3a")
_PETAL = _palette("e0559a d93a42 f0c02f e8792f 8a56c0 4a72d0 f2a5c0 f0ece4")
_PALE = _palette("f3ead2 efe2c4 e6dcc8")
_FISH = _palette("ee7f27 2f7fc4 e8b92f d9473a 35a38f 7c5cc0 e0689a")


def _fractal_tile(size: int = 256) -> Float[np.ndarray, "s s"]:
    """Cloud-like noise that tiles, zero mean, standard deviation 1, about -3..3."""
    spectrum = np.fft.fft2(np.random.default_rng(0).normal(size=(size, size)))
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    tile = np.fft.ifft2(spectrum / np.maximum(f, 3 / size) ** 1.3).real
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)


_TILE = _fractal_tile()


def _noise(x: np.ndarray, y: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Noise at coordinates in tile widths, from a random place in the tile."""
    i = ((y + start[0]) * 256).astype(np.int32) & 255
    j = ((x + start[1]) * 256).astype(np.int32) & 255
    return _TILE[i, j]


def _arc(cx, cy, rx, ry, start=0.0, stop=360.0, n=40) -> Points:
    """Points on an ellipse, angles in degrees from the right, clockwise as seen."""
    t = np.radians(np.linspace(start, stop, n, endpoint=stop - start < 360))
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], axis=1)


def _poly(*xy) -> Points:
    return np.array(xy, dtype=float).reshape(-1, 2)


def _rect(x0, y0, x1, y1) -> Points:
    return _poly(x0, y0, x1, y0, x1, y1, x0, y1)


def _frustum(r0, y0, r1, y1, squash, top=1) -> Points:
    """The side of an upright round body seen from a little above.

    The lower end curves down, the upper one down (top=1: hollow or cut) or up (top=-1).
    """
    low = _arc(0, y1, r1, squash * r1, 0, 180, 20)
    return np.concatenate([low, _arc(0, y0, r0, top * squash * r0, 180, 0, 20)])


class _Kit:
    """What the drawing functions share: the random source, the light and colours to avoid."""

    def __init__(self, rng: np.random.Generator, light: np.ndarray, avoid: np.ndarray):
        self.rng, self.sun, self.avoid = rng, light, avoid
        self.start = rng.uniform(size=2)

    def uniform(self, low, high) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        return bool(self.rng.uniform() < p)

    def pick(self, palette: np.ndarray, *, far: float = 0.36, unlike: tuple = ()) -> Colour:
        """A jittered palette colour that stands off from the background and from `unlike`."""
        shades = palette[self.rng.integers(len(palette), size=5)]
        shades = shades * self.rng.uniform(0.88, 1.1, (5, 1)) + self.rng.normal(0, 0.025, (5, 3))
        shades = np.clip(shades, 0.03, 0.97)
        others = np.concatenate([self.avoid, np.reshape(unlike, (-1, 3))])
        gaps = np.linalg.norm(shades[:, None] - others, axis=-1)
        near = gaps.min(axis=1)
        best = int(np.argmax(near >= far)) if (near >= far).any() else int(near.argmax())
        colour, gap = shades[best], near[best]
        if gap < far:  # no candidate is far enough: push the best one away
            other = others[gaps[best].argmin()]
            away = 1.0 if other.mean() < 0.45 else -1.0
            colour = colour + away * (far - gap) / 3**0.5
        return np.clip(colour, 0.03, 0.97)

    def dome(self, cx, cy, rx, ry, *, gloss=0.0, grain=0.0, scale=0.15) -> Light:
        """Light on an ellipsoid's front half."""
        lx, ly, lz = self.sun

        def light(u, v):
            x, y = (u - cx) / rx, (v - cy) / ry
            z = np.sqrt(np.maximum(1 - x * x - y * y, 0.02))
            lit = np.maximum(x * lx + y * ly + z * lz, 0)
            out = 0.44 + 0.64 * lit
            if gloss:
                out += gloss * np.maximum(1 - 9 * ((x - 0.62 * lx) ** 2 + (y - 0.62 * ly) ** 2), 0)
            if grain:
                out += grain * _noise(u * scale, v * scale, self.start)
            return out

        return light

    def tube(self, r0, y0, r1, y1, *, cx=0.0, gloss=0.0, grain=0.0, scale=(0.3, 0.05)) -> Light:
        """Light on an upright round body whose half width goes from r0 at y0 to r1 at y1."""
        lx, _, lz = self.sun

        def light(u, v):
            width = r0 + (r1 - r0) * (v - y0) / (y1 - y0)
            x = np.clip((u - cx) / np.maximum(width, 1e-3), -1, 1)
            out = 0.5 + 0.58 * np.maximum(x * lx * 1.3 + np.sqrt(1 - x * x) * lz, 0)
            if gloss:
                out += gloss * np.maximum(1 - 25 * (x - 0.6 * np.sign(lx)) ** 2, 0)
            if grain:
                out += grain * _noise(u * scale[0], v * scale[1], self.start)
            return out

        return light

    def plane(self, level=1.0, *, du=0.0, dv=0.0, grain=0.0, scale=0.12, pattern=None) -> Light:
        """Light on a flat face: a level, a slope, grain and perhaps a pattern of u and v."""

        def light(u, v):
            out = level + du * u + dv * v
            if grain:
                out += grain * _noise(u * scale, v * scale, self.start)
            return out if pattern is None else out + pattern(u, v)

        return light


def _bricks(rows, cols, depth) -> Light:
    def light(u, v):
        y = v * rows
        x = u * cols + 0.5 * (np.floor(y) % 2)
        return -depth * (((y % 1) < 0.22) | ((x % 1) < 0.16))

    return light


def _ball(kit: _Kit) -> list[_Part]:
    light = kit.dome(0, 0, 1, 1, gloss=0.75)
    first = kit.pick(_BRIGHT)
    second = kit.pick(np.concatenate([_BRIGHT, _PALE]), unlike=(first,))
    parts = [_Part(_arc(0, 0, 1, 1, n=48), first, light)]
    style = kit.rng.choice(3, p=[0.2, 0.5, 0.3])
    if style == 1:  # a beach ball: every other slice between two meridians
        turn = kit.uniform(-60, 0)
        for left in (turn - 60, turn + 60):
            a, b = np.sin(np.radians(np.clip([left, left + 60], -90, 90)))
            if b - a > 0.28:  # a sliver at the rim is only a thick line in a sketch
                t = np.linspace(-np.pi / 2, np.pi / 2, 20)
                edge = np.stack([np.cos(t), np.sin(t)], axis=1)
                points = np.concatenate([edge * [b, 1], edge[::-1] * [a, 1]])
                parts.append(_Part(points, second, light))
    elif style == 2:  # a belt around it
        low, high = kit.uniform(5, 22), kit.uniform(-22, -5)
        c, s = np.cos(np.radians([low, high])), np.sin(np.radians([low, high]))
        bulge = kit.uniform(0.1, 0.3)
        points = [
            _arc(0, 0, 1, 1, high, low, 6),
            _arc(0, s[0], c[0], bulge, 0, 180, 20),
            _arc(0, 0, 1, 1, 180 - low, 180 - high, 6),
            _arc(0, s[1], c[1], bulge, 180, 0, 20),
        ]
        parts.append(_Part(np.concatenate(points), second, light))
    return parts


def _box(kit: _Kit) -> list[_Part]:
    yaw, pitch = np.radians([kit.uniform(28, 62), kit.uniform(22, 38)])
    w, h, d = kit.rng.uniform((0.65, 0.45, 0.65), 1.0)

    def project(p):
        x = p[:, 0] * np.cos(yaw) + p[:, 2] * np.sin(yaw)
        z = -p[:, 0] * np.sin(yaw) + p[:, 2] * np.cos(yaw)
        y = p[:, 1] * np.cos(pitch) - z * np.sin(pitch)
        near = 1 / (1 - (p[:, 1] * np.sin(pitch) + z * np.cos(pitch)) / 6)
        return np.stack([x * near, -y * near], axis=1)

    # Each face: a corner and two edges from it; a patch of it is given in edge lengths.
    faces = {
        "top": ((-w, h, -d), (2 * w, 0, 0), (0, 0, 2 * d)),
        "left": ((-w, h, -d), (0, 0, 2 * d), (0, -2 * h, 0)),
        "right": ((-w, h, d), (2 * w, 0, 0), (0, -2 * h, 0)),
    }

    def patch(name, s0, s1, t0, t1):
        corner, s, t = np.array(faces[name])
        return project(
            np.array([corner + a * s + b * t for a, b in ((s0, t0), (s1, t0), (s1, t1), (s0, t1))])
        )

    sides = (0.9, 0.62) if kit.sun[0] < 0 else (0.62, 0.9)
    style = kit.rng.choice(["gift", "parcel", "crate"])
    if np.linalg.norm(kit.avoid - _CARDBOARD.mean(axis=0), axis=1).min() < 0.35:
        style = "gift"  # brown boxes would drown in front of brown planks
    colour = kit.pick(_BRIGHT if style == "gift" else _CARDBOARD)
    trim = kit.pick(np.concatenate([_BRIGHT, _PALE]), unlike=(colour,))
    grain = 0.015 if style == "gift" else 0.04
    dim = 0.82 if style == "crate" else 1.0  # a crate's boards stand out from its panels
    parts = []
    for name, level in zip(faces, (1.08, *sides), strict=True):
        light = kit.plane(level * dim, dv=-0.08, grain=grain)
        parts.append(_Part(patch(name, 0, 1, 0, 1), colour, light))
        if style == "gift":
            parts.append(_Part(patch(name, 0.4, 0.6, 0, 1), trim, light))
            if name == "top":
                parts.append(_Part(patch(name, 0, 1, 0.4, 0.6), trim, light))
        elif style == "parcel" and name != "left":
            tape = np.clip(colour * 0.6 + 0.36, 0, 0.95)
            parts.append(
                _Part(patch(name, 0.42, 0.58, 0, 1 if name == "top" else 0.3), tape, light)
            )
        elif style == "crate":
            for t0, t1 in ((0.0, 0.22), (0.78, 1.0)):
                board = kit.plane(level * 1.12, grain=0.06)
                parts.append(_Part(patch(name, 0, 1, t0, t1), colour, board))
    return parts


def _cone(kit: _Kit) -> list[_Part]:
    base, squash = kit.uniform(0.55, 0.8), kit.uniform(0.22, 0.34)
    colour = kit.pick(_BRIGHT)
    parts = []
    tip = 0.01
    banded = kit.chance(0.5)
    if banded:  # a traffic cone stands on a foot
        tip = 0.08
        foot = kit.pick(_BRIGHT, unlike=(colour,)) if kit.chance(0.5) else colour * 0.85
        light = kit.tube(base * 1.35, 0.8, base * 1.35, 1, grain=0.02)
        rx, ry = base * 1.3, base * squash * 1.3
        disc = np.concatenate(
            [_arc(0, 0.78, rx, ry, 180, 360, 20), _arc(0, 0.86, rx, ry, 0, 180, 20)]
        )
        parts.append(_Part(disc, foot, light))

    def radius(y):
        return tip + (base - tip) * (y + 1) / 1.75

    light = kit.tube(tip, -1, base, 0.75, gloss=0.12, grain=0.02)
    parts.append(_Part(_frustum(tip, -1, base, 0.75, squash, top=-1), colour, light))
    if banded:
        trim = kit.pick(np.concatenate([_PALE, _BRIGHT[1:3]]), unlike=(colour,))
        for y in (-0.55, 0.05) if kit.chance(0.6) else (-0.25,):
            band = _frustum(radius(y), y, radius(y + 0.3), y + 0.3, squash)
            parts.append(_Part(band, trim, light))
    return parts


def _star(kit: _Kit) -> list[_Part]:
    inner = kit.uniform(0.42, 0.56)
    t = np.radians(np.arange(10) * 36 - 90)
    r = np.where(np.arange(10) % 2, inner, 1.0)
    points = np.stack([r * np.cos(t), r * np.sin(t)], axis=1)
    edge = np.roll(points, -1, axis=0) - points
    normal = np.stack([edge[:, 1], -edge[:, 0]], axis=1) / np.linalg.norm(edge, axis=1)[:, None]
    tilt = normal @ kit.sun[:2]
    faceted = kit.chance(0.6)
    glint = kit.dome(0, 0, 1.15, 1.15, gloss=0.35)

    def light(u, v):
        facet = ((np.degrees(np.arctan2(v, u)) + 90) // 36).astype(int) % 10
        if faceted:
            return 0.88 + 0.42 * tilt[facet]
        # How near the edge: a soft, pillow-like rim.
        reach = (points * normal).sum(axis=1)
        depth = 1 - (u * normal[facet, 0] + v * normal[facet, 1]) / reach[facet]
        return glint(u, v) + 0.4 * tilt[facet] * np.maximum(1 - 2.2 * depth, 0)

    # Only the ridges: the valleys too would clot in the middle of a small sketch.
    strokes = tuple(np.stack([np.zeros(2), p]) for p in points[::2]) if faceted else ()
    colour = kit.pick(np.concatenate([_WARM[1:2], _BRIGHT[2:3], _BRIGHT]))
    return [_Part(points, colour, light, strokes=strokes)]


def _tree(kit: _Kit) -> list[_Part]:
    colour = kit.pick(_CROWN, far=0.3)
    bark = kit.pick(_WOOD, far=0.25)
    wide = kit.uniform(0.1, 0.17)
    trunk = kit.tube(wide, 0, wide * 1.4, 1, grain=0.1)
    parts = [_Part(_frustum(wide, 0, wide * 1.4, 0.98, 0.2), bark, trunk)]
    if kit.chance(0.4):  # a conifer: three skirts, the lowest one first
        for y, half in ((0.5, 0.72), (0.05, 0.58), (-0.38, 0.42)):
            x = np.linspace(1, -1, 11)
            hem = np.stack([x * half, y + 0.1 * (1 - x * x) - 0.06 * (np.arange(11) % 2)], axis=1)
            top = max(y - 0.85, -1)
            round_light = kit.tube(0.02, top, half, y + 0.05, grain=0.11, scale=(0.5, 0.35))

            def light(u, v, y=y, round_light=round_light):  # darker under the skirt above
                return round_light(u, v) - 0.25 * np.clip((y - 0.2 - v) * 2, 0, 1)

            parts.append(_Part(np.concatenate([hem, _poly(0, top)]), colour, light))
        return parts
    blobs = [(0, -0.3, 0.78, 0.68)]
    if kit.chance(0.6):
        blobs = [(-0.42, -0.12, 0.45, 0.4), (0.42, -0.1, 0.45, 0.4), (0, -0.5, 0.56, 0.48)]
    for cx, cy, rx, ry in blobs:
        t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        bump = 0.93 + 0.13 * np.abs(np.sin(t * (3 if len(blobs) > 1 else 4.5) + kit.uniform(0, 3)))
        points = np.stack([cx + rx * bump * np.cos(t), cy + ry * bump * np.sin(t)], axis=1)
        light = kit.dome(cx, cy, rx * 1.1, ry * 1.1, grain=0.11, scale=0.5)
        parts.append(_Part(points, colour, light))
    if kit.chance(0.3):
        fruit = kit.pick(_WARM, unlike=(colour,))
        for x, y in ((-0.45, -0.15), (0.4, -0.2), (0.05, -0.6), (-0.05, 0.0)):
            x, y = x + kit.uniform(-0.08, 0.08), y + kit.uniform(-0.08, 0.08)
            light = kit.dome(x, y, 0.1, 0.1, gloss=0.4)
            parts.append(_Part(_arc(x, y, 0.09, 0.09, n=14), fruit, light))
    return parts


def _house(kit: _Kit) -> list[_Part]:
    wall, roof = kit.pick(_WALL), kit.pick(_ROOF, far=0.3)
    door = kit.pick(np.concatenate([_BRIGHT, _WOOD]), unlike=(wall,))
    glass = np.array([0.3, 0.42, 0.55]) if wall.mean() > 0.5 else np.array([0.75, 0.86, 0.92])
    bricks = _bricks(7, 4, 0.1) if kit.chance(0.5) else None
    tiles = _bricks(8, 5, 0.13)
    front = kit.plane(1.0, dv=0.1, du=0.06 * kit.sun[0], grain=0.025, pattern=bricks)
    top = kit.plane(1.0, dv=0.15, grain=0.03, pattern=tiles)
    pane = kit.plane(0.95, du=0.5, dv=-0.5)
    parts = []

    def window(x, y, half):
        cross = (_poly(x - half, y, x + half, y), _poly(x, y - half, x, y + half))

        def bars(u, v):
            return pane(u, v) + 0.8 * ((np.abs(u - x) < 0.025) | (np.abs(v - y) < 0.025))

        return _Part(_rect(x - half, y - half, x + half, y + half), glass, bars, strokes=cross)

    if kit.chance(0.75):  # chimney
        x = kit.uniform(0.3, 0.45)
        stone = kit.pick(_ROOF, far=0.3, unlike=(roof,))
        parts.append(_Part(_rect(x, -0.85, x + 0.2, -0.2), stone, kit.plane(0.9, grain=0.05)))
    if kit.chance(0.5):  # seen from the front
        flat = kit.uniform(0.0, 0.45)
        parts += [
            _Part(_rect(-0.75, -0.2, 0.75, 0.9), wall, front),
            _Part(_poly(-0.95, -0.1, -flat, -0.95, flat, -0.95, 0.95, -0.1), roof, top),
        ]
        side = -1 if kit.chance(0.5) else 1
        x = side * kit.uniform(0.0, 0.3)
        parts.append(_Part(_rect(x - 0.17, 0.3, x + 0.17, 0.9), door, pane))
        parts.append(window(x - side * 0.47, 0.36, 0.17))
        if abs(x) < 0.12:
            parts.append(window(x + side * 0.47, 0.36, 0.17))
        return parts
    # Seen from the corner: gable on the left, long side and roof going back to the right.
    ridge, rise = kit.uniform(-0.85, -0.7), 0.12
    level = 1.0 if kit.sun[0] < 0 else 0.78
    gable = kit.plane(level, dv=0.08, grain=0.025, pattern=bricks)
    flank = kit.plane(1.78 - level, dv=0.08, grain=0.025, pattern=bricks)
    slope = _poly(-0.5, ridge - 0.03, 0.55, ridge - 0.03 - rise, 1, -0.03 - rise, 0, 0.02)
    parts += [
        _Part(_poly(-0.05, -0.1, 0.9, -0.1 - rise, 0.9, 0.85 - rise, -0.05, 0.95), wall, flank),
        _Part(_poly(-0.9, -0.1, -0.475, ridge, -0.05, -0.1, -0.05, 0.95, -0.9, 0.95), wall, gable),
        _Part(slope, roof, top),
        _Part(_rect(-0.63, 0.35, -0.32, 0.95), door, pane),
        window(0.42, 0.32, 0.18),
    ]
    return parts


def _fish(kit: _Kit) -> list[_Part]:
    tall = kit.uniform(0.36, 0.56)
    colour = kit.pick(_FISH)
    fin = kit.pick(_FISH, unlike=(colour,)) if kit.chance(0.6) else colour * 0.8
    stripe = kit.pick(np.concatenate([_FISH, _PALE]), unlike=(colour,))
    s = np.linspace(0, 1, 24)

    def half(s):
        return tall * np.sin(3.14159 * np.clip(s, 0, 1) ** 0.72) ** 0.85 + 0.09 * s**2

    def band(s):
        x = 0.95 - 1.45 * s
        return np.concatenate([np.stack([x, -half(s)], 1), np.stack([x, half(s)], 1)[::-1]])

    def light(u, v):
        h = np.maximum(half((0.95 - u) / 1.45), 0.05)
        y = np.clip(v / h, -1, 1)
        scales = np.sin(u * 24 + 2.2 * np.abs(np.sin(v * 17))) * 0.07 * (u < 0.4)
        lit = y * kit.sun[1] + np.sqrt(1 - y * y) * kit.sun[2]
        shine = 0.3 * np.maximum(1 - 9 * (y + 0.45) ** 2, 0)
        return 0.5 + 0.58 * np.maximum(lit, 0) + scales + shine

    ray = kit.plane(0.92, pattern=lambda u, v: 0.12 * np.sin(26 * v + 8 * u))
    comb = kit.plane(0.95, pattern=lambda u, v: 0.12 * np.sin(30 * u + 8 * v))
    spread = kit.uniform(0.38, 0.55)
    tail = _poly(-0.38, 0, -0.7, -0.14, -1.05, -spread, -0.9, 0, -1.05, spread, -0.7, 0.14)
    crest = np.concatenate([_arc(0.12, -tall * 0.6, 0.42, tall * 0.8, 180, 360, 14)])
    parts = [
        _Part(tail, fin, ray),
        _Part(crest, fin, comb),
        _Part(_poly(0.1, tall * 0.7, -0.25, tall + 0.22, -0.3, tall * 0.5), fin, comb),
        _Part(band(s), colour, light),
    ]
    if kit.chance(0.6):
        for a in (0.53, 0.75) if kit.chance(0.6) else (0.58,):
            parts.append(_Part(band(np.linspace(a, a + 0.13, 5)), stripe, light))
    else:
        side_fin = _poly(0.2, 0.0, -0.16, -0.06, -0.22, 0.2, 0.08, 0.18)
        parts.append(_Part(side_fin, fin, ray))
    gill = _arc(0.26, 0, 0.12, tall * 0.66, -75, 75, 12)
    x, y, white, black = (
        0.62,
        -tall * 0.22,
        np.array([0.95, 0.95, 0.92]),
        np.array([0.07, 0.07, 0.1]),
    )
    # In a sketch the eye is a dot: the white's outline would fill up.
    parts.append(_Part(_arc(x, y, 0.12, 0.12), white, kit.plane(), outline=False, strokes=(gill,)))
    parts.append(_Part(_arc(x + 0.02, y, 0.06, 0.06, n=14), black, kit.plane()))
    return parts


def _mushroom(kit: _Kit) -> list[_Part]:
    cap = kit.pick(_CAP)
    stem = kit.pick(_PALE, far=0.3, unlike=(cap,))
    wide = kit.uniform(0.2, 0.32)
    height, sag = kit.uniform(0.65, 0.95), kit.uniform(0.12, 0.24)
    body = kit.tube(wide, 0, wide * 1.25, 0.95, grain=0.04)

    def stalk(u, v):
        return body(u, v) - 0.35 * np.clip(1.4 - 2.6 * (v - 0.05 - sag), 0, 1)

    light = kit.dome(0, 0.05, 0.98, height * 1.12, gloss=0.4, grain=0.015)
    dome = np.concatenate(
        [_arc(0, 0, 0.95, height, 180, 360, 30), _arc(0, 0, 0.95, sag, 0, 180, 24)]
    )
    parts = [_Part(_frustum(wide, 0, wide * 1.25, 0.92, 0.3), stem, stalk), _Part(dome, cap, light)]
    if kit.chance(0.75):
        dots = kit.pick(_PALE, far=0.3, unlike=(cap,))
        spots = _poly(-0.55, -0.32, 0.02, -0.64, 0.56, -0.34, 0, -0.18, -0.3, -0.07, 0.34, -0.08)
        for x, y in spots.tolist():
            x, y = x + kit.uniform(-0.06, 0.06), (y + kit.uniform(-0.05, 0.05)) * height
            r = kit.uniform(0.09, 0.14) * (1 if y < -0.12 else 0.7)
            squeeze = (1 - 0.5 * x * x, 0.9 - 0.3 * (y / height) ** 2)
            parts.append(_Part(_arc(x, y, r * squeeze[0], r * squeeze[1], n=18), dots, light))
    return parts


def _cup(kit: _Kit) -> list[_Part]:
    colour = kit.pick(np.concatenate([_BRIGHT, _PALE, _WALL]))
    trim = kit.pick(np.concatenate([_BRIGHT, _PALE]), unlike=(colour,))
    top, foot, squash = kit.uniform(0.58, 0.7), kit.uniform(0.36, 0.6), kit.uniform(0.24, 0.36)
    high = kit.uniform(-0.75, -0.4)
    light = kit.tube(top, high, foot, 0.75, gloss=0.3)
    parts = []
    if kit.chance(0.3):
        saucer, china = _arc(0, 0.78, 0.98, 0.98 * squash), kit.pick(_PALE, unlike=(colour,))
        parts.append(_Part(saucer, china, kit.plane(0.95, du=0.1, dv=0.1)))
    middle, size = (high + 0.7) / 2, (0.7 - high) * 0.3
    ring = [
        _arc(foot, middle, size + 0.14, size, -100, 100, 24),
        _arc(foot, middle, size, size * 0.62, 100, -100, 24),
    ]
    parts.append(
        _Part(np.concatenate(ring), colour, kit.dome(foot, middle, size + 0.4, size + 0.2))
    )
    parts.append(_Part(_frustum(top, high, foot, 0.75, squash), colour, light))

    def radius(y):
        return top + (foot - top) * (y - high) / (0.75 - high)

    if kit.chance(0.5):
        y0 = kit.uniform(0.0, 0.25)
        y1 = y0 + kit.uniform(0.15, 0.3)
        parts.append(_Part(_frustum(radius(y0), y0, radius(y1), y1, squash), trim, light))
    drink = kit.pick(_palette("5a3420 7a4a24 b5651d 8a2f2a"), far=0.1, unlike=(colour,))
    dip = 0.36 * top * squash
    wall = kit.plane(0.66, du=-0.35 * kit.sun[0])
    parts += [
        _Part(_arc(0, high, top, top * squash), colour, kit.plane(1.12)),
        # Only the rim and the drink are drawn as lines: a third ellipse between them would clot.
        _Part(_arc(0, high, top * 0.88, top * squash * 0.84), colour, wall, outline=False),
        _Part(_arc(0, high + dip / 2, top * 0.76, top * squash * 0.62), drink, kit.plane(du=0.2)),
    ]
    return parts


def _flower(kit: _Kit) -> list[_Part]:
    petal = kit.pick(_PETAL)
    heart = kit.pick(_palette("f0b92f e8962a 6e4526 8a3f2a"), far=0.25, unlike=(petal,))
    green = kit.pick(_GREEN, far=0.28)
    cy, bend = -0.38, kit.uniform(-0.22, 0.22)
    y = np.linspace(cy, 1, 12)
    x = bend * ((y - cy) / (1 - cy)) ** 2
    stem = np.concatenate([np.stack([x - 0.055, y], 1), np.stack([x + 0.055, y], 1)[::-1]])
    parts = [_Part(stem, green, kit.plane(0.85, du=0.8 * float(np.sign(kit.sun[0]))))]
    for side in (-1, 1) if kit.chance(0.6) else (1,):
        t = np.linspace(0, 1, 14)
        lift = kit.uniform(0.25, 0.45)
        body = 0.13 * np.sin(np.pi * t**0.8)
        at = np.array([bend * 0.35, kit.uniform(0.55, 0.75)])
        mid = at + np.stack([side * 0.58 * t, -lift * t**1.3], 1)
        leaf = np.concatenate([mid - [0, 1] * body[:, None], (mid + [0, 1] * body[:, None])[::-1]])
        parts.append(_Part(leaf, green, kit.plane(0.95, du=-0.2 * side, grain=0.06)))
    count = int(kit.rng.integers(5, 9))
    long, turn = kit.uniform(0.52, 0.62), kit.uniform(0, 360)
    wide = long * min(0.74 * np.pi / count, 0.36)
    t = np.radians(np.linspace(0, 360, 28, endpoint=False))
    bulge = wide * np.sin(t) * (1 + 0.3 * np.cos(t))
    shape = np.stack([long * (0.56 + 0.44 * np.cos(t)), bulge], axis=1)
    for angle in np.radians(turn + np.arange(count) * 360 / count):
        c, s = np.cos(angle), np.sin(angle)

        def light(u, v, c=c, s=s):
            along, across = u * c + (v - cy) * s, (v - cy) * c - u * s
            facing = c * kit.sun[0] + s * kit.sun[1]
            veins = 0.04 * np.sin(60 * across)
            return 0.6 + 0.45 * along / long + 0.2 * facing - 1.5 * across + veins

        points = shape @ np.array([[c, s], [-s, c]]) + [0, cy]
        parts.append(_Part(points, petal, light))
    r = kit.uniform(0.17, 0.24)
    core = kit.dome(0, cy, r, r, grain=0.1, scale=0.8)
    parts.append(_Part(_arc(0, cy, r, r, n=28), heart, core))
    return parts


# Per class: drawing function, largest rotation in degrees, mirrored or not, aspect jitter.
_CLASSES: dict[str, tuple[Callable, float, bool, float]] = {
    "ball": (_ball, 180, True, 0.0),
    "box": (_box, 6, True, 0.05),
    "cone": (_cone, 12, True, 0.12),
    "star": (_star, 36, True, 0.08),
    "tree": (_tree, 7, True, 0.12),
    "house": (_house, 7, True, 0.12),
    "fish": (_fish, 30, True, 0.12),
    "mushroom": (_mushroom, 16, True, 0.12),
    "cup": (_cup, 10, True, 0.1),
    "flower": (_flower, 25, True, 0.08),
}
_FLOATS = ("star", "fish")


def _backdrop(kind: str, rng: np.random.Generator):
    """The background's colours (k, 3) and a function (x, y, horizon) -> colours (..., 3)."""
    start = rng.uniform(size=2)
    jitter = rng.normal(0, 0.03, 3)
    turn = rng.uniform(0, 2 * np.pi)
    if kind == "white":
        return np.ones((1, 3)), lambda x, y, horizon: np.ones((*x.shape, 3), np.float32)
    if kind in ("grass", "sea"):
        skies = _palette("7fb2e6 9cc4ea b9cfe0 f0c9a0" if kind == "sea" else "7fb2e6 8fbdec b5cfe4")
        sky = skies[rng.integers(len(skies))] + jitter
        grounds = _palette("6fae45 86b84f 5f9a48" if kind == "grass" else "2f78b5 3a8fb8 3f7fa0")
        ground = grounds[rng.integers(len(grounds))] + jitter
        cloudy, hilly = rng.uniform(0, 0.35), rng.uniform(0, 0.03) if kind == "grass" else 0.0

        def paint(x, y, horizon):
            line = horizon + hilly * np.sin(6 * x + turn)
            depth = np.clip((y - line) / (1 - line), 0, 1)
            far = 1 / (depth + 0.15)
            cloud = np.clip(_noise(x * 0.25, y * 0.5, start) - 0.3, 0, 1) * cloudy
            haze = np.clip(0.35 * y / line + cloud, 0, 1)
            if kind == "grass":
                level = 0.82 + 0.22 * depth + 0.06 * _noise(x * 0.3 * far, far * 0.35, start)
            else:
                wave = np.sin(70 * depth / (depth + 0.5) + 2 * _noise(x * 0.15, depth * 0.3, start))
                level = 1.12 - 0.25 * depth + 0.07 * wave
            below = (y > line)[..., None]
            return np.where(below, ground * level[..., None], sky + (1 - sky) * haze[..., None])

        return np.stack([ground, sky]), paint
    if kind == "wood":
        tones = _palette("a87a4c 8a5f3a c09a6c 77553c")
        tone = tones[rng.integers(len(tones))] + jitter
        count, upright = int(rng.integers(3, 6)), rng.uniform() < 0.4
        levels = rng.uniform(0.86, 1.08, count + 1)

        def paint(x, y, horizon):
            along, across = (y, x) if upright else (x, y)
            plank = across * count + start[0]
            index = np.clip(plank.astype(int), 0, count)
            grain = _noise(along * 0.06 + index * 0.37, across * 0.9, start)
            level = levels[index] + 0.07 * grain
            return tone * np.where((plank % 1) < 0.05, 0.55, level)[..., None]

        return tone[None], paint
    if kind == "plain":
        tones = _palette("b9a7a0 a3b5b0 c4b890 a8a8c0 c7a9a0 9fb39a cfc8ba 8f9aa8")
        tone = tones[rng.integers(len(tones))] + jitter
        slope = rng.uniform(0.1, 0.3)
    else:
        tones = _palette("2a2d38 33282c 22332f 2c2440 1f2a40")
        tone = tones[rng.integers(len(tones))] + jitter * 0.5
        slope = rng.uniform(0.4, 0.9)

    def paint(x, y, horizon):
        ramp = (x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn)
        return tone * (1 + slope * ramp)[..., None]

    return tone[None], paint


def _draw_sketch(parts: list[_Part], placed: list[np.ndarray], place: Callable, side: int):
    """The outline drawing (side, side): each part's white fill hides the lines behind it."""
    canvas = Image.new("L", (side, side), 255)
    draw = ImageDraw.Draw(canvas)
    pen = max(round(_PEN * side), 1)

    def stroke(points):
        flat = points.ravel().tolist()
        draw.line(flat, fill=_INK, width=pen)
        step = np.diff(points, axis=0)
        step = step / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-6)
        # Pillow leaves square ends, and notches where the turn is large for the pen: round both.
        smooth = 1 - 0.25 / pen**2
        sharp = np.concatenate([[True], (step[1:] * step[:-1]).sum(axis=1) < smooth, [True]])
        for x, y in points[sharp].tolist():
            r = pen / 2 - 0.5
            draw.ellipse((x - r, y - r, x + r, y + r), fill=_INK)

    for part, points in zip(parts, placed, strict=True):
        draw.polygon(points.ravel().tolist(), fill=255)
        if part.outline:
            stroke(np.concatenate([points, points[:1]]))
        for line in part.strokes:
            stroke(place(line))
    return canvas


def draw_scene(seed: int, index: int, *, size: int = 48, label: int | None = None) -> Scene:
    """Draw scene `index` of the world `seed`, `size` pixels a side.

    The scene depends on (seed, index) alone, and on `label` where given; `size` changes only
    the resolution.
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
    name = CLASS_NAMES[label]
    background = BACKGROUNDS[int(rng.choice(len(BACKGROUNDS), p=_BACKGROUND_SHARES))]
    flat = background == "white" and bool(rng.uniform() < 1 / 3)
    avoid, paint = _backdrop(background, rng)

    # From object to picture: x_picture = x_object @ matrix + shift, both in sides.
    build, most, mirrored, aspect = _CLASSES[name]
    angle = np.radians(rng.uniform(-most, most))
    flip = -1.0 if mirrored and rng.uniform() < 0.5 else 1.0
    stretch = np.exp(rng.uniform(-aspect, aspect))
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.diag([flip * stretch, 1 / stretch]) @ np.array([[c, s], [-s, c]])
    sun = rng.choice([-1, 1]) * rng.uniform(0.35, 0.7)
    sun = np.array([sun, -rng.uniform(0.4, 0.65)])
    local = matrix @ sun
    local *= np.linalg.norm(sun) / np.linalg.norm(local)
    kit = _Kit(rng, np.append(local, np.sqrt(1 - min(sun @ sun, 0.9))), avoid)
    parts = build(kit)

    corners = np.concatenate([part.points for part in parts]) @ matrix
    low, high = corners.min(axis=0), corners.max(axis=0)
    matrix = matrix * (rng.uniform(0.58, 0.86) / (high - low).max())
    corners = np.concatenate([part.points for part in parts]) @ matrix
    low, high = corners.min(axis=0), corners.max(axis=0)
    room = 1 - 2 * _MARGIN - (high - low)
    shift = _MARGIN + room * rng.uniform((0.1, 0.25), (0.9, 1.0)) - low
    low, high = low + shift, high + shift
    horizon = min(float(rng.uniform(0.35, 0.7)), float(high[1]) - 0.1)

    side = size * _SUPERSAMPLE

    def place(points):
        return (points @ matrix + shift) * side - 0.5  # Pillow's pixel centres are whole numbers

    placed = [place(part.points) for part in parts]
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    for number, points in enumerate(placed, 1):
        draw.polygon(points.ravel().tolist(), fill=number)
    owner = np.asarray(canvas)

    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = np.broadcast_to(axis, (side, side)), np.broadcast_to(axis[:, None], (side, side))
    picture = np.asarray(paint(x, y, horizon), dtype=np.float32)
    if background != "white":
        wide = (high[0] - low[0]) / 2
        dx = (axis - (low[0] + high[0]) / 2 + 0.12 * sun[0]) / (wide * 0.95)
        dy = (axis - high[1] + 0.01) / (0.05 if name in _FLOATS else 0.075)
        soft = np.exp(-(dy**2))[:, None] * np.exp(-(dx**4))
        picture = picture * (1 - 0.5 * soft[..., None]).astype(np.float32)

    inside = np.flatnonzero(owner)
    owners = owner.ravel()[inside]
    rgb = np.array([part.colour for part in parts], np.float32)[owners - 1]
    if not flat:
        at = np.stack([inside % side, inside // side], axis=1).astype(np.float32)
        uv = ((at + 0.5) / side - shift) @ np.linalg.inv(matrix)
        uv = uv.astype(np.float32)
        level = np.empty(len(inside), np.float32)
        for number, part in enumerate(parts, 1):
            here = np.flatnonzero(owners == number)
            if len(here):
                level[here] = part.light(uv[here, 0], uv[here, 1])
        # Shade keeps a little blue, as from the sky; light above 1 goes to white.
        tint = np.array([0.0, 0.02, 0.07], np.float32)
        dim = np.clip(level, 0.25, 1)[:, None]
        rgb = rgb * (dim + (1 - dim) * tint)
        rgb += (1 - rgb) * np.clip(level - 1, 0, 0.85)[:, None]
    picture.reshape(-1, 3)[inside] = rgb

    photo = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
    covered = Image.fromarray((owner > 0).astype(np.uint8) * 255).reduce(_SUPERSAMPLE)
    return Scene(
        label=label,
        background=background,
        image=np.array(photo.reduce(_SUPERSAMPLE)),
        mask=np.asarray(covered) >= 128,
        sketch=np.array(_draw_sketch(parts, placed, place, side).reduce(_SUPERSAMPLE)),
    )
