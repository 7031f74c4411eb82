"""Wires billing, top to bottom."""

from saucer.billing import consumers, rpc, watching
from saucer.billing.service import Billing
from saucer.lib.config import ServiceSettings
from saucer.lib.run import Process, run


async def wire(process: Process, settings: ServiceSettings) -> None:
    """Database, events in and out, the sweeper, gRPC."""
    database = await process.database(settings, "saucer.billing")
    jetstream = await process.jetstream(settings)
    await process.keep_stream(jetstream)
    process.relay(database, jetstream)
    process.retention(settings, database)
    process.gauges(database, *watching.READINGS)
    billing = Billing(database)
    process.background("sweep", billing.sweep())
    process.background("audit", watching.audit_for_ever(billing.statements.audit))
    dead_events = process.consumer(database, jetstream, consumers.handlers(billing))
    await process.serve(settings, [rpc.servicer(billing), dead_events], database)


def main() -> None:
    """Runs until it is told to stop."""
    run("billing", ServiceSettings, wire)


if __name__ == "__main__":
    main()
