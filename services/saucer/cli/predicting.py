"""`saucer evaluate`: a task that only predicts."""

import click

from saucer.billing.v1 import billing_pb2
from saucer.cli.app import IDENTIFIER, SECONDS, App, Verb, chosen, found_or, pass_app
from saucer.cli.errors import CliError
from saucer.cli.output import enum_word
from saucer.cli.tasks import show_or_watch
from saucer.lib.clock import to_duration
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2


@click.command(cls=Verb)
@click.argument("model_id", type=IDENTIFIER, metavar="MODEL_OR_TASK")
@click.option("--dataset", "dataset_version_id", type=IDENTIFIER, required=True, help="A version of a data set.")
@click.option("--name", help="Of the task; default: evaluation and the first of the ids.")
@click.option("--region", "region_id", help="Default: the profile's.")
@click.option("--spec", "spec_id", help="Default: the profile's.")
@click.option("--max-duration", type=SECONDS, help="90, 90s, 15m or 2h; what is not done then is lost. Default: 1h.")
@click.option("--output-path", default="", help="Below the account's prefix in the object store.")
@click.option("--watch", is_flag=True, help="Stay until the task is at rest.")
@pass_app
def evaluate(
    app: App,
    model_id: str,
    dataset_version_id: str,
    name: str | None,
    region_id: str | None,
    spec_id: str | None,
    max_duration: float | None,
    output_path: str,
    watch: bool,
) -> None:
    """Freeze two hours of cost and evaluate a model on a data set version's test split; nothing is trained."""
    profile, model = app.connection.profile, _model(app, model_id)
    form = task_pb2.TaskForm(
        display_name=name or f"evaluation-{model.model_id[:8]}-{dataset_version_id[:8]}-{app.request_id()[-8:]}",
        kind=task_pb2.TASK_KIND_PREDICT,
        model_id=model.model_id,
        scene=model.scene,
        dataset_version_id=dataset_version_id,
        output_path=output_path,
        max_duration=to_duration(None if max_duration is None else round(1000 * max_duration)),
        region_id=chosen(profile.region_id, region_id, "--region"),
        spec_id=chosen(profile.spec_id, spec_id, "--spec"),
        count=1,
        billing_mode=billing_pb2.BILLING_MODE_POSTPAID,
    )
    request = task_pb2.CreateTaskRequest(request_id=app.request_id(), account_id=app.connection.account_id, form=form)
    show_or_watch(app, app.connection.task.CreateTask(request), watch)


def _model(app: App, identifier: str) -> training_pb2.Model:
    def get(model_id: str) -> training_pb2.Model:
        return app.connection.training.GetModel(training_pb2.GetModelRequest(model_id=model_id))

    def of_task() -> training_pb2.Model:
        found = app.connection.task.GetTask(task_pb2.GetTaskRequest(task_id=identifier))
        if not found.model_id:
            raise CliError(f"The task {identifier} is {enum_word(found, 'state')} and has no model.")
        return get(found.model_id)

    return found_or(lambda: get(identifier), of_task)
