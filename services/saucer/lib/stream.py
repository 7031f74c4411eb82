"""The one JetStream stream that keeps every event."""

from dataclasses import dataclass

from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError as NoSuchStreamError

STREAM = "SAUCER"
# For how long a new consumer can replay, and a lost stream be filled again; older events are dropped.
KEEP_DAYS = 30
# Within this JetStream drops a second event of the same id.
DUPLICATE_WINDOW_S = 3600.0


@dataclass(frozen=True)
class StreamShape:
    """What of the stream is a setting."""

    keep_days: int = KEEP_DAYS
    # NATS servers that each keep a copy.
    replicas: int = 1


USUAL = StreamShape()


async def ensure_stream(jetstream: JetStreamContext, shape: StreamShape = USUAL) -> None:
    """Makes the stream if there is none; one that is there stays as it is.

    Raises nats.js.errors.Error if NATS refuses, as a single server does for more than one replica.
    """
    try:
        await jetstream.stream_info(STREAM)
    except NoSuchStreamError:
        made = StreamConfig(
            name=STREAM,
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            num_replicas=shape.replicas,
        )
        await jetstream.add_stream(_with_ours(made, shape))


async def update_stream(jetstream: JetStreamContext, shape: StreamShape) -> None:
    """Brings a stream that is there up to date. What else an administrator has set stays, replicas too."""
    former = (await jetstream.stream_info(STREAM)).config
    await jetstream.update_stream(_with_ours(former, shape))


def _with_ours(config: StreamConfig, shape: StreamShape) -> StreamConfig:
    max_age_s = shape.keep_days * 24 * 3600.0
    return config.evolve(subjects=["saucer.>"], max_age=max_age_s, duplicate_window=DUPLICATE_WINDOW_S)
