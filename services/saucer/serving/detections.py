"""Detections of a whole split, in columns: the form in which they are stored once and read for every threshold."""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .detector import ImageDetections
from .errors import DetectionsError

MAX_DETECTIONS = 20_000_000
"""Boxes of one split; more are refused when loading."""
MAX_IMAGES = 5_000_000
"""Images of one split; more are refused when loading."""
MAX_UNPACKED_BYTES = MAX_IMAGES * 8 + MAX_DETECTIONS * 32 + 64 * 1024
"""What the archive may unpack to, read from its directory before anything is unpacked."""
FORMAT = 1

_COLUMNS: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "images": (np.int64, ()),
    "image_id": (np.int64, ()),
    "box": (np.float32, (4,)),
    "score": (np.float32, ()),
    "label": (np.int32, ()),
}


@dataclass(frozen=True, eq=False)
class Detections:
    """`images` int64 [m]: ids of the images that were predicted, those without a detection too, in that order.
    Row by row: `image_id` int64 [n], `box` float32 [n, 4] xyxy in source pixels, `score` float32 [n] in 0..1,
    `label` int32 [n], the index into the model's classes."""

    images: NDArray[np.int64]
    image_id: NDArray[np.int64]
    box: NDArray[np.float32]
    score: NDArray[np.float32]
    label: NDArray[np.int32]

    def __post_init__(self) -> None:
        """Raises DetectionsError if the columns do not fit together or hold what cannot be."""
        for name, (kind, tail) in _COLUMNS.items():
            column = getattr(self, name)
            if column.dtype != kind or column.shape[1:] != tail or column.ndim != 1 + len(tail):
                raise DetectionsError(f"{name} is {column.dtype} {column.shape}, not {kind.__name__} [n{tail or ''}]")
        if len({len(self.image_id), len(self.box), len(self.score), len(self.label)}) != 1:
            raise DetectionsError("the columns differ in length")
        if len(self.image_id) > MAX_DETECTIONS or len(self.images) > MAX_IMAGES:
            raise DetectionsError(f"over {MAX_DETECTIONS} detections or {MAX_IMAGES} images")
        if len(np.unique(self.images)) != len(self.images):
            raise DetectionsError("an image is named twice")
        if not np.isin(self.image_id, self.images).all():
            raise DetectionsError("a detection is of an image that was not predicted")
        if not np.isfinite(self.box).all() or (self.box[:, 2:] < self.box[:, :2]).any():
            raise DetectionsError("a box is not finite or is inside out")
        if not ((self.score >= 0) & (self.score <= 1)).all() or (self.label < 0).any():
            raise DetectionsError("a score is outside 0..1, or a label is negative")

    @classmethod
    def collect(cls, images: Sequence[int], detections: Sequence[ImageDetections]) -> "Detections":
        """Joins the detections of several images; `images` are their ids, in the same order."""
        counts = [len(item.scores) for item in detections]
        ids = np.asarray(images, np.int64)
        return cls(
            images=ids,
            image_id=np.repeat(ids, counts),
            box=np.concatenate([np.empty((0, 4), np.float32), *(item.boxes for item in detections)]),
            score=np.concatenate([np.empty(0, np.float32), *(item.scores for item in detections)]),
            label=np.concatenate([np.empty(0, np.int32), *(item.labels for item in detections)]),
        )

    def to_bytes(self) -> bytes:
        """An .npz archive of the columns."""
        buffer = io.BytesIO()
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(buffer, format=np.int64(FORMAT), **columns)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Detections":
        """Reads what to_bytes wrote. Nothing in it is ever unpickled.

        Raises DetectionsError if it is cut, of another format, inconsistent or over the limits.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                names = sorted(member.filename for member in archive.infolist())
                if names != sorted(f"{name}.npy" for name in (*_COLUMNS, "format")):
                    raise DetectionsError(f"the archive holds {names[:10]}, not the columns of detections")
                if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED_BYTES:
                    raise DetectionsError(f"the archive unpacks to over {MAX_UNPACKED_BYTES} bytes")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                if int(arrays["format"]) != FORMAT:
                    raise DetectionsError(f"format {int(arrays['format'])}; this version reads {FORMAT}")
                return cls(**{name: arrays[name] for name in _COLUMNS})
        except (zipfile.BadZipFile, OSError, EOFError, KeyError, TypeError, ValueError, MemoryError) as error:
            if isinstance(error, DetectionsError):
                raise
            raise DetectionsError(f"the archive cannot be read: {error}") from error
