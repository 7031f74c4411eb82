"""Code from before the newest change of a schema serves on the new schema: an upgrade migrates while the old runs."""

import importlib.util
import io
import re
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from saucer.dataset.v1 import dataset_pb2
from saucer.lib import auth
from saucer.lib.clock import PostgresClock
from saucer.lib.postgres import connect, migrate
from saucer.local import nats_users
from saucer.local.stack import SERVICES, Stack
from saucer.publishing.v1 import publishing_pb2
from saucer.task.v1 import task_pb2
from tests.support.saucer_client import HOLD_MICROS, Saucer
from tests.support.stack import PROJECT


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


@pytest.fixture
def former_code(tmp_path: Path) -> Path:
    """The commit before the newest one that touched a schema."""
    newest = git("log", "-1", "--format=%H", "--", ":(glob)services/saucer/*/schema/*.sql").decode().strip()
    archive = git("archive", f"{newest}~1", "services") if newest else b""
    if not archive:
        pytest.skip("the clone has no commit before the newest change of a schema")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tmp_path / "former", filter="data")
    return tmp_path / "former" / "services"


def former_module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"former_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    former = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(former)
    return former


def former_users(former_code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NATS' users are changed after a roll-out: until then the former code may do what it did."""
    former = former_module(former_code / "saucer" / "local" / "nats_users.py")
    monkeypatch.setattr(nats_users, "authorization", former.authorization)


class FormerStack(Stack):
    """Tells each process what the former code reads: no setting that it did not know, and every service its token if
    each read one."""

    former_code: Path
    all_have_tokens: bool

    def _add(self, name: str, module: str, settings: dict[str, object]) -> None:
        if self.all_have_tokens and name in SERVICES:
            settings = {"token_file": self.layout.token(auth.Role.SERVICE), **settings}
        main = self.former_code.joinpath(*module.split(".")).with_suffix(".py")
        read = main.read_text() + (self.former_code / "saucer" / "lib" / "config.py").read_text()
        super()._add(name, module, {key: value for key, value in settings.items() if re.search(rf"\b{key}:", read)})


async def migrate_all(stack: Stack) -> None:
    """As the migration jobs of the new version do, before it is rolled out."""
    for name in SERVICES:
        database = await connect(await stack.postgres.database(name), PostgresClock())
        await migrate(database, "saucer.lib", f"saucer.{name}")
        database.pool.terminate()


async def test_the_former_code_goes_on_while_and_after_the_schemas_are_migrated(
    former_code: Path, shapes_folder: Path, servers_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(former_code))
    former_users(former_code, monkeypatch)
    stack = FormerStack(servers_dir / "former", PROJECT, fast=True)
    former = former_module(former_code / "saucer" / "lib" / "config.py")
    stack.former_code = former_code
    stack.all_have_tokens = "token_file" in former.ServiceSettings.model_fields
    await stack.start()
    saucer = Saucer(stack)
    try:
        account = await saucer.account(2 * HOLD_MICROS)
        imported = await saucer.import_folder(account, shapes_folder)
        assert imported.state == dataset_pb2.IMPORT_STATE_SUCCEEDED, imported
        created = await saucer.create_task(account, saucer.form(imported.dataset_version_id, epochs=3))
        await saucer.run_reaches(account, created.task_id, lambda run: run.iteration >= 5)
        await migrate_all(stack)
        task = await saucer.task_ends(account, created.task_id)
        assert (task.state, task.attempt) == (task_pb2.TASK_STATE_SUCCEEDED, 1), task
        deployment = await saucer.deploy(account, task.model_id)
        assert deployment.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE, deployment
        again = await saucer.import_folder(account, shapes_folder)
        assert again.state == dataset_pb2.IMPORT_STATE_SUCCEEDED, again
        await saucer.stop_deployment(account, deployment.deployment_id)
        await saucer.nothing_frozen(account)
        audit = await saucer.audit()
        assert audit.clean, audit.findings
    finally:
        await saucer.close()
        await stack.stop()
