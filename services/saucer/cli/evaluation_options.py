"""What the verbs of `saucer evaluation` share: arguments, the evaluation that is meant, pictures, tables by class."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import click

from saucer.cli.app import IDENTIFIER, App, found_or
from saucer.cli.errors import CliError
from saucer.cli.exports import new_file
from saucer.cli.output import enum_word
from saucer.evaluation.v1 import evaluation_pb2
from saucer.task.v1 import task_pb2

EVALUATION = click.argument("evaluation_id", type=IDENTIFIER, metavar="EVALUATION_OR_TASK")
THRESHOLD = click.option("--threshold", type=click.FloatRange(0, 1), help="Of the score; default: 0.5.")
FILE = click.Path(path_type=Path, dir_okay=False)
EVERY = click.option("--all", "every", is_flag=True, help="Every class, however many there are.")
MOST_ROWS = 25  # of a table by class, unless all are asked for

# Given what draws, with the module that does it, into a file.
Draw = Callable[[Callable[[ModuleType, Path], None]], None]


@contextmanager
def drawing(app: App, file: Path) -> Iterator[Draw]:
    """What draws a picture into the file. Raises CliError, as new_file() does, if that cannot be written."""
    with new_file(file) as written:

        def draw(picture: Callable[[ModuleType, Path], None]) -> None:
            from saucer.drawing import evaluations  # noqa: PLC0415 - matplotlib, which other commands need not wait for

            written.write(evaluations.drawn(file.name, lambda path: picture(evaluations, path)))

        yield draw
    app.output.remark(f"Drawn: {file}")


def evaluation_of(app: App, identifier: str, threshold: float | None) -> evaluation_pb2.Evaluation:
    """By its id, or by its task's. Raises CliError for a task without one."""
    stub = app.connection.evaluation

    def get(evaluation_id: str) -> evaluation_pb2.Evaluation:
        return stub.GetEvaluation(evaluation_pb2.GetEvaluationRequest(evaluation_id=evaluation_id, threshold=threshold))

    def of_task() -> evaluation_pb2.Evaluation:
        found = app.connection.task.GetTask(task_pb2.GetTaskRequest(task_id=identifier))
        if not found.evaluation_id:
            raise CliError(f"The task {identifier} is {enum_word(found, 'state')} and has no evaluation yet.")
        return get(found.evaluation_id)

    return found_or(lambda: get(identifier), of_task)


def class_table(app: App, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, every: bool) -> None:
    """A table with a row or more for each class; of many the first, and a hint."""
    shown = rows if every else rows[:MOST_ROWS]
    app.output.table(title, columns, shown)
    if len(shown) < len(rows):
        app.output.remark(f"The first {len(shown)} of {len(rows)} rows; --all shows every one.")
