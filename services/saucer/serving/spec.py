"""model.json: what a model is called with, and what its numbers mean."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import ModelFolderError

FORMAT = 1
"""Raised when an older reader could no longer read a folder; it then refuses it."""
SPEC_FILE = "model.json"
GRAPH_FILE = "model.onnx"
MAX_SPEC_BYTES = 1024 * 1024
MAX_INPUT_SIZE = 4096


@dataclass(frozen=True)
class ModelSpec:
    """Class names by label, side of the square input in pixels, and the settings of boxes.select."""

    classes: tuple[str, ...]
    input_size: int
    score_floor: float = 0.01
    nms_iou: float = 0.65
    max_detections: int = 300

    def __post_init__(self) -> None:
        """Raises ModelFolderError if a value is out of its range."""
        if not self.classes or not all(isinstance(name, str) and name for name in self.classes):
            raise ModelFolderError("a model needs at least one class, and every class a name")
        if not 1 <= self.input_size <= MAX_INPUT_SIZE:
            raise ModelFolderError(f"input_size {self.input_size} is not in 1..{MAX_INPUT_SIZE}")
        if not 0 <= self.score_floor < 1 or not 0 < self.nms_iou <= 1 or self.max_detections < 1:
            raise ModelFolderError("score_floor, nms_iou or max_detections is out of its range")

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Raises ModelFolderError if the text is not a spec of this format."""
        try:
            fields = json.loads(text)
            if fields["format"] != FORMAT:
                raise ModelFolderError(f"{SPEC_FILE} has format {fields['format']}; this version reads {FORMAT}")
            return cls(
                classes=tuple(fields["classes"]),
                input_size=int(fields["input_size"]),
                score_floor=float(fields["score_floor"]),
                nms_iou=float(fields["nms_iou"]),
                max_detections=int(fields["max_detections"]),
            )
        except ModelFolderError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFolderError(f"{SPEC_FILE} is not a model's description: {error}") from error

    @classmethod
    def load(cls, folder: Path) -> "ModelSpec":
        """Raises ModelFolderError if the file is missing, too long or not a spec."""
        path = folder / SPEC_FILE
        try:
            if path.stat().st_size > MAX_SPEC_BYTES:
                raise ModelFolderError(f"{SPEC_FILE} is over {MAX_SPEC_BYTES} bytes")
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFolderError(f"{SPEC_FILE} cannot be read: {error}") from error
