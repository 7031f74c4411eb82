"""Wires evaluation, top to bottom."""

from datetime import timedelta

from pydantic import Field

from saucer.evaluation import consumers, rpc
from saucer.evaluation.scorer import MAX_ATTEMPTS, Scorer
from saucer.evaluation.scoring_process import FILE_BYTES, MEMORY_BYTES, TIME_LIMIT_S
from saucer.evaluation.service import CACHE_BYTES, CLAIM, Evaluations
from saucer.lib.config import ServiceSettings
from saucer.lib.confinement import ChildLimits
from saucer.lib.objects import Objects
from saucer.lib.run import Process, run


class EvaluationSettings(ServiceSettings):
    """What evaluation needs besides. Temporary files of a scoring lie where TMPDIR says, without a name."""

    # file:///folder, s3://bucket/prefix.
    object_store_url: str
    # How long the scoring of a process that was killed waits to be taken up.
    scoring_claim_s: float = Field(default=CLAIM.total_seconds(), gt=0)
    scoring_time_limit_s: float = Field(default=TIME_LIMIT_S, gt=0)
    # Of one scoring's child process; Python and its libraries alone take most of the least.
    scoring_memory_bytes: int = Field(default=MEMORY_BYTES, ge=512 * 1024**2)
    scoring_attempts: int = Field(default=MAX_ATTEMPTS, ge=1)
    # Of finished evaluations kept in memory.
    cache_bytes: int = Field(default=CACHE_BYTES, ge=0)


async def wire(process: Process, settings: EvaluationSettings) -> None:
    """Database, object store, events in and out, the scorer, gRPC."""
    database = await process.database(settings, "saucer.evaluation")
    jetstream = await process.jetstream(settings)
    process.relay(database, jetstream)
    process.retention(settings, database)
    process.gauges(database)
    objects = Objects(settings.object_store_url)
    claim = timedelta(seconds=settings.scoring_claim_s)
    evaluations = Evaluations(database, objects, claim=claim, cache_bytes=settings.cache_bytes)
    dead_events = process.consumer(database, jetstream, consumers.handlers(evaluations))
    limits = ChildLimits(settings.scoring_memory_bytes, FILE_BYTES, settings.scoring_time_limit_s)
    scorer = Scorer(evaluations, objects, limits, max_attempts=settings.scoring_attempts)
    process.background("scorer", scorer.run())
    await process.serve(settings, [rpc.servicer(evaluations), dead_events], database)


def main() -> None:
    """Runs until it is told to stop."""
    run("evaluation", EvaluationSettings, wire)


if __name__ == "__main__":
    main()
