"""The one JetStream stream that keeps every event."""

from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError as NoSuchStreamError

STREAM = "SAUCER"
# For how long a new consumer can replay, and a lost stream be filled again; older events are dropped.
KEEP_DAYS = 30
# Within this JetStream drops a second event of the same id.
DUPLICATE_WINDOW_S = 3600.0


async def ensure_stream(jetstream: JetStreamContext, keep_days: int | None = None, replicas: int = 1) -> None:
    """Makes the stream, or brings it up to date.

    Of an existing one an administrator's own settings stay, and the number of servers that keep a copy is one of them;
    without `keep_days` so does for how long it keeps messages. Raises nats.js.errors.Error if NATS refuses, as a single
    server does for more than one replica.
    """
    max_age_s = (keep_days or KEEP_DAYS) * 24 * 3600.0
    try:
        former = (await jetstream.stream_info(STREAM)).config
    except NoSuchStreamError:
        made = StreamConfig(
            name=STREAM,
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            num_replicas=replicas,
        )
        await jetstream.add_stream(_with_ours(made, max_age_s))
    else:
        await jetstream.update_stream(_with_ours(former, max_age_s if keep_days else former.max_age))


def _with_ours(config: StreamConfig, max_age_s: float | None) -> StreamConfig:
    return config.evolve(subjects=["saucer.>"], max_age=max_age_s, duplicate_window=DUPLICATE_WINDOW_S)
