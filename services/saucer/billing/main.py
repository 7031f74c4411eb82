"""Wires billing, top to bottom."""

from functools import partial

from saucer.billing import consumers, rpc, watching
from saucer.billing.service import SWEEP_S, Billing
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
    process.rounds("sweep", billing.sweep_once, SWEEP_S)
    process.rounds("audit", partial(watching.tell_audit, billing.statements.audit), watching.AUDIT_EVERY_S)
    dead_events = process.consumer(database, jetstream, consumers.handlers(billing))
    await process.serve(settings, [rpc.servicer(billing), dead_events], database)


def main() -> None:
    """Runs until it is told to stop."""
    run("billing", ServiceSettings, wire)


if __name__ == "__main__":
    main()
