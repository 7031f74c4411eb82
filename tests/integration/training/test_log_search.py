"""A search finds what reading every line finds, in order, page by page, whichever way it takes."""

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from saucer.lib.clock import ManualClock
from saucer.lib.objects import Objects
from saucer.lib.postgres import connect, migrate
from saucer.training.domain import LogLine, LogSearch
from saucer.training.store import log_search, told
from tests.support.servers import NewDatabase
from tests.support.training_lab import Lab

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
LINES = 400
MANY_LINES = 60_000
LEVELS = (1, 2, 2, 2, 2, 3, 4)
WORDS = {"loss": 1.0, "epoch": 0.3, "saved": 0.05, "Overflow": 0.005, "50%": 0.02, "a_b": 0.02}


@dataclass(frozen=True)
class Written:
    run_id: str
    lines: list[LogLine]


@pytest.fixture
async def lab(new_database: NewDatabase, tmp_path: Path) -> AsyncIterator[Lab]:
    clock = ManualClock(BEGIN)
    database = await connect(await new_database(), clock)
    await migrate(database, "saucer.lib", "saucer.training")
    yield Lab(database, clock, Objects(f"file://{tmp_path}"))
    await database.pool.close()


async def write(lab: Lab, draw: random.Random) -> Written:
    run_id, other = await lab.queue(), await lab.queue()
    lines = [
        LogLine(
            number,
            1,
            draw.choice(LEVELS),
            BEGIN + timedelta(seconds=number // 3),
            " ".join([f"line {number}", *(word for word, share in WORDS.items() if draw.random() < share)]),
        )
        for number in range(1, LINES + 1)
    ]
    async with lab.database.reading() as connection:
        await told.insert_log(connection, run_id, lines)
        await told.insert_log(connection, other, lines)
    return Written(run_id, lines)


def drawn(draw: random.Random, written: Written) -> LogSearch:
    words = draw.sample(["LOSS", *WORDS, "nowhere", "line 1", "a%b", "aXb"], draw.choice((0, 1, 1, 2, 3)))
    start = draw.choice((None, None, draw.choice(written.lines).time))
    end = draw.choice((None, None, draw.choice(written.lines).time))
    return LogSearch(tuple(words), draw.choice((0, 0, 2, 3, 4)), start, end)


def expected(written: Written, wanted: LogSearch) -> list[int]:
    return [
        line.sequence
        for line in written.lines
        if line.level >= wanted.min_level
        and all(word.lower() in line.text.lower() for word in wanted.keywords)
        and (wanted.start is None or line.time >= wanted.start)
        and (wanted.end is None or line.time < wanted.end)
    ]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize(("sample", "read_on", "common"), [(20, 60, 1), (20, 60, 5), (20, 60, 21), (1000, 1000, 1)])
async def test_every_page_of_a_search_is_that_of_the_lines_read_one_by_one(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, *, sample: int, read_on: int, common: int, newest_first: bool
) -> None:
    for name, value in (("SAMPLE", sample), ("READ_ALL", read_on), ("READ_ON", read_on), ("COMMON", common)):
        monkeypatch.setattr(log_search, name, value)
    draw = random.Random(f"{sample} {common} {newest_first}")
    written = await write(lab, draw)
    for _ in range(60):
        wanted = drawn(draw, written)
        found: list[int] = []
        after: int | None = None
        while True:
            async with lab.database.reading() as connection:
                page = await log_search.list_log(
                    connection, written.run_id, wanted, newest_first=newest_first, after=after, limit=7
                )
            found += [line.sequence for line in page]
            if len(page) < 7:
                break
            after = found[-1]
        assert found == expected(written, wanted)[:: -1 if newest_first else 1], wanted


async def test_a_rare_word_is_looked_up_although_it_was_frequent_when_lines_were_last_counted(lab: Lab) -> None:
    run_id = await lab.queue()

    async def fill(one_in: int) -> None:
        await connection.execute(
            """
            INSERT INTO log_line (run_id, sequence, attempt, level, logged_at, line)
            SELECT $1, n, 1, 2, to_timestamp(n), CASE WHEN n % $2 = 0 THEN 'overflow ' ELSE 'loss ' END || n
            FROM generate_series(1, $3::bigint) AS n
            """,
            run_id,
            one_in,
            MANY_LINES,
        )

    async def read() -> int:
        """By this connection so far. What it did before may be among it or not, so only differences say something."""
        rows: int = await connection.fetchval(
            "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'log_line'"
        )
        return rows

    wanted = LogSearch(("overflow",))
    async with lab.database.reading() as connection:
        await connection.execute("ALTER TABLE log_line SET (autovacuum_enabled = false)")
        await fill(50)
        await connection.execute("ANALYZE log_line")
        await connection.execute("DELETE FROM log_line")
        await fill(4000)
        async with connection.transaction():
            before = await read()
            page = await log_search.list_log(connection, run_id, wanted, after=None, limit=100)
            rows = await read() - before
    assert [line.sequence for line in page] == list(range(4000, MANY_LINES + 1, 4000))
    assert rows < 2 * log_search.SAMPLE
