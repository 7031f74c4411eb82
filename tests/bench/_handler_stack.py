"""handler_stack_calls_per_s: what authentication, deadline, validation and metrics leave of bare grpc.aio's speed.

Run as a program, this is one of the two servers: `python -m tests.bench._handler_stack KEYS_FILE` with all of
lib.grpc_server, without an argument bare. Both have the same servicer; the bare one gets neither token nor deadline.

A call is counted per second of the server process's processor time (user and system), not of the clock: the client is
Python too and slower than either server, so by the clock both would show the client's speed.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc

from saucer.lib import auth
from saucer.lib.grpc_server import Context, Server, Servicer
from saucer.lib.ids import new_id
from saucer.task.v1 import task_pb2, task_pb2_grpc
from tests.bench.harness import Row, Say, compare

KEY_ID = "bench"
CALLS = 4_000
WARM_UP_CALLS = 1_000
AT_ONCE = 32
DEADLINE_S = 10.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class _Scenes(task_pb2_grpc.TaskServiceServicer):
    async def ListScenes(  # noqa: N802 - as the proto names it
        self, request: task_pb2.ListScenesRequest, context: Context
    ) -> task_pb2.ListScenesResponse:
        return task_pb2.ListScenesResponse()


async def serve(keys_file: Path | None) -> None:
    """Says its address in a line, and serves until its standard input ends."""
    register = task_pb2_grpc.add_TaskServiceServicer_to_server
    scenes = _Scenes()  # type: ignore[abstract] # nothing else is called
    if keys_file is not None:
        servicer = Servicer(scenes, register, task_pb2.DESCRIPTOR.services_by_name["TaskService"])
        ours = Server("127.0.0.1:0", auth.Verifier(keys_file), [servicer])
        await ours.start()
        print(ours.address, flush=True)
    else:
        bare = grpc.aio.server()
        register(scenes, bare)
        port = bare.add_insecure_port("127.0.0.1:0")
        await bare.start()
        print(f"127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)


@contextlib.asynccontextmanager
async def server(*arguments: str) -> AsyncIterator[tuple[str, int]]:
    """Address and process id."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench._handler_stack", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip(), process.pid
    finally:
        process.kill()
        await process.wait()


def _cpu_s(pid: int) -> float:
    """Processor time of a process so far, all threads (proc(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


class _Client:
    """Keeps AT_ONCE calls in flight."""

    def __init__(self, address: str, pid: int, token: str | None) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = task_pb2_grpc.TaskServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        self._deadline_s = DEADLINE_S if token else None
        self._pid = pid

    async def calls_per_s(self) -> float:
        """Calls per second of the server's processor time."""
        before_s = _cpu_s(self._pid)
        await self.call(CALLS)
        return CALLS / (_cpu_s(self._pid) - before_s)

    async def call(self, calls: int) -> None:
        await asyncio.gather(*(self._one_after_the_other(calls // AT_ONCE) for _ in range(AT_ONCE)))

    async def close(self) -> None:
        await self._channel.close()

    async def _one_after_the_other(self, calls: int) -> None:
        request = task_pb2.ListScenesRequest()
        for _ in range(calls):
            await self._stub.ListScenes(request, metadata=self._metadata, timeout=self._deadline_s)


async def measure(folder: Path, say: Say) -> Row:
    """`folder` takes the keys."""
    private, public = folder / "private.pem", folder / "public.json"
    auth.generate_keys(private, public, KEY_ID)
    token = auth.mint(
        private.read_bytes(),
        KEY_ID,
        token_id=new_id(),
        subject="bench",
        role=auth.Role.VIEWER,
        account_id=new_id(),
        now=datetime.now(UTC),
        lifetime=timedelta(hours=1),
    )
    async with server(str(public)) as ours_at, server() as bare_at:
        ours, bare = _Client(*ours_at, token), _Client(*bare_at, None)
        for client in (ours, bare):
            await client.call(WARM_UP_CALLS)
        row = await compare(
            "handler_stack_calls_per_s",
            "calls/CPU s",
            ">= 0.80",
            ours=ours.calls_per_s,
            reference=bare.calls_per_s,
            say=say,
        )
        for client in (ours, bare):
            await client.close()
        return row


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
