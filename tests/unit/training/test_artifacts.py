"""What a worker may name as the files of a model."""

import pytest

from saucer.lib.errors import InvalidArgumentError
from saucer.lib.objects import Objects, sha256_of
from saucer.training.artifacts import NEEDED_NAMES, check_names, verify
from saucer.training.domain import ModelFile

EMPTY = sha256_of(b"")


def files(**sizes: int) -> list[ModelFile]:
    names = sorted(NEEDED_NAMES | {"metrics.jsonl"})
    return [ModelFile(name, f"p/{name}", sizes.get(name.split(".")[0], 1), EMPTY) for name in names]


async def test_a_run_stopped_before_its_first_metrics_has_an_empty_metrics_file() -> None:
    check_names(files(metrics=0), "p")
    objects = Objects("memory:///")
    await objects.put("p/metrics.jsonl", b"")
    await verify(objects, [ModelFile("metrics.jsonl", "p/metrics.jsonl", 0, EMPTY)])


def test_an_empty_model_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="empty"):
        check_names(files(model=0), "p")
