"""What the gate found of each version, and with which runtime a model is served on a spec."""

from collections.abc import Collection
from datetime import timedelta

from saucer.lib.postgres import Database
from saucer.publishing.domain import Triton
from saucer.publishing.gate import Gate, RuntimeChoice, outdoes
from saucer.publishing.store import gates as gate_store

# A choice for which a runtime failed is kept for so long before all are measured again: memory may have been short for
# it, but one may fail every time, and each time takes as long as a trial may.
MEASURE_AGAIN_AFTER = timedelta(hours=1)


class Gates:
    """Kept for as long as their deployments; a choice, for as long as its model."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def chosen(self, model_id: str, triton: Triton) -> RuntimeChoice | None:
        """For the Triton's spec; None: it has not been measured there yet."""
        async with self._database.reading() as connection:
            return await gate_store.get_choice(connection, model_id, triton.region_id, triton.spec_id)

    async def settled(self, model_id: str, triton: Triton) -> RuntimeChoice | None:
        """The same; None: it is to be measured, for the first time or again."""
        async with self._database.transaction() as tx:
            since = tx.now - MEASURE_AGAIN_AFTER
            return await gate_store.get_choice(tx.connection, model_id, triton.region_id, triton.spec_id, since)

    async def choose(
        self, model_id: str, triton: Triton, choice: RuntimeChoice, disagreed: Collection[str] = ()
    ) -> None:
        """On the Triton's spec the model is served so from now on, or as before if that is better still.

        Args:
            disagreed: runtimes whose boxes differ from the evaluation's; none of them is kept.
        """
        async with self._database.transaction() as tx:
            kept = await gate_store.get_choice(tx.connection, model_id, triton.region_id, triton.spec_id)
            if kept is not None and kept.runtime not in disagreed and outdoes(kept, choice):
                choice = kept
            await gate_store.put_choice(tx.connection, model_id, triton.region_id, triton.spec_id, choice, tx.now)

    async def keep(self, deployment_id: str, version_number: int, triton: Triton, gate: Gate) -> None:
        """What was found of a version on a Triton."""
        async with self._database.transaction() as tx:
            await gate_store.put_gate(tx.connection, deployment_id, version_number, triton.triton_id, gate, tx.now)
