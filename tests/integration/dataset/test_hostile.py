"""Archives, label files and images that mean harm, or were made by careless tools: each ends as documented, nothing of
a refused one is left, and the service, whose memory holds few images at a time, does not grow with them."""

import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saucer.dataset.v1 import dataset_pb2
from tests.integration.dataset.client import Client, archive_of, coco_files

# Of the service's own process, over all of them; what an import's child process may take is a setting.
MAX_GROWTH_MB = 128


def _tar(*members: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in members:
            archive.addfile(member)
    return out.getvalue()


def _link() -> bytes:
    member = tarfile.TarInfo("images")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc"
    return _tar(member)


def _bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images/1.png", "w") as file:
        for _ in range(80):
            file.write(bytes(1024**2))
    return out.getvalue()


def _labels(data: bytes) -> bytes:
    return archive_of(coco_files(1) | {"annotations.json": data})


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "climbs": (lambda: archive_of({"../../etc/cron.d/x": b"x"}), "CLIMBING_PATH"),
    "links out": (_link, "LINK_OR_DEVICE"),
    "bomb": (_bomb, "COMPRESSION_RATIO"),
    "no archive": (lambda: b"MZ" + bytes(1000), "UNSUPPORTED_ARCHIVE"),
    "deep": (lambda: _labels(b'{"images":' + b"[" * 1_000_000), "NESTED_TOO_DEEP"),
    "UTF-16": (lambda: _labels('{"images": []}'.encode("utf-16")), "WRONG_ENCODING"),
    "NaN": (lambda: _labels(b'{"images":[],"categories":[],"annotations":[{"bbox":[NaN,1,1,1]}]}'), "NOT_JSON"),
    "no labels": (lambda: archive_of({"a/b.json": b"{}", "a/1.png": b"", "b/2.png": b""}), "NO_USABLE_IMAGE"),
    "XML bomb": (
        lambda: archive_of(
            {"1.png": b"", "1.xml": b'<!DOCTYPE a [<!ENTITY a "a"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'}
        ),
        "NO_USABLE_IMAGE",
    ),
    "YAML bomb": (
        lambda: archive_of(
            {"data.yaml": b"a: &a [x, x]\n" + b"b: &b [*a, *a]\nnames: [*b, *b]\n", "1.png": b"", "1.txt": b"0 0 0 1 1"}
        ),
        "NO_CLASS_NAMES",
    ),
}


def _png(pixels: object, **options: object) -> bytes:
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    image.save(out, **({"format": "PNG"} | options))  # type: ignore[arg-type] # of Pillow's formats
    return out.getvalue()


def _turned() -> bytes:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    return _png(image, format="JPEG", exif=exif)


# The file, and the reason for which it is refused, or its size as it is shown.
IMAGES: dict[str, tuple[Callable[[], bytes], str | tuple[int, int]]] = {
    "zero.png": (lambda: b"", "UNREADABLE_IMAGE"),
    "huge.png": (lambda: _png(Image.new("1", (10_000, 10_000))), "IMAGE_TOO_LARGE"),
    "cut.png": (lambda: coco_files(1, seed=3)["images/1.png"][:500], "UNREADABLE_IMAGE"),
    "turned.jpg": (_turned, (48, 64)),
    "cmyk.jpg": (lambda: _png(Image.new("CMYK", (64, 48), (10, 200, 30, 40)), format="JPEG"), (64, 48)),
    "deep.png": (lambda: _png(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20), (64, 48)),
}


def _peak_mb(*, anew: bool = False) -> float:
    """The most memory that this process ever had; `anew`: it counts from now on."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    (peak_kb,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak_kb) / 1024


async def test_what_means_harm_is_refused_as_documented_and_the_service_stays_small(dataset: Client) -> None:
    await dataset.import_bytes(archive_of(coco_files(3, seed=20)))
    archives = {what: (build(), reason) for what, (build, reason) in HOSTILE.items()}
    files = {f"{name[0]}/{name}": build() for name, (build, _) in IMAGES.items()}
    huge = archive_of(files | {f"h/{number}.png": files["h/huge.png"] for number in range(20)})
    before_mb = _peak_mb(anew=True)
    for what, (data, reason) in archives.items():
        work = await dataset.import_bytes(data)
        assert (work.state, work.error_reason) == (dataset_pb2.IMPORT_STATE_FAILED, reason), what
        assert str(dataset.store) not in work.error_message
    assert len((await dataset.versions()).dataset_versions) == 1
    work = await dataset.import_bytes(huge)
    refused = {row.reason: row.count for row in work.report.counts}
    assert (work.state, refused["IMAGE_TOO_LARGE"]) == (dataset_pb2.IMPORT_STATE_SUCCEEDED, 21)
    assert _peak_mb() - before_mb < MAX_GROWTH_MB


async def test_images_of_all_kinds_are_accepted_or_named_and_boxes_that_make_no_sense_too(dataset: Client) -> None:
    files = {f"images/{name}": build() for name, (build, _) in IMAGES.items()}
    images = [{"id": number, "file_name": name} for number, name in enumerate(IMAGES, 1)]
    fine = len(IMAGES)
    boxes = [
        {"id": 1, "image_id": fine, "category_id": 1, "bbox": [1, 1, 9, 9]},
        {"id": 1, "image_id": fine, "category_id": 1, "bbox": [2, 2, 9, 9]},
        {"id": 2, "image_id": fine, "category_id": 1, "bbox": [1e308, 1, 1e308, 9]},
        {"id": 3, "image_id": fine, "category_id": 1, "bbox": [1, 1, -9, 9]},
        {"id": 4, "image_id": 99, "category_id": 1, "bbox": [1, 1, 9, 9]},
    ]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cup"}]}
    work = await dataset.import_bytes(archive_of(files | {"annotations.json": json.dumps(document).encode()}))
    refused = {item.item: item.reason for item in work.report.items}
    listed = (await dataset.list_images(work.dataset_version_id)).images
    found = refused | {image.file_name: (image.width, image.height) for image in listed}
    assert {name: found[name] for name in IMAGES} == {name: expected for name, (_, expected) in IMAGES.items()}
    counts = {row.reason: row.count for row in work.report.counts}
    assert counts["DUPLICATE_ID"] == counts["BOX_NOT_FINITE"] == counts["BOX_NO_AREA"] == counts["UNKNOWN_IMAGE"] == 1
    (labelled,) = (image for image in listed if image.boxes)
    assert len(labelled.boxes) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_a_damaged_archive_ends_in_a_version_or_a_refusal_and_never_in_a_crash(
    dataset: Client, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(archive_of(coco_files(3, seed=30)))
    for place in rng.integers(0, len(data), 20).tolist():
        data[place] ^= int(rng.integers(1, 256))
    work = await dataset.import_bytes(bytes(data))
    assert work.error_reason != "IMPORT_CRASHED"
