"""Publishing as a process that kills itself (SIGKILL) at one step of a publish: `python -m … STEP`, settings as usual.

Without a step it lives, as a second replica does.
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from saucer.publishing import placement, repository
from saucer.publishing.main import main
from saucer.publishing.peers import Peers
from saucer.publishing.service.serving import Serving
from saucer.publishing.triton import TritonClient

# In the order in which a publish comes to them: where a process is killed, before or after what it calls there.
STEPS: dict[str, tuple[Any, str, bool]] = {
    "the deployment is stored, no hold asked for": (Peers, "hold", True),
    "billing has granted the hold": (Peers, "hold", False),
    "there is room, nothing fetched": (placement, "choose_samples", True),
    "half the version is written aside": (repository, "_sync_tree", True),
    "the version is in place, without its configuration": (repository, "write_config", True),
    "the version is written": (TritonClient, "load", True),
    "Triton has loaded it": (TritonClient, "load", False),
    "the replay agreed": (Serving, "activate", True),
    "it is active": (Serving, "activate", False),
}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dying(call: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
    def at_once(*_: object, **__: object) -> None:
        _die()

    async def afterwards(*arguments: object, **named: object) -> None:
        await_it: Awaitable[Any] = call(*arguments, **named)
        await await_it
        _die()

    return at_once if before else afterwards


if __name__ == "__main__":
    if len(sys.argv) > 1:
        owner, name, before = STEPS[sys.argv.pop()]
        setattr(owner, name, _dying(getattr(owner, name), before=before))
    main()
