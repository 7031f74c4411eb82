"""Builds small folders, sound and broken, and imports them."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from saucer.dataset.domain import SourceFormat
from saucer.dataset.importer import ImportLimits, ImportResult, import_folder

WIDTH, HEIGHT = 64, 48


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT, file_format: str = "PNG", **options: Any) -> bytes:
    """A picture of coarse noise, another one for each seed."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(out, file_format, **options)
    return out.getvalue()


def image(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT, **changes}


def box(number: int, image_id: int, *xywh: float, category: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": list(xywh or (4, 4, 10, 10)),
        **changes,
    }


def coco(
    images: Sequence[Any],
    annotations: Sequence[Any] = (),
    categories: Sequence[Any] = ({"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}),
) -> dict[str, Any]:
    return {"images": list(images), "annotations": list(annotations), "categories": list(categories)}


def write(folder: Path, files: Mapping[str, bytes | dict[str, Any]]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def simple(folder: Path, annotations: Sequence[Any] = (), count: int = 1, **sections: Any) -> Path:
    """annotations.json and images/1.png … as the file says, all sound."""
    document = coco([image(n) for n in range(1, count + 1)], annotations, **sections)
    return write(folder, {"annotations.json": document} | {f"images/{n}.png": picture(n) for n in range(1, count + 1)})


@dataclass
class Imported:
    result: ImportResult
    manifest: dict[str, Any]
    stored: dict[str, bytes]

    @property
    def refused(self) -> dict[str, int]:
        return {reason.value: count for reason, count in self.result.report.refused.items()}

    @property
    def boxes(self) -> list[list[float]]:
        return [annotation["bbox"] for annotation in self.manifest["annotations"]]

    @property
    def splits(self) -> dict[str, str]:
        return {entry["source_name"]: entry["split"] for entry in self.manifest["images"]}

    @property
    def empty(self) -> list[str]:
        """Names of the images of which the labels say that nothing is on them."""
        return sorted(entry["source_name"] for entry in self.manifest["images"] if entry.get("empty"))


@dataclass
class Store:
    folder: Path
    stored: dict[str, bytes] = field(default_factory=dict)
    progress: list[tuple[int, int]] = field(default_factory=list)

    def put(self, sha256: str, path: Sequence[str]) -> None:
        data = self.folder.joinpath(*path).read_bytes()
        assert sha256 not in self.stored
        assert hashlib.sha256(data).hexdigest() == sha256
        self.stored[sha256] = data


def run_import(
    folder: Path,
    *,
    limits: ImportLimits | None = None,
    seed: int = 0,
    source_format: SourceFormat = SourceFormat.AUTO,
) -> Imported:
    store = Store(folder)
    manifest_path = folder.parent / f"{folder.name}.manifest.json"
    result = import_folder(
        folder,
        sink=store.put,
        progress=lambda done, total: store.progress.append((done, total)),
        manifest_path=manifest_path,
        listing_path=folder.parent / f"{folder.name}.listing",
        seed=seed,
        source_format=source_format,
        limits=limits,
    )
    assert store.progress == [(n, len(store.progress)) for n in range(1, len(store.progress) + 1)]
    content = manifest_path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == result.manifest_sha256
    manifest = json.loads(content)
    assert {entry["file_name"] for entry in manifest["images"]} == set(store.stored)
    return Imported(result, manifest, store.stored)
