"""Instances: a version of a deployment on one Triton. Where they are to be, and which of them count. No I/O."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

# After so many failures at one Triton, the last with its files written anew, an instance is tried at another as well.
LEAVE_ATTEMPTS = 2


class InstanceState(StrEnum):
    """Of one instance. LOADING: being put there and replayed; LOST: it has served, and does not now."""

    LOADING = "LOADING"
    SERVING = "SERVING"
    LOST = "LOST"


@dataclass(frozen=True)
class Instance:
    """A version on one Triton."""

    version_number: int
    triton_id: str
    state: InstanceState
    # Of the last change of state.
    since: datetime
    # The last good probe while it is SERVING; what counts is counted up to here.
    probed_at: datetime | None = None
    # Failures since it last served, when to try again, and what went wrong.
    attempts: int = 0
    retry_at: datetime | None = None
    message: str = ""

    @property
    def key(self) -> tuple[int, str]:
        """What there is one of in a deployment."""
        return (self.version_number, self.triton_id)

    @property
    def serving(self) -> bool:
        """Whether it answers requests."""
        return self.state is InstanceState.SERVING

    @property
    def stuck(self) -> bool:
        """Whether its Triton may be what keeps it from serving."""
        return self.attempts >= LEAVE_ATTEMPTS


@dataclass(frozen=True)
class Plan:
    """Tritons that are to take one, and instances that are not wanted any more."""

    added: tuple[str, ...] = ()
    given_up: tuple[Instance, ...] = ()


def plan(
    held: Sequence[Instance],
    replicas: int,
    leaving: Collection[str],
    room: Mapping[str, int],
    awaited: Collection[str] = (),
    refusing: Mapping[str, int] | None = None,
    failing: Collection[str] = (),
) -> Plan:
    """What is to change so that as many serve as are wanted, each on a Triton of its own, the most free first.

    Args:
        held: of the version that serves.
        leaving: Tritons that are drained, have not answered for a while, or are of another spec.
        room: by Triton that may take more, how many more.
        awaited: Tritons on which a candidate is to follow first; until then nothing is replaced by what serves there.
        refusing: by Triton, how many instances of any deployment are stuck there: one that everything leaves has the
            most room, and comes last.
        failing: Tritons whose repository has failed for a while; they come after all others, and what leaves one of
            them is tried at no other.

    What is on a leaving Triton stays until another serves in its place, one for one. What is stuck is tried on, too,
    until as many serve elsewhere as are wanted. Once more are stuck than are wanted, it is tried nowhere else: it is
    the model, then.
    """
    going = sorted((item for item in held if item.triton_id in leaving), key=_worth)
    stuck = [item for item in held if item.triton_id not in leaving and item.stuck]
    staying = sorted((item for item in held if item.triton_id not in leaving and not item.stuck), key=_worth)
    wanted = replicas - len(staying) if len(stuck) <= replicas else 0
    taken = {item.triton_id for item in held}
    refused = refusing or {}
    shunned = failing if any(item.triton_id in failing for item in going) else ()
    free = sorted(
        (key for key in room if key not in taken and key not in shunned and room[key] > 0),
        key=lambda key: (key in failing, refused.get(key, 0), -room[key], key),
    )
    following = sum(item.serving and item.triton_id not in awaited for item in staying)
    replaced = following + len(going) - replicas
    surplus = len(staying) - replicas if not going else 0
    return Plan(
        added=tuple(free[: max(0, wanted)]),
        given_up=(*going[: max(0, replaced)], *staying[: max(0, surplus)], *(stuck if following >= replicas else ())),
    )


def counted(held: Sequence[Instance], replicas: int) -> list[Instance]:
    """Those that are charged: what serves, and of more than are wanted those that have served longest."""
    return sorted((item for item in held if item.serving), key=lambda item: (item.since, item.triton_id))[:replicas]


def _worth(item: Instance) -> tuple[bool, float, str]:
    """Least first: what does not serve, then what has been there for a shorter time."""
    return (item.serving, -item.since.timestamp(), item.triton_id)
