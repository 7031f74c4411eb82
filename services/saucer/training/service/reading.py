"""What users ask of runs and models: single reads, which change nothing and open no transaction."""

from collections.abc import AsyncIterator, Callable
from datetime import datetime

from saucer.lib.auth import current
from saucer.lib.errors import NotFoundError
from saucer.lib.objects import CHUNK_BYTES, Objects
from saucer.lib.postgres import Database
from saucer.training.bell import Bell
from saucer.training.domain import LogLine, LogSearch, MetricPoint, Model, Run, RunState, as_of
from saucer.training.fleet import WORKER_GONE, Queue, Worker
from saucer.training.store import log_search, models, queue, runs, told, workers

# The net under the wake-ups of streams.
POLL_S = 1.0
# Points or lines that a stream reads at once.
STREAM_BATCH = 500
# Lines that an export reads at once.
EXPORT_BATCH = 5_000


class Reading:
    """Runs, metrics, logs and models, as far as the caller may see them."""

    def __init__(self, database: Database, objects: Objects, bell: Bell) -> None:
        self._database = database
        self._objects = objects
        self._bell = bell

    async def get_run(self, run_id: str) -> Run:
        """Raises NotFoundError."""
        async with self._database.reading() as connection:
            run = await runs.get_run(connection, run_id)
            now = await self._database.clock.now(connection)
        if run is None:
            raise NotFoundError("run", run_id)
        current().own("run", run_id, run.request.account_id)
        return as_of(run, now)

    async def list_runs(
        self, account_id: str, *, task_id: str | None, after: tuple[datetime, str] | None, limit: int
    ) -> list[Run]:
        """Newest first."""
        async with self._database.reading() as connection:
            found = await runs.list_runs(connection, account_id, task_id=task_id, after=after, limit=limit)
            now = await self._database.clock.now(connection)
        return [as_of(run, now) for run in found]

    async def list_metrics(self, run_id: str, *, after: int, limit: int) -> list[MetricPoint]:
        """By sequence. Raises NotFoundError."""
        await self.get_run(run_id)
        async with self._database.reading() as connection:
            return await told.list_metrics(connection, run_id, after, limit)

    async def list_log(
        self, run_id: str, wanted: LogSearch, *, newest_first: bool, after: int | None, limit: int
    ) -> list[LogLine]:
        """In order. Raises NotFoundError."""
        await self.get_run(run_id)
        async with self._database.reading() as connection:
            return await log_search.list_log(
                connection, run_id, wanted, newest_first=newest_first, after=after, limit=limit
            )

    async def export_log(self, run_id: str, wanted: LogSearch, write: Callable[[LogLine], str]) -> AsyncIterator[bytes]:
        """Every line that is wanted, oldest first, as bytes of whole lines. Raises NotFoundError."""
        await self.get_run(run_id)
        after: int | None = None
        while True:
            async with self._database.reading() as connection:
                lines = await log_search.list_log(connection, run_id, wanted, after=after, limit=EXPORT_BATCH)
            if lines:
                yield "".join(write(line) for line in lines).encode()
                after = lines[-1].sequence
            if len(lines) < EXPORT_BATCH:
                return

    async def stream_metrics(self, run_id: str, after: int) -> AsyncIterator[MetricPoint]:
        """What is there beyond `after`, then what comes, until the run is at rest. Raises NotFoundError."""
        async for _ in self._rounds(run_id):
            while True:
                async with self._database.reading() as connection:
                    points = await told.list_metrics(connection, run_id, after, STREAM_BATCH)
                for point in points:
                    yield point
                    after = point.sequence
                if len(points) < STREAM_BATCH:
                    break

    async def stream_log(self, run_id: str, after: int) -> AsyncIterator[LogLine]:
        """What is there beyond `after`, then what comes, until the run is at rest. Raises NotFoundError."""
        async for _ in self._rounds(run_id):
            while True:
                async with self._database.reading() as connection:
                    lines = await log_search.list_log(connection, run_id, LogSearch(), after=after, limit=STREAM_BATCH)
                for line in lines:
                    yield line
                    after = line.sequence
                if len(lines) < STREAM_BATCH:
                    break

    async def _rounds(self, run_id: str) -> AsyncIterator[None]:
        """One round each time something may be new; the last after the run's end was seen."""
        with self._bell.listen(("run", run_id)) as rung:
            while True:
                ended = (await self.get_run(run_id)).state is RunState.ENDED
                yield
                if ended:
                    return
                await rung.wait(POLL_S)

    async def list_workers(self, *, after: str | None, limit: int) -> tuple[list[Worker], datetime]:
        """By id, and what time it is."""
        async with self._database.reading() as connection:
            now = await self._database.clock.now(connection)
            return await workers.list_workers(connection, after=after, limit=limit), now

    async def list_queues(self) -> list[Queue]:
        """By region and spec."""
        async with self._database.reading() as connection:
            now = await self._database.clock.now(connection)
            return await queue.list_queues(connection, now - WORKER_GONE)

    async def get_model(self, model_id: str) -> Model:
        """Raises NotFoundError."""
        async with self._database.reading() as connection:
            model = await models.get_model(connection, model_id)
        if model is None or model.deleted_at is not None:
            raise NotFoundError("model", model_id)
        current().own("model", model_id, model.account_id)
        return model

    async def list_models(
        self, account_id: str, *, task_id: str | None, after: tuple[datetime, str] | None, limit: int
    ) -> list[Model]:
        """Newest first."""
        async with self._database.reading() as connection:
            return await models.list_models(connection, account_id, task_id=task_id, after=after, limit=limit)

    async def read_file(self, model_id: str, name: str) -> AsyncIterator[bytes]:
        """A model's file in chunks of at most 1 MiB. Raises NotFoundError; DataLossError at its end."""
        model = await self.get_model(model_id)
        file = next((file for file in model.files if file.name == name), None)
        if file is None:
            raise NotFoundError("model_file", name)
        async for chunk in self._objects.stream(file.key, sha256=file.sha256):
            for start in range(0, len(chunk), CHUNK_BYTES):
                yield chunk[start : start + CHUNK_BYTES]
