"""What a scoring leaves in the object store, and what is kept of it in memory: columns, so that no label is parsed."""

import io
import json
import zipfile
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saucer.evaluation.columns import packed
from saucer.evaluation.matching import Scored, StoredFormError, at_score_precision
from saucer.evaluation.metrics import ErrorsByImage, ThresholdCurves
from saucer.evaluation.recommending import Recommender
from saucer.evaluation.sorting import ascending
from saucer.evaluation.thinning import LEAST_POINTS, ThinnedPoints, Thinner
from saucer.evaluation.truth import Truth
from saucer.serving.detections import Detections
from saucer.serving.errors import DetectionsError

FORMAT_VERSION = 1
"""Of a stored LabelledSet; bytes of another version are refused. `box_size` was added within it: programs that do not
know it pass over it, and what they stored is read without, so that replicas of both read what either wrote."""
DEFAULT_POINTS = 100
"""Of a curve, where no other number is asked for; more look no better, and those of hundreds of classes are slow."""
MOST_POINTS_OF_A_CURVE = 5000
MOST_POINTS = 50_000
"""Of the curves of all classes together: an answer of 1.5 MB, made in a twentieth of a second."""
NAME_BYTES = 400
"""Taken for one image's two names when the memory of a Loaded is estimated."""

_COLUMNS = tuple(field.name for field in fields(Truth) if field.name != "classes")


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """The truth of the test split. By place in truth.images: the image's name in the object store (`object_names`),
    and the one by which its owner knows it (`source_names`). `whole_images`: labels are of whole images (M16)."""

    truth: Truth
    object_names: tuple[str, ...]
    source_names: tuple[str, ...]
    whole_images: bool = False

    def to_bytes(self) -> bytes:
        """An .npz; it holds no pickle."""
        columns: dict[str, NDArray[Any]] = {name: getattr(self.truth, name) for name in _COLUMNS}
        names = {
            "classes": self.truth.classes,
            "object_names": self.object_names,
            "source_names": self.source_names,
            "whole_images": self.whole_images,
        }
        described = {
            "format_version": np.array(FORMAT_VERSION),
            "names": np.frombuffer(json.dumps(names).encode(), np.uint8),
        }
        return packed(described | columns)

    @classmethod
    def from_bytes(cls, data: bytes) -> "LabelledSet":
        """Reads what to_bytes() wrote, without pickle. Raises StoredFormError for other bytes."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                if int(stored["format_version"]) != FORMAT_VERSION:
                    raise StoredFormError(f"format version {stored['format_version']}, not {FORMAT_VERSION}")
                names = json.loads(stored["names"].tobytes())
                columns = {name: stored[name] for name in _COLUMNS if name != "box_size"}
                box = columns["box"]
                size = stored["box_size"] if "box_size" in stored else box[:, 2:] - box[:, :2]
                return cls(
                    Truth(classes=tuple(names["classes"]), box_size=size, **columns),
                    tuple(names["object_names"]),
                    tuple(names["source_names"]),
                    bool(names.get("whole_images", False)),
                )
        except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, StoredFormError):
                raise
            raise StoredFormError(f"no stored test set: {error}") from error


def points_of_a_curve(wanted: int, classes: int) -> int:
    """How many each class's curve has at most, where so many are wanted; fewer where all would exceed MOST_POINTS."""
    return max(LEAST_POINTS, min(wanted, MOST_POINTS_OF_A_CURVE, MOST_POINTS // max(classes, 1)))


class Judged:
    """What the figures at any threshold are read from, in milliseconds."""

    def __init__(self, test_set: LabelledSet, scored: Scored) -> None:
        self.test_set = test_set
        self.truth = test_set.truth
        self.scored = scored
        self.curves = ThresholdCurves(scored)
        self.errors_by_image = ErrorsByImage(scored)

    def bad_images(self, threshold: float) -> int:
        """How many images are bad cases (M10): those with an error, since of a truth that is not found and no miss a
        wrong detection is told."""
        return int(np.count_nonzero(self.errors_by_image.at(threshold)))


class Loaded(Judged):
    """A finished evaluation in memory, from which all that is asked of it is answered.

    `recommender`: of the validation split; None where the scoring did not keep it. Making one takes seconds of hundreds
    of classes and millions of detections; what is asked of it then waits for nothing that is made only once.
    """

    def __init__(
        self, test_set: LabelledSet, detections: Detections, scored: Scored, validation: Scored | None = None
    ) -> None:
        super().__init__(test_set, scored)
        classes = len(self.truth.classes)
        self.detections = detections
        self.recommender = None if validation is None else Recommender(ThresholdCurves(validation), classes)
        self._thinner = Thinner(
            [self.curves.points(label) for label in range(classes)], points_of_a_curve(MOST_POINTS_OF_A_CURVE, classes)
        )
        self._truth_rows = _RowsOfImage(scored.truth_image, scored.images.size)
        self._detection_rows = _RowsOfImage(scored.image, scored.images.size)

    def thinned(self, max_points: int) -> list[ThinnedPoints]:
        """The curve of each class, of at most so many points. Raises ValueError beyond points_of_a_curve()."""
        return self._thinner.thin(max_points)

    def truths_of(self, place: int) -> NDArray[np.intp]:
        """Rows of the truths on the image at that place of truth.images, ascending."""
        return self._truth_rows.of(place)

    def detections_of(self, place: int, threshold: float) -> NDArray[np.intp]:
        """Rows of the detections on it with score >= threshold, ascending."""
        rows = self._detection_rows.of(place)
        return rows[self.scored.score[rows] >= at_score_precision(threshold)]

    @property
    def size_bytes(self) -> int:
        """About what it takes of the memory."""
        columns = [
            value
            for holder in (self.truth, self.detections, self.scored)
            for value in (getattr(holder, field.name) for field in fields(holder))
            if isinstance(value, np.ndarray)
        ]
        derived = (self.curves, self._thinner, self._truth_rows, self._detection_rows, self.errors_by_image)
        return (
            sum(column.nbytes for column in columns)
            + sum(part.size_bytes for part in derived)
            + (0 if self.recommender is None else self.recommender.size_bytes)
            + NAME_BYTES * self.scored.images.size
        )


class _RowsOfImage:
    """Row numbers grouped by image, so that a page of images needs no search in all rows."""

    def __init__(self, image: NDArray[np.int32], images: int) -> None:
        self._rows: NDArray[np.intp] = np.lexsort(ascending(image))
        self._ends = np.append(0, np.cumsum(np.bincount(image, minlength=images)))

    def of(self, place: int) -> NDArray[np.intp]:
        return self._rows[self._ends[place] : self._ends[place + 1]]

    @property
    def size_bytes(self) -> int:
        return self._rows.nbytes + self._ends.nbytes


def load(truth: bytes, test: bytes, scored: bytes, validation: bytes | None = None) -> Loaded:
    """Of what a scoring left, and the detections that it scored. Raises StoredFormError."""
    try:
        return Loaded(
            LabelledSet.from_bytes(truth),
            Detections.from_bytes(test),
            Scored.from_bytes(scored),
            None if validation is None else Scored.from_bytes(validation),
        )
    except DetectionsError as error:
        raise StoredFormError(f"no stored detections: {error}") from error
