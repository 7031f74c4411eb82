"""An import, in a process of its own: `python -P -m saucer.dataset.import_child`, started by import_process.py.

It writes JSON lines to standard output: `{"progress": [done, total]}` and `{"images": [[sha256, path], …]}` of
accepted images, now and then, and at the end `{"imported": …}` or `{"refused": …}`. Whatever else it ends with counts
as a crash.
"""

import errno
import time
from collections.abc import Sequence
from pathlib import Path

from saucer.dataset.archive import ArchiveLimits, unpack
from saucer.dataset.domain import SourceFormat
from saucer.dataset.import_job import ImportJob
from saucer.dataset.importer import ImportResult, import_folder
from saucer.dataset.report import ImportRefusedError
from saucer.lib import confinement

# Images are told of when so many are accepted, or the last news is so old.
MAX_NEWS = 64
MAX_NEWS_AGE_S = 0.5


def main() -> None:
    """Does the job on standard input."""
    limits, told = confinement.begin()
    job = ImportJob(**told)
    try:
        result = _import(job)
    except ImportRefusedError as refusal:
        report = refusal.report.as_json() if refusal.report is not None else None
        _refuse(refusal.reason.value.upper(), refusal.sentence, report)
    except MemoryError:
        _refuse(
            "OUT_OF_MEMORY", f"The import needs more than {limits.memory_bytes:,} bytes of memory; import less at once."
        )
    except OSError as error:
        if error.errno == errno.EFBIG:
            _refuse("FILE_TOO_LARGE", f"A file in the archive has more than {limits.file_bytes:,} bytes.")
        elif error.errno == errno.ENOSPC:
            _refuse("NO_ROOM", "The service has too little disk to unpack this archive; ask an administrator.")
        else:
            raise
    else:
        _say("imported", _as_json(result))


def _import(job: ImportJob) -> ImportResult:
    folder = Path(job.source)
    if not folder.is_dir():
        archive, folder = folder, Path(job.unpacked)
        unpack(archive, folder, ArchiveLimits(max_unpacked_bytes=job.max_unpacked_bytes))
    news = _News()
    result = import_folder(
        folder,
        sink=news.accepted,
        progress=news.progress,
        manifest_path=Path(job.manifest),
        listing_path=Path(job.listing),
        seed=job.seed,
        source_format=SourceFormat(job.source_format),
    )
    news.tell()
    return result


class _News:
    """What there is to say of single images, said together."""

    def __init__(self) -> None:
        self._images: list[tuple[str, str]] = []
        self._progress = (0, 0)
        self._told_s = time.monotonic()

    def accepted(self, sha256: str, path: Sequence[str]) -> None:
        self._images.append((sha256, "/".join(path)))

    def progress(self, done: int, total: int) -> None:
        self._progress = (done, total)
        if len(self._images) >= MAX_NEWS or time.monotonic() - self._told_s > MAX_NEWS_AGE_S:
            self.tell()

    def tell(self) -> None:
        if self._images:
            _say("images", self._images)
        _say("progress", self._progress)
        self._images.clear()
        self._told_s = time.monotonic()


def _as_json(result: ImportResult) -> dict[str, object]:
    return {
        "manifest_sha256": result.manifest_sha256,
        "content_hash": result.content_hash,
        "source_format": result.source_format,
        "label_kind": result.label_kind,
        "classes": result.class_names,
        "statistics": result.statistics.as_json(),
        "report": result.report.as_json(),
    }


def _refuse(reason: str, sentence: str, report: dict[str, object] | None = None) -> None:
    _say("refused", {"reason": reason, "sentence": sentence, "report": report})


def _say(kind: str, value: object) -> None:
    confinement.say({kind: value})


if __name__ == "__main__":
    main()
