"""The one JetStream stream that keeps every event."""

from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError as NoSuchStreamError

STREAM = "SAUCER"
# For how long a new consumer can replay, and a lost stream be filled again; older events are dropped.
KEEP_DAYS = 30
# Within this JetStream drops a second event of the same id.
DUPLICATE_WINDOW_S = 3600.0


async def ensure_stream(jetstream: JetStreamContext, keep_days: int | None = None) -> None:
    """Makes the stream, or brings it up to date. Without `keep_days` an existing one keeps its own."""
    config = StreamConfig(
        name=STREAM,
        subjects=["saucer.>"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        max_age=(keep_days or KEEP_DAYS) * 24 * 3600.0,
        duplicate_window=DUPLICATE_WINDOW_S,
    )
    try:
        former = await jetstream.stream_info(STREAM)
    except NoSuchStreamError:
        await jetstream.add_stream(config)
    else:
        if keep_days is None:
            config.max_age = former.config.max_age
        await jetstream.update_stream(config)
