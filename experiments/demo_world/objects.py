"""The demo world's ten kinds of objects, each drawn as a list of parts, back to front."""

import dataclasses
from collections.abc import Callable

import numpy as np

from experiments.demo_world.shapes import (
    Kit,
    Part,
    arc,
    belt,
    between,
    bricks,
    frustum,
    palette,
    poly,
    rect,
)

_BRIGHT = palette("d93a32 e9822b efc233 3f9b49 2d6fc0 7a4bb0 d9558f 27a3a0")
_WARM = palette("e9822b d93a32 d9558f")
_GREEN = palette("2f7d3a 5c9a34")
_CROWN = palette("2f7d3a 5c9a34 c07a2c")
_WOOD = palette("6e4526 8a5a34")
_CARDBOARD = palette("c1915a a8794a")
_WALL = palette("e6d3a8 d98f73 c9d3d8 8fb0cc")
_ROOF = palette("a63c2e 4a5a78 33705f")
_CAP = palette("d93a32 e9822b 8a5a34")
_PETAL = palette("d9558f d93a32 efc233 7a4bb0 2d6fc0 f3ead2")
_PALE = palette("f3ead2")
_FISH = palette("e9822b 2d6fc0 efc233 d93a32 27a3a0 7a4bb0")
_HEART = palette("efc233 6e4526")
_DRINK = palette("5a3420")
_TRIM = np.concatenate([_BRIGHT, _PALE])


def _ball(kit: Kit) -> list[Part]:
    light = kit.dome(0, 0, 1, 1, gloss=0.75)
    first = kit.pick(_BRIGHT)
    second = kit.pick(_TRIM, unlike=(first,))
    parts = [Part("ball", arc(0, 0, 1, 1, n=48), first, light)]
    style = kit.rng.choice(3, p=[0.2, 0.5, 0.3])
    if style == 1:  # a beach ball: every other slice between two meridians
        turn = kit.uniform(-60, 0)
        for left in (turn - 60, turn + 60):
            a, b = np.sin(np.radians(np.clip([left, left + 60], -90, 90)))
            if b - a > 0.28:  # a sliver at the rim is only a thick line in a sketch
                t = np.linspace(-np.pi / 2, np.pi / 2, 20)
                edge = np.stack([np.cos(t), np.sin(t)], axis=1)
                segment = between(edge * [b, 1], edge * [a, 1])
                parts.append(Part("ball", segment, second, light))
    elif style == 2:  # a belt around it
        low, high = kit.uniform(5, 22), kit.uniform(-22, -5)
        c, s = np.cos(np.radians([low, high])), np.sin(np.radians([low, high]))
        bulge = kit.uniform(0.1, 0.3)
        points = [
            arc(0, 0, 1, 1, high, low, 6),
            arc(0, s[0], c[0], bulge, 0, 180, 20),
            arc(0, 0, 1, 1, 180 - low, 180 - high, 6),
            arc(0, s[1], c[1], bulge, 180, 0, 20),
        ]
        parts.append(Part("ball", np.concatenate(points), second, light))
    return parts


def _box(kit: Kit) -> list[Part]:
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
        return project(np.array([corner + a * s + b * t for a, b in rect(s0, t0, s1, t1)]))

    sides = (0.9, 0.62) if kit.sun[0] < 0 else (0.62, 0.9)
    style = kit.rng.choice(["gift", "parcel", "crate"])
    if np.linalg.norm(kit.avoid - _CARDBOARD.mean(axis=0), axis=1).min() < 0.35:
        style = "gift"  # brown boxes would drown on a brown table
    colour = kit.pick(_BRIGHT if style == "gift" else _CARDBOARD)
    trim = kit.pick(_TRIM, unlike=(colour,))
    grain = 0.015 if style == "gift" else 0.04
    dim = 0.82 if style == "crate" else 1.0  # a crate's boards stand out from its panels
    parts = []
    for name, level in zip(faces, (1.08, *sides), strict=True):
        light = kit.plane(level * dim, dv=-0.08, grain=grain)
        face = "box top" if name == "top" else "box side"
        parts.append(Part(face, patch(name, 0, 1, 0, 1), colour, light))
        if style == "gift":
            parts.append(Part("box trim", patch(name, 0.4, 0.6, 0, 1), trim, light))
            if name == "top":
                parts.append(Part("box trim", patch(name, 0, 1, 0.4, 0.6), trim, light))
        elif style == "parcel" and name != "left":
            tape = np.clip(colour * 0.6 + 0.36, 0, 0.95)
            end = 1 if name == "top" else 0.3
            parts.append(Part("box trim", patch(name, 0.42, 0.58, 0, end), tape, light))
        elif style == "crate":
            board = kit.plane(level * 1.12, grain=0.06)
            for t0, t1 in ((0.0, 0.22), (0.78, 1.0)):
                parts.append(Part("box trim", patch(name, 0, 1, t0, t1), colour, board))
    return parts


def _cone(kit: Kit) -> list[Part]:
    base, squash = kit.uniform(0.55, 0.8), kit.uniform(0.22, 0.34)
    colour = kit.pick(_BRIGHT)
    parts = []
    banded = kit.chance(0.5)
    side = (0.08 if banded else 0.01, -1, base, 0.75)
    if banded:  # a traffic cone stands on a foot
        foot = kit.pick(_BRIGHT, unlike=(colour,)) if kit.chance(0.5) else colour * 0.85
        light = kit.tube(base * 1.35, 0.8, base * 1.35, 1, grain=0.02)
        rx, ry = base * 1.3, base * squash * 1.3
        disc = [arc(0, 0.78, rx, ry, 180, 360, 20), arc(0, 0.86, rx, ry, 0, 180, 20)]
        parts.append(Part("cone foot", np.concatenate(disc), foot, light))
    light = kit.tube(*side, gloss=0.12, grain=0.02)
    parts.append(Part("cone body", frustum(*side, squash, top=-1), colour, light))
    if banded:
        trim = kit.pick(np.concatenate([_PALE, _BRIGHT[1:3]]), unlike=(colour,))
        for y in (-0.55, 0.05) if kit.chance(0.6) else (-0.25,):
            parts.append(Part("cone body", belt(*side, squash, y, y + 0.3), trim, light))
    return parts


def _star(kit: Kit) -> list[Part]:
    inner = kit.uniform(0.42, 0.56)
    t = np.radians(np.arange(10) * 36 - 90)
    r = np.where(np.arange(10) % 2, inner, 1.0)
    points = np.stack([r * np.cos(t), r * np.sin(t)], axis=1)
    edge = np.roll(points, -1, axis=0) - points
    normal = np.stack([edge[:, 1], -edge[:, 0]], axis=1) / np.linalg.norm(edge, axis=1)[:, None]
    tilt = normal @ kit.sun[:2]
    faceted = kit.chance(0.6)
    glint = kit.dome(0, 0, 1.15, 1.15, gloss=0.35)

    # How far the edges are from the middle: the pillow's soft rim goes by the way to the edge.
    reach = (points * normal).sum(axis=1)

    def light(u, v):
        facet = ((np.degrees(np.arctan2(v, u)) + 90) // 36).astype(int) % 10
        if faceted:
            return 0.88 + 0.42 * tilt[facet]
        depth = 1 - (u * normal[facet, 0] + v * normal[facet, 1]) / reach[facet]
        return glint(u, v) + 0.4 * tilt[facet] * np.maximum(1 - 2.2 * depth, 0)

    # Only the ridges: the valleys too would clot in the middle of a small sketch.
    strokes = tuple(np.stack([np.zeros(2), p]) for p in points[::2]) if faceted else ()
    colour = kit.pick(np.concatenate([_WARM[1:2], _BRIGHT[2:3], _BRIGHT]))
    return [Part("star", points, colour, light, strokes=strokes)]


def _tree(kit: Kit) -> list[Part]:
    colour = kit.pick(_CROWN, far=0.3)
    bark = kit.pick(_WOOD, far=0.25)
    wide = kit.uniform(0.13, 0.2)
    trunk = kit.tube(wide, 0, wide * 1.4, 1, grain=0.05)
    parts = [Part("tree trunk", frustum(wide, 0, wide * 1.4, 0.98, 0.2), bark, trunk)]
    if kit.chance(0.4):  # a conifer: three skirts, the lowest one first
        for y, half in ((0.5, 0.72), (0.05, 0.58), (-0.38, 0.42)):
            x = np.linspace(1, -1, 11)
            hem = np.stack([x * half, y + 0.1 * (1 - x * x) - 0.06 * (np.arange(11) % 2)], axis=1)
            top = max(y - 0.85, -1)
            round_light = kit.tube(0.02, top, half, y + 0.05, grain=0.06, scale=(0.5, 0.35))

            def light(u, v, y=y, round_light=round_light):  # darker under the skirt above
                return round_light(u, v) - 0.25 * np.clip((y - 0.2 - v) * 2, 0, 1)

            skirt = np.concatenate([hem, poly(0, top)])
            parts.append(Part("tree crown", skirt, colour, light))
        return parts
    blobs = [(0, -0.3, 0.78, 0.68)]
    if kit.chance(0.6):
        blobs = [(-0.42, -0.12, 0.45, 0.4), (0.42, -0.1, 0.45, 0.4), (0, -0.5, 0.56, 0.48)]
    for cx, cy, rx, ry in blobs:
        t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        bump = 0.93 + 0.13 * np.abs(np.sin(t * (3 if len(blobs) > 1 else 4.5) + kit.uniform(0, 3)))
        points = np.stack([cx + rx * bump * np.cos(t), cy + ry * bump * np.sin(t)], axis=1)
        light = kit.dome(cx, cy, rx * 1.1, ry * 1.1, grain=0.06, scale=0.5)
        parts.append(Part("tree crown", points, colour, light))
    if kit.chance(0.3):
        fruit = kit.pick(_WARM, unlike=(colour,))
        for x, y in ((-0.45, -0.15), (0.4, -0.2), (0.05, -0.6), (-0.05, 0.0)):
            x, y = x + kit.uniform(-0.08, 0.08), y + kit.uniform(-0.08, 0.08)
            light = kit.dome(x, y, 0.1, 0.1, gloss=0.4)
            parts.append(Part("tree fruit", arc(x, y, 0.09, 0.09, n=14), fruit, light))
    return parts


def _house(kit: Kit) -> list[Part]:
    wall, roof = kit.pick(_WALL), kit.pick(_ROOF, far=0.3)
    door = kit.pick(np.concatenate([_BRIGHT, _WOOD]), unlike=(wall,))
    glass = np.array([0.3, 0.42, 0.55]) if wall.mean() > 0.5 else np.array([0.75, 0.86, 0.92])
    masonry = bricks(5, 3, 0.06) if kit.chance(0.5) else None
    tiles = bricks(5, 3, 0.07)
    front = kit.plane(1.0, dv=0.1, du=0.06 * kit.sun[0], grain=0.025, pattern=masonry)
    top = kit.plane(1.0, dv=0.15, grain=0.03, pattern=tiles)
    pane = kit.plane(0.95, du=0.5, dv=-0.5)
    parts = []

    def window(x, y, half):
        cross = (poly(x - half, y, x + half, y), poly(x, y - half, x, y + half))

        def bars(u, v):
            return pane(u, v) + 0.8 * ((np.abs(u - x) < 0.025) | (np.abs(v - y) < 0.025))

        frame = rect(x - half, y - half, x + half, y + half)
        return Part("house window", frame, glass, bars, strokes=cross)

    if kit.chance(0.75):  # chimney
        x = kit.uniform(0.3, 0.45)
        stone = kit.pick(_ROOF, far=0.3, unlike=(roof,))
        stack = rect(x, -0.85, x + 0.2, -0.2)
        parts.append(Part("house chimney", stack, stone, kit.plane(0.9, grain=0.05)))
    if kit.chance(0.5):  # seen from the front
        flat = kit.uniform(0.0, 0.45)
        slope = poly(-0.95, -0.1, -flat, -0.95, flat, -0.95, 0.95, -0.1)
        parts += [
            Part("house wall", rect(-0.75, -0.2, 0.75, 0.9), wall, front),
            Part("house roof", slope, roof, top),
        ]
        side = -1 if kit.chance(0.5) else 1
        x = side * kit.uniform(0.0, 0.3)
        parts.append(Part("house door", rect(x - 0.17, 0.3, x + 0.17, 0.9), door, pane))
        parts.append(window(x - side * 0.47, 0.36, 0.17))
        if abs(x) < 0.12:
            parts.append(window(x + side * 0.47, 0.36, 0.17))
        return parts
    # Seen from the corner: gable on the left, long side and roof going back to the right.
    ridge, rise = kit.uniform(-0.85, -0.7), 0.12
    level = 1.0 if kit.sun[0] < 0 else 0.78
    gable = kit.plane(level, dv=0.08, grain=0.025, pattern=masonry)
    flank = kit.plane(1.78 - level, dv=0.08, grain=0.025, pattern=masonry)
    slope = poly(-0.5, ridge - 0.03, 0.55, ridge - 0.03 - rise, 1, -0.03 - rise, 0, 0.02)
    long = poly(-0.05, -0.1, 0.9, -0.1 - rise, 0.9, 0.85 - rise, -0.05, 0.95)
    short = poly(-0.9, -0.1, -0.475, ridge, -0.05, -0.1, -0.05, 0.95, -0.9, 0.95)
    parts += [
        Part("house wall", long, wall, flank),
        Part("house wall", short, wall, gable),
        Part("house roof", slope, roof, top),
        Part("house door", rect(-0.63, 0.35, -0.32, 0.95), door, pane),
        window(0.42, 0.32, 0.18),
    ]
    return parts


def _fish(kit: Kit) -> list[Part]:
    tall = kit.uniform(0.36, 0.56)
    colour = kit.pick(_FISH)
    fin = kit.pick(_FISH, unlike=(colour,)) if kit.chance(0.6) else colour * 0.8
    stripe = kit.pick(np.concatenate([_FISH, _PALE]), unlike=(colour,))

    def half(s):  # not np.pi: rounded up to float32 it makes the sine's power NaN at s = 1
        return tall * np.sin(3.14159 * np.clip(s, 0, 1) ** 0.72) ** 0.85 + 0.09 * s**2

    def band(s):
        x = 0.95 - 1.45 * s
        return between(np.stack([x, -half(s)], axis=1), np.stack([x, half(s)], axis=1))

    def light(u, v):
        h = np.maximum(half((0.95 - u) / 1.45), 0.05)
        y = np.clip(v / h, -1, 1)
        scales = np.sin(u * 24 + 2.2 * np.abs(np.sin(v * 17))) * 0.04 * (u < 0.4)
        lit = y * kit.sun[1] + np.sqrt(1 - y * y) * kit.sun[2]
        shine = 0.3 * np.maximum(1 - 9 * (y + 0.45) ** 2, 0)
        return 0.5 + 0.58 * np.maximum(lit, 0) + scales + shine

    ray = kit.plane(0.92, pattern=lambda u, v: 0.07 * np.sin(26 * v + 8 * u))
    comb = kit.plane(0.95, pattern=lambda u, v: 0.07 * np.sin(30 * u + 8 * v))
    spread = kit.uniform(0.38, 0.55)
    tail = poly(-0.38, 0, -0.7, -0.14, -1.05, -spread, -0.9, 0, -1.05, spread, -0.7, 0.14)
    crest = arc(0.12, -tall * 0.6, 0.42, tall * 0.8, 180, 360, 14)
    parts = [
        Part("fish tail", tail, fin, ray),
        Part("fish fin", crest, fin, comb),
        Part("fish fin", poly(0.1, tall * 0.7, -0.25, tall + 0.22, -0.3, tall * 0.5), fin, comb),
        Part("fish body", band(np.linspace(0, 1, 24)), colour, light),
    ]
    if kit.chance(0.6):
        for a in (0.53, 0.75) if kit.chance(0.6) else (0.58,):
            parts.append(Part("fish body", band(np.linspace(a, a + 0.13, 5)), stripe, light))
    else:
        side_fin = poly(0.2, 0.0, -0.16, -0.06, -0.22, 0.2, 0.08, 0.18)
        parts.append(Part("fish fin", side_fin, fin, ray))
    gill = arc(0.26, 0, 0.12, tall * 0.66, -75, 75, 12)
    x, y = 0.62, -tall * 0.22
    white, black = np.array([0.95, 0.95, 0.92]), np.array([0.07, 0.07, 0.1])
    # In a sketch the eye is a dot: the white's outline would fill up.
    parts += [
        Part("fish eye", arc(x, y, 0.12, 0.12), white, kit.plane(), False, (gill,)),
        Part("fish eye", arc(x + 0.02, y, 0.06, 0.06, n=14), black, kit.plane()),
    ]
    return parts


def _mushroom(kit: Kit) -> list[Part]:
    cap = kit.pick(_CAP)
    stem = kit.pick(_PALE, far=0.3, unlike=(cap,))
    wide = kit.uniform(0.2, 0.32)
    height, sag = kit.uniform(0.65, 0.95), kit.uniform(0.12, 0.24)
    body = kit.tube(wide, 0, wide * 1.25, 0.95, grain=0.04)

    def stalk(u, v):
        return body(u, v) - 0.35 * np.clip(1.4 - 2.6 * (v - 0.05 - sag), 0, 1)

    light = kit.dome(0, 0.05, 0.98, height * 1.12, gloss=0.4, grain=0.015)
    hat = [arc(0, 0, 0.95, height, 180, 360, 30), arc(0, 0, 0.95, sag, 0, 180, 24)]
    parts = [
        Part("mushroom stem", frustum(wide, 0, wide * 1.25, 0.92, 0.3), stem, stalk),
        Part("mushroom cap", np.concatenate(hat), cap, light),
    ]
    if kit.chance(0.75):
        dots = kit.pick(_PALE, far=0.3, unlike=(cap,))
        spots = poly(-0.55, -0.32, 0.02, -0.64, 0.56, -0.34, 0, -0.18, -0.3, -0.07, 0.34, -0.08)
        for x, y in spots.tolist():
            x, y = x + kit.uniform(-0.06, 0.06), (y + kit.uniform(-0.05, 0.05)) * height
            r = kit.uniform(0.09, 0.14) * (1 if y < -0.12 else 0.7)
            rx, ry = r * (1 - 0.5 * x * x), r * (0.9 - 0.3 * (y / height) ** 2)
            parts.append(Part("mushroom spot", arc(x, y, rx, ry, n=18), dots, light))
    return parts


def _cup(kit: Kit) -> list[Part]:
    colour = kit.pick(np.concatenate([_TRIM, _WALL]))
    trim = kit.pick(_TRIM, unlike=(colour,))
    top, foot, squash = kit.uniform(0.58, 0.7), kit.uniform(0.36, 0.6), kit.uniform(0.24, 0.36)
    high = kit.uniform(-0.75, -0.4)
    side = (top, high, foot, 0.75)
    light = kit.tube(*side, gloss=0.3)
    parts = []
    if kit.chance(0.3):
        saucer, china = arc(0, 0.78, 0.98, 0.98 * squash), kit.pick(_PALE, unlike=(colour,))
        parts.append(Part("cup saucer", saucer, china, kit.plane(0.95, du=0.1, dv=0.1)))
    middle, size = (high + 0.7) / 2, (0.7 - high) * 0.3
    round_light = kit.dome(foot, middle, size + 0.4, size + 0.2)
    ring = [
        arc(foot, middle, size + 0.18, size, -100, 100, 24),
        arc(foot, middle, size, size * 0.58, 100, -100, 24),
    ]
    parts += [
        Part("cup handle", np.concatenate(ring), colour, round_light),
        Part("cup body", frustum(*side, squash), colour, light),
    ]
    if kit.chance(0.5):
        y0 = kit.uniform(0.0, 0.25)
        y1 = y0 + kit.uniform(0.15, 0.3)
        parts.append(Part("cup body", belt(*side, squash, y0, y1), trim, light))
    drink = kit.pick(_DRINK, far=0.1, unlike=(colour,))
    dip = 0.36 * top * squash
    wall = kit.plane(0.66, du=-0.35 * kit.sun[0])
    inner = arc(0, high, top * 0.88, top * squash * 0.84)
    surface = arc(0, high + dip / 2, top * 0.76, top * squash * 0.62)
    parts += [
        Part("cup inside", arc(0, high, top, top * squash), colour, kit.plane(1.12)),
        # Only the rim and the drink are drawn as lines: a third ellipse between them would clot.
        Part("cup inside", inner, colour, wall, outline=False),
        Part("cup drink", surface, drink, kit.plane(du=0.2)),
    ]
    return parts


def _flower(kit: Kit) -> list[Part]:
    petal = kit.pick(_PETAL)
    heart = kit.pick(_HEART, far=0.25, unlike=(petal,))
    green = kit.pick(_GREEN, far=0.28)
    cy, bend = -0.38, kit.uniform(-0.22, 0.22)
    y = np.linspace(cy, 1, 12)
    x = bend * ((y - cy) / (1 - cy)) ** 2
    stem = between(np.stack([x - 0.085, y], axis=1), np.stack([x + 0.085, y], axis=1))
    light = kit.plane(0.85, du=0.8 * float(np.sign(kit.sun[0])))
    parts = [Part("flower stem", stem, green, light)]
    for side in (-1, 1) if kit.chance(0.6) else (1,):
        t = np.linspace(0, 1, 14)
        lift = kit.uniform(0.25, 0.45)
        half = np.outer(0.17 * np.sin(np.pi * t**0.8), (0, 1))
        at = np.array([bend * 0.35, kit.uniform(0.55, 0.75)])
        mid = at + np.stack([side * 0.58 * t, -lift * t**1.3], axis=1)
        leaf = between(mid - half, mid + half)
        parts.append(Part("flower leaf", leaf, green, kit.plane(0.95, du=-0.2 * side, grain=0.06)))
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
        parts.append(Part("flower petal", points, petal, light))
    r = kit.uniform(0.17, 0.24)
    core = kit.dome(0, cy, r, r, grain=0.1, scale=0.8)
    parts.append(Part("flower heart", arc(0, cy, r, r, n=28), heart, core))
    return parts


# Painted patterns (stripes, belts) belong to the part they are painted on.
PART_NAMES: tuple[str, ...] = (
    "background",
    "ball",
    "box top",
    "box side",
    "box trim",  # ribbon, tape, boards
    "cone body",
    "cone foot",
    "star",
    "tree trunk",
    "tree crown",
    "tree fruit",
    "house wall",
    "house roof",
    "house door",
    "house window",
    "house chimney",
    "fish body",
    "fish tail",
    "fish fin",
    "fish eye",
    "mushroom stem",
    "mushroom cap",
    "mushroom spot",
    "cup body",
    "cup handle",
    "cup saucer",
    "cup inside",
    "cup drink",
    "flower stem",
    "flower leaf",
    "flower petal",
    "flower heart",
)


@dataclasses.dataclass(frozen=True)
class ObjectClass:
    """How the objects of one class are drawn and placed. All are mirrored half of the time."""

    draw: Callable[[Kit], list[Part]]
    rotation: float  # the largest, in degrees, either way
    aspect: float  # the largest stretch of width against height, as a logarithm
    floats: bool = False  # not resting on the ground: its shadow is thinner


# By class name, in label order.
OBJECTS: dict[str, ObjectClass] = {
    "ball": ObjectClass(_ball, 180.0, 0.0),
    "box": ObjectClass(_box, 6.0, 0.05),
    "cone": ObjectClass(_cone, 12.0, 0.12),
    "star": ObjectClass(_star, 36.0, 0.08, floats=True),
    "tree": ObjectClass(_tree, 7.0, 0.12),
    "house": ObjectClass(_house, 7.0, 0.12),
    "fish": ObjectClass(_fish, 30.0, 0.12, floats=True),
    "mushroom": ObjectClass(_mushroom, 16.0, 0.12),
    "cup": ObjectClass(_cup, 10.0, 0.1),
    "flower": ObjectClass(_flower, 25.0, 0.08),
}
