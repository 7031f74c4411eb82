"""The child process of an import: its limits hold, and it does not outlive its service."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from saucer.dataset.domain import Imported, ImportFailedError, SourceFormat
from saucer.dataset.import_job import ImportJob
from saucer.dataset.import_process import AcceptedImage, run_child
from saucer.lib.confined import ChildDiedError
from saucer.lib.confinement import ChildLimits
from tests.unit.dataset.folders import box, coco, image, picture, simple, write

MB = 1024**2
LIMITS = ChildLimits(memory_bytes=1024 * MB, file_bytes=100 * MB, time_limit_s=30.0)


def job(folder: Path, source: Path) -> ImportJob:
    return ImportJob(
        source=str(source),
        unpacked=str(folder / "unpacked"),
        manifest=str(folder / "manifest.json"),
        listing=str(folder / "listing"),
        seed=1,
        source_format=SourceFormat.AUTO,
        max_unpacked_bytes=100 * MB,
    )


async def run(
    job: ImportJob, limits: ChildLimits = LIMITS
) -> tuple[Imported, list[AcceptedImage], list[tuple[int, int]]]:
    images: list[AcceptedImage] = []
    progress: list[tuple[int, int]] = []

    async def keep(accepted: Sequence[AcceptedImage]) -> None:
        images.extend(accepted)

    imported = await run_child(job, limits, images=keep, progress=lambda done, total: progress.append((done, total)))
    return imported, images, progress


async def test_a_child_imports_a_folder_and_says_how_far_it_is(tmp_path: Path) -> None:
    source = simple(tmp_path / "source", [box(1, 1), box(2, 2)], count=3)
    imported, images, progress = await run(job(tmp_path, source))
    assert imported.classes == ("cup", "plate")
    assert imported.statistics["total"]["boxes"] == 2
    assert imported.report["refused"] == {}
    assert progress[-1] == (3, 3)
    assert {image.path: image.sha256 for image in images} == {
        f"images/{number}.png": hashlib.sha256(picture(number)).hexdigest() for number in (1, 2, 3)
    }


async def test_an_import_that_needs_more_memory_than_its_limit_is_refused(tmp_path: Path) -> None:
    # Names as long as they may be; all of them are kept until the images are read.
    images = [image(number, file_name=f"{number:01000d}") for number in range(100_000)]
    source = write(tmp_path / "source", {"annotations.json": coco(images)})
    with pytest.raises(ImportFailedError) as refused:
        await run(job(tmp_path, source), replace(LIMITS, memory_bytes=320 * MB))
    assert refused.value.reason == "OUT_OF_MEMORY"


async def test_a_file_that_grows_beyond_its_limit_is_refused(tmp_path: Path) -> None:
    source = simple(tmp_path / "source")
    with pytest.raises(ImportFailedError) as refused:
        await run(job(tmp_path, source), replace(LIMITS, file_bytes=100))
    assert refused.value.reason == "FILE_TOO_LARGE"


async def test_an_import_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    source = simple(tmp_path / "source")
    with pytest.raises(ImportFailedError) as refused:
        await run(job(tmp_path, source), replace(LIMITS, time_limit_s=0.01))
    assert refused.value.reason == "IMPORT_TIMED_OUT"


async def test_a_child_that_cannot_do_its_job_has_died(tmp_path: Path) -> None:
    source = simple(tmp_path / "source")
    with pytest.raises(ChildDiedError):
        await run(replace(job(tmp_path, source), manifest=str(tmp_path / "nowhere/manifest.json")))


async def test_a_source_cannot_put_modules_in_the_way_of_its_import(tmp_path: Path) -> None:
    source = simple(tmp_path / "source", [box(1, 1)])
    write(source, {"ijson.py": b"raise SystemExit", "numpy.py": b"raise SystemExit"})
    imported, _, _ = await run(job(tmp_path, source))
    assert imported.statistics["total"]["images"] == 1
