"""What all commands share: the options to connect with, and how a failure ends.

The common options stand on every command, before or after its verb. Where one is not given, the environment says it
(SAUCER_PROFILE, SAUCER_TOKEN, SAUCER_ACCOUNT), and then the profile.
"""

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import click
import grpc

from saucer.cli.connection import DEFAULT_PROFILE, Connection, read_profile
from saucer.cli.errors import CliError, is_not_found, sentence
from saucer.cli.output import MICROS, Output, enum_prefix
from saucer.lib.ids import derived_id, new_id

# A listing asks for pages of this size until it has what was asked for.
PAGE_SIZE = 200
M = TypeVar("M")


@dataclass
class App:
    """One invocation."""

    as_json: bool = False
    profile_file: Path | None = None
    token: str | None = None
    account_id: str | None = None
    given_request_id: str | None = None
    # The id that was sent with a call, for a sentence that says how to repeat it.
    sent_request_id: str | None = None

    @cached_property
    def output(self) -> Output:
        """Where results go."""
        return Output(self.as_json)

    @cached_property
    def connection(self) -> Connection:
        """Raises CliError if there is no profile."""
        profile = read_profile(self.profile_file or Path(os.environ.get("SAUCER_PROFILE") or DEFAULT_PROFILE))
        token = self.token or os.environ.get("SAUCER_TOKEN") or profile.token
        account_id = self.account_id or os.environ.get("SAUCER_ACCOUNT") or profile.account_id or ""
        connection = Connection(profile, token, account_id)
        click.get_current_context().find_root().call_on_close(connection.close)
        return connection

    def request_id(self, step: str = "") -> str:
        """The same for each call of one step of this invocation, and again with --request-id."""
        self.sent_request_id = self.given_request_id or self.sent_request_id or new_id()
        return derived_id(self.sent_request_id, step) if step else self.sent_request_id


pass_app = click.make_pass_decorator(App, ensure=True)


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(context.ensure_object(App), name, value)

    return callback


def _common_options() -> list[click.Option]:
    def option(declaration: str, name: str, text: str, **more: Any) -> click.Option:
        return click.Option([declaration], help=text, expose_value=False, callback=_remember(name), **more)

    return [
        option("--json", "as_json", "Print JSON.", is_flag=True),
        option(
            "--profile",
            "profile_file",
            f"Where Saucer is; default {DEFAULT_PROFILE}.",
            type=click.Path(path_type=Path),
            metavar="FILE",
        ),
        option("--token", "token", "Who asks; default: the profile's.", metavar="TOKEN"),
        option("--account", "account_id", "Whose; only an administrator needs it.", type=IDENTIFIER, metavar="ID"),
        option(
            "--request-id", "given_request_id", "Repeat a call without doing it twice.", type=IDENTIFIER, metavar="ID"
        ),
    ]


class Verb(click.Command):
    """A command with the common options."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params += _common_options()

    def invoke(self, ctx: click.Context) -> Any:
        """Turns a failed call into its sentence."""
        try:
            return super().invoke(ctx)
        except grpc.RpcError as error:
            raise CliError(sentence(error, ctx.ensure_object(App).sent_request_id)) from error


class Topic(click.Group):
    """A group of verbs."""

    command_class = Verb
    group_class = type


class Root(click.Group):
    """Imports a topic when it is asked for, so that `saucer` starts fast."""

    command_class = Verb

    def __init__(self, *arguments: Any, topics: dict[str, tuple[str, str]], **keywords: Any) -> None:
        """`topics`: module and one line of help, by name; the module has a command of that name (`-` as `_`)."""
        super().__init__(*arguments, **keywords)
        self.params += _common_options()
        self._topics = topics

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are used."""
        return [*self._topics, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports it."""
        if cmd_name not in self._topics:
            return super().get_command(ctx, cmd_name)
        module = import_module(self._topics[cmd_name][0])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists them without importing any."""
        own = {name: command.get_short_help_str(limit=100) for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([*((name, text) for name, (_, text) in self._topics.items()), *own.items()])


class _Identifier(click.ParamType[str]):
    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(UUID(str(value)))
        except ValueError:
            self.fail(f"{value!r} is no id; ids look like 0190b6f1-7c3a-7b5e-9d2f-3a1c5e7f9b0d.", param, ctx)


class _Seconds(click.ParamType[float]):
    name = "duration"
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # noqa: RUF012 - never written

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        text = str(value)
        unit = self.units.get(text[-1:], 0)
        try:
            return float(text[:-1]) * unit if unit else float(text)
        except ValueError:
            self.fail(f"{value!r} is no duration; write 90, 90s, 15m or 2h.", param, ctx)


class _Micros(click.ParamType[int]):
    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            micros = Decimal(str(value)) * MICROS
            if micros.is_finite() and micros == int(micros):
                return int(micros)
        except InvalidOperation:
            pass
        return self.fail(f"{value!r} is no amount; write 20 or 12.50, at most six decimals.", param, ctx)


class _Moment(click.ParamType[datetime]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            return datetime.fromisoformat(str(value)).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time; write 2027-01-31, 2027-01-31T14:30 or 2027-01-31T14:30:00+01:00.", param, ctx
            )


class FormFile(click.Path):
    """A file to be written in the form that its name ends in: one of these suffixes, in lower case."""

    def __init__(self, suffixes: Collection[str]) -> None:
        super().__init__(path_type=Path, dir_okay=False)
        self._suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses other names."""
        if Path(value).suffix.lower() not in self._suffixes:
            self.fail(f"{value!r}: the name must end in {' or '.join(self._suffixes)}.", param, ctx)
        return super().convert(value, param, ctx)


IDENTIFIER = _Identifier()
SECONDS = _Seconds()
# Local, as times are printed, where it states no zone; aware.
MOMENT = _Moment()
MONEY = _Micros()
CHART = FormFile((".png", ".svg"))
# What has photographs in it is drawn in no other form.
PICTURE = FormFile((".png",))


# Of what administrators do.
REASON = click.option("--reason", required=True, help="For the record.")


def enum_choice(descriptor: Any, *, without: Iterable[str] = ()) -> click.Choice[str]:
    """The words of an enum, in lower case with `-`; unspecified is not among them."""
    words = [name.removeprefix(enum_prefix(descriptor)).lower().replace("_", "-") for name in descriptor.values_by_name]
    return click.Choice([word for word in words if word not in {"unspecified", *without}])


def enum_number(descriptor: Any, word: str) -> Any:
    """Of a word of enum_choice; the stubs have a type of its own for each enum's numbers."""
    return descriptor.values_by_name[enum_prefix(descriptor) + word.upper().replace("-", "_")].number


def pages(call: Callable[[Any], Any], request: Any, field: str, limit: int | None) -> list[Any]:
    """What a List call has, over its pages; None: all. Beyond the limit, the request keeps the token of the rest."""
    found: list[Any] = []
    while True:
        request.page_size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(found))
        response = call(request)
        found += getattr(response, field)
        request.page_token = response.next_page_token
        if not request.page_token or len(found) == limit:
            return found


def listed(app: App, call: Callable[[Any], Any], request: Any, field: str, limit: int | None) -> list[Any]:
    """pages(), with a remark where those are not all."""
    found = pages(call, request, field, limit)
    if request.page_token:
        remark_rest(app, len(found))
    return found


def remark_rest(app: App, shown: int) -> None:
    """That a list goes on."""
    app.output.remark(f"There are more than these {shown}; --limit says how many.")


def found_or(get: Callable[[], M], other: Callable[[], M]) -> M:
    """The answer of `get`, or of `other` where that knows no such id; its failure is the first's."""
    try:
        return get()
    except grpc.RpcError as error:
        if not is_not_found(error):
            raise
        try:
            return other()
        except grpc.RpcError as second:
            if is_not_found(second):
                raise error from None
            raise


def limit_option(default: int | None = 50) -> Callable[[Any], Any]:
    """--limit; None: all."""
    return click.option(
        "--limit",
        type=click.IntRange(1, 100_000),
        default=default,
        show_default=True if default else "all",
        help="At most so many.",
    )


def chosen(profile_value: str | None, given: str | None, option: str) -> str:
    """An option, or the profile's default. Raises UsageError if neither says it."""
    value = given or profile_value
    if value is None:
        raise click.UsageError(f"Missing option '{option}'.")
    return value


def shorten(values: Sequence[str], most: int) -> str:
    """Joined by commas; beyond `most` only their number."""
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")
