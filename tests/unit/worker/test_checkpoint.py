"""A checkpoint is read without running what is in it."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from saucer.worker import checkpoint
from saucer.worker.checkpoint import STATE_KEY, RunState
from saucer.worker.errors import CheckpointError


class Evil:
    """Unpickled without care it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._folder),)


def content(**more: Any) -> dict[str, Any]:
    return {"state_dict": {"a": torch.ones(2)}, STATE_KEY: vars(RunState(7, 100, "float32", [])), **more}


def test_a_checkpoint_of_ours_is_read(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "whole.pth", content())
    weights, state = checkpoint.load(tmp_path / "whole.pth")
    assert torch.equal(weights["a"], torch.ones(2))
    assert state.iteration == 7


@pytest.mark.parametrize("zipped", [True, False], ids=["as torch writes it", "as torch wrote it before 1.6"])
def test_one_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, zipped: bool) -> None:
    made, file = tmp_path / "made", tmp_path / "evil.pth"
    torch.save(content(optimizer=Evil(made)), file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"evil\.pth cannot be read"):
        checkpoint.load(file)
    assert not made.exists()
    torch.load(file, weights_only=False)
    assert made.exists(), "read without care, it would have"


def test_one_that_is_cut_or_lacks_our_state_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "whole.pth", content())
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    for name in ("cut", "other"):
        with pytest.raises(CheckpointError, match=rf"{name}\.pth"):
            checkpoint.load(tmp_path / f"{name}.pth")
