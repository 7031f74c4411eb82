"""`saucer up`: the whole stack in the foreground, with one readable log, until Ctrl-C."""

import asyncio
import signal
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from saucer.local.process import ServerStartError
from saucer.local.stack import Stack
from saucer.local.triton_env import TritonEnvironmentError

FOLLOW_POLL_S = 0.2
# Of a log, at most so much is shown at a time; what is older is in the file.
FOLLOW_BYTES = 256 * 1024
COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_yellow")


def up(home: Path, project: Path, workers: int) -> None:
    """Runs until SIGINT or SIGTERM. Raises click.ClickException with what to do if the stack does not start."""
    asyncio.run(_up(home, project, workers))


async def _up(home: Path, project: Path, workers: int) -> None:
    console = Console(highlight=False)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stack = Stack(home, project, workers=workers, say=lambda text: console.print(Text(text, style="bold")))
    starting = asyncio.ensure_future(stack.start())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    try:
        starting.result()
    except (ServerStartError, TritonEnvironmentError, OSError) as error:
        raise click.ClickException(f"Saucer did not start: {error}") from error
    follower = asyncio.create_task(_follow(stack.layout.logs, console))
    _welcome(stack, console)
    await stopping
    started = time.monotonic()
    console.print(Text("Stopping…", style="bold"))
    await stack.stop()
    follower.cancel()
    console.print(Text(f"Everything has stopped, in {time.monotonic() - started:.1f} s.", style="bold"))


def _welcome(stack: Stack, console: Console) -> None:
    table = Table(title="Saucer is up", title_justify="left", show_header=False, box=None)
    for name, process in stack.processes.items():
        if process.address is not None:
            table.add_row(name, process.address, "gRPC, with reflection and health")
    table.add_row("gateway", str(stack.profile["gateway"]), "HTTP: /v1/…, /v1/events:stream, /healthz")
    console.print(table)
    # Not in the table, which a narrow terminal would cut.
    console.print(Text(f"NATS, stream SAUCER, subjects saucer.>: {stack.nats.uri}"), soft_wrap=True)
    console.print(Text(f"Profile with an administrator's token: {stack.layout.profile}. Stop with Ctrl-C."))


async def _follow(logs: Path, console: Console) -> None:
    follower = _Follower(logs, console)
    while True:
        await asyncio.to_thread(follower.show)
        await asyncio.sleep(FOLLOW_POLL_S)


class _Follower:
    """Shows what is added to any log, each line with the name of its process."""

    def __init__(self, logs: Path, console: Console) -> None:
        self._logs = logs
        self._console = console
        self._places = {file: file.stat().st_size for file in logs.glob("*.log")}
        self._colours: dict[str, str] = {}

    def show(self) -> None:
        for file in sorted(self._logs.glob("*.log")):
            colour = self._colours.setdefault(file.stem, COLOURS[len(self._colours) % len(COLOURS)])
            size = file.stat().st_size
            start = self._places.get(file, 0)
            if size < start:
                start = 0  # set aside, and begun anew
            if size > start:
                skipped = max(start, size - FOLLOW_BYTES) - start
                self._places[file] = start + _show(file, skipped, start, colour, self._console)


def _show(file: Path, skipped: int, start: int, colour: str, console: Console) -> int:
    """Prints the whole lines after a place; how many bytes were passed."""
    with file.open("rb") as log:
        log.seek(start + skipped)
        data = log.read(FOLLOW_BYTES)
    whole = data[: data.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        console.print(Text.assemble((f"{file.stem:<11} ", colour), Text.from_ansi(line)), soft_wrap=True)
    return skipped + len(whole)
