"""`saucer model`. A task's id stands for its model."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import click

from saucer.cli.app import IDENTIFIER, App, Topic, found_or, limit_option, listed, pass_app
from saucer.cli.connection import streaming
from saucer.cli.errors import CliError
from saucer.cli.output import either, enum_word, message_dict, moment
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2


@click.group(cls=Topic)
def model() -> None:
    """What trainings leave."""


@model.command("list")
@click.option("--task", "task_id", type=IDENTIFIER, help="Only of this one.")
@limit_option()
@pass_app
def list_(app: App, task_id: str | None, limit: int) -> None:
    """Models, newest first."""
    request = training_pb2.ListModelsRequest(account_id=app.connection.account_id, task_id=task_id or "")
    found = listed(app, app.connection.training.ListModels, request, "models", limit)
    app.output.listing(
        "",
        ("model id", "name", "scene", "classes", "validation accuracy", "created"),
        found,
        lambda item: (
            item.model_id,
            item.display_name,
            item.scene,
            len(item.classes),
            either(item, "validation_map_50", "validation_top_1"),
            moment(item, "create_time"),
        ),
    )


@model.command()
@click.argument("model_id", type=IDENTIFIER, metavar="MODEL_OR_TASK")
@click.argument("names", nargs=-1, metavar="[FILE]...")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="A folder; default: the model's id.")
@pass_app
def download(app: App, model_id: str, names: tuple[str, ...], output: Path | None) -> None:
    """Weights, ONNX, config, metrics, log, detections and report, or those named; each checked by its checksum."""
    found = find_model(app, model_id)
    unknown = sorted(set(names) - {file.name for file in found.files})
    if unknown:
        there = ", ".join(file.name for file in found.files)
        raise CliError(f"The model has no {', '.join(unknown)}; it has {there}.")
    wanted = [file for file in found.files if not names or file.name in names]
    folder = output or Path(found.model_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in wanted:
            _download(app, found.model_id, file, folder)
    except OSError as error:
        raise CliError(f"The file cannot be written: {error}.") from error
    if app.output.as_json:
        app.output.json([{**message_dict(file), "path": str(folder / file.name)} for file in wanted])
    else:
        rows = [(str(folder / file.name), file.size_bytes, file.sha256) for file in wanted]
        app.output.table("", ("file", "bytes", "SHA-256"), rows)


@model.command()
@click.argument("model_id", type=IDENTIFIER, metavar="MODEL_OR_TASK")
@pass_app
def delete(app: App, model_id: str) -> None:
    """Delete a model that no deployment serves; what came of it stays, and so do the files in the output path."""
    deleted = _of_model_or_task(
        app,
        model_id,
        lambda found: app.connection.training.DeleteModel(training_pb2.DeleteModelRequest(model_id=found)),
    )
    if app.output.as_json:
        app.output.json(message_dict(deleted))
    app.output.say(f"Deleted the model of {deleted.display_name}.")


def _download(app: App, model_id: str, file: training_pb2.ModelFile, folder: Path) -> None:
    """Under another name until it is whole, so that a file with the right name is the right file."""
    part, digest, done_bytes = folder / f"{file.name}.part", hashlib.sha256(), 0
    request = training_pb2.DownloadModelFileRequest(model_id=model_id, name=file.name)
    with (
        part.open("wb") as target,
        app.output.bar(file.name, file.size_bytes) as done,
        streaming(app.connection.training.DownloadModelFile(request)) as chunks,
    ):
        for chunk in chunks:
            target.write(chunk.data)
            digest.update(chunk.data)
            done_bytes += len(chunk.data)
            done(done_bytes)
    if digest.hexdigest() != file.sha256:
        part.unlink()
        raise CliError(f"{file.name} arrived with another checksum than the model states; download it again.")
    part.rename(folder / file.name)


def find_model(app: App, identifier: str) -> training_pb2.Model:
    """By its own id or its task's."""
    return _of_model_or_task(
        app, identifier, lambda found: app.connection.training.GetModel(training_pb2.GetModelRequest(model_id=found))
    )


def _of_model_or_task(app: App, identifier: str, ask: Callable[[str], training_pb2.Model]) -> training_pb2.Model:
    """What is answered of the model with this id, or of that of the task with it."""

    def of_task() -> training_pb2.Model:
        found = app.connection.task.GetTask(task_pb2.GetTaskRequest(task_id=identifier))
        if not found.model_id:
            raise CliError(f"The task {identifier} is {enum_word(found, 'state')} and has no model.")
        return ask(found.model_id)

    return found_or(lambda: ask(identifier), of_task)
