"""What a change tells."""

from google.protobuf.message import Message

from saucer.lib.ids import derived_id
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Transaction


async def publish(tx: Transaction, message: Message, *, account_id: str, resource_id: str, revision: int) -> None:
    """An event of something that belongs to no task or deployment, once for each of its revisions."""
    await enqueue(
        tx,
        derived_id(message.DESCRIPTOR.name, resource_id, revision),
        message,
        account_id=account_id,
        work_id=None,
        resource_id=resource_id,
    )
