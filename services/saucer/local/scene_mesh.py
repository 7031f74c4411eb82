"""A very small renderer: meshes of quadrilaterals, a pinhole camera, one lamp, painter's order.

World axes are x to the right, y away from the camera and z up from the table top, in centimetres. Colours are
blue-green-red in 0..1, as OpenCV orders them. Painter's order (far quadrilaterals first) needs no depth buffer and is
right for the small convex-ish things on a table that are drawn here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
# (angle around the axis, radius, height, segment of the profile), each (N,) -> colours (N, 3)
Paint = Callable[[Floats, Floats, Floats, NDArray[np.int64]], Floats]

NEAREST_CM = 6.0  # whatever comes closer to the camera than this is not drawn at all
SUBPIXEL_BITS = 4
SMOOTHING = np.ones((5, 5), dtype=np.uint8)


def floats(values: ArrayLike) -> Floats:
    """As an array of 32-bit floats, without a copy where it is one."""
    return np.asarray(values, dtype=np.float32)


@dataclass(frozen=True)
class Mesh:
    """N quadrilaterals: corners (N, 4, 3) in cm, colours (N, 3), gloss (N,), openness (N,) to the sky, 0..1."""

    corners: Floats
    colours: Floats
    gloss: Floats
    openness: Floats

    def moved(self, turn_rad: float, offset_cm: tuple[float, float, float]) -> "Mesh":
        """Turns about the z axis, then shifts."""
        cos, sin = np.cos(turn_rad), np.sin(turn_rad)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], dtype=np.float32)
        corners = self.corners @ turn + floats(offset_cm)
        return Mesh(corners, self.colours, self.gloss, self.openness)

    def tipped(self, angle_rad: float) -> "Mesh":
        """Turns about the x axis and sets the lowest corner on the table."""
        cos, sin = np.cos(angle_rad), np.sin(angle_rad)
        turn = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]], dtype=np.float32)
        corners = self.corners @ turn
        corners[..., 2] -= corners[..., 2].min()
        return Mesh(corners, self.colours, self.gloss, self.openness)


def joined(meshes: list[Mesh]) -> Mesh:
    """One mesh of several."""
    return Mesh(
        np.concatenate([mesh.corners for mesh in meshes]),
        np.concatenate([mesh.colours for mesh in meshes]),
        np.concatenate([mesh.gloss for mesh in meshes]),
        np.concatenate([mesh.openness for mesh in meshes]),
    )


def grid(points: Floats, colours: Floats, gloss: float, openness: Floats | float = 1.0) -> Mesh:
    """A surface from points (R, C, 3); quadrilateral colours (R - 1, C - 1, 3). It is seen from the side to which
    (step along C) x (step along R) points."""
    corners = np.stack([points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]], axis=2).reshape(-1, 4, 3)
    count = len(corners)
    shape = points.shape[0] - 1, points.shape[1] - 1
    opened = np.broadcast_to(floats(openness), shape).reshape(-1)
    return Mesh(
        corners.astype(np.float32),
        colours.reshape(-1, 3).astype(np.float32),
        np.full(count, gloss, dtype=np.float32),
        opened.astype(np.float32),
    )


def revolved(
    profile: Floats,
    sides: int,
    paint: Paint,
    gloss: float,
    *,
    openness: Floats | None = None,
    outline: Callable[[Floats], Floats] | None = None,
) -> Mesh:
    """A solid of revolution about z.

    profile is (K, 2), rows (radius, height), in the order in which the outside lies to the left of the way: up an outer
    wall, over the rim, down the inside. openness is (K - 1,). outline maps an angle to a factor of the radius, for
    things that are not quite round.
    """
    angle = np.linspace(0, 2 * np.pi, sides + 1, dtype=np.float32)
    factor = np.ones_like(angle) if outline is None else outline(angle)
    ring = np.stack([np.cos(angle) * factor, np.sin(angle) * factor], axis=1)
    points = np.empty((len(profile), sides + 1, 3), dtype=np.float32)
    points[..., :2] = profile[:, None, :1] * ring[None]
    points[..., 2] = profile[:, 1:]
    middle = (profile[:-1] + profile[1:]) / 2
    segments, around = np.meshgrid(np.arange(len(middle)), (angle[:-1] + angle[1:]) / 2, indexing="ij")
    radius, height = middle[segments.ravel(), 0], middle[segments.ravel(), 1]
    colours = paint(around.ravel().astype(np.float32), radius, height, segments.ravel())
    opened = 1.0 if openness is None else openness[:, None]
    return grid(points, colours, gloss, opened)


def tube(path: Floats, radius: Floats, colour: Floats, gloss: float, sides: int = 10) -> Mesh:
    """A round tube along path (K, 3) that lies in the x-z plane, with radius (K, 2): in that plane, and across it."""
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-6
    across = np.array([0, 1, 0], dtype=np.float32)
    inward = np.cross(along, across)
    angle = np.linspace(0, 2 * np.pi, sides + 1, dtype=np.float32)
    points = (
        path[:, None]
        + np.cos(angle)[None, :, None] * inward[:, None] * radius[:, None, :1]
        + np.sin(angle)[None, :, None] * across * radius[:, None, 1:]
    )
    colours = np.broadcast_to(colour, (len(path) - 1, sides, 3))
    return grid(points[:, ::-1], colours, gloss)


@dataclass(frozen=True)
class Camera:
    """Looks at the table's origin, where the picture is `across_cm` wide; elevation 90 degrees is from above."""

    width_px: int
    height_px: int
    across_cm: float
    elevation_rad: float
    roll_rad: float
    focal_widths: float

    @property
    def distance_cm(self) -> float:
        return self.across_cm * self.focal_widths

    @property
    def axes(self) -> tuple[Floats, Floats, Floats]:
        """Unit vectors right, up and forward in world axes."""
        cos_e, sin_e = np.cos(self.elevation_rad), np.sin(self.elevation_rad)
        cos_r, sin_r = np.cos(self.roll_rad), np.sin(self.roll_rad)
        right, up = np.array([1, 0, 0]), np.array([0, sin_e, cos_e])
        rolled = right * cos_r + up * sin_r, up * cos_r - right * sin_r
        forward = np.array([0, cos_e, -sin_e])
        return rolled[0].astype(np.float32), rolled[1].astype(np.float32), forward.astype(np.float32)

    @property
    def position(self) -> Floats:
        return -self.axes[2] * np.float32(self.distance_cm)

    def project(self, points: Floats) -> tuple[Floats, Floats]:
        """World points (..., 3) to pixels (..., 2) and depths (...) in cm."""
        right, up, forward = self.axes
        depth = points @ forward + np.float32(self.distance_cm)
        scale = np.float32(self.focal_widths * self.width_px) / np.maximum(depth, NEAREST_CM)
        pixels = np.stack(
            [self.width_px / 2 + (points @ right) * scale, self.height_px / 2 - (points @ up) * scale], axis=-1
        )
        return pixels.astype(np.float32), depth

    def table_point(self, pixel_x: float, pixel_y: float) -> tuple[float, float] | None:
        """Where the ray through a pixel meets the table; None where it does not."""
        right, up, forward = self.axes
        focal = self.focal_widths * self.width_px
        ray = forward + right * (pixel_x - self.width_px / 2) / focal - up * (pixel_y - self.height_px / 2) / focal
        if ray[2] > -0.05:
            return None
        hit = self.position + ray * (-self.position[2] / ray[2])
        return float(hit[0]), float(hit[1])


@dataclass(frozen=True)
class Lamp:
    """One lamp far away: unit vector towards it, its colour and the ambient colour, each (3,)."""

    towards: Floats
    colour: Floats
    ambient: Floats
    softness: float  # 0 sharp shadows .. 1 hardly any edge


@dataclass(frozen=True)
class Layer:
    """One drawn object: pixels (H, W, 4), the fourth 255 where the object is; left and top in the picture's pixels."""

    pixels: Bytes
    left: int
    top: int

    @property
    def mask(self) -> NDArray[np.bool_]:
        return self.pixels[..., 3] > 0


def shaded(mesh: Mesh, camera: Camera, lamp: Lamp) -> tuple[Floats, NDArray[np.bool_]]:
    """Colours (N, 3) in 0..255 after Blinn and Phong, and which quadrilaterals face the camera.

    Source: J. F. Blinn, Models of light reflection for computer synthesized pictures, 1977.
    """
    corners = mesh.corners
    normal = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    view = camera.position - corners.mean(axis=1)
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    facing = np.einsum("ij,ij->i", normal, view) > 0
    half = view + lamp.towards
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    diffuse = np.clip(normal @ lamp.towards, 0, 1) * (0.25 + 0.75 * mesh.openness)
    sky = (0.72 + 0.28 * normal[:, 2]) * mesh.openness
    specular = np.clip(np.einsum("ij,ij->i", normal, half), 0, 1) ** (8 + 70 * mesh.gloss) * mesh.gloss
    edge = (1 - np.clip(np.einsum("ij,ij->i", normal, view), 0, 1)) ** 4 * mesh.gloss * 0.25
    light = diffuse[:, None] * lamp.colour + sky[:, None] * lamp.ambient
    colours = (
        mesh.colours * light + (specular * 1.1 * mesh.openness)[:, None] * lamp.colour + edge[:, None] * lamp.ambient
    )
    return np.clip(colours * 255, 0, 255).astype(np.float32), facing


def drawn(mesh: Mesh, camera: Camera, lamp: Lamp) -> Layer | None:
    """Draws a mesh whole, also what lies outside the picture; None where it comes too close or is absurdly large."""
    pixels, depth = camera.project(mesh.corners)
    if depth.min() < NEAREST_CM:
        return None
    low = np.floor(pixels.min(axis=(0, 1))).astype(int) - 1
    high = np.ceil(pixels.max(axis=(0, 1))).astype(int) + 2
    width, height = (high - low).tolist()
    if width > 2 * camera.width_px or height > 2 * camera.height_px:
        return None
    colours, facing = shaded(mesh, camera, lamp)
    order = np.argsort(-depth.mean(axis=1), kind="stable")
    order = order[facing[order]]
    quads = np.round((pixels[order] - low) * (1 << SUBPIXEL_BITS)).astype(np.int32)
    layer = np.zeros((height, width, 4), dtype=np.uint8)
    with_mask = np.concatenate([colours[order], np.full((len(order), 1), 255, dtype=np.float32)], axis=1)
    for quad, colour in zip(quads, with_mask.tolist(), strict=True):
        cv2.fillConvexPoly(layer, quad, colour, cv2.LINE_8, SUBPIXEL_BITS)
    # Quadrilaterals are of one colour each; away from the outline their steps are smoothed.
    inner = cv2.erode(layer[..., 3], SMOOTHING)
    np.copyto(layer, cv2.blur(layer, SMOOTHING.shape), where=inner[..., None] > 0)
    return Layer(layer, int(low[0]), int(low[1]))


def shadow(mesh: Mesh, camera: Camera, lamp: Lamp, onto_cm: float, scale: float) -> NDArray[np.int32]:
    """The convex outline (M, 1, 2), in pixels times scale, of the shadow that a mesh throws on the level onto_cm."""
    points = mesh.corners.reshape(-1, 3)
    over = np.maximum(points[:, 2:] - np.float32(onto_cm), 0)
    fallen = points - lamp.towards * (over / lamp.towards[2])
    fallen[:, 2] = onto_cm
    pixels, _ = camera.project(fallen)
    return np.asarray(cv2.convexHull(np.round(pixels * scale).astype(np.int32)), dtype=np.int32)
