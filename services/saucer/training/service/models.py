"""The deletion of models, and who serves them."""

import structlog

from saucer.lib.auth import current
from saucer.lib.errors import NotFoundError
from saucer.lib.ids import derived_id
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Database
from saucer.training import domain
from saucer.training.domain import Deployment, Model
from saucer.training.messages import model_message
from saucer.training.store import models
from saucer.training.v1 import events_pb2

log = structlog.get_logger()


class Models:
    """What runs left, once it is no longer wanted."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def delete(self, model_id: str) -> Model:
        """Softly; leftovers.py removes the files later. Raises NotFoundError, FailedPreconditionError: MODEL_SERVED."""
        async with self._database.transaction() as tx:
            model = await models.get_model(tx.connection, model_id, lock=True)
            if model is None:
                raise NotFoundError("model", model_id)
            current().own("model", model_id, model.account_id)
            deleted = domain.delete_model(model, await models.served_by(tx.connection, model_id), tx.now)
            if deleted == model:
                return model
            await models.mark_deleted(tx.connection, deleted)
            await enqueue(
                tx,
                derived_id("ModelDeleted", model_id),
                events_pb2.ModelDeleted(model=model_message(deleted)),
                account_id=deleted.account_id,
                work_id=deleted.task_id,
                resource_id=model_id,
            )
            log.info("model_deleted", model_id=model_id, author=current().subject)
            return deleted

    async def hear_of(self, deployment: Deployment) -> None:
        """What publishing tells; an older word than what is known changes nothing."""
        async with self._database.transaction() as tx:
            await models.put_deployment(tx.connection, deployment)
