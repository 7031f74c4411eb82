"""Starting points: fetched once from a mirror, checked, kept; and a training that begins with an earlier model."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from saucer.lib.errors import NotFoundError, UnavailableError
from saucer.worker import catalogue, checkpoint
from saucer.worker.catalogue import CACHE_PREFIX, CatalogueError, Pretrained, fetch
from saucer.worker.errors import CheckpointError
from saucer.worker.job import EndReason, Failure, FailureKind, Log, StartingPoint, TrainJob
from tests.support.child import Child
from tests.support.shapes import CLASSES, write_shapes
from tests.support.training import object_store

TINY = StartingPoint.RTMDET_TINY_COCO
WEIGHTS = b"weights"
NOWHERE = "http://127.0.0.1:1/zoo"

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as the zoo, with one small file."""
    key = f"tiny/weights-{hashlib.sha256(WEIGHTS).hexdigest()[:8]}.pth"
    monkeypatch.setattr(catalogue, "PRETRAINED", {TINY: Pretrained(key)})
    file = tmp_path / "mirror" / key
    file.parent.mkdir(parents=True)
    file.write_bytes(WEIGHTS)
    return tmp_path / "mirror"


def only_file(folder: Path) -> Path:
    (file,) = folder.rglob("*.pth")
    return file


async def test_weights_are_fetched_once_and_kept_in_the_object_store(mirror: Path, tmp_path: Path) -> None:
    _, objects = object_store(tmp_path)
    file = tmp_path / "weights.pth"
    await fetch(objects, TINY, f"file://{mirror}", file)
    assert file.read_bytes() == WEIGHTS
    only_file(mirror).unlink()
    again = tmp_path / "again.pth"
    await fetch(objects, TINY, NOWHERE, again)
    assert again.read_bytes() == WEIGHTS


async def test_without_a_network_the_sentence_says_what_to_do_and_may_be_tried_again(
    mirror: Path, tmp_path: Path
) -> None:
    _, objects = object_store(tmp_path)
    with pytest.raises(UnavailableError, match=r"cannot be fetched from .* Choose the starting point imagenet-lite0"):
        await fetch(objects, TINY, NOWHERE, tmp_path / "weights.pth")


async def test_a_mirror_without_the_file_is_final(mirror: Path, tmp_path: Path) -> None:
    _, objects = object_store(tmp_path)
    only_file(mirror).unlink()
    with pytest.raises(CatalogueError, match=r"cannot be fetched from .* Choose the starting point imagenet-lite0"):
        await fetch(objects, TINY, f"file://{mirror}", tmp_path / "weights.pth")


async def test_another_file_than_the_checksum_names_is_refused_and_not_kept(mirror: Path, tmp_path: Path) -> None:
    _, objects = object_store(tmp_path)
    damaged = only_file(mirror)
    damaged.write_bytes(b"damaged")
    with pytest.raises(CatalogueError, match="not what their checksum"):
        await fetch(objects, TINY, f"file://{mirror}", tmp_path / "weights.pth")
    with pytest.raises(NotFoundError):
        await objects.get(f"{CACHE_PREFIX}/{damaged.name}")


async def test_a_damaged_copy_in_the_object_store_is_fetched_anew(mirror: Path, tmp_path: Path) -> None:
    _, objects = object_store(tmp_path)
    file = only_file(mirror)
    await objects.put(f"{CACHE_PREFIX}/{file.name}", b"damaged")
    await fetch(objects, TINY, f"file://{mirror}", tmp_path / "weights.pth")
    assert await objects.get(f"{CACHE_PREFIX}/{file.name}") == WEIGHTS


def test_a_file_of_the_zoo_is_read_with_its_metrics_and_one_that_would_execute_is_not(tmp_path: Path) -> None:
    history = HistoryBuffer([0.5], [1])
    content = {"state_dict": {"a": torch.ones(2)}, "message_hub": {"loss": history, "lr": np.array([0.1])}}
    torch.save(content, tmp_path / "zoo.pth")
    assert torch.equal(checkpoint.load_weights(tmp_path / "zoo.pth")["a"], torch.ones(2))
    torch.save({"state_dict": {"a": torch.ones(2)}, "run": Path}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"bad\.pth cannot be read"):
        checkpoint.load_weights(tmp_path / "bad.pth")


def test_a_training_begins_with_an_earlier_model_of_other_classes_and_not_with_another_network(
    child: Child, folder: Path
) -> None:
    data = write_shapes(folder / "data", train=8, validation=4, test=1)
    job = TrainJob(
        workdir=str(folder / "first"),
        images=str(data.images),
        train=str(data.train),
        validation=str(data.validation),
        test=str(data.test),
        classes=CLASSES,
        starting_point=StartingPoint.RTMDET_S_COCO,
        input_size=64,
        epochs=1,
        batch_size=4,
    )
    first = child.run(job)
    job = dataclasses.replace(job, weights=first.files["weights"], classes=CLASSES[:1])
    second = child.run(dataclasses.replace(job, workdir=str(folder / "second"), lr=1e-6))
    assert second.reason is EndReason.COMPLETED
    assert any("tensors come from best.pth" in report.text for report in child.all(Log))
    before, after = (torch.load(result.files["weights"], weights_only=True)["state_dict"] for result in (first, second))
    moved = [float((before[name] - after[name]).abs().max()) for name in before if name.endswith("conv.weight")]
    assert max(moved) < 1e-4
    child.send(dataclasses.replace(job, workdir=str(folder / "third"), starting_point=StartingPoint.IMAGENET_LITE0))
    failure = child.wait_for(Failure)
    assert failure.kind is FailureKind.USER
    assert "another network's" in failure.message
