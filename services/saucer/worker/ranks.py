"""Several processes that train one model, on a GPU each.

1. The parent starts torch.distributed's elastic launcher in the child's place, for one attempt; the launcher starts
   child.py for each GPU, with a rank. The first, rank 0, speaks with the parent as a single child does.
2. Each joins the group, takes the job that rank 0 passes on, and trains on its share of each batch; gradients are
   averaged (mmengine: MMDistributedDataParallel, samplers by rank).
3. What depends on a clock or on the parent is decided by rank 0 alone, and the others follow: stops, checkpoints, the
   pace of validations. Rank 0 writes the checkpoints, with every rank's random state.
4. After training the others end, and rank 0 exports and predicts.
5. A rank that fails leaves the failure where rank 0 looks each second, tells it, and ends; then the launcher ends the
   others. A rank that is killed takes all with it, by the launcher; and all end with the launcher.

Here and in what is built on it, a process without a group is rank 0 of one.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from mmengine import dist
from torch.distributed.rendezvous import rendezvous

from saucer.worker.errors import UserError
from saucer.worker.job import Failure, decode, encode

# For whoever is late to a collective: the slowest of imports, an upload's fsync, a validation of rank 0 alone.
TIMEOUT = timedelta(minutes=30)
LOOK_S = 1.0
# A rank that has failed stays so long, so that rank 0 hears of the failure and not of a lost connection.
LINGER_S = 30.0
_FAILURE = "failure"
COLLECT = "gpu"
"""How a metric's results come together: by the group's own means, also on a CPU; "cpu" stands for files in whatever
folder the process runs in."""

T = TypeVar("T")


class Group:
    """What its ranks tell each other beside training."""

    def __init__(self) -> None:
        """Waits for the others."""
        self._store, rank, size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        gpus = torch.cuda.device_count()
        if gpus:
            torch.cuda.set_device(rank % gpus)
        torch.distributed.init_process_group(
            "nccl" if gpus >= size else "gloo", store=self._store, rank=rank, world_size=size, timeout=TIMEOUT
        )

    def fail(self, failure: Failure) -> None:
        """Leaves it for rank 0."""
        self._store.set(_FAILURE, encode(failure))
        time.sleep(LINGER_S)

    def watch(self, tell: Callable[[Failure], None]) -> None:
        """Of rank 0: until another one fails; then this process ends."""
        threading.Thread(target=self._watch, args=(tell,), name="ranks", daemon=True).start()

    def _watch(self, tell: Callable[[Failure], None]) -> None:
        while not self._store.check([_FAILURE]):
            time.sleep(LOOK_S)
        failure = decode(self._store.get(_FAILURE))
        assert isinstance(failure, Failure)
        tell(failure)
        sys.stderr.flush()
        os._exit(1)


def check_gpus(processes: int) -> None:
    """Raises UserError if the machine has GPUs, and fewer."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise UserError(f"The task wants {processes} GPUs, and this machine has {gpus}. Choose a smaller count.")


def agreed(value: T) -> T:
    """Rank 0's value; every rank has to ask."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gathered(value: T) -> list[T]:
    """Every rank's, at each of them; every rank has to ask."""
    values: list[T] = dist.all_gather_object(value)
    return values


def share_buffers(model: torch.nn.Module) -> None:
    """Makes rank 0's running statistics everybody's: they are of each rank's own images."""
    for buffer in model.buffers():
        dist.broadcast(buffer)


def wait_for_all() -> None:
    """Until every rank is here."""
    dist.barrier()
