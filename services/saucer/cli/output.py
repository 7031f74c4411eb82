"""What the commands print: tables for people, protobuf's JSON for programs, bars for what takes long.

Results go to stdout, progress and remarks to stderr, so that a pipe gets results alone.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any

import click
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

MICROS = 1_000_000
# Where there is no terminal to ask: room for whole ids.
PLAIN_WIDTH = 240
# Without a terminal a bar is a line for each such share.
PLAIN_STEP = 0.1


class Output:
    """Prints for people, or JSON."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.stdout = _console(sys.stdout)
        self.stderr = _console(sys.stderr)

    @property
    def live(self) -> bool:
        """Whether somebody watches a terminal."""
        return self.stderr.is_terminal and not self.as_json

    def json(self, value: object) -> None:
        """Plain data."""
        click.echo(json.dumps(value, ensure_ascii=False, indent=2))

    def line(self, message: Message | Mapping[str, Any]) -> None:
        """One JSON object on a line of its own, for what streams."""
        value = message_dict(message) if isinstance(message, Message) else message
        click.echo(json.dumps(value, ensure_ascii=False))

    def say(self, text: str) -> None:
        """A result in words; not part of JSON."""
        if not self.as_json:
            self.stdout.print(Text(text))

    def remark(self, text: str) -> None:
        """What is going on."""
        self.stderr.print(Text(text))

    def listing(
        self, title: str, columns: Sequence[str], messages: Sequence[Message], row: Callable[[Any], Sequence[object]]
    ) -> None:
        """A table with a row a message, or a JSON array of them."""
        if self.as_json:
            self.json([message_dict(message) for message in messages])
        else:
            self.table(title, columns, [row(message) for message in messages])

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """For people only. Numbers stand right; a column whose name ends in an id is never cut."""
        drawn = Table(title=title or None, title_justify="left", header_style="bold", expand=False)
        shown = [[_cell(value) for value in row] for row in rows]
        for index, name in enumerate(columns):
            numeric = bool(shown) and all(_is_number(row[index]) for row in shown)
            drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in shown:
            drawn.add_row(*map(Text, row))
        self.stdout.print(drawn)
        if not shown:
            self.stdout.print("(none)")

    def record(self, title: str, message: Message, rows: Sequence[tuple[str, object]]) -> None:
        """One thing: its fields under each other, or its JSON. A field of None or "" is left out."""
        if self.as_json:
            self.json(message_dict(message))
            return
        drawn = Table(title=title or None, title_justify="left", show_header=False, box=None)
        drawn.add_column(style="bold")
        drawn.add_column(overflow="fold")
        for name, value in rows:
            if value is not None and value != "":
                drawn.add_row(name, Text(_cell(value)))
        self.stdout.print(drawn)

    @contextmanager
    def bar(self, description: str, total: float) -> Iterator[Callable[[float], None]]:
        """Yields what to call with how much is done of the total."""
        if not self.live:
            yield _plain_bar(self, description, total)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.stderr) as progress:
            task = progress.add_task(description, total=total or None)

            def done(completed: float) -> None:
                progress.update(task, completed=completed)

            yield done


def _console(stream: Any) -> Console:
    return Console(file=stream, width=None if stream.isatty() else PLAIN_WIDTH, highlight=False, soft_wrap=False)


def _plain_bar(output: Output, description: str, total: float) -> Callable[[float], None]:
    said = -1

    def done(completed: float) -> None:
        nonlocal said
        step = int(completed / total / PLAIN_STEP) if total else 0
        if step > said:
            said = step
            output.remark(f"{description}: {percent(completed / total) if total else completed}")

    return done


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _is_number(text: str) -> bool:
    return not text or text.replace(",", "").replace(".", "").rstrip(" %").lstrip("-").isdigit()


def message_dict(message: Message) -> dict[str, Any]:
    """protobuf's JSON mapping, zeros included."""
    result: dict[str, Any] = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    return result


def money(micros: int, currency: str = "") -> str:
    """12500000 -> `12.50 EUR`: at least two decimals, and never a rounded one."""
    amount = Decimal(micros) / MICROS
    text = f"{amount:,.6f}"
    whole, _, decimals = text.partition(".")
    return f"{whole}.{decimals[:2]}{decimals[2:].rstrip('0')} {currency}".strip()


def duration(value: Duration | float) -> str:
    """`0:01:30`; seconds or a Duration."""
    seconds = int(value.ToTimedelta().total_seconds() if isinstance(value, Duration) else value)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def moment(message: Message, field: str) -> str:
    """A Timestamp field in the local time zone; "" if unset."""
    if not message.HasField(field):
        return ""
    stamp: Timestamp = getattr(message, field)
    return local_time(stamp)


def local_time(stamp: Timestamp) -> str:
    """In the local time zone, to the second."""
    return datetime.fromtimestamp(stamp.ToMilliseconds() / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def percent(share: float) -> str:
    """0.5 -> `50 %`."""
    return f"{100 * share:.0f} %"


def ratio(message: Message, field: str) -> str:
    """An optional share to three decimals; `-` if its denominator is zero."""
    return f"{getattr(message, field):.3f}" if message.HasField(field) else "-"


def either(message: Message, *fields: str) -> str:
    """As ratio(), of the first of the fields that is set."""
    return ratio(message, next((field for field in fields if message.HasField(field)), fields[0]))


def enum_word(message: Message, field: str) -> str:
    """TASK_STATE_TRAINING -> `training`."""
    descriptor = message.DESCRIPTOR.fields_by_name[field].enum_type
    assert descriptor is not None
    return enum_name(descriptor, getattr(message, field))


def enum_name(descriptor: Any, number: int) -> str:
    """The value's own word, without the enum's prefix; "" for unspecified."""
    prefix = enum_prefix(descriptor)
    known = descriptor.values_by_number.get(number)
    word = known.name.removeprefix(prefix).lower().replace("_", " ") if known else str(number)
    return "" if word == "unspecified" else word


def enum_prefix(descriptor: Any) -> str:
    """`TASK_STATE_` of TaskState."""
    unspecified: str = descriptor.values_by_number[0].name
    return unspecified.removesuffix("UNSPECIFIED")
