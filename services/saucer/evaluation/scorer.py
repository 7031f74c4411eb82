"""Does the scorings: claims one, brings its files here, scores them in a child process, stores what came of it.

1. A claim expires unless it is prolonged, so the scoring of a process that was killed is taken up by the next one. A
   stop gives the claim back at once.
2. Everything on the way can be done twice: the objects have the same keys each time, and the same bytes of one version
   of this code; so none is written before the claim is known to be held still.
3. Only the transaction that ends the evaluation, guarded by the claim, makes it known, with its event. Then it is read
   into memory, since somebody will look at it.
4. Nothing waits for ever: what cannot pass is FAILED at once, what may pass after MAX_ATTEMPTS, a child that dies
   after MAX_CRASHES. A claim whose process was killed counts as an attempt.
"""

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import fields
from datetime import timedelta
from typing import IO

import asyncpg
import structlog
from prometheus_client import Counter, Histogram

from saucer.evaluation.domain import CannotScoreError, Evaluation, StoredFile, Summary, Sums
from saucer.evaluation.scoring_process import ScoringFiles, run_child
from saucer.evaluation.service import Claim, Evaluations
from saucer.lib import tracing
from saucer.lib.claims import ClaimLostError, while_held, work_off
from saucer.lib.confined import ChildDiedError
from saucer.lib.confinement import ChildLimits
from saucer.lib.errors import DataLossError, InvalidArgumentError, NotFoundError, UnavailableError
from saucer.lib.objects import Objects

# Of one evaluation, then it is FAILED: with the delays below about 35 minutes, less than a task waits for it.
MAX_ATTEMPTS = 40
RETRY_FIRST_S = 1.0
# The delay doubles with each attempt up to this.
RETRY_GREATEST_S = 60.0
# Child processes of one evaluation that died without a word, then it is FAILED.
MAX_CRASHES = 3
# To give a claim back at a stop; if PostgreSQL takes longer, the claim expires instead.
GIVE_BACK_S = 2.0
# Of a file that is scored; a larger one is FAILED. The child's memory is bounded besides.
MAX_FILE_BYTES = 2 * 1024**3
# The loop goes on after these, and an evaluation is tried again: it is not their cause.
_INTERRUPTIONS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, UnavailableError)

log = structlog.get_logger()
scorings_total = Counter("saucer_evaluation_scorings_total", "Scorings by how they ended", ["outcome"])
scoring_seconds = Histogram("saucer_evaluation_scoring_seconds", "Of one scoring, reads and writes included")


class Scorer:
    """One scoring at a time."""

    def __init__(
        self, evaluations: Evaluations, objects: Objects, limits: ChildLimits, *, max_attempts: int = MAX_ATTEMPTS
    ) -> None:
        self._evaluations = evaluations
        self._objects = objects
        self._limits = limits
        self._max_attempts = max_attempts

    async def run(self) -> None:
        """Until cancelled."""
        await work_off(self._evaluations.claim, self._do, self._evaluations.wanted, _INTERRUPTIONS)

    async def _do(self, claim: Claim) -> None:
        """One claimed evaluation, to its end or back to those that wait. Raises ClaimLostError."""
        outcome = "interrupted"
        try:
            ids = {"evaluation_id": claim.evaluation.evaluation_id}
            with tracing.span("score", parent=claim.evaluation.traceparent, attributes=ids):
                outcome = await self._end(claim)
        except ClaimLostError:
            outcome = "claim_lost"
            raise
        except asyncio.CancelledError:
            with suppress(ClaimLostError, *_INTERRUPTIONS):
                async with asyncio.timeout(GIVE_BACK_S):
                    await self._evaluations.give_back(claim, timedelta(0), attempt=False)
            raise
        finally:
            scorings_total.labels(outcome).inc()

    async def _end(self, claim: Claim) -> str:
        evaluation, started = claim.evaluation, time.perf_counter()

        def passed_ms() -> int:
            return round(1000 * (time.perf_counter() - started))

        try:
            if evaluation.attempts > self._max_attempts:
                raise CannotScoreError(f"It could not be scored in {self._max_attempts} attempts; the model is usable.")
            claim_s = self._evaluations.claim_length.total_seconds()
            summary, sums = await while_held(
                self._make(claim),
                lambda: self._evaluations.prolong(claim),
                claim_s=claim_s,
                every_s=claim_s / 3,
                transient=_INTERRUPTIONS,
            )
            ended = await self._evaluations.succeed(claim, summary, sums, passed_ms())
            scoring_seconds.observe(time.perf_counter() - started)
            await self._warm(ended)
            return "succeeded"
        except CannotScoreError as error:
            await self._evaluations.fail(claim, str(error), passed_ms())
            return "failed"
        except _INTERRUPTIONS as error:
            log.warning("scoring_interrupted", evaluation_id=evaluation.evaluation_id, error=repr(error))
            if evaluation.attempts >= self._max_attempts:
                message = f"It could not be scored in {self._max_attempts} attempts; the model is usable. Last: {error}"
                await self._evaluations.fail(claim, message, passed_ms())
                return "failed"
            await self._evaluations.give_back(claim, _delay(evaluation.attempts))
            return "interrupted"
        except ClaimLostError:
            raise
        except Exception as error:
            # The child's death, or a fault of ours that this evaluation brings out: not again and again, and no other
            # one must wait for it.
            if not isinstance(error, ChildDiedError):
                log.exception("scoring_crashed", evaluation_id=evaluation.evaluation_id)
            if evaluation.crashes + 1 >= MAX_CRASHES:
                await self._evaluations.fail(claim, f"Its scoring crashed {MAX_CRASHES} times.", passed_ms())
                return "failed"
            await self._evaluations.give_back(claim, _delay(evaluation.crashes + 1), crash=True)
            return "crashed"

    async def _warm(self, evaluation: Evaluation) -> None:
        try:
            await self._evaluations.warm(evaluation)
        except (*_INTERRUPTIONS, DataLossError) as error:
            # It has succeeded all the same; whoever reads it is told.
            log.warning("evaluation_not_warmed", evaluation_id=evaluation.evaluation_id, error=repr(error))

    async def _make(self, claim: Claim) -> tuple[Summary, Sums]:
        """The summary, and the checksums of the objects. Raises ClaimLostError."""
        evaluation, source = claim.evaluation, claim.evaluation.source
        async with AsyncExitStack() as stack:

            def new_file() -> IO[bytes]:
                return stack.enter_context(tempfile.TemporaryFile())

            async def put(target: StoredFile, file: IO[bytes]) -> str:
                # After a pause another replica may have written it, of a version that writes other bytes.
                await self._evaluations.prolong(claim)
                return await self._objects.put(target.key, await asyncio.to_thread(_content, file))

            files = ScoringFiles(*(new_file() for _ in fields(ScoringFiles)))
            await self._fetch("the manifest", source.manifest, files.manifest)
            await self._fetch("detections_test.npz", source.test, files.test)
            await self._fetch("detections_validation.npz", source.validation, files.validation)
            summary = await run_child(files, source.classes, self._limits, source.label_names)
            sums = Sums(
                scored=await put(evaluation.scored, files.scored),
                validation=await put(evaluation.scored_validation, files.scored_validation),
                truth=await put(evaluation.truth, files.truth),
            )
            return summary, sums

    async def _fetch(self, name: str, source: StoredFile, file: IO[bytes]) -> None:
        """Raises CannotScoreError for what will not be there another time either, UnavailableError."""
        if not source.key:
            raise CannotScoreError(f"The model came without {name}.")
        size = 0
        try:
            async for chunk in self._objects.stream(source.key, sha256=source.sha256):
                size += len(chunk)
                if size > MAX_FILE_BYTES:
                    raise CannotScoreError(f"{name} has more than {MAX_FILE_BYTES:,} bytes.")
                await asyncio.to_thread(file.write, chunk)
        except (NotFoundError, DataLossError, InvalidArgumentError) as error:
            raise CannotScoreError(f"{name} cannot be read: {error}") from error
        await asyncio.to_thread(file.flush)


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _delay(times: int) -> timedelta:
    return timedelta(seconds=min(RETRY_FIRST_S * 2.0 ** min(times - 1, 10), RETRY_GREATEST_S))
