"""Synthetic cup-and-plate scenes with COCO labels, for the demonstration and the tests.

The images are drawn by Saucer, and their annotation files say so. Every image depends on its seed and its index alone,
so the same seed gives the same bytes, and a longer set begins with the shorter one. A saucer is a small plate and is
labelled so. A box is tight around what is seen of its object, after occlusion and the frame; a cup or plate of which
less than `scene_objects.LEAST_SEEN` is seen is taken out of the scene, so none goes unlabelled.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from saucer.local.scene_mesh import Bytes, Camera, Floats, Lamp, Layer, Mesh, drawn, floats, shadow
from saucer.local.scene_objects import Thing, cup, distractor, plate
from saucer.local.scene_tables import backdrop, noise

CLASSES = ("cup", "plate")
SPLITS = ("train", "validation", "test")
# Image k's split is known from k alone; 70, 15 and 15 percent, and each split has an image among the first seven.
SPLIT_PATTERN = tuple(SPLITS[int(digit)] for digit in "00100200010020001020")
MIN_IMAGES = 7
MAX_IMAGES = 100_000  # more than this is a slip of the keyboard, at an hour per 40,000
DEFAULT_WIDTH_PX = 480
MIN_SIDE_PX = 20  # a labelled object's shorter side
SUPERSAMPLE = 2
EMPTY_SHARE = 0.06  # of the images show neither cup nor plate
SHAPES = ((1.0, 0.75), (1.0, 0.75), (0.75, 1.0), (1.0, 0.5625), (0.85, 0.85), (1.15, 0.77), (0.9, 0.675))


@dataclass(frozen=True)
class Box:
    """A visible object: left, top, width, height in pixels, and the number of its pixels that are seen."""

    label: str
    x: float
    y: float
    width: float
    height: float
    area: float
    seen: float


@dataclass(frozen=True)
class Scene:
    """pixels are blue-green-red (height, width, 3)."""

    pixels: Bytes
    boxes: tuple[Box, ...]
    jpeg_quality: int


@dataclass(frozen=True)
class _Placed:
    """An object in world axes, with its drawing; `on` is the index of what it stands on."""

    thing: Thing
    mesh: Mesh
    layer: Layer
    base_cm: float
    on: int | None


def _camera(rng: np.random.Generator, width: int) -> Camera:
    shape = SHAPES[int(rng.integers(0, len(SHAPES)))]
    elevation = np.deg2rad(
        rng.choice([rng.uniform(35, 48), rng.uniform(46, 68), rng.uniform(65, 86)], p=[0.35, 0.45, 0.2])
    )
    return Camera(
        width_px=round(width * shape[0] / 4) * 4 * SUPERSAMPLE,
        height_px=round(width * shape[1] / 4) * 4 * SUPERSAMPLE,
        across_cm=float(np.exp(rng.uniform(np.log(40), np.log(64)))) * shape[0],
        elevation_rad=float(elevation),
        roll_rad=float(np.deg2rad(rng.normal(0, 3))),
        focal_widths=float(rng.uniform(1.0, 1.9)),
    )


def _lamp(rng: np.random.Generator) -> Lamp:
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(28, 80))
    towards = np.array(
        [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)], dtype=np.float32
    )
    warmth = rng.uniform(-0.16, 0.2)
    key = np.array([1 - warmth, 1 - abs(warmth) * 0.15, 1 + warmth * 0.5], dtype=np.float32)
    fill = np.array([1 + warmth * 0.3, 1, 1 - warmth * 0.3], dtype=np.float32)
    share = rng.uniform(0.3, 0.8)
    strength = np.float32(rng.uniform(0.9, 1.2))
    return Lamp(
        towards, key * np.float32(share) * strength, fill * np.float32(1.02 - share) * strength, rng.uniform(0, 1)
    )


def _things(rng: np.random.Generator) -> list[Thing]:
    if rng.random() < EMPTY_SHARE:
        return [distractor(rng) for _ in range(int(rng.integers(0, 6)))]
    cups, plates = int(rng.choice(5, p=[0.16, 0.3, 0.28, 0.17, 0.09])), int(rng.choice(4, p=[0.2, 0.4, 0.28, 0.12]))
    things: list[Thing] = []
    for _ in range(cups):
        if rng.random() < 0.15:
            saucer = plate(rng, radius_cm=float(rng.uniform(7.0, 8.4)))
            saucer.carried.append(cup(rng))
            things.append(saucer)
        else:
            things.append(cup(rng))
    things += [_carried(rng, plate(rng)) for _ in range(plates)]
    return things + [distractor(rng) for _ in range(int(rng.choice(5, p=[0.2, 0.32, 0.28, 0.15, 0.05])))]


def _carried(rng: np.random.Generator, dish: Thing) -> Thing:
    """Now and then a cup stands on a dinner plate."""
    if not dish.carried and dish.reach_cm > 9 and rng.random() < 0.12:
        dish.carried.append(cup(rng))
    return dish


def _spots(
    rng: np.random.Generator, camera: Camera, things: list[Thing], far_edge_cm: float
) -> list[tuple[Thing, float, float]]:
    """Places for the things, so that no two stand in one another, the farthest from the camera first."""
    spots: list[tuple[Thing, float, float]] = []
    for thing in things:
        for _ in range(12):
            spot = camera.table_point(
                rng.uniform(0.04, 0.96) * camera.width_px, rng.uniform(0.04, 1.0) * camera.height_px
            )
            if spot is None or spot[1] > far_edge_cm - thing.reach_cm or abs(spot[0]) + abs(spot[1]) > 200:
                continue
            if all(np.hypot(spot[0] - x, spot[1] - y) > thing.reach_cm + o.reach_cm for o, x, y in spots):
                spots.append((thing, *spot))
                break
    return sorted(spots, key=lambda spot: -spot[2])


def _placed(rng: np.random.Generator, camera: Camera, lamp: Lamp, far_edge_cm: float) -> list[_Placed]:
    placed: list[_Placed] = []

    def put(thing: Thing, x: float, y: float, z: float, on: int | None) -> None:
        mesh = thing.mesh.moved(0.0, (x, y, z))
        layer = drawn(mesh, camera, lamp)
        if layer is None:
            return
        placed.append(_Placed(thing, mesh, layer, z, on))
        here = len(placed) - 1
        for other in thing.carried:
            slack = max(0.0, thing.reach_cm * 0.5 - other.reach_cm) * 0.7
            put(other, x + rng.uniform(-slack, slack), y + rng.uniform(-slack, slack), z + thing.stage_cm, here)

    for thing, x, y in _spots(rng, camera, _things(rng), far_edge_cm):
        put(thing, x, y, 0.0, None)
    return placed


def _overlap(layer: Layer, width: int, height: int) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """The part of the picture, and of the layer, in which both are; None where they do not meet."""
    rows, columns = layer.pixels.shape[:2]
    left, top = max(layer.left, 0), max(layer.top, 0)
    right, bottom = min(layer.left + columns, width), min(layer.top + rows, height)
    if left >= right or top >= bottom:
        return None
    inside = slice(top - layer.top, bottom - layer.top), slice(left - layer.left, right - layer.left)
    return (slice(top, bottom), slice(left, right)), inside


def _owners(
    placed: list[_Placed], kept: list[int], width: int, height: int
) -> np.ndarray[tuple[int, int], np.dtype[np.int16]]:
    """For each pixel the number of the object seen there, counted from 1; 0 is the table."""
    owners = np.zeros((height, width), dtype=np.int16)
    for index in kept:
        meeting = _overlap(placed[index].layer, width, height)
        if meeting is not None:
            owners[meeting[0]][placed[index].layer.mask[meeting[1]]] = index + 1
    return owners


def _visible(placed: list[_Placed], camera: Camera) -> tuple[list[int], list[Box]]:
    """Which objects to keep, and the boxes of the labelled ones. Taking one out only shows more of the others, so this
    settles after at most as many rounds as there are objects."""
    kept = list(range(len(placed)))
    while True:
        owners = _owners(placed, kept, camera.width_px, camera.height_px)
        boxes, hidden = [], set()
        for index in kept:
            thing = placed[index].thing
            if thing.least_seen == 0:
                continue
            box = _box(thing, owners == index + 1, int(np.count_nonzero(placed[index].layer.mask)))
            if box is None:
                hidden.add(index)
            elif thing.label is not None:
                boxes.append(box)
        if not hidden:
            return kept, boxes
        # What stands on something goes with it.
        for index in kept:
            if placed[index].on in hidden:
                hidden.add(index)
        kept = [index for index in kept if index not in hidden]


def _box(thing: Thing, mask: np.ndarray[tuple[int, int], np.dtype[np.bool_]], outline_px: int) -> Box | None:
    area = int(np.count_nonzero(mask))
    if area < thing.least_seen * outline_px:
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    sides = (int(columns[-1] - columns[0]) + 1) / SUPERSAMPLE, (int(rows[-1] - rows[0]) + 1) / SUPERSAMPLE
    if min(sides) < MIN_SIDE_PX:
        return None
    return Box(
        thing.label or "",
        float(columns[0]) / SUPERSAMPLE,
        float(rows[0]) / SUPERSAMPLE,
        *sides,
        area / SUPERSAMPLE**2,
        area / outline_px,
    )


def _shade_map(items: list[_Placed], camera: Camera, lamp: Lamp, onto_cm: float) -> Floats:
    """How much light is taken by shadows on a level, (height / 4, width / 4): it is soft."""
    scale = 0.25
    size = (camera.height_px // 4, camera.width_px // 4)
    cast, touch = np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.float32)
    overhead = Lamp(np.array([0, 0, 1], dtype=np.float32), lamp.colour, lamp.ambient, 0.0)
    for item in items:
        cv2.fillConvexPoly(cast, shadow(item.mesh, camera, lamp, onto_cm, scale), (1.0,))
        low = Mesh(item.mesh.corners[item.mesh.corners[..., 2].min(axis=1) < onto_cm + 0.6], *_nothing())
        if len(low.corners):
            cv2.fillConvexPoly(touch, shadow(low, camera, overhead, onto_cm, scale), (1.0,))
    cast_soft = floats(cv2.GaussianBlur(cast, (0, 0), 1.2 + 7 * lamp.softness))
    touch_soft = floats(cv2.GaussianBlur(touch, (0, 0), 2.5))
    share = float(lamp.colour.sum() / (lamp.colour + lamp.ambient).sum())
    return 1 - (1 - cast_soft * np.float32(share * 0.85)) * (1 - touch_soft * np.float32(0.45))


def _nothing() -> tuple[Floats, Floats, Floats]:
    empty = np.zeros(0, dtype=np.float32)
    return empty, empty, empty


def _composed(behind: Floats, camera: Camera, lamp: Lamp, placed: list[_Placed], kept: list[int]) -> Bytes:
    """The scene at the supersampled size; what is behind it comes at the final size."""
    size = (camera.width_px, camera.height_px)
    table = behind * (lamp.colour * lamp.towards[2] + lamp.ambient)
    standing = [placed[index] for index in kept if placed[index].on is None]
    dark = cv2.resize(_shade_map(standing, camera, lamp, 0.0), (behind.shape[1], behind.shape[0]))
    table *= (1 - dark)[..., None] * np.float32(255)
    picture = np.asarray(cv2.resize(np.clip(table, 0, 255).astype(np.uint8), size), dtype=np.uint8)
    for index in kept:
        item = placed[index]
        if item.on is not None:
            _throw(picture, item, placed[item.on], camera, lamp)
        meeting = _overlap(item.layer, *size)
        if meeting is not None:
            where, inside = meeting
            np.copyto(picture[where], item.layer.pixels[inside][..., :3], where=item.layer.mask[inside][..., None])
    return picture


def _throw(picture: Bytes, item: _Placed, carrier: _Placed, camera: Camera, lamp: Lamp) -> None:
    """Draws the shadow of an object on what it stands on, in place."""
    meeting = _overlap(carrier.layer, camera.width_px, camera.height_px)
    if meeting is None:
        return
    where, inside = meeting
    dark = cv2.resize(_shade_map([item], camera, lamp, item.base_cm), (camera.width_px, camera.height_px))[where]
    spot = picture[where]
    spot[:] = spot * (1 - dark * carrier.layer.mask[inside])[..., None]


def _developed(rng: np.random.Generator, picture: Bytes) -> Bytes:
    """What a camera adds: uneven light, white balance, exposure, blur and noise."""
    height, width = picture.shape[0] // SUPERSAMPLE, picture.shape[1] // SUPERSAMPLE
    image = floats(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))
    uneven = noise(rng, height, width, (2, 2), 1) * np.float32(rng.uniform(0, 0.09))
    image *= (1 + uneven)[..., None]
    image *= rng.normal(1, 0.035, 3).astype(np.float32) * np.float32(rng.uniform(0.85, 1.15))
    image = floats(255 * np.clip(image / 255, 0, 2) ** np.float32(rng.uniform(0.85, 1.2)))
    blur = rng.random()
    if blur < 0.4:
        image = floats(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.5)))
    elif blur < 0.46:
        length, angle = int(rng.integers(3, 8)), rng.uniform(0, np.pi)
        kernel = np.zeros((9, 9), dtype=np.float32)
        reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
        ends = [tuple(np.round(4 + sign * reach).astype(int).tolist()) for sign in (-1, 1)]
        cv2.line(kernel, ends[0], ends[1], (1.0,))
        image = floats(cv2.filter2D(image, -1, kernel / kernel.sum()))
    grains = rng.standard_normal(image.shape, dtype=np.float32)
    image += grains * np.sqrt(np.maximum(image, 0) / 255) * np.float32(rng.gamma(1.6, 2.2))
    return np.clip(image, 0, 255).astype(np.uint8)


def render(seed: int, index: int, *, width: int = DEFAULT_WIDTH_PX) -> Scene:
    """Draws image `index` (from 1) of a seed; width is what the sides are measured by (0.75 to 1.15 of it)."""
    rng = np.random.default_rng([seed, index])
    camera, lamp = _camera(rng, width), _lamp(rng)
    far_edge_cm = float(rng.uniform(12, 40)) if rng.random() < 0.5 else 70.0
    placed = _placed(rng, camera, lamp, far_edge_cm)
    kept, boxes = _visible(placed, camera)
    final = replace(camera, width_px=camera.width_px // SUPERSAMPLE, height_px=camera.height_px // SUPERSAMPLE)
    picture = _composed(backdrop(rng, final, far_edge_cm), camera, lamp, placed, kept)
    return Scene(_developed(rng, picture), tuple(boxes), int(rng.integers(45, 96)))


def _coco(images: list[dict[str, object]], annotations: list[dict[str, object]], seed: int) -> str:
    info = {
        "description": "Synthetic images of cups and plates, drawn by Saucer's scene generator; no photographs",
        "synthetic": True,
        "generator": "saucer.local.scenes",
        "seed": seed,
        "version": "1",
    }
    categories = [{"id": i, "name": name, "supercategory": "tableware"} for i, name in enumerate(CLASSES, start=1)]
    return json.dumps(
        {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    )


def _annotations(scene: Scene, image_id: int, first_id: int) -> Iterator[dict[str, object]]:
    for offset, box in enumerate(scene.boxes):
        yield {
            "id": first_id + offset,
            "image_id": image_id,
            "category_id": CLASSES.index(box.label) + 1,
            "bbox": [box.x, box.y, box.width, box.height],
            "area": box.area,
            "iscrowd": 0,
        }


def split_of(index: int) -> str:
    """The split of image `index` (from 1)."""
    return SPLIT_PATTERN[(index - 1) % len(SPLIT_PATTERN)]


def _write(folder: Path, seed: int, width: int, index: int) -> tuple[dict[str, object], Scene]:
    """Draws an image into its file; the image's COCO entry, and the scene without its pixels."""
    scene = render(seed, index, width=width)
    name = f"{index:06d}.jpg"
    done, encoded = cv2.imencode(".jpg", scene.pixels, [cv2.IMWRITE_JPEG_QUALITY, scene.jpeg_quality])
    if not done:
        raise RuntimeError(f"{name} could not be encoded")
    (folder / "images" / name).write_bytes(encoded.tobytes())
    height, across = scene.pixels.shape[:2]
    entry: dict[str, object] = {"id": index, "file_name": name, "width": across, "height": height}
    return entry, replace(scene, pixels=np.empty((0, 0, 3), dtype=np.uint8))


def generate(folder: Path, *, images: int, seed: int, width: int = DEFAULT_WIDTH_PX, processes: int = 1) -> None:
    """Writes images/000001.jpg ..., annotations.json (all) and annotations/{train,validation,test}.json.

    The annotations are in COCO's form; file_name is relative to images/. The bytes are the same for any number of
    processes. Raises ValueError for a number of images outside MIN_IMAGES..MAX_IMAGES.
    """
    if not MIN_IMAGES <= images <= MAX_IMAGES:
        raise ValueError(f"images must be {MIN_IMAGES} to {MAX_IMAGES}, is {images}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    write = partial(_write, folder, seed, width)
    if processes == 1:
        written = [write(index) for index in range(1, images + 1)]
    else:
        # Spawned, as a fork after threads have started may hang; one OpenCV thread each: the processes fill the cores.
        with ProcessPoolExecutor(processes, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
            written = list(pool.map(write, range(1, images + 1), chunksize=8))
    entries, labels = [entry for entry, _ in written], list[dict[str, object]]()
    for index, (_, scene) in enumerate(written, start=1):
        labels.extend(_annotations(scene, index, len(labels) + 1))
    (folder / "annotations.json").write_text(_coco(entries, labels, seed))
    for split in SPLITS:
        ids = {index for index in range(1, images + 1) if split_of(index) == split}
        chosen = [entry for entry in entries if entry["id"] in ids]
        own = [label for label in labels if label["image_id"] in ids]
        (folder / "annotations" / f"{split}.json").write_text(_coco(chosen, own, seed))
