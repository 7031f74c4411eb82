"""Takes up what lost its worker. Every replica does, and SKIP LOCKED keeps them apart."""

import asyncio

from saucer.lib.rounds import INTERRUPTIONS
from saucer.training.charging import LEASE_MS
from saucer.training.lease import Reachable
from saucer.training.service import Training

SWEEP_S = 1.0
# Rounds further apart are a pause in which workers may not have been heard.
LONGEST_PAUSE_S = 5.0


class Sweeper:
    """To be started when the server serves: from then on workers can be heard."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._reachable = Reachable(LONGEST_PAUSE_S)
        self._heard_for_s = 0.0

    async def sweep_once(self) -> None:
        """One round. Raises what PostgreSQL raises: leases end only a lease length after it answers again."""
        try:
            await self._training.sweep(expire=self._heard_for_s * 1000 >= LEASE_MS)
        except INTERRUPTIONS:
            self._reachable.broken()
            self._heard_for_s = 0.0
            raise
        self._heard_for_s = self._reachable.seen(asyncio.get_running_loop().time())
