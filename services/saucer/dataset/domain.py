"""Uploads, imports and versions: what they are and how they may move. What an import does is in importer.py."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

# An upload is gone this long after its last chunk, and this long after an import of it has ended.
UPLOAD_KEPT = timedelta(hours=24)
UPLOAD_KEPT_AFTER_IMPORT = timedelta(hours=1)
# Chunks of one upload: 100 GiB in chunks of 2 MiB take half. One more is RESOURCE_EXHAUSTED.
MAX_CHUNKS = 100_000
# Of one account at once, unfinished; one more is RESOURCE_EXHAUSTED.
MAX_OPEN_UPLOADS = 20
# Of one account at once, queued or importing; one more is RESOURCE_EXHAUSTED.
MAX_OPEN_IMPORTS = 100
# An import that still waits after this has failed, WAITED_TOO_LONG.
MAX_WAIT = timedelta(hours=24)
# Child processes that may die on one import; the last one fails it, IMPORT_CRASHED.
MAX_CRASHES = 2
# Claims of one import that may be lost with their service; another one fails it, IMPORT_CRASHED.
MAX_ATTEMPTS = 5

# What JSON columns and the child process hold.
Json = Mapping[str, Any]


class SourceFormat(StrEnum):
    """Of the source of an import."""

    AUTO = "AUTO"
    COCO = "COCO"
    PASCAL_VOC = "PASCAL_VOC"
    YOLO = "YOLO"
    CLASS_FOLDERS = "CLASS_FOLDERS"
    # Without labels.
    IMAGES = "IMAGES"
    # Labelled here.
    DRAFT = "DRAFT"


class LabelKind(StrEnum):
    """What a label says: where each object is, or what the whole image shows."""

    BOXES = "BOXES"
    CLASSES = "CLASSES"


class ImportState(StrEnum):
    """Of an import."""

    QUEUED = "QUEUED"
    IMPORTING = "IMPORTING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


# An import that does not exist yet is None.
TRANSITIONS: Mapping[ImportState | None, frozenset[ImportState]] = {
    None: frozenset({ImportState.QUEUED}),
    ImportState.QUEUED: frozenset({ImportState.IMPORTING, ImportState.FAILED}),
    # Importing again: the claim has expired, and another process takes it over.
    ImportState.IMPORTING: frozenset(
        {ImportState.IMPORTING, ImportState.QUEUED, ImportState.SUCCEEDED, ImportState.FAILED}
    ),
    ImportState.SUCCEEDED: frozenset(),
    ImportState.FAILED: frozenset(),
}


def may_move(source: ImportState | None, target: ImportState) -> bool:
    """Whether the table allows it."""
    return target in TRANSITIONS[source]


class ImportFailedError(Exception):
    """Ends an import as FAILED. `reason` is UPPER_SNAKE_CASE; `report` as report.Report.as_json gives it, if any."""

    def __init__(self, reason: str, sentence: str, report: Json | None = None) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence
        self.report = report


@dataclass(frozen=True)
class AccountStore:
    """An account's prefix in the object store."""

    account_id: str
    prefix: str
    proven_at: datetime | None
    revision: int


@dataclass(frozen=True)
class Upload:
    """An archive on its way in."""

    upload_id: str
    account_id: str
    size_bytes: int
    committed_bytes: int
    # OPEN, EXPIRED or REMOVED.
    state: str
    created_at: datetime
    expires_at: datetime

    @property
    def whole(self) -> bool:
        """Every byte is there."""
        return self.committed_bytes == self.size_bytes

    def lives(self, now: datetime) -> bool:
        """Whether it may still be written and imported."""
        return self.state == "OPEN" and now < self.expires_at


@dataclass(frozen=True)
class Chunk:
    """A part of an upload, an object of its own."""

    offset_bytes: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ImportRequest:
    """What is to be imported; exactly one of upload_id, store_path and draft_id is set. A draft's format is DRAFT."""

    account_id: str
    display_name: str
    upload_id: str | None
    store_path: str | None
    split_seed: int
    source_format: SourceFormat = SourceFormat.AUTO
    draft_id: str | None = None
    # Of a draft: a new split, instead of that of its version.
    split_again: bool = False
    # Of a store_path: the name of the root that it is below; None: the account's own prefix.
    mapped_root: str | None = None


@dataclass(frozen=True)
class MappedRoot:
    """A further place that an account may import from."""

    account_id: str
    name: str
    url: str
    mapped_at: datetime


@dataclass(frozen=True)
class Import:
    """One attempt to make a version of a source."""

    import_id: str
    account_id: str
    display_name: str
    upload_id: str | None
    store_path: str | None
    split_seed: int
    source_format: SourceFormat
    draft_id: str | None
    split_again: bool
    mapped_root: str | None
    state: ImportState
    images_done: int
    images_total: int
    error_reason: str
    error_message: str
    report: Json | None
    dataset_version_id: str | None
    created_at: datetime
    ended_at: datetime | None
    attempts: int
    crashes: int
    retry_at: datetime
    claim_token: str | None
    claim_expires_at: datetime | None
    revision: int

    def answers(self, request: ImportRequest) -> bool:
        """Whether this is the import that was asked for, or one of the same id for something else."""
        return request == ImportRequest(
            self.account_id,
            self.display_name,
            self.upload_id,
            self.store_path,
            self.split_seed,
            self.source_format,
            self.draft_id,
            self.split_again,
            self.mapped_root,
        )


def queued(import_id: str, request: ImportRequest, now: datetime) -> Import:
    """A new import."""
    return Import(
        import_id=import_id,
        account_id=request.account_id,
        display_name=request.display_name,
        upload_id=request.upload_id,
        store_path=request.store_path,
        split_seed=request.split_seed,
        source_format=request.source_format,
        draft_id=request.draft_id,
        split_again=request.split_again,
        mapped_root=request.mapped_root,
        state=ImportState.QUEUED,
        images_done=0,
        images_total=0,
        error_reason="",
        error_message="",
        report=None,
        dataset_version_id=None,
        created_at=now,
        ended_at=None,
        attempts=0,
        crashes=0,
        retry_at=now,
        claim_token=None,
        claim_expires_at=None,
        revision=1,
    )


def claimed(work: Import, token: str, now: datetime, expires_at: datetime) -> Import:
    """Taken by a process, or failed where it waited too long or was lost too often."""
    if work.state is ImportState.QUEUED and now - work.created_at > MAX_WAIT:
        return overdue(work, now)
    if work.attempts >= MAX_ATTEMPTS:
        return failed(work, _crashed(), now)
    return _moved(
        work,
        ImportState.IMPORTING,
        images_done=0,
        images_total=0,
        attempts=work.attempts + 1,
        claim_token=token,
        claim_expires_at=expires_at,
    )


def overdue(work: Import, now: datetime) -> Import:
    """Failed, because it waited too long."""
    return failed(
        work, ImportFailedError("WAITED_TOO_LONG", "The import could not be done in time; start it again."), now
    )


def given_back(work: Import, retry_at: datetime) -> Import:
    """Queued again, through no fault of the import's."""
    return _moved(work, ImportState.QUEUED, **_UNCLAIMED, attempts=work.attempts - 1, retry_at=retry_at)


def crashed(work: Import, now: datetime) -> Import:
    """Its child process died: queued again, or failed."""
    work = replace(work, crashes=work.crashes + 1)
    if work.crashes >= MAX_CRASHES:
        return failed(work, _crashed(), now)
    return given_back(work, now)


def succeeded(work: Import, dataset_version_id: str, report: Json, images: int, now: datetime) -> Import:
    """With its version; `images` are all that its label files name."""
    return _moved(
        work,
        ImportState.SUCCEEDED,
        **_UNCLAIMED,
        images_done=images,
        images_total=images,
        report=report,
        dataset_version_id=dataset_version_id,
        ended_at=now,
    )


def failed(work: Import, error: ImportFailedError, now: datetime) -> Import:
    """With a reason."""
    return _moved(
        work,
        ImportState.FAILED,
        **_UNCLAIMED,
        error_reason=error.reason,
        error_message=error.sentence,
        report=error.report,
        ended_at=now,
    )


_UNCLAIMED: Json = {"claim_token": None, "claim_expires_at": None}


def _moved(work: Import, target: ImportState, **changes: Any) -> Import:
    if not may_move(work.state, target):
        raise ValueError(f"An import cannot go from {work.state} to {target}.")
    return replace(work, state=target, **changes)


def _crashed() -> ImportFailedError:
    return ImportFailedError(
        "IMPORT_CRASHED", "The import's process died each time it was tried; something in the data makes it die."
    )


@dataclass(frozen=True)
class DatasetVersion:
    """An immutable set of images and labels. `statistics` as statistics.Statistics.as_json gives them."""

    dataset_version_id: str
    account_id: str
    display_name: str
    content_hash: str
    manifest_key: str
    manifest_sha256: str
    image_prefix: str
    label_kind: LabelKind
    classes: tuple[str, ...]
    statistics: Json
    created_at: datetime
    revision: int


@dataclass(frozen=True)
class Imported:
    """What a child process made of a source."""

    manifest_sha256: str
    content_hash: str
    label_kind: LabelKind
    classes: tuple[str, ...]
    statistics: Json
    report: Json
