"""The things that stand on the table: cups, plates, and what is neither, each as a mesh about the z axis.

Sizes are in centimetres; every function draws its numbers from the generator it is given and from nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from saucer.local.scene_mesh import Floats, Mesh, Paint, floats, grid, joined, revolved, tube
from saucer.local.scene_tables import colour

Segments = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

LEAST_SEEN = 0.45  # less is for people to argue about
LEAST_SEEN_LID = 0.75  # with its knob hidden a lid would pass for a plate


@dataclass(frozen=True)
class Thing:
    """An object: `label` is cup, plate or None; `reach_cm` is the radius of the circle on the table that it fills;
    `stage_cm` is the height at which something may stand on it; `carried` are the things that do; `least_seen` is the
    share of its outline that has to be seen for people to know it, below which it is left out of the picture."""

    label: str | None
    mesh: Mesh
    reach_cm: float
    stage_cm: float = 0.0
    carried: list["Thing"] = field(default_factory=list)
    least_seen: float = 0.0


def glaze(rng: np.random.Generator) -> Floats:
    """A colour that things of a kitchen have: mostly white to grey or earthen, else anything, dark ones included."""
    kind = rng.random()
    if kind < 0.52:
        return colour(rng, (0.0, 0.12), (0.78, 0.98))
    if kind < 0.6:
        return colour(rng, (0.0, 0.2), (0.12, 0.4))
    return colour(rng, (0.12, 0.64), (0.25, 0.88))


def _curve(points: list[tuple[float, float]], pieces: int) -> Floats:
    """Points (r, z) joined by straight lines, each line cut so that there are about `pieces` segments in all."""
    corners = np.array(points, dtype=np.float32)
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    cuts = np.maximum(1, np.round(lengths / lengths.sum() * pieces)).astype(int)
    lines = [
        corners[i] + (corners[i + 1] - corners[i]) * np.linspace(0, 1, cut, endpoint=False, dtype=np.float32)[:, None]
        for i, cut in enumerate(cuts)
    ]
    return floats(np.concatenate([*lines, corners[-1:]]))


def _plain(shade: Floats) -> Paint:
    def paint(angle: Floats, radius: Floats, height: Floats, segment: Segments) -> Floats:
        return np.broadcast_to(shade, (len(angle), 3)).astype(np.float32)

    return paint


def _pattern(rng: np.random.Generator, ground: Floats) -> Callable[[Floats, Floats], Floats]:
    """A decoration over an angle and a place 0..1 along the profile -> colours (N, 3)."""
    ink, second = glaze(rng), glaze(rng)
    kind = rng.choice(["none", "bands", "stripes", "dots", "dipped", "checks", "waves", "motif"], p=_PATTERN_SHARES)
    count, phase = int(rng.integers(5, 15)), rng.uniform(0, 2 * np.pi)
    low, high = np.sort(rng.uniform(0.08, 0.98, 2))

    def weight(angle: Floats, place: Floats) -> Floats:
        turned = angle * count + phase
        match kind:
            case "bands":
                chosen = ((place > low) & (place < low + 0.12)) | (place > 0.93)
            case "stripes":
                chosen = np.sin(turned) > 0.3
            case "dots":
                chosen = np.sin(turned) ** 2 + np.sin(place * 6 * np.pi) ** 2 > 1.6
            case "dipped":
                chosen = place < low + 0.05 * np.sin(turned * 0.5)
            case "checks":
                chosen = np.sin(turned) * np.sin(place * count * 1.6) > 0
            case "waves":
                chosen = np.abs(place - (low + high) / 2 - 0.07 * np.sin(turned)) < 0.06
            case "motif":
                chosen = (np.mod(angle + phase, 2 * np.pi) - 1.2) ** 2 / 0.5 + (place - 0.55) ** 2 / 0.06 < 1
            case _:
                chosen = np.zeros_like(place, dtype=bool)
        return floats(chosen)[:, None]

    def colours(angle: Floats, place: Floats) -> Floats:
        mixed = ground + (ink - ground) * weight(angle, place)
        if kind == "motif":
            inner = (np.mod(angle + phase, 2 * np.pi) - 1.2) ** 2 / 0.16 + (place - 0.55) ** 2 / 0.02 < 1
            mixed = np.where(inner[:, None], second, mixed)
        return mixed.astype(np.float32)

    return colours


_PATTERN_SHARES = (0.52, 0.14, 0.06, 0.07, 0.06, 0.02, 0.06, 0.07)
_DRINKS = ((0.05, 0.09, 0.16), (0.1, 0.25, 0.5), (0.35, 0.55, 0.72), (0.55, 0.68, 0.78), (0.15, 0.45, 0.6))


def _outer_wall(rng: np.random.Generator) -> tuple[Floats, float]:
    """A cup's outside, rows (radius, height) from the foot to the rim, and whether it is big (1) or small (0.6)."""
    along = np.linspace(0, 1, 15, dtype=np.float32)
    kind = rng.choice(["mug", "teacup", "espresso", "tall", "barrel"], p=[0.38, 0.26, 0.12, 0.12, 0.12])
    if kind == "mug":
        top, height = rng.uniform(3.8, 4.7), rng.uniform(7.8, 10.5)
        radius = top * (rng.uniform(0.82, 1.02) + (1 - rng.uniform(0.82, 1.0)) * along)
    elif kind == "teacup":
        top, height = rng.uniform(4.4, 5.6), rng.uniform(5.0, 6.8)
        radius = 2.3 + (top - 2.3) * along ** np.float32(rng.uniform(0.35, 0.75))
    elif kind == "espresso":
        top, height = rng.uniform(2.8, 3.4), rng.uniform(4.8, 6.0)
        radius = 2.0 + (top - 2.0) * along ** np.float32(rng.uniform(0.4, 1.0))
    elif kind == "tall":
        top, height = rng.uniform(3.8, 4.5), rng.uniform(10.5, 13.0)
        radius = 2.8 + (top - 2.8) * along
    else:
        top, height = rng.uniform(3.5, 4.2), rng.uniform(7.0, 9.5)
        radius = top + rng.uniform(0.4, 1.0) * np.sin(along * np.pi)
    wall = np.stack([floats(radius), along * np.float32(height)], axis=1)
    return wall.astype(np.float32), 0.6 if kind == "espresso" else 1.0


def _handle(rng: np.random.Generator, wall: Floats, size: float, shade: Floats, gloss: float) -> Mesh:
    height = wall[-1, 1]
    low, high = height * rng.uniform(0.15, 0.32), height * rng.uniform(0.72, 0.9)
    out = size * rng.uniform(2.2, 3.3)
    swing = np.linspace(-np.pi / 2, np.pi / 2, 16)
    square = rng.choice([1.0, 0.7, 0.45])
    bulge = np.abs(np.cos(swing)) ** square
    rise = (low + high) / 2 + np.sign(np.sin(swing)) * np.abs(np.sin(swing)) ** square * (high - low) / 2
    start = np.interp(rise, wall[:, 1], wall[:, 0]) - 0.25
    path = np.stack([start + bulge * out, np.zeros_like(rise), rise], axis=1).astype(np.float32)
    thick = size * rng.uniform(0.4, 0.65)
    radius = np.broadcast_to(np.array([thick, thick * rng.uniform(0.9, 1.6)], dtype=np.float32), (len(path), 2))
    return tube(path, radius, shade, gloss)


def cup(rng: np.random.Generator) -> Thing:
    """A mug, teacup, espresso cup, tall cup or barrel; nearly all have a handle; full, half full or empty."""
    wall, size = _outer_wall(rng)
    outside, gloss = glaze(rng), rng.uniform(0.1, 1.0)
    inside = outside if rng.random() < 0.4 else glaze(rng)
    top, height = wall[-1]
    thick = rng.uniform(0.22, 0.42)
    full = rng.random() < 0.65
    level = height * (rng.uniform(0.55, 0.9) if full else 0.06)
    inner_heights = np.linspace(height, level, 9, dtype=np.float32)
    inner = np.stack([np.interp(inner_heights, wall[:, 1], wall[:, 0]) - thick, inner_heights], axis=1)
    surface = np.stack([np.linspace(inner[-1, 0], 0.02, 8), np.full(8, level)], axis=1)
    lip = np.array([[top - thick * 0.15, height + thick * 0.35], [top - thick * 0.85, height + thick * 0.35]])
    foot = np.array([[wall[0, 0] * 0.9, 0.0]])
    profile = np.concatenate([foot, wall + np.array([0, 0.05]), lip, inner, surface[1:]]).astype(np.float32)
    walls, rim_end = len(wall), len(wall) + len(lip)
    openness = np.ones(len(profile) - 1, dtype=np.float32)
    depth = (height - inner_heights) / height
    openness[rim_end + 1 : rim_end + 9] = (1 - 0.6 * depth)[: len(openness[rim_end + 1 : rim_end + 9])]
    openness[rim_end + 9 :] = 1 - 0.6 * depth[-1]
    openness[:3] = (0.55, 0.75, 0.9)
    drink = np.array(_DRINKS[int(rng.integers(0, len(_DRINKS)))], dtype=np.float32)
    froth = np.clip(drink * rng.uniform(1.0, 2.2), 0, 0.95)
    rim_shade = outside if rng.random() < 0.7 else glaze(rng)
    decorated = _pattern(rng, outside)

    def paint(angle: Floats, radius: Floats, z: Floats, segment: Segments) -> Floats:
        colours = decorated(angle, (z / height).astype(np.float32))
        colours[segment > walls] = rim_shade
        colours[segment > rim_end] = inside
        if full:
            colours[segment >= rim_end + 8] = drink
            colours[(segment >= rim_end + 8) & (radius > inner[-1, 0] * 0.75)] = froth
        return colours

    parts = [revolved(profile, 72, paint, gloss, openness=openness)]
    if rng.random() < 0.95:
        parts.append(_handle(rng, wall, size, rim_shade if rng.random() < 0.3 else outside, gloss))
    mesh = joined(parts).moved(rng.uniform(0, 2 * np.pi), (0, 0, 0))
    pose = rng.random()
    if pose < 0.03 and not full:
        mesh = mesh.tipped(np.pi)
    elif pose < 0.06 and not full:
        mesh = mesh.moved(rng.uniform(0, 2 * np.pi), (0, 0, 0)).tipped(np.pi / 2 - 0.05)
        mesh = mesh.moved(rng.uniform(0, 2 * np.pi), (0, 0, 0))
        return Thing("cup", mesh, float(height), least_seen=LEAST_SEEN)
    return Thing("cup", mesh, float(wall[:, 0].max()) + 0.6, least_seen=LEAST_SEEN)


def _outline(rng: np.random.Generator) -> Callable[[Floats], Floats] | None:
    kind, turn = rng.random(), rng.uniform(0, np.pi)
    if kind < 0.05:
        return lambda a: ((np.abs(np.cos(a + turn)) ** 5 + np.abs(np.sin(a + turn)) ** 5) ** -0.2 * 0.92).astype(
            np.float32
        )
    if kind < 0.12:
        return lambda a: (1 + 0.025 * np.cos(12 * a)).astype(np.float32)
    return None


def plate(rng: np.random.Generator, radius_cm: float | None = None) -> Thing:
    """A dinner plate, side plate, soup plate or (radius_cm about 7) saucer, often decorated, sometimes with food."""
    saucer = radius_cm is not None
    reach = radius_cm if radius_cm is not None else rng.uniform(7.5, 13.5)
    ground, gloss = glaze(rng), rng.uniform(0.1, 0.9)
    well = reach * rng.uniform(0.5, 0.74)
    rise = reach * rng.uniform(0.08, 0.2)
    floor = rng.uniform(0.3, 0.6)
    coupe = rng.random() < 0.3
    if coupe:
        swell = np.linspace(0, 1, 7)
        bow = [(reach - (reach - well) * s, rise * (1 - s) ** 1.6 + floor) for s in swell]
    else:
        bow = [(reach, rise + floor), (well + reach * 0.12, rise * 0.75 + floor)]
        bow += [(well + reach * 0.04, rise * 0.2 + floor), (well - reach * 0.05, floor)]
    under = [(well * 0.9, 0.0), (reach * 0.99, rise + floor - 0.3)]
    profile = np.concatenate([_curve(under, 4), _curve([*bow, (0.02, floor)], 20)])
    deep = np.ones(len(profile) - 1, dtype=np.float32)
    deep[:4] = (0.35, 0.5, 0.65, 0.8)
    decorated = _pattern(rng, ground)
    whole = rng.random() < 0.45
    centre = glaze(rng) if rng.random() < 0.18 else None

    def paint(angle: Floats, radius: Floats, z: Floats, segment: Segments) -> Floats:
        place = radius / reach if whole else (radius - well) / (reach - well)
        colours = decorated(angle, place.astype(np.float32))
        if not whole:
            colours[radius < well] = ground
        if centre is not None:
            colours[radius < well * 0.95] = centre
        colours[(segment >= 4) & (np.abs(radius - well) < reach * 0.025)] *= 0.93
        colours[segment < 4] = ground
        return colours

    mesh = revolved(profile.astype(np.float32), 80, paint, gloss, openness=deep, outline=_outline(rng))
    served = [] if saucer or rng.random() < 0.6 else [_food(rng, well * 0.8)]
    return Thing("plate", mesh, float(reach), floor, served, LEAST_SEEN)


def _lump(rng: np.random.Generator, reach: float, height: float, shade: Floats, sides: int = 30) -> Mesh:
    """A rounded, dented lump, like a roll, a fruit or a heap."""
    rise = np.linspace(-np.pi / 2, np.pi / 2, 19)
    profile = np.stack([reach * np.cos(rise), height / 2 * (1 + np.sin(rise))], axis=1).astype(np.float32)
    profile[0, 0] = profile[-1, 0] = 0.02
    speckle = rng.uniform(0.0, 0.12)
    seed = rng.integers(0, 1 << 31)
    dents = rng.uniform(0, 0.08, 3)

    def paint(angle: Floats, radius: Floats, z: Floats, segment: Segments) -> Floats:
        spots = np.random.default_rng(seed).normal(1, speckle, (len(angle), 1))
        return np.clip(shade * spots, 0, 1).astype(np.float32)

    def outline(angle: Floats) -> Floats:
        waves = [dent * np.sin((i + 2) * angle + i) for i, dent in enumerate(dents)]
        return floats(1 + sum(waves))

    return revolved(profile, sides, paint, rng.uniform(0.05, 0.4), outline=outline)


def _food(rng: np.random.Generator, reach: float) -> Thing:
    lumps = []
    for _ in range(int(rng.integers(1, 6))):
        size, turn = rng.uniform(0.2, 0.42) * reach, rng.uniform(0, 2 * np.pi)
        away = rng.uniform(0.0, 0.55) * reach
        shade = colour(rng, (0.3, 0.9), (0.3, 0.9))
        shade[0] *= 0.5
        height = size * rng.uniform(0.25, 0.9)
        lumps.append(_lump(rng, size, height, shade).moved(0.0, (away * np.cos(turn), away * np.sin(turn), 0)))
    return Thing(None, joined(lumps), reach)


def _box(size: tuple[float, float, float], sides: list[Floats], gloss: float) -> Mesh:
    """A box on the table; colours of top, front, back, left and right."""
    x, y, z = size[0] / 2, size[1] / 2, size[2]
    faces = [
        ([-x, -y, z], [2 * x, 0, 0], [0, 2 * y, 0]),
        ([-x, -y, 0], [2 * x, 0, 0], [0, 0, z]),
        ([x, y, 0], [-2 * x, 0, 0], [0, 0, z]),
        ([-x, y, 0], [0, -2 * y, 0], [0, 0, z]),
        ([x, -y, 0], [0, 2 * y, 0], [0, 0, z]),
    ]
    meshes = []
    for (origin, along, up), shade in zip(faces, sides, strict=True):
        rows, columns = shade.shape[:2]
        u, v = np.linspace(0, 1, columns + 1)[None, :, None], np.linspace(0, 1, rows + 1)[:, None, None]
        points = np.array(origin) + u * np.array(along) + v * np.array(up)
        meshes.append(grid(points.astype(np.float32), shade, gloss))
    return joined(meshes)


def _panel(rng: np.random.Generator, ground: Floats, printed: bool) -> Floats:
    panel = np.empty((12, 9, 3), dtype=np.float32)
    panel[:] = ground
    if printed:
        ink = glaze(rng)
        top, left = int(rng.integers(1, 6)), int(rng.integers(1, 4))
        panel[top : top + int(rng.integers(1, 5)), left : left + int(rng.integers(2, 6))] = ink
        if rng.random() < 0.5:
            panel[int(rng.integers(7, 11)), 1:8] = glaze(rng)
    return panel


def _book_or_box(rng: np.random.Generator) -> Thing:
    kind = rng.choice(["book", "carton", "phone"])
    shade = glaze(rng)
    if kind == "phone":
        size = (rng.uniform(6.8, 8), rng.uniform(14, 16), 0.8)
        glass = np.full((12, 9, 3), 0.05, dtype=np.float32)
        if rng.random() < 0.5:
            glass[1:11, 1:8] = colour(rng, (0.1, 0.6), (0.3, 0.9))
        sides = [glass] + [_panel(rng, shade, False)] * 4
    elif kind == "book":
        size = (rng.uniform(10, 17), rng.uniform(14, 23), rng.uniform(1, 4))
        pages = np.full(3, 0.85, dtype=np.float32)
        sides = [_panel(rng, shade, True), *[_panel(rng, pages, False)] * 3, _panel(rng, shade, False)]
    else:
        size = (rng.uniform(5, 12), rng.uniform(5, 12), rng.uniform(4, 18))
        sides = [_panel(rng, shade, True) for _ in range(5)]
    mesh = _box(size, sides, rng.uniform(0.0, 0.5)).moved(rng.uniform(0, 2 * np.pi), (0, 0, 0))
    return Thing(None, mesh, float(np.hypot(size[0], size[1]) / 2))


def _bottle(rng: np.random.Generator) -> Thing:
    """A bottle, jar, tin or vase: closed on top or with a narrow neck."""
    kind = rng.choice(["bottle", "tin", "jar", "vase"], p=[0.5, 0.15, 0.15, 0.2])
    shade, band = glaze(rng), glaze(rng)
    if kind == "bottle":
        r, h = rng.uniform(2.8, 4.2), rng.uniform(17, 26)
        points = [(r * 0.9, 0.0), (r, 0.4), (r, h * 0.55), (r * 0.36, h * 0.75), (r * 0.34, h), (0.02, h)]
    elif kind == "tin":
        r, h = rng.uniform(2.9, 4.2), rng.uniform(8, 13)
        points = [(r * 0.9, 0.0), (r, 0.3), (r, h - 0.5), (r * 0.88, h), (r * 0.84, h - 0.3), (0.02, h - 0.3)]
    elif kind == "jar":
        r, h = rng.uniform(3, 4.5), rng.uniform(8, 13)
        points = [(r * 0.9, 0.0), (r, 0.4), (r, h * 0.75), (r * 0.85, h * 0.82)]
        points += [(r * 0.95, h * 0.83), (r * 0.95, h), (0.02, h)]
    else:
        r, h = rng.uniform(4, 6), rng.uniform(14, 22)
        swell = np.linspace(0, 1, 10)
        points = [(float(r * (0.35 + 0.65 * np.sin(np.pi * min(1.0, s * 1.15)) ** 1.2)), float(s * h)) for s in swell]
        points += [(r * 0.3, h), (r * 0.25, h - 1), (0.02, h - 1)]
    low, high = h * rng.uniform(0.1, 0.25), h * rng.uniform(0.4, 0.55)
    lid = glaze(rng) if kind in ("bottle", "jar") else np.full(3, 0.7, dtype=np.float32)
    dark = kind == "vase"

    def paint(angle: Floats, radius: Floats, z: Floats, segment: Segments) -> Floats:
        colours = np.broadcast_to(shade, (len(angle), 3)).astype(np.float32)
        colours[(z > low) & (z < high) & (np.cos(angle) > -0.7)] = band
        colours[z > h * (0.9 if kind == "bottle" else 0.825)] = shade if dark else lid
        if dark:
            colours[(z > h - 1.2) & (radius < r * 0.26)] = 0.04
        return colours

    mesh = revolved(_curve(points, 26), 40, paint, rng.uniform(0.2, 1.0)).moved(rng.uniform(0, 2 * np.pi), (0, 0, 0))
    return Thing(None, mesh, float(r) + 0.3)


def _lid(rng: np.random.Generator) -> Thing:
    """A pan's lid: round and flat like a plate, but domed, with a knob."""
    reach, dome = rng.uniform(7, 11), rng.uniform(2.0, 4.5)
    shade = np.full(3, rng.uniform(0.45, 0.75), dtype=np.float32) if rng.random() < 0.6 else glaze(rng)
    knob = np.full(3, 0.06, dtype=np.float32) if rng.random() < 0.7 else glaze(rng)
    swell = np.linspace(0, 1, 9)
    points = [(reach, 0.0), (reach, 0.5)]
    points += [(float(reach * (1 - 0.12 * s - 0.8 * s**1.2)), float(0.6 + dome * s**0.6)) for s in swell]
    top = dome + 0.6
    points += [(0.9, top + 0.3), (1.6, top + 1.2), (1.6, top + 1.7), (0.02, top + 2.0)]

    def paint(angle: Floats, radius: Floats, z: Floats, segment: Segments) -> Floats:
        colours = np.broadcast_to(shade, (len(angle), 3)).astype(np.float32)
        colours[z > top] = knob
        return colours

    return Thing(
        None, revolved(_curve(points, 26), 64, paint, rng.uniform(0.4, 1.0)), float(reach), least_seen=LEAST_SEEN_LID
    )


def _fruit(rng: np.random.Generator) -> Thing:
    reach = rng.uniform(2.2, 4.6)
    mesh = _lump(rng, reach, reach * rng.uniform(1.6, 2.1), colour(rng, (0.3, 0.95), (0.35, 0.95)), 36)
    return Thing(None, mesh, float(reach) * 1.1)


def _coaster(rng: np.random.Generator) -> Thing:
    """A square mat of cork, felt or slate; a round one would pass for a plate."""
    side, shade = rng.uniform(8, 12), glaze(rng) * np.float32(0.8)
    top = floats(shade * rng.normal(1, rng.uniform(0.01, 0.12), (14, 14, 1)))
    mesh = _box((side, side, 0.4), [top, *[floats(np.broadcast_to(shade, (2, 8, 3)))] * 4], 0.0)
    return Thing(None, mesh.moved(rng.uniform(0, 2 * np.pi), (0, 0, 0)), float(side * 0.71))


def _blade(stations: list[tuple[float, float, float]], sideways: float, shade: Floats) -> Mesh:
    """A flat metal strip along y: stations are (place, half width, height)."""
    along = np.array(stations, dtype=np.float32)
    place = np.linspace(along[0, 0], along[-1, 0], 26, dtype=np.float32)
    half, height = np.interp(place, along[:, 0], along[:, 1]), np.interp(place, along[:, 0], along[:, 2])
    bow = np.array([-1, -0.5, 0, 0.5, 1], dtype=np.float32)
    points = np.stack(
        [
            sideways + half[:, None] * bow,
            np.broadcast_to(place[:, None], (26, 5)),
            height[:, None] + (0.35 * (1 - bow**2))[None] * np.minimum(half, 0.5)[:, None],
        ],
        axis=-1,
    )
    return grid(points.astype(np.float32), np.broadcast_to(shade, (25, 4, 3)), 0.9)


def _cutlery(rng: np.random.Generator) -> Thing:
    shade = floats(np.full(3, rng.uniform(0.5, 0.85)))
    if rng.random() < 0.25:
        shade = colour(rng, (0.2, 0.6), (0.4, 0.8))
    grip = [(-10.0, 0.5, 0.3), (-9.5, 0.95, 0.3), (-2.0, 0.45, 0.5), (2.0, 0.4, 0.7)]
    kind = rng.choice(["spoon", "knife", "fork"])
    if kind == "spoon":
        bowl = [(3.0, 0.5, 0.7), (4.5, 1.7, 0.3), (6.5, 2.0, 0.2), (8.0, 1.5, 0.3), (8.8, 0.5, 0.5), (9.0, 0.1, 0.5)]
        parts = [_blade(grip + bowl, 0.0, shade)]
    elif kind == "knife":
        parts = [_blade([*grip, (3.0, 0.9, 0.4), (9.0, 1.0, 0.3), (11.0, 0.2, 0.3)], 0.0, shade)]
    else:
        parts = [_blade([*grip, (3.5, 1.3, 0.5), (5.0, 1.4, 0.4), (5.4, 1.4, 0.4)], 0.0, shade)]
        tine = [(5.2, 0.22, 0.4), (8.4, 0.16, 0.5), (9.2, 0.05, 0.6)]
        parts += [_blade(tine, offset, shade) for offset in (-1.15, -0.38, 0.38, 1.15)]
    size = rng.uniform(0.75, 1.05)
    mesh = joined(parts)
    scaled = Mesh(mesh.corners * np.float32(size), mesh.colours, mesh.gloss, mesh.openness)
    return Thing(None, scaled.moved(rng.uniform(0, 2 * np.pi), (0, 0, 0)), 2.5)


def _candle(rng: np.random.Generator) -> Thing:
    r, h = rng.uniform(2.0, 3.8), rng.uniform(4, 14)
    wick = [(0.25, h - 0.3), (0.2, h + 1.0), (0.02, h + 1.0)]
    points = [(r, 0.0), (r, h - 0.3), (r * 0.9, h), *wick]
    shade = glaze(rng)

    def paint(angle: Floats, radius: Floats, z: Floats, segment: Segments) -> Floats:
        colours = np.broadcast_to(shade, (len(angle), 3)).astype(np.float32)
        colours[radius < 0.3] = 0.05
        return colours

    return Thing(None, revolved(_curve(points, 20), 40, paint, 0.2), float(r) + 0.3)


_DISTRACTORS: tuple[tuple[Callable[[np.random.Generator], Thing], float], ...] = (
    (_book_or_box, 0.26),
    (_bottle, 0.2),
    (_cutlery, 0.22),
    (_fruit, 0.12),
    (_lid, 0.08),
    (_coaster, 0.06),
    (_candle, 0.06),
)


def distractor(rng: np.random.Generator) -> Thing:
    """Something that is neither a cup nor a plate, and is not a bowl or a glass, which people would argue about."""
    makers, shares = zip(*_DISTRACTORS, strict=True)
    maker: Callable[[np.random.Generator], Thing] = makers[int(rng.choice(len(makers), p=shares))]
    return maker(rng)
