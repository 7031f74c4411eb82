"""What the gate found of each version, and with which runtime a model is served on a spec."""

from saucer.lib.postgres import Database
from saucer.publishing import gate_store
from saucer.publishing.domain import Triton
from saucer.publishing.gate import Gate, RuntimeChoice


class Gates:
    """Kept for as long as their deployments; a choice, for as long as its model."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def chosen(self, model_id: str, triton: Triton) -> RuntimeChoice | None:
        """For the Triton's spec; None: it has not been measured there yet."""
        async with self._database.reading() as connection:
            return await gate_store.get_choice(connection, model_id, triton.region_id, triton.spec_id)

    async def choose(self, model_id: str, triton: Triton, choice: RuntimeChoice) -> None:
        """On the Triton's spec the model is served so from now on."""
        async with self._database.transaction() as tx:
            await gate_store.put_choice(tx.connection, model_id, triton.region_id, triton.spec_id, choice, tx.now)

    async def keep(self, deployment_id: str, version_number: int, triton: Triton, gate: Gate) -> None:
        """What was found of a version on a Triton."""
        async with self._database.transaction() as tx:
            await gate_store.put_gate(tx.connection, deployment_id, version_number, triton.triton_id, gate, tx.now)
