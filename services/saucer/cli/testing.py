"""`saucer test`: what a deployment finds on one picture, at any confidence, from one answer."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from saucer.cli.app import PICTURE, App, Verb, pass_app
from saucer.cli.deployment_details import DEPLOYMENT
from saucer.cli.deployments import get
from saucer.cli.detecting import MAX_IMAGE_BYTES, draw_boxes, print_boxes
from saucer.cli.errors import CliError
from saucer.cli.output import message_dict
from saucer.publishing.v1 import publishing_pb2


@click.command(cls=Verb)
@DEPLOYMENT
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--output",
    type=PICTURE,
    help="The drawn picture, a PNG, drawn again at each confidence; default: the image's name with -boxes.png.",
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="To begin with; default: the deployment's, by class.")
@click.option("--interactive", is_flag=True, help="Read other confidences even where standard input is no terminal.")
@pass_app
def test(
    app: App, deployment_id: str, image: Path, output: Path | None, threshold: float | None, interactive: bool
) -> None:
    """Draw boxes on a picture; then, in a terminal, at other confidences that are typed, without asking again."""
    content = image.read_bytes()
    if len(content) > MAX_IMAGE_BYTES:
        raise CliError(f"{image} is larger than {MAX_IMAGE_BYTES} bytes.")
    online = get(app, deployment_id)
    request = publishing_pb2.PredictRequest(deployment_id=deployment_id, image=content)
    found = app.connection.publishing.Predict(request)
    if app.output.as_json:
        app.output.line({"image": str(image), **message_dict(found)})
        return
    target = output or image.with_name(f"{image.stem}-boxes.png")

    def draw(chosen: float | None) -> None:
        print_boxes(app.output, image, found, chosen)
        app.output.remark(f"Drawn: {draw_boxes(target, content, online, found, chosen)}")

    draw(threshold)
    # Without anybody who types, standard input is another's: a loop's list, or a pipe that never ends.
    if interactive or sys.stdin.isatty():
        for chosen in _typed(app):
            draw(chosen)


def _typed(app: App) -> Iterator[float]:
    """Confidences, until an empty line or the end."""
    if app.output.live:
        app.output.remark("Another confidence, 0 to 1; an empty line ends.")
    for line in sys.stdin:
        if not line.strip():
            return
        try:
            confidence = float(line)
        except ValueError:
            confidence = -1.0
        if 0 <= confidence <= 1:
            yield confidence
        else:
            app.output.remark(f"{line.strip()[:100]} is no confidence from 0 to 1.")
