"""What the demo world is drawn with: parts, outlines, polygons, noise, lights, the drawing kit.

Object coordinates run from about -1 to 1, y down. Colours are RGB in [0, 1].
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "_ 2"]
Colour = Float[np.ndarray, "3"]
# Light at the points (u, v): 0 is black, 1 the part's own colour, 2 white.
Light = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Part:
    """A closed polygon with its colour, and light on the same coordinates."""

    name: str  # one of objects.PART_NAMES
    points: Points
    colour: Colour
    light: Light
    outline: bool = True  # whether the sketch shows the part's edge
    strokes: tuple[Points, ...] = ()  # open lines that only the sketch shows


@dataclasses.dataclass(frozen=True)
class Outline:
    """A part's lines in the picture: coordinates run from 0 to 1, in sides of the picture."""

    name: str
    points: Points
    closed: bool  # whether the edge is drawn; it hides what is behind it in either case
    strokes: tuple[Points, ...]


def palette(codes: str) -> Float[np.ndarray, "k 3"]:
    """The colours of hexadecimal codes such as "d93a32 e9822b"."""
    return np.array([[int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)] for c in codes.split()])


def _fractal_tile(size: int = 256) -> Float[np.ndarray, "s s"]:
    """Cloud-like noise that tiles, zero mean, standard deviation 1, about -3..3."""
    spectrum = np.fft.fft2(np.random.default_rng(0).normal(size=(size, size)))
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    tile = np.fft.ifft2(spectrum / np.maximum(f, 3 / size) ** 1.3).real
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)


_TILE = _fractal_tile()


def noise(x: np.ndarray, y: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Cloud-like noise (about -3..3) at coordinates in tile widths, `start` being the origin."""
    i = ((y + start[0]) * 256).astype(np.int32) & 255
    j = ((x + start[1]) * 256).astype(np.int32) & 255
    return _TILE[i, j]


def arc(cx, cy, rx, ry, start=0.0, stop=360.0, n=40) -> Points:
    """Points on an ellipse, angles in degrees from the right, clockwise as seen."""
    t = np.radians(np.linspace(start, stop, n, endpoint=stop - start < 360))
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], axis=1)


def poly(*xy) -> Points:
    """The points x0, y0, x1, y1, ..."""
    return np.array(xy, dtype=float).reshape(-1, 2)


def rect(x0, y0, x1, y1) -> Points:
    """The upright rectangle between two corners."""
    return poly(x0, y0, x1, y0, x1, y1, x0, y1)


def between(one: Points, other: Points) -> Points:
    """The area between two lines that run the same way."""
    return np.concatenate([one, other[::-1]])


def half_width(r0, y0, r1, y1, y):
    """The half width at height y of a body that goes straight from r0 at y0 to r1 at y1."""
    return r0 + (r1 - r0) * (y - y0) / (y1 - y0)


def frustum(r0, y0, r1, y1, squash, top=1) -> Points:
    """The side of an upright round body seen from a little above.

    The lower end curves down, the upper one down (top=1: hollow or cut) or up (top=-1).
    """
    low = arc(0, y1, r1, squash * r1, 0, 180, 20)
    return np.concatenate([low, arc(0, y0, r0, top * squash * r0, 180, 0, 20)])


def belt(r0, y0, r1, y1, squash, low, high) -> Points:
    """The part of the `frustum` of the same numbers between two heights."""
    body = (r0, y0, r1, y1)
    return frustum(half_width(*body, low), low, half_width(*body, high), high, squash)


def bricks(rows, cols, depth) -> Light:
    """A pattern to add to a light: `depth` darker in the joints of a brick wall."""

    def light(u, v):
        y = v * rows
        x = u * cols + 0.5 * (np.floor(y) % 2)
        return -depth * (((y % 1) < 0.22) | ((x % 1) < 0.16))

    return light


class Kit:
    """What the drawing functions share: the random source, the light and colours to avoid.

    `sun` points to the light, in object coordinates with z towards the viewer; `avoid` holds
    the background's colours.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        sun: Float[np.ndarray, "3"],
        avoid: Float[np.ndarray, "k 3"],
    ):
        self.rng, self.sun, self.avoid = rng, sun, avoid
        self.start = rng.uniform(size=2)

    def uniform(self, low, high) -> float:
        """A random number between two."""
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return bool(self.rng.uniform() < p)

    def pick(self, shades: np.ndarray, *, far: float = 0.36, unlike: tuple = ()) -> Colour:
        """A palette colour, about `far` from the background's colours and `unlike`."""
        shades = shades[self.rng.integers(len(shades), size=5)]
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
                out += grain * noise(u * scale, v * scale, self.start)
            return out

        return light

    def tube(self, r0, y0, r1, y1, *, gloss=0.0, grain=0.0, scale=(0.3, 0.05)) -> Light:
        """Light on an upright round body whose half width goes from r0 at y0 to r1 at y1."""
        lx, _, lz = self.sun

        def light(u, v):
            x = np.clip(u / np.maximum(half_width(r0, y0, r1, y1, v), 1e-3), -1, 1)
            out = 0.5 + 0.58 * np.maximum(x * lx * 1.3 + np.sqrt(1 - x * x) * lz, 0)
            if gloss:
                out += gloss * np.maximum(1 - 25 * (x - 0.6 * np.sign(lx)) ** 2, 0)
            if grain:
                out += grain * noise(u * scale[0], v * scale[1], self.start)
            return out

        return light

    def plane(self, level=1.0, *, du=0.0, dv=0.0, grain=0.0, pattern: Light | None = None) -> Light:
        """Light on a flat face: a level, a slope, grain and perhaps a pattern of u and v."""

        def light(u, v):
            out = level + du * u + dv * v
            if grain:
                out += grain * noise(u * 0.12, v * 0.12, self.start)
            return out if pattern is None else out + pattern(u, v)

        return light
