"""What of the stream is ours and what is an administrator's: on a real cluster of three NATS servers."""

import asyncio
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import BadRequestError, ServerError

from saucer.lib.stream import KEEP_DAYS, STREAM, StreamShape, ensure_stream, update_stream
from saucer.local.ports import LOOPBACK, choose_ports
from tests.support.events import until

SERVERS = ("one", "two", "three")
DAY_S = 24 * 3600.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[JetStreamContext]:
    ports = choose_ports(
        tmp_path / "ports.json", [f"{name}-{kind}" for name in SERVERS for kind in ("client", "route")]
    )
    routes = ", ".join(f"nats://{LOOPBACK}:{ports[f'{name}-route']}" for name in SERVERS)
    program = Path(sysconfig.get_path("scripts")) / "nats-server"
    servers = []
    for name in SERVERS:
        file = tmp_path / f"{name}.conf"
        file.write_text(
            f'server_name: {name}\nlisten: "{LOOPBACK}:{ports[f"{name}-client"]}"\n'
            f'jetstream {{ store_dir: "{tmp_path / name}" }}\n'
            f'cluster {{ name: saucer, listen: "{LOOPBACK}:{ports[f"{name}-route"]}", routes: [{routes}] }}\n'
        )
        servers.append(
            await asyncio.create_subprocess_exec(program, "--config", file, stderr=asyncio.subprocess.DEVNULL)
        )
    client = await nats.connect([f"nats://{LOOPBACK}:{ports[f'{name}-client']}" for name in SERVERS])
    try:
        yield client.jetstream()
    finally:
        await client.close()
        for server in servers:
            server.terminate()
        await asyncio.gather(*(server.wait() for server in servers))


async def config(jetstream: JetStreamContext) -> StreamConfig:
    return (await jetstream.stream_info(STREAM)).config


async def test_the_stream_is_made_with_the_replicas_of_the_settings_and_keeps_an_administrators(
    cluster: JetStreamContext,
) -> None:
    async def made() -> bool:
        # Until the servers have found each other there is nobody to make it.
        try:
            await ensure_stream(cluster, StreamShape(replicas=3))
        except (ServerError, BadRequestError, nats.errors.Error):
            return False
        return True

    await until(made, timeout_s=30)
    assert (await config(cluster)).num_replicas == 3
    # Another process, whose setting was forgotten.
    await ensure_stream(cluster)
    await update_stream(cluster, StreamShape(keep_days=7))
    found = await config(cluster)
    assert (found.num_replicas, found.max_age) == (3, 7 * DAY_S)
    await cluster.update_stream(found.evolve(num_replicas=1, max_bytes=2**30))
    await ensure_stream(cluster, StreamShape(replicas=3))
    await update_stream(cluster, StreamShape(keep_days=7, replicas=3))
    found = await config(cluster)
    assert (found.num_replicas, found.max_bytes, found.max_age) == (1, 2**30, 7 * DAY_S)
    assert found.subjects == ["saucer.>"]


async def test_a_single_server_keeps_one_copy_and_refuses_more(jetstream: JetStreamContext) -> None:
    found = await config(jetstream)
    assert (found.num_replicas, found.max_age) == (1, KEEP_DAYS * DAY_S)
    await jetstream.delete_stream(STREAM)
    with pytest.raises(ServerError, match="replicas > 1"):
        await ensure_stream(jetstream, StreamShape(replicas=3))
