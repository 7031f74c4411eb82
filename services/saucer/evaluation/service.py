"""The use cases of evaluations, and the only place that opens their transactions.

1. RunEnded with a model, or a prediction of one, stores an evaluation SCORING; the same event twice stores one.
2. A Scorer (scorer.py) claims it, and ends it SUCCEEDED or FAILED in one transaction with EvaluationEnded.
3. Readers: the row answers the default threshold; any other is answered from a cache of what the scoring left.
4. Images are read from the account's store only where a caller asks, and each read is counted.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from saucer.evaluation import domain, reading, store
from saucer.evaluation.cache import Cache
from saucer.evaluation.comparing import Change, Comparison, compare, difference
from saucer.evaluation.confusion import confusion_matrix
from saucer.evaluation.domain import DEFAULT_THRESHOLD, AtThreshold, Evaluation, EvaluationState, Source, Summary, Sums
from saucer.evaluation.exporting import ExportFormat, export
from saucer.evaluation.matching import StoredFormError
from saucer.evaluation.messages import evaluation_message
from saucer.evaluation.reading import BadCase, CaseFilter, LabelledImage, ScoreHistogram, SuspectedLabel
from saucer.evaluation.recommending import Goal, Recommendation
from saucer.evaluation.stored import Loaded, load
from saucer.evaluation.suspecting import SuspectKind
from saucer.evaluation.thinning import ThinnedPoints
from saucer.evaluation.v1 import events_pb2
from saucer.lib import tracing
from saucer.lib.auth import current
from saucer.lib.claims import ClaimLostError
from saucer.lib.errors import DataLossError, FailedPreconditionError, NotFoundError
from saucer.lib.ids import derived_id
from saucer.lib.image_reads import PAGE_IMAGES_BYTES, ImageReads, StoredImage
from saucer.lib.objects import Objects
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Database, Transaction

# How long the scoring of a process that was killed waits to be taken up; prolonged three times in that.
CLAIM = timedelta(seconds=30)
# Of finished evaluations in memory: three of 50,000 images and 2.5 million detections, each of 310 MB, so that two of
# them can be compared.
CACHE_BYTES = 1024**3
# Of the evaluations of one page, about 100 bytes each and as many more as its name has, so that it fits what a gRPC
# client takes by default (4 MiB), and is made while no other caller waits.
PAGE_CLASSES = 4000
# Of an exported file, at a time: so few that the first comes at once.
EXPORT_PIECE_BYTES = 32 * 1024

Side = tuple[Evaluation, AtThreshold]
Entry = TypeVar("Entry", BadCase, LabelledImage)

log = structlog.get_logger()


@dataclass(frozen=True)
class Claim:
    """An evaluation that the bearer of the token alone scores."""

    token: str
    evaluation: Evaluation


class Evaluations:
    """How good models are."""

    def __init__(
        self, database: Database, objects: Objects, *, claim: timedelta = CLAIM, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._database = database
        self._objects = objects
        self.image_reads = ImageReads("evaluation", database, objects)
        self._cache = Cache[str, Loaded]("evaluations", lambda loaded: loaded.size_bytes, cache_bytes)
        self.claim_length = claim
        # Set when there is something to score.
        self.wanted = asyncio.Event()

    # Scoring

    async def want(
        self,
        account_id: str,
        task_id: str,
        run_id: str,
        model_id: str,
        version: str,
        source: Source,
        *,
        by_prediction: bool = False,
    ) -> None:
        """What a run has detected is to be scored; the second time changes nothing."""
        async with self._database.transaction() as tx:
            evaluation = Evaluation(
                evaluation_id=derived_id("evaluation", run_id if by_prediction else model_id),
                account_id=account_id,
                task_id=task_id,
                run_id=run_id,
                model_id=model_id,
                dataset_version_id=version,
                source=source,
                state=EvaluationState.SCORING,
                error_message="",
                attempts=0,
                crashes=0,
                summary=None,
                sums=Sums(),
                duration_ms=0,
                created_at=tx.now,
                ended_at=None,
                revision=1,
                by_prediction=by_prediction,
                traceparent=tracing.current(),
            )
            await store.insert(tx.connection, evaluation)
        self.wanted.set()

    async def claim(self, token: str) -> Claim | None:
        """The next evaluation to score; None if none waits."""
        async with self._database.transaction() as tx:
            evaluation = await store.claim(tx.connection, token, tx.now, tx.now + self.claim_length)
        return Claim(token, evaluation) if evaluation else None

    async def prolong(self, claim: Claim) -> None:
        """Raises ClaimLostError."""
        async with self._database.transaction() as tx:
            if not await store.prolong(tx.connection, claim.token, tx.now + self.claim_length):
                raise ClaimLostError

    async def give_back(self, claim: Claim, after: timedelta, *, attempt: bool = True, crash: bool = False) -> None:
        """To be claimed again, not before `after`. Raises ClaimLostError."""
        async with self._database.transaction() as tx:
            if not await store.give_back(tx.connection, claim.token, tx.now + after, attempt=attempt, crash=crash):
                raise ClaimLostError

    async def succeed(self, claim: Claim, summary: Summary, sums: Sums, duration_ms: int) -> Evaluation:
        """Ends it, with its event; as it is then. Raises ClaimLostError."""
        async with self._database.transaction() as tx:
            ended = domain.succeed(claim.evaluation, summary, sums, duration_ms, tx.now)
            await _end(tx, ended, claim.token)
        return ended

    async def warm(self, evaluation: Evaluation) -> None:
        """Brings one that has succeeded into memory, for those who look at it now. Raises what reading it does."""
        await self._loaded(evaluation)

    async def fail(self, claim: Claim, message: str, duration_ms: int) -> None:
        """Ends it with a sentence, and with its event. Raises ClaimLostError."""
        log.error("evaluation_failed", evaluation_id=claim.evaluation.evaluation_id, error=message)
        async with self._database.transaction() as tx:
            await _end(tx, domain.fail(claim.evaluation, message, duration_ms, tx.now), claim.token)

    # Reading

    async def get(self, evaluation_id: str, threshold: float) -> tuple[Evaluation, AtThreshold | None]:
        """With figures at a threshold once it has succeeded. Raises NotFoundError for another account's too."""
        evaluation = await self._own(evaluation_id)
        if evaluation.summary is None or threshold == DEFAULT_THRESHOLD:
            return evaluation, _at_default(evaluation)
        loaded = await self._loaded(evaluation)
        return evaluation, await asyncio.to_thread(reading.at_threshold, loaded, threshold)

    async def list_evaluations(
        self,
        account_id: str,
        *,
        task_id: str | None,
        model_id: str | None,
        after: tuple[datetime, str] | None,
        limit: int,
    ) -> tuple[list[tuple[Evaluation, AtThreshold | None]], bool]:
        """Newest first, each at the default threshold, and whether more follow: the page may be shorter than `limit`,
        since it ends before an evaluation with which it would have more than PAGE_CLASSES."""
        async with self._database.reading() as connection:
            found, more = await store.list_evaluations(
                connection,
                account_id,
                task_id=task_id,
                model_id=model_id,
                after=after,
                limit=limit,
                most_classes=PAGE_CLASSES,
            )
        return [(evaluation, _at_default(evaluation)) for evaluation in found], more

    async def curves(self, evaluation_id: str, max_points: int) -> list[tuple[str, float | None, ThinnedPoints]]:
        """By class: its name, its AP at IoU 0.50 and its curve, of at most so many points (at least 2).

        Raises FailedPreconditionError unless succeeded.
        """
        evaluation, loaded = await self._succeeded(evaluation_id)
        assert evaluation.summary is not None
        drawn = await asyncio.to_thread(reading.curves, loaded, max_points)
        classes = evaluation.summary.figures.classes
        return [(name, fixed.ap_50, thinned) for (name, thinned), fixed in zip(drawn, classes, strict=True)]

    async def confusion(self, evaluation_id: str, threshold: float) -> tuple[Sequence[str], NDArray[np.int64]]:
        """The classes and the matrix (M11). Raises FailedPreconditionError unless succeeded."""
        _, loaded = await self._succeeded(evaluation_id)
        return loaded.truth.classes, await asyncio.to_thread(confusion_matrix, loaded.scored, threshold)

    async def recommend(
        self, evaluation_id: str, goals: Mapping[Goal, float | None]
    ) -> tuple[Sequence[str], list[Recommendation]]:
        """The classes, and a threshold for each goal, overall and by class (M12).

        Raises:
            NotFoundError, FailedPreconditionError: not succeeded, or scored before the validation split was kept.
        """
        _, loaded = await self._succeeded(evaluation_id)
        if loaded.recommender is None:
            raise FailedPreconditionError(
                "VALIDATION_NOT_KEPT",
                "The evaluation was made before the validation split was kept; those of new models have thresholds.",
            )
        return loaded.truth.classes, await asyncio.to_thread(loaded.recommender.recommend, loaded.curves, goals)

    async def bad_cases(
        self,
        evaluation_id: str,
        threshold: float,
        wanted: CaseFilter,
        *,
        offset: int,
        limit: int,
        include_images: bool,
        images_bytes: int = PAGE_IMAGES_BYTES,
    ) -> tuple[list[tuple[BadCase, bytes]], int]:
        """Bad cases with their images, if asked for, and how many there are in all.

        The page may be shorter than `limit`: it ends where what it says would exceed reading.PAGE_BYTES, and with
        images before one that would exceed `images_bytes`. An image that the store no longer has comes empty: what is
        wrong with it is known all the same.

        Raises:
            NotFoundError, FailedPreconditionError: not succeeded. InvalidArgumentError: an unknown class.
            UnavailableError: the store does not answer.
        """
        evaluation, loaded = await self._succeeded(evaluation_id)
        cases, total = await asyncio.to_thread(
            reading.find_bad_cases, loaded, threshold, wanted, offset=offset, limit=limit
        )
        return await self._with_images(evaluation, cases, include_images, images_bytes), total

    async def export_bad_cases(
        self, evaluation_id: str, threshold: float, wanted: CaseFilter, as_format: ExportFormat
    ) -> AsyncIterator[bytes]:
        """A file in pieces of about EXPORT_PIECE_BYTES.

        Raises:
            NotFoundError, FailedPreconditionError: not succeeded. InvalidArgumentError: an unknown class.
        """
        _, loaded = await self._succeeded(evaluation_id)
        written = export(loaded, threshold, wanted, as_format)
        while piece := await asyncio.to_thread(_piece, written):
            yield piece

    async def suspected_labels(
        self, evaluation_id: str, threshold: float, kinds: Collection[SuspectKind], *, offset: int, limit: int
    ) -> tuple[list[SuspectedLabel], int]:
        """The most suspicious first, and how many in all. Raises FailedPreconditionError unless succeeded."""
        _, loaded = await self._succeeded(evaluation_id)
        return await asyncio.to_thread(reading.find_suspects, loaded, threshold, kinds, offset=offset, limit=limit)

    async def compare(
        self, evaluation_id: str, base_id: str, threshold: float, change: Change | None, *, offset: int, limit: int
    ) -> tuple[Side, Side, Comparison]:
        """The evaluation, its base, and what changed from the base to it (M14).

        Raises:
            NotFoundError, FailedPreconditionError: one has not succeeded, or they are of different test sets.
        """
        evaluation, loaded = await self._succeeded(evaluation_id)
        base, base_loaded = await self._succeeded(base_id)
        differs = await asyncio.to_thread(difference, base_loaded.test_set, loaded.test_set)
        if differs is not None:
            raise FailedPreconditionError(
                "TEST_SETS_DIFFER",
                f"The two evaluations were made with different {differs}, so their figures do not compare.",
                dataset_version_id=evaluation.dataset_version_id,
                base_dataset_version_id=base.dataset_version_id,
            )
        found = await asyncio.to_thread(compare, base_loaded, loaded, threshold, change, offset=offset, limit=limit)
        return (
            (evaluation, await asyncio.to_thread(reading.at_threshold, loaded, threshold)),
            (base, await asyncio.to_thread(reading.at_threshold, base_loaded, threshold)),
            found,
        )

    async def score_histograms(self, evaluation_id: str, bins: int) -> list[ScoreHistogram]:
        """Overall, then by class. Raises FailedPreconditionError unless succeeded."""
        _, loaded = await self._succeeded(evaluation_id)
        return await asyncio.to_thread(reading.score_histograms, loaded, bins)

    async def score_histogram(self, evaluation_id: str, class_name: str, bins: int) -> ScoreHistogram:
        """Of one class, or of all ("").

        Raises:
            NotFoundError, FailedPreconditionError: not succeeded. InvalidArgumentError: an unknown class.
        """
        _, loaded = await self._succeeded(evaluation_id)
        return await asyncio.to_thread(reading.score_histogram, loaded, class_name, bins)

    async def test_images(
        self, evaluation_id: str, class_name: str, *, offset: int, limit: int, include_images: bool
    ) -> tuple[list[tuple[LabelledImage, bytes]], int]:
        """Images of the test split by id, with their bytes and as few as in bad_cases(), and how many there are in all.

        Raises:
            NotFoundError, FailedPreconditionError: not succeeded. InvalidArgumentError: an unknown class.
            UnavailableError: the store does not answer.
        """
        evaluation, loaded = await self._succeeded(evaluation_id)
        found, total = await asyncio.to_thread(
            reading.find_labelled_images, loaded, class_name, offset=offset, limit=limit
        )
        return await self._with_images(evaluation, found, include_images), total

    async def _with_images(
        self,
        evaluation: Evaluation,
        entries: Sequence[Entry],
        include_images: bool,
        images_bytes: int = PAGE_IMAGES_BYTES,
    ) -> list[tuple[Entry, bytes]]:
        if not include_images:
            return [(entry, b"") for entry in entries]
        stored = [StoredImage(f"{evaluation.source.image_prefix}/{entry.object_name}") for entry in entries]
        images = await self.image_reads.page(evaluation.account_id, stored, images_bytes)
        return list(zip(entries, images, strict=False))

    async def _own(self, evaluation_id: str) -> Evaluation:
        async with self._database.reading() as connection:
            evaluation = await store.get(connection, evaluation_id)
        if evaluation is None:
            raise NotFoundError("evaluation", evaluation_id)
        current().own("evaluation", evaluation_id, evaluation.account_id)
        return evaluation

    async def _succeeded(self, evaluation_id: str) -> tuple[Evaluation, Loaded]:
        evaluation = await self._own(evaluation_id)
        if evaluation.state is not EvaluationState.SUCCEEDED:
            raise FailedPreconditionError(
                "STATE_NOT_SUCCEEDED",
                f"The evaluation is {evaluation.state}; it has no results. {evaluation.error_message}".strip(),
                state=evaluation.state,
            )
        return evaluation, await self._loaded(evaluation)

    async def _loaded(self, evaluation: Evaluation) -> Loaded:
        return await self._cache.get(evaluation.evaluation_id, lambda: self._load(evaluation))

    async def _load(self, evaluation: Evaluation) -> Loaded:
        files = [evaluation.truth, evaluation.source.test, evaluation.scored]
        if evaluation.sums.validation:
            files.append(evaluation.scored_validation)
        stored = [await self._read(file.key, file.sha256) for file in files]
        try:
            return await asyncio.to_thread(load, *stored)
        except StoredFormError as error:
            raise DataLossError(
                "RESULTS_UNREADABLE", f"The stored results of {evaluation.evaluation_id} cannot be read: {error}."
            ) from error

    async def _read(self, key: str, sha256: str) -> bytes:
        try:
            return await self._objects.get(key, sha256=sha256)
        except NotFoundError as error:
            # The evaluation is there; that its object is gone is no "not found" of the caller's.
            raise DataLossError("RESULTS_GONE", f"{key} is no longer in the object store.", key=key) from error


def _at_default(evaluation: Evaluation) -> AtThreshold | None:
    return evaluation.summary.at_default if evaluation.summary else None


def _piece(written: Iterator[str]) -> bytes:
    """The next EXPORT_PIECE_BYTES, or a little more; nothing at the end."""
    parts: list[bytes] = []
    size_bytes = 0
    for text in written:
        parts.append(text.encode())
        size_bytes += len(parts[-1])
        if size_bytes >= EXPORT_PIECE_BYTES:
            break
    return b"".join(parts)


async def _end(tx: Transaction, ended: Evaluation, token: str) -> None:
    if not await store.end(tx.connection, ended, token):
        raise ClaimLostError
    await enqueue(
        tx,
        derived_id("EvaluationEnded", ended.evaluation_id, ended.revision),
        events_pb2.EvaluationEnded(evaluation=evaluation_message(ended, _at_default(ended))),
        account_id=ended.account_id,
        work_id=ended.task_id,
        resource_id=ended.evaluation_id,
    )
