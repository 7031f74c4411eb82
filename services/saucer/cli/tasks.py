"""`saucer task`."""

from collections.abc import Callable
from typing import Any

import click

from saucer.billing.v1 import billing_pb2
from saucer.cli.app import (
    IDENTIFIER,
    MONEY,
    SECONDS,
    App,
    Topic,
    Verb,
    chosen,
    enum_choice,
    enum_number,
    limit_option,
    listed,
    pass_app,
)
from saucer.cli.errors import CliError
from saucer.cli.output import Output, duration, either, enum_word, message_dict, moment, money, percent, ratio
from saucer.cli.watching import FAILED, watch_task
from saucer.lib.clock import to_duration
from saucer.task.v1 import task_pb2

TASK = click.argument("task_id", type=IDENTIFIER, metavar="TASK")
_STATES = task_pb2.TaskState.DESCRIPTOR
_MODES = billing_pb2.BillingMode.DESCRIPTOR
# Options that go into the form as they are, where they are given.
_TUNING = ("expected_accuracy", "epochs", "lr", "batch_size", "warmup", "input_size")


@click.group(cls=Topic)
def task() -> None:
    """AutoML jobs, from form to result."""


def form_options(function: Callable[..., None]) -> Callable[..., None]:
    """What a user chooses; what is left out is derived from the data, and the task says which and why."""
    options = [
        click.option("--name", required=True, help="Letters, digits, _ and -; unique in the account."),
        click.option(
            "--dataset", "dataset_version_id", type=IDENTIFIER, required=True, help="A version of a data set."
        ),
        click.option(
            "--scene", default="object-detection", show_default=True, help="As `saucer task scenes` names them."
        ),
        click.option("--region", "region_id", help="Default: the profile's."),
        click.option("--spec", "spec_id", help="Default: the profile's."),
        click.option("--count", type=int, default=1, show_default=True, help="GPUs of one machine."),
        click.option("--billing-mode", type=enum_choice(_MODES), default="postpaid", show_default=True),
        click.option("--group", "resource_group_id", type=IDENTIFIER, help="Of prepaid: whose capacity it takes."),
        click.option(
            "--priority",
            type=click.IntRange(0, 9),
            default=0,
            help="Of the account's own tasks that wait for a worker the higher goes first.",
        ),
        click.option("--budget", type=MONEY, default=0, help="What all its starts together may cost at most: 12.50."),
        click.option(
            "--expected-accuracy",
            type=float,
            help="Training stops by itself at this validation mAP@0.50; at this top-1 of a classification.",
        ),
        click.option("--max-duration", type=SECONDS, help="90, 90s, 15m or 2h; training stops then. Default: 1h."),
        click.option("--epochs", type=int),
        click.option("--lr", type=float),
        click.option("--batch-size", type=int),
        click.option("--warmup", type=int, help="Iterations."),
        click.option("--input-size", type=int, help="Pixels."),
        click.option(
            "--starting-point", help="As `saucer task starting-points` names them. Default: by the data and the spec."
        ),
        click.option("--base-model", "base_model_id", type=IDENTIFIER, help="Begin with a model of your own."),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--output-path", default="", help="Below the account's prefix in the object store."),
        click.option("--remark", default=""),
        click.option("--tag", "tags", multiple=True),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _form(app: App, options: dict[str, Any]) -> task_pb2.TaskForm:
    profile = app.connection.profile
    seconds = options["max_duration"]
    form = task_pb2.TaskForm(
        display_name=options["name"],
        scene=options["scene"],
        remark=options["remark"],
        tags=options["tags"],
        dataset_version_id=options["dataset_version_id"],
        output_path=options["output_path"],
        max_duration=to_duration(None if seconds is None else round(1000 * seconds)),
        region_id=chosen(profile.region_id, options["region_id"], "--region"),
        spec_id=chosen(profile.spec_id, options["spec_id"], "--spec"),
        count=options["count"],
        billing_mode=enum_number(_MODES, options["billing_mode"]),
        starting_point=options["starting_point"] or "",
        base_model_id=options["base_model_id"] or "",
        resource_group_id=options["resource_group_id"] or "",
        budget_micros=options["budget"],
        priority=options["priority"],
        seed=options["seed"],
    )
    for name in _TUNING:
        if options[name] is not None:
            setattr(form, name, options[name])
    return form


@task.command()
@form_options
@click.option("--watch", is_flag=True, help="Stay until the task is at rest.")
@pass_app
def create(app: App, /, watch: bool, **options: Any) -> None:
    """Freeze two hours of cost and start a training."""
    request = task_pb2.CreateTaskRequest(
        request_id=app.request_id(), account_id=app.connection.account_id, form=_form(app, options)
    )
    made = app.connection.task.CreateTask(request)
    show_or_watch(app, made, watch)


def show_or_watch(app: App, shown: task_pb2.Task, watch: bool) -> None:
    """A task as it is, or until it is at rest."""
    if watch:
        app.output.remark(f"Task {shown.task_id}")
        _watch(app, shown.task_id)
    else:
        print_task(app.output, shown)


@task.command()
@form_options
@pass_app
def quote(app: App, /, **options: Any) -> None:
    """What it would cost and how long it would take; starts nothing."""
    request = task_pb2.QuoteTaskRequest(account_id=app.connection.account_id, form=_form(app, options))
    found = app.connection.task.QuoteTask(request)
    app.output.record(
        "",
        found,
        [
            ("price an hour", money(found.price_per_hour_micros, found.currency)),
            ("hold", money(found.hold_micros, found.currency)),
            ("available", money(found.available_micros, found.currency)),
            ("missing", money(found.missing_micros, found.currency) if found.missing_micros else None),
            ("highest possible cost", money(found.highest_cost_micros, found.currency)),
            ("estimated duration", duration(found.estimated_duration)),
        ],
    )
    if not app.output.as_json:
        _print_derived(app.output, list(found.derived_values))
    for warning in found.warnings:
        app.output.remark(f"Warning: {warning}")


@task.command()
@TASK
@pass_app
def show(app: App, task_id: str) -> None:
    """One task."""
    found = app.connection.task.GetTask(task_pb2.GetTaskRequest(task_id=task_id))
    print_task(app.output, found)
    if not app.output.as_json:
        _print_derived(app.output, list(found.derived_values))


# Its name in earlier releases.
task.add_command(Verb("get", callback=show.callback, params=show.params[:1], help=show.help, hidden=True))


@task.command("list")
@click.option("--state", "states", type=enum_choice(_STATES), multiple=True, help="Only in this state; repeatable.")
@limit_option()
@pass_app
def list_(app: App, states: tuple[str, ...], limit: int) -> None:
    """Tasks, newest first."""
    request = task_pb2.ListTasksRequest(
        account_id=app.connection.account_id,
        states=[enum_number(_STATES, state) for state in states],
    )
    found = listed(app, app.connection.task.ListTasks, request, "tasks", limit)
    app.output.listing(
        "",
        ("task id", "name", "state", "progress", "cost", "best accuracy", "created"),
        found,
        lambda item: (
            item.task_id,
            item.form.display_name,
            enum_word(item, "state"),
            percent(item.progress),
            money(item.cost_micros, item.currency),
            either(item, "best_map_50", "best_top_1"),
            moment(item, "create_time"),
        ),
    )


@task.command()
@TASK
@pass_app
def watch(app: App, task_id: str) -> None:
    """Stay until the task is at rest; ends with 1 if it failed or was refused."""
    _watch(app, task_id)


def _watch(app: App, task_id: str) -> None:
    ended = watch_task(app, task_id)
    if not app.output.as_json:
        print_task(app.output, ended)
    if ended.state in FAILED:
        raise CliError(
            f"The task is {enum_word(ended, 'state')}: {ended.error_message or enum_word(ended, 'end_reason')}"
        )


@task.command()
@TASK
@pass_app
def stop(app: App, task_id: str) -> None:
    """Stop the training; the best weights so far become a model."""
    request = task_pb2.StopTaskRequest(request_id=app.request_id(), task_id=task_id)
    print_task(app.output, app.connection.task.StopTask(request))


@task.command()
@TASK
@click.option("--from-scratch", is_flag=True, help="Not from the last checkpoint.")
@click.option("--max-duration", type=SECONDS, help="Default: as before.")
@click.option("--billing-mode", type=enum_choice(_MODES), help="Default: as before.")
@click.option(
    "--group",
    "resource_group_id",
    type=IDENTIFIER,
    help="Of prepaid: whose capacity it takes; default: as before, unless --billing-mode is named.",
)
@click.option("--watch", is_flag=True, help="Stay until the task is at rest.")
@pass_app
def restart(
    app: App,
    task_id: str,
    from_scratch: bool,
    max_duration: float | None,
    billing_mode: str | None,
    resource_group_id: str | None,
    watch: bool,
) -> None:
    """Start again under a new hold, from the last checkpoint."""
    request = task_pb2.RestartTaskRequest(
        request_id=app.request_id(),
        task_id=task_id,
        from_scratch=from_scratch,
        billing_mode=enum_number(_MODES, billing_mode) if billing_mode else billing_pb2.BILLING_MODE_UNSPECIFIED,
        resource_group_id=resource_group_id or "",
        max_duration=to_duration(None if max_duration is None else round(1000 * max_duration)),
    )
    show_or_watch(app, app.connection.task.RestartTask(request), watch)


@task.command()
@TASK
@pass_app
def delete(app: App, task_id: str) -> None:
    """Delete a task at rest; its name is free again, its bill stays."""
    deleted = app.connection.task.DeleteTask(task_pb2.DeleteTaskRequest(task_id=task_id))
    if app.output.as_json:
        app.output.json(message_dict(deleted))
    app.output.say(f"Deleted {deleted.form.display_name}.")


@task.command()
@pass_app
def scenes(app: App) -> None:
    """What --scene takes."""
    response = app.connection.task.ListScenes(task_pb2.ListScenesRequest())
    app.output.listing(
        "",
        ("scene", "title", "classes", "expected accuracy", "description"),
        response.scenes,
        lambda scene: (
            scene.name,
            scene.title,
            ", ".join(scene.classes) or "those of the data",
            ratio(scene, "expected_accuracy"),
            scene.description,
        ),
    )


@task.command()
@pass_app
def starting_points(app: App) -> None:
    """What --starting-point takes."""
    response = app.connection.task.ListStartingPoints(task_pb2.ListStartingPointsRequest())
    app.output.listing(
        "",
        ("starting point", "title", "fetched over the network", "description"),
        response.starting_points,
        lambda point: (point.name, point.title, "once" if point.fetched else "no", point.description),
    )


@task.command()
@pass_app
def parameters(app: App) -> None:
    """What --epochs, --lr, --batch-size, --warmup and --input-size take; left out, each is derived from the data."""
    response = app.connection.task.ListParameters(task_pb2.ListParametersRequest())
    app.output.listing(
        "",
        ("parameter", "built in", "from", "to", "multiple of", "unit", "description"),
        response.parameters,
        lambda each: (
            each.name,
            ", ".join(f"{value:g}" for value in each.values),
            f"{each.minimum:g}",
            f"{each.maximum:g}",
            str(each.step or "-"),
            each.unit or "-",
            each.description,
        ),
    )


def print_task(output: Output, task: task_pb2.Task) -> None:
    """What a user wants to know of it."""
    most = duration(task.config.max_duration) if task.config.HasField("max_duration") else ""
    expected = ratio(task.config, "expected_accuracy")
    best = either(task, "best_map_50", "best_top_1") + (f" of {expected} expected" if expected != "-" else "")
    output.record(
        "",
        task,
        [
            ("task id", task.task_id),
            ("name", task.form.display_name),
            ("state", enum_word(task, "state")),
            ("charge", enum_word(task, "charge_status")),
            ("end", enum_word(task, "end_reason")),
            ("error", task.error_message),
            ("stage", enum_word(task, "stage")),
            ("progress", f"{percent(task.progress)}, epoch {task.epoch:.1f} of {task.config.epochs}"),
            ("elapsed", duration(task.elapsed) + (f" of {most}" if most else "")),
            ("validation top-1" if task.config.classification else "validation map_50", best),
            ("test map_50", ratio(task, "test_map_50") if task.HasField("test_map_50") else None),
            ("test top-1", ratio(task, "test_top_1") if task.HasField("test_top_1") else None),
            ("cost", f"{money(task.cost_micros, task.currency)}, hold {money(task.hold_micros, task.currency)}"),
            ("missing", money(task.missing_micros, task.currency) if task.missing_micros else None),
            ("start, attempt", f"{task.start_number}, {task.attempt}"),
            ("run id", task.run_id),
            ("model id", task.model_id),
            ("evaluation id", task.evaluation_id),
            ("created", moment(task, "create_time")),
            ("ended", moment(task, "end_time")),
        ],
    )


def _print_derived(output: Output, values: list[task_pb2.DerivedValue]) -> None:
    if values:
        output.table("Derived", ("field", "value", "why"), [(item.field, item.value, item.reason) for item in values])
