"""An independent reading of the events: what each start must cost, from nothing but the stream."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from nats.js import JetStreamContext

from saucer.lib.cloudevent import CloudEvent, parse_headers
from saucer.lib.stream import STREAM


@dataclass(frozen=True)
class Start:
    """One start as the events tell it."""

    hold_id: str
    price_per_hour_micros: int
    count: int
    amount_micros: int
    charged_ms: int

    @property
    def charge_micros(self) -> int:
        return self.price_per_hour_micros * self.count * (self.charged_ms // 1000) // 3600


async def replay(jetstream: JetStreamContext, subject: str) -> list[CloudEvent]:
    """Everything that the stream keeps of a subject, as a consumer that joins now sees it."""
    pending = (await jetstream.stream_info(STREAM, subjects_filter=subject)).state.subjects or {}
    total = sum(pending.values())
    if total == 0:
        return []
    subscription = await jetstream.subscribe(subject, stream=STREAM, ordered_consumer=True)
    events = []
    for _ in range(total):
        message = await subscription.next_msg(timeout=10)
        events.append(parse_headers(message.headers, message.data))
    await subscription.unsubscribe()
    return events


def starts(events: Sequence[CloudEvent]) -> dict[str, Start]:
    """Each granted start with the greatest counter that its work has told."""
    holds = {}
    counters: dict[str, int] = {}
    for event in events:
        body = json.loads(event.data)
        if event.type == "saucer.billing.v1.HoldGranted":
            holds[body["hold"]["holdId"]] = body["hold"]
        for owner in ("run", "deployment"):
            if owner in body and "holdId" in body[owner]:
                hold_id = body[owner]["holdId"]
                counters[hold_id] = max(counters.get(hold_id, 0), int(body[owner].get("chargedMs", 0)))
    return {
        hold_id: Start(
            hold_id,
            int(hold["pricePerHourMicros"]),
            hold["count"],
            int(hold["amountMicros"]),
            counters.get(hold_id, 0),
        )
        for hold_id, hold in holds.items()
    }
