"""What holds of several processes before they are at work, as in tests/integration/worker/test_several_processes.py."""

import pytest
import torch

from saucer.worker import ranks
from saucer.worker.child_process import PROGRAM, program
from saucer.worker.errors import UserError
from saucer.worker.job import BadMessageError, TrainJob


@pytest.mark.parametrize(("gpus", "processes", "fits"), [(0, 2, True), (1, 1, True), (4, 4, True), (1, 2, False)])
def test_more_gpus_than_the_machine_has_are_refused(
    monkeypatch: pytest.MonkeyPatch, gpus: int, processes: int, fits: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if fits:
        ranks.check_gpus(processes)
    else:
        with pytest.raises(UserError, match=f"wants {processes} GPUs, and this machine has {gpus}"):
            ranks.check_gpus(processes)


def test_a_process_alone_agrees_with_itself() -> None:
    assert ranks.agreed("a") == "a"
    assert ranks.gathered({"a": 1}) == [{"a": 1}]


@pytest.mark.parametrize(("batch_size", "processes", "share"), [(8, 1, 8), (8, 2, 4), (9, 2, 5), (1, 4, 1)])
def test_a_batch_is_shared_and_rounded_up(batch_size: int, processes: int, share: int) -> None:
    job = TrainJob("w", "i", "t", ("cup",), batch_size=batch_size, processes=processes)
    assert job.batch_share == share


def test_one_process_needs_no_launcher_and_none_is_no_number() -> None:
    assert program(1) == PROGRAM
    assert "--nproc-per-node=3" in program(3)
    with pytest.raises(BadMessageError, match="processes"):
        TrainJob("w", "i", "t", ("cup",), processes=0)
