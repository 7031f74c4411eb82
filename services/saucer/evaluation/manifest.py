"""A COCO document, read straight into typed rows: no dictionary is made, and what is amiss is named by its path."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

_Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Pixels = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class ManifestError(ValueError):
    """It is no COCO document; the text names the entry and what is wrong with it."""


# gc=False: rows hold no row, and what the collector need not visit costs nothing however many there are.


class ManifestImage(msgspec.Struct, gc=False):
    """`file_name` is its name in the object store, `source_name` the one by which its owner knows it, if it has one."""

    id: _Id
    width: _Pixels
    height: _Pixels
    file_name: str = ""
    source_name: str = ""
    split: str = ""


class ManifestBox(msgspec.Struct, gc=False):
    """`bbox`: x, y, width, height in pixels; None labels the whole image."""

    image_id: _Id
    category_id: _Id
    bbox: tuple[float, float, float, float] | None = None
    area: float | None = None
    iscrowd: int | bool = 0
    id: _Id | None = None


class ManifestCategory(msgspec.Struct, gc=False):
    """A class."""

    id: _Id
    name: str


class Manifest(msgspec.Struct):
    """`images`, `annotations` and `categories` of a COCO detection document (cocodataset.org/#format-data)."""

    images: list[ManifestImage]
    annotations: list[ManifestBox]
    categories: list[ManifestCategory]

    @property
    def labels_whole_images(self) -> bool:
        """Whether labels say what an image shows, and not where: none has a box."""
        return bool(self.annotations) and all(label.bbox is None for label in self.annotations)

    def renamed(self, names: Mapping[str, str]) -> "Manifest":
        """With other names for some classes; two classes may get the same."""
        categories = [ManifestCategory(entry.id, names.get(entry.name, entry.name)) for entry in self.categories]
        return Manifest(self.images, self.annotations, categories)

    def split(self, name: str) -> "Manifest":
        """The images of one split, with their labels."""
        images = [image for image in self.images if image.split == name]
        ids = {image.id for image in images}
        return Manifest(images, [box for box in self.annotations if box.image_id in ids], self.categories)


_DECODER = msgspec.json.Decoder(Manifest)


def read_manifest(data: bytes) -> Manifest:
    """From JSON. Raises ManifestError."""
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(str(error)) from error


def manifest_of(document: Mapping[str, Any]) -> Manifest:
    """From parsed JSON. Raises ManifestError."""
    try:
        return msgspec.convert(document, Manifest)
    except msgspec.ValidationError as error:
        raise ManifestError(str(error)) from error
