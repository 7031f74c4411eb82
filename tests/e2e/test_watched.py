"""A real Prometheus (the system's package) over a running Saucer: every query of rules and dashboards has an answer."""

import asyncio
import json
import re
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from saucer.billing.v1 import billing_pb2
from saucer.lib.ids import new_id
from saucer.local.ports import choose_port
from saucer.local.stack import PRICE_PER_HOUR_MICROS, REGION_ID
from saucer.publishing.v1 import publishing_pb2
from saucer.task.v1 import task_pb2
from tests.contract.test_watched import PROMETHEUS, queries
from tests.e2e.test_path import first_image
from tests.support.saucer_client import Saucer, reached
from tests.support.stack import Trained

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="the system's package prometheus is missing")
# Its queries look this far back.
RATE_INTERVAL = "4s"


@pytest.fixture
async def prometheus(saucer: Saucer, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(PROMETHEUS / "alerts.yml")],
        "scrape_configs": [
            {"job_name": "saucer", "file_sd_configs": [{"files": [str(saucer.stack.layout.scrape_targets)]}]}
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    port = choose_port()
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1") as client:
        yield client
    process.send_signal(signal.SIGTERM)
    await process.wait()


async def ask(prometheus: httpx.AsyncClient, query: str) -> list[Any]:
    """What an instant query gives. Raises httpx.HTTPStatusError for one that Prometheus refuses."""
    answer = await prometheus.get("query", params={"query": query})
    answer.raise_for_status()
    result: list[Any] = answer.json()["data"]["result"]
    return result


def alone(query: str) -> str:
    """An alert's figure as it can be read while nothing is wrong: of what is there and went well, without the limit."""
    present = re.sub(r"absent\((.*?)\)", r"\1", query)
    without_limit = re.sub(
        r"\s*(?:==|>)\s*(?:[\d.* ]+$|\d(?=\s+or)|max by \(work_kind\).*$)", "", present, flags=re.DOTALL
    )
    return without_limit.replace('code="INTERNAL"', 'code="OK"')


async def waiting_task(saucer: Saucer, trained: Trained) -> task_pb2.Task:
    """Of a spec that no worker has, so that somebody waits in a queue."""
    request = billing_pb2.CreateSpecRequest(
        request_id=new_id(),
        region_id=REGION_ID,
        spec_id="nobodys",
        display_name="No worker",
        cpu_cores=1,
        max_count=1,
        price_per_hour_micros=PRICE_PER_HOUR_MICROS,
        currency="EUR",
        reason="a test",
    )
    await saucer.billing.CreateSpec(request, metadata=saucer.administrator)
    form = saucer.form(trained.data.dataset_version_id, spec_id="nobodys")
    return await saucer.create_task(trained.data.account, form)


async def test_every_query_of_rules_and_dashboards_answers(
    saucer: Saucer, trained: Trained, prometheus: httpx.AsyncClient
) -> None:
    account = trained.data.account
    deployment = await saucer.deploy(account, trained.task.model_id)
    image = first_image(trained.data.folder)
    predict = publishing_pb2.PredictRequest(deployment_id=deployment.deployment_id, image=image)
    await saucer.publishing.Predict(predict, metadata=account.metadata)
    waiting = await waiting_task(saucer, trained)
    wanted = {query.replace("$__rate_interval", RATE_INTERVAL) for query in queries()}
    figures = {alone(query) for query in wanted}

    async def answered() -> bool:
        await gateway.get("/v1/specs")
        silent = [query for query in figures if not await ask(prometheus, query)]
        seen.append(silent)
        return not silent

    seen: list[list[str]] = []
    headers = {"authorization": f"Bearer {account.token}"}
    async with httpx.AsyncClient(base_url=str(saucer.stack.profile["gateway"]), headers=headers) as gateway:
        try:
            await reached(answered, timeout_s=60)
        except AssertionError:
            raise AssertionError(f"No answer to: {seen[-1]}") from None
    for query in wanted:
        await ask(prometheus, query)
    await saucer.stop_task(account, waiting.task_id)
    await saucer.stop_deployment(account, deployment.deployment_id)
