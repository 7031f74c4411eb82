"""Pages of a run's log, and of what is searched for in it.

A word that is in many lines is found soon by reading on, a rare one through the index of trigrams. The other way round
each reads the whole log, and two words in the index read it too if one is frequent. PostgreSQL's estimates do not tell
them apart, and the lines that come next do. So a page of lines with words is found like this:

1. The window of time, and where the page begins, become a range of lines. One of at most READ_ALL lines is read.
2. In the next SAMPLE lines of a longer one it is counted where each condition holds.
3. Where each holds for COMMON or more of them, the next READ_ON lines are read; most pages are full then.
4. Any other is looked up by the rarest condition alone, and its lines are checked for the others. Of a word, all lines
   of the index are taken, then put in order: reading in order until there are enough is what 3 has done, and would be
   PostgreSQL's choice again where its estimate is too high.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from saucer.lib.postgres import Connection
from saucer.training.domain import LogLine, LogSearch

# Lines, each about a microsecond.
SAMPLE = 2_000
READ_ALL = 12_000
READ_ON = 24_000
# Of SAMPLE. At half a percent, READ_ON lines hold a page of a hundred, and of a log of a million lines the index has
# 5,000, which takes as long.
COMMON = 10
# Levels from here on have an index each (schema/006_log_search.sql).
INDEXED_LEVEL = 3
# More than any line's sequence.
_BEYOND_ALL = 2**62
_COLUMNS = "sequence, attempt, level, logged_at, line"


async def list_log(
    connection: Connection,
    run_id: str,
    wanted: LogSearch,
    *,
    newest_first: bool = False,
    after: int | None,
    limit: int,
) -> list[LogLine]:
    """In order of the sequence."""
    lines = range(_BEYOND_ALL)
    if wanted.keywords or wanted.start or wanted.end:
        lines = await _window(connection, run_id, wanted)
    if after is not None:
        lines = (
            range(lines.start, min(after, lines.stop))
            if newest_first
            else range(max(after + 1, lines.start), lines.stop)
        )
    search = _Search(connection, run_id, wanted, lines, "DESC" if newest_first else "ASC", limit)
    rows = await (search.by_words() if wanted.keywords else search.by_level())
    return [LogLine(row["sequence"], row["attempt"], row["level"], row["logged_at"], row["line"]) for row in rows]


async def _window(connection: Connection, run_id: str, wanted: LogSearch) -> range:
    """The lines of a window of time; of the whole log, without."""
    at = "SELECT sequence FROM log_line WHERE run_id = $1 AND logged_at >= {} ORDER BY logged_at, sequence LIMIT 1"
    row = await connection.fetchrow(
        f"""
        SELECT coalesce((SELECT max(sequence) FROM log_line WHERE run_id = $1), 0) + 1 AS beyond_all,
               ({at.format("$2::timestamptz")}) AS first, ({at.format("$3::timestamptz")}) AS beyond
        """,  # noqa: S608 - parameters
        run_id,
        wanted.start,
        wanted.end,
    )
    assert row is not None, "a SELECT without FROM has a row"
    # No line is so late: none is in a window that begins then, all are before one that ends then.
    first = 1 if wanted.start is None else row["first"] or row["beyond_all"]
    return range(first, row["beyond"] or row["beyond_all"])


@dataclass(frozen=True)
class _Condition:
    """Of a line; `opaque` is the same in words that no index serves."""

    sql: str
    opaque: str
    indexed: bool = True


class _Search:
    """Conditions stand one by one and levels as numbers: only so does PostgreSQL see that an index serves them."""

    def __init__(
        self, connection: Connection, run_id: str, wanted: LogSearch, lines: range, order: str, limit: int
    ) -> None:
        self._connection = connection
        self._lines = lines
        self._limit = limit
        self._order = order
        self._range = "run_id = $1 AND sequence >= $2 AND sequence < $3"
        self._values = [run_id, lines.start, lines.stop, *map(_pattern, wanted.keywords)]
        level = int(wanted.min_level)
        self._levels = (
            [_Condition(f"level >= {level}", f"level + 0 >= {level}", level >= INDEXED_LEVEL)] if level > 1 else []
        )
        words = range(4, 4 + len(wanted.keywords))
        self._words = [_Condition(f"line ILIKE ${place}", f"line || '' ILIKE ${place}") for place in words]

    async def by_level(self) -> list[asyncpg.Record]:
        return await self._page("log_line", [self._range, *(condition.sql for condition in self._levels)])

    async def by_words(self) -> list[asyncpg.Record]:
        async with self._connection.transaction(readonly=True):
            # A plan for any word and any range would be one for neither.
            await self._connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
            if len(self._lines) <= READ_ALL:
                return await self._read_on()
            counts = await self._sample()
            if min(counts) >= COMMON:
                page = await self._read_on()
                if len(page) == self._limit:
                    return page
            return await self._look_up(counts)

    async def _sample(self) -> list[int]:
        """For how many of the next lines each condition holds."""
        counts = ", ".join(f"count(*) FILTER (WHERE {condition.sql})" for condition in self._conditions)
        row = await self._connection.fetchrow(f"SELECT {counts} FROM {self._next(SAMPLE)}", *self._values)  # noqa: S608 - made here
        assert row is not None, "an aggregate has a row"
        return list(row)

    async def _read_on(self) -> list[asyncpg.Record]:
        return await self._page(self._next(READ_ON), [condition.sql for condition in self._conditions])

    async def _look_up(self, counts: Sequence[int]) -> list[asyncpg.Record]:
        """Through the index of the rarest condition that has one."""
        conditions = self._conditions
        indexed = (place for place, condition in enumerate(conditions) if condition.indexed)
        rarest = min(indexed, key=lambda place: counts[place])
        checked = [condition.opaque for place, condition in enumerate(conditions) if place != rarest]
        matching = [self._range, conditions[rarest].sql, *checked]
        if rarest >= len(self._words):
            return await self._page("log_line", matching)
        # No index has this order, so none is read in it.
        return await self._page("log_line", matching, by="sequence + 0")

    @property
    def _conditions(self) -> list[_Condition]:
        return self._words + self._levels

    def _next(self, count: int) -> str:
        """So many lines of the range, whatever is in them."""
        lines = f"SELECT {_COLUMNS} FROM log_line WHERE {self._range} ORDER BY sequence {self._order} LIMIT {count}"  # noqa: S608 - as above
        return f"({lines}) AS next"

    async def _page(self, source: str, conditions: Sequence[str], by: str = "sequence") -> list[asyncpg.Record]:
        """The first lines of a source for which all conditions hold."""
        where = " AND ".join(conditions)
        query = f"SELECT {_COLUMNS} FROM {source} WHERE {where} ORDER BY {by} {self._order} LIMIT {self._limit}"  # noqa: S608 - as above
        return await self._connection.fetch(query, *self._values)


def _pattern(keyword: str) -> str:
    for special in ("\\", "%", "_"):
        keyword = keyword.replace(special, f"\\{special}")
    return f"%{keyword}%"
