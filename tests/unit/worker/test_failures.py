"""What ended a job: the user's to mend, and then how; or the platform's to try again."""

import pytest

from saucer.worker.child import failure
from saucer.worker.errors import CheckpointError, UserError
from saucer.worker.job import FailureKind, PredictJob, TrainJob

JOB = TrainJob(workdir="w", images="i", train="t", classes=("cup",), batch_size=8)
ALONE = TrainJob(workdir="w", images="i", train="t", classes=("cup",), batch_size=1)
PREDICTION = PredictJob(workdir="w", images="i", model="m", classes=("cup",))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 64 GB"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_out_of_memory_is_not_tried_again_and_says_what_to_make_smaller(error: Exception) -> None:
    assert failure(error, JOB).kind is FailureKind.USER
    assert "smaller batch_size or input_size" in failure(error, JOB).message
    assert "smaller input_size or starting_point" in failure(error, ALONE).message
    assert "larger spec" in failure(error, PREDICTION).message


def test_bad_data_is_not_tried_again_and_a_fault_of_ours_is() -> None:
    assert failure(UserError("Image 7 cannot be read. Import the data without it."), JOB).kind is FailureKind.USER
    for error in (RuntimeError("shape mismatch"), CheckpointError("cut"), OSError(28, "No space left on device")):
        assert failure(error, JOB).kind is FailureKind.PLATFORM
