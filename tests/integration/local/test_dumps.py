"""deploy/kubernetes/README.md, "What moves": a dump of a service's database is restored as it was."""

import asyncio
from pathlib import Path

import pytest

from saucer.lib.clock import PostgresClock
from saucer.lib.postgres import connect, migrate
from saucer.local.servers import PostgresServer
from tests.support.servers import NewDatabase

SERVICES = ("billing", "dataset", "evaluation", "publishing", "task", "training")
NO_PARENTHESES = str.maketrans("", "", "()")


async def run(program: Path, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


@pytest.mark.parametrize("service", SERVICES)
async def test_a_dump_is_restored_with_all_its_rules(
    postgres: PostgresServer, new_database: NewDatabase, tmp_path: Path, service: str
) -> None:
    former, latter = await new_database(), await new_database()
    database = await connect(former, PostgresClock())
    await migrate(database, "saucer.lib", f"saucer.{service}")
    await database.pool.close()
    dump = str(tmp_path / "dump")
    await run(postgres.programs / "pg_dump", "--format=custom", f"--file={dump}", former)
    await run(postgres.programs / "pg_restore", "--no-owner", "--no-privileges", f"--dbname={latter}", dump)

    async def schema(url: str) -> list[str]:
        text = await run(postgres.programs / "pg_dump", "--schema-only", "--no-owner", "--no-privileges", url)
        # psql's key is made anew for each dump, and a view's conditions lose parentheses that say nothing.
        return [line.translate(NO_PARENTHESES) for line in text.splitlines() if "restrict" not in line]

    assert await schema(latter) == await schema(former)
