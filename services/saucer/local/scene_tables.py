"""What lies under and behind the objects of a synthetic scene: table tops, flat clutter, a blurred room.

All colours are blue-green-red in 0..1. A table top is a square picture of the plane, `TILE_PX` wide, that is mirrored
on at its edges.
"""

from collections.abc import Callable

import cv2
import numpy as np

from saucer.local.scene_mesh import Camera, Floats, floats

TILE_PX = 640
TILE_CM = 72.0

Texture = Callable[[np.random.Generator], Floats]


def colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Floats:
    """A colour (3,) of any hue, with saturation and value from the ranges given."""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]], dtype=np.float32)
    return floats(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0])


def noise(rng: np.random.Generator, height: int, width: int, cells: tuple[int, int], octaves: int = 4) -> Floats:
    """Smooth noise (height, width) with mean 0 and deviation about 1; cells are its coarsest cells down and across."""
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(octaves):
        down, across = min(cells[0] << octave, height), min(cells[1] << octave, width)
        coarse = rng.standard_normal((down, across), dtype=np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(0.6**octave)
    return floats((total - total.mean()) / (total.std() + 1e-6))


def _wood(rng: np.random.Generator) -> Floats:
    base = np.array([rng.uniform(0.12, 0.5), 0, 0], dtype=np.float32)
    base[1] = base[0] * rng.uniform(1.25, 1.5) + 0.04
    base[2] = base[1] * rng.uniform(1.15, 1.45) + 0.04
    base = np.clip(base, 0, 0.92)
    bend = noise(rng, TILE_PX, TILE_PX, (2, 2), 2) * rng.uniform(2, 9)
    rows = np.arange(TILE_PX, dtype=np.float32)[:, None] + bend
    rings = np.sin(rows * np.float32(rng.uniform(0.08, 0.3)) + noise(rng, TILE_PX, TILE_PX, (12, 2), 3))
    grain = noise(rng, TILE_PX, TILE_PX, (160, 4), 2)
    bright = 1 + rings * np.float32(rng.uniform(0.02, 0.12)) + grain * np.float32(rng.uniform(0.02, 0.07))
    if rng.random() < 0.6:
        plank = int(rng.integers(60, 200))
        for top in range(int(rng.integers(0, plank)), TILE_PX, plank):
            bright[top : top + plank] *= np.float32(rng.uniform(0.85, 1.1))
            bright[top : top + 2] *= np.float32(0.55)
    return floats(base * bright[..., None])


def _cloth(rng: np.random.Generator) -> Floats:
    first, second = colour(rng, (0.0, 0.6), (0.25, 0.92)), colour(rng, (0.0, 0.6), (0.3, 0.95))
    rows, columns = np.mgrid[:TILE_PX, :TILE_PX].astype(np.float32)
    period = rng.uniform(24, 110)
    share = rng.uniform(0.3, 0.7)
    across, down = (columns % period) / period < share, (rows % period) / period < share
    kind = rng.integers(0, 4)
    if kind == 0:
        weight = (across.astype(np.float32) + down) / 2
    elif kind == 1:
        weight = across.astype(np.float32)
    elif kind == 2:
        offset = (columns % period - period / 2) ** 2 + (rows % period - period / 2) ** 2
        weight = (offset < (period * rng.uniform(0.12, 0.3)) ** 2).astype(np.float32)
    else:
        weight = np.zeros_like(rows)
    weave = np.sin(columns * 1.9) * np.sin(rows * 1.9) * np.float32(0.04)
    folds = noise(rng, TILE_PX, TILE_PX, (3, 3), 2) * np.float32(rng.uniform(0.0, 0.08))
    cloth = first + (second - first) * weight[..., None]
    return floats(cloth * (1 + weave + folds)[..., None])


def _tiles(rng: np.random.Generator) -> Floats:
    base, grout = colour(rng, (0.0, 0.5), (0.35, 0.95)), colour(rng, (0.0, 0.2), (0.3, 0.85))
    size = int(rng.integers(70, 220))
    count = TILE_PX // size + 2
    cells = base * (1 + rng.normal(0, rng.uniform(0.01, 0.12), (count, count, 1)).astype(np.float32))
    tiles = np.repeat(np.repeat(cells, size, axis=0), size, axis=1)[:TILE_PX, :TILE_PX].astype(np.float32)
    width = int(rng.integers(2, 8))
    for start in range(0, TILE_PX, size):
        tiles[start : start + width] = grout
        tiles[:, start : start + width] = grout
    return tiles * (1 + noise(rng, TILE_PX, TILE_PX, (8, 8), 3) * np.float32(0.03))[..., None]


def _stone(rng: np.random.Generator) -> Floats:
    base, vein = colour(rng, (0.0, 0.3), (0.15, 0.95)), colour(rng, (0.0, 0.3), (0.1, 0.9))
    cells = int(rng.integers(2, 9))
    swirl = np.abs(noise(rng, TILE_PX, TILE_PX, (cells, cells), 5))
    weight = np.exp(-swirl * np.float32(rng.uniform(2, 9))) * np.float32(rng.uniform(0.3, 1.0))
    speckle = rng.standard_normal((TILE_PX, TILE_PX), dtype=np.float32) * np.float32(rng.uniform(0.0, 0.12))
    return floats((base + (vein - base) * weight[..., None]) * (1 + speckle)[..., None])


def _plain(rng: np.random.Generator) -> Floats:
    first = colour(rng, (0.0, 0.55), (0.15, 0.95))
    second = np.clip(first * rng.uniform(0.75, 1.25), 0, 1).astype(np.float32)
    slope = np.linspace(0, 1, TILE_PX, dtype=np.float32)
    weight = slope[:, None] * np.float32(rng.uniform(0, 1)) + slope[None] * np.float32(rng.uniform(0, 1))
    plain = first + (second - first) * weight[..., None]
    uneven = noise(rng, TILE_PX, TILE_PX, (6, 6), 2) * np.float32(rng.uniform(0, 0.03))
    return floats(plain * (1 + uneven)[..., None])


def _mottled(rng: np.random.Generator) -> Floats:
    first, second = colour(rng, (0.0, 0.5), (0.1, 0.95)), colour(rng, (0.0, 0.5), (0.1, 0.95))
    cells = int(rng.integers(4, 40))
    weight = 1 / (1 + np.exp(-2 * noise(rng, TILE_PX, TILE_PX, (cells, cells), 4)))
    return first + (second - first) * floats(weight * rng.uniform(0.3, 1.0))[..., None]


_TEXTURES: tuple[tuple[Texture, float], ...] = (
    (_wood, 0.32), (_cloth, 0.22), (_plain, 0.14), (_tiles, 0.12), (_stone, 0.12), (_mottled, 0.08),
)  # fmt: skip


def _paper(rng: np.random.Generator) -> Floats:
    """A sheet of print, a photograph or a leaflet, about 10 px to the centimetre."""
    sheet = np.empty((int(rng.integers(60, 210)), int(rng.integers(60, 210)), 3), dtype=np.float32)
    sheet[:] = colour(rng, (0.0, 0.35), (0.7, 0.98))
    height, width = sheet.shape[:2]
    if rng.random() < 0.35:
        blobs = noise(rng, height, width, (3, 3), 4)[..., None]
        sheet[6:-6, 6:-6] = (colour(rng, (0.1, 0.8), (0.2, 0.9)) * (1 + blobs * np.float32(0.4)))[6:-6, 6:-6]
        return np.clip(sheet, 0, 1)
    ink = colour(rng, (0.0, 0.6), (0.05, 0.5)).tolist()
    for row in range(12, height - 8, int(rng.integers(6, 12))):
        cv2.line(sheet, (10, row), (int(rng.integers(width // 3, max(width - 10, width // 3 + 1))), row), ink, 2)
    if rng.random() < 0.4:
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        shade = colour(rng, (0.2, 0.9), (0.3, 0.95)).tolist()
        cv2.circle(sheet, centre, int(rng.integers(8, 40)), shade, -1, cv2.LINE_AA)
    return sheet


def _strew(table: Floats, rng: np.random.Generator) -> None:
    """Lays flat papers on a table top, in place."""
    for _ in range(int(rng.integers(1, 6))):
        sheet = _paper(rng)
        height, width = sheet.shape[:2]
        span = int(np.hypot(width, height)) + 12
        turn = floats(cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(0, 360), 1.0))
        turn[:, 2] += floats([(span - width) / 2, (span - height) / 2])
        lain = floats(cv2.warpAffine(sheet, turn, (span, span)))
        mask = floats(cv2.warpAffine(np.ones((height, width), dtype=np.float32), turn, (span, span)))
        dark = floats(cv2.GaussianBlur(mask, (0, 0), 3))[..., None] * np.float32(0.3)
        left, top = rng.integers(0, TILE_PX - span, 2)
        spot = table[top : top + span, left : left + span]
        spot *= 1 - dark
        spot += (lain - spot) * mask[..., None]


def _room(rng: np.random.Generator, width: int, height: int) -> Floats:
    """What stands far behind the table, out of focus."""
    room = np.empty((height // 4 + 1, width // 4 + 1, 3), dtype=np.float32)
    room[:] = colour(rng, (0.0, 0.5), (0.1, 0.9))
    for _ in range(int(rng.integers(0, 14))):
        x, y = int(rng.integers(0, room.shape[1])), int(rng.integers(0, room.shape[0]))
        w, h = int(rng.integers(3, 45)), int(rng.integers(5, 60))
        shade = colour(rng, (0.0, 0.7), (0.05, 0.95)).tolist()
        if rng.random() < 0.8:
            cv2.rectangle(room, (x, y), (x + w, y + h), shade, -1)
        else:
            cv2.circle(room, (x, y), w // 3 + 1, shade, -1)
    room = cv2.GaussianBlur(room, (0, 0), rng.uniform(1.0, 4.0)).astype(np.float32)
    return floats(cv2.resize(room, (width, height), interpolation=cv2.INTER_CUBIC))


def table_top(rng: np.random.Generator) -> Floats:
    """A table top (TILE_PX, TILE_PX, 3), with or without papers on it."""
    textures, shares = zip(*_TEXTURES, strict=True)
    texture: Texture = textures[int(rng.choice(len(textures), p=np.array(shares) / sum(shares)))]
    table = np.ascontiguousarray(np.clip(texture(rng), 0, 1), dtype=np.float32)
    if rng.random() < 0.28:
        _strew(table, rng)
    return table


def backdrop(rng: np.random.Generator, camera: Camera, far_edge_cm: float) -> Floats:
    """The table as the camera sees it (height, width, 3), unlit; beyond far_edge_cm there is a room instead."""
    top = table_top(rng)
    turn = rng.uniform(0, 2 * np.pi)
    per_cm = TILE_PX / TILE_CM
    square = np.array([[-20, -20], [20, -20], [20, 20], [-20, 20]], dtype=np.float32)
    spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]], dtype=np.float32)
    source = (square @ spin * per_cm + rng.uniform(0.3, 0.7) * TILE_PX).astype(np.float32)
    on_table = np.concatenate([square, np.zeros((4, 1), dtype=np.float32)], axis=1)
    target, _ = camera.project(on_table)
    size = (camera.width_px, camera.height_px)
    warp = cv2.getPerspectiveTransform(source, target)
    seen = floats(cv2.warpPerspective(top, warp, size, borderMode=cv2.BORDER_REFLECT))
    edge, _ = camera.project(np.array([[-200, far_edge_cm, 0], [200, far_edge_cm, 0]], dtype=np.float32))
    if edge[:, 1].max() <= 0:
        return seen
    beyond = np.zeros((camera.height_px, camera.width_px), dtype=np.float32)
    outline = np.array([edge[0], edge[1], [edge[1, 0], -9000], [edge[0, 0], -9000]]).round().astype(np.int32)
    cv2.fillPoly(beyond, [outline], [1.0], cv2.LINE_AA)
    weight = floats(cv2.GaussianBlur(beyond, (0, 0), 1.2))
    return seen + (_room(rng, *size) - seen) * weight[..., None]
