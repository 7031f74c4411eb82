"""A version as a COCO document (cocodataset.org/#format-data), in pieces, never whole in memory.

Boxes and areas are those of the manifest. `file_name` is a path below images/, the name that the owner knows where that
can be; `split` stands beside it, and `empty` where the labels say that nothing is on it. So the document is one that an
import reads to the same version again.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from saucer.dataset.boxes import box_area
from saucer.dataset.domain import DatasetVersion
from saucer.dataset.drafts import ListedImage, export_name


class CocoWriter:
    """Call its methods in their order; images() and annotations() for each page of the images."""

    def __init__(self, version: DatasetVersion, shared_names: set[str]) -> None:
        """`shared_names`: source names that several images have."""
        self._version = version
        self._shared = shared_names
        self._separator = "\n"
        self._annotations = 0

    def start(self) -> bytes:
        """Up to the images."""
        info = {"description": self._version.display_name, "version": self._version.content_hash}
        categories = [{"id": number, "name": name} for number, name in enumerate(self._version.classes)]
        return f'{{"info":{_json(info)},\n"categories":{_json(categories)},\n"images":['.encode()

    def images(self, images: Iterable[ListedImage]) -> bytes:
        """Entries of images."""
        return self._lines(
            {
                "id": image.place,
                "file_name": export_name(image, name_is_shared=image.source_name in self._shared),
                "width": image.width,
                "height": image.height,
                "split": image.split,
            }
            | ({"empty": True} if image.empty else {})
            for image in images
        )

    def between(self) -> bytes:
        """From the images to the annotations."""
        self._separator = "\n"
        return b'\n],\n"annotations":['

    def annotations(self, images: Iterable[ListedImage]) -> bytes:
        """Entries of their labels."""
        return self._lines(entry for image in images for entry in self._labels(image))

    def end(self) -> bytes:
        """The rest."""
        return b"\n]}\n"

    def _labels(self, image: ListedImage) -> Iterator[dict[str, Any]]:
        for label, area in image.measured_labels:
            self._annotations += 1
            entry: dict[str, Any] = {"id": self._annotations, "image_id": image.place, "category_id": int(label[0])}
            if len(label) > 1:
                box = label[1:5]
                entry |= {"bbox": box, "area": box_area(box) if area is None else area, "iscrowd": int(label[5])}
            yield entry

    def _lines(self, entries: Iterable[dict[str, Any]]) -> bytes:
        lines = []
        for entry in entries:
            lines.append(self._separator + _json(entry))
            self._separator = ",\n"
        return "".join(lines).encode()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
