"""A training child for the tests of a module: to start it takes seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.child import Child


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker")


@pytest.fixture(scope="module")
def child(folder: Path) -> Iterator[Child]:
    started = Child(folder / "stderr.txt")
    yield started
    started.close()
