"""`saucer predict`: boxes on images, as tables, pictures or JSON."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import click
from google.rpc import error_details_pb2, status_pb2

from saucer.cli.app import App, Verb, pass_app
from saucer.cli.connection import streaming
from saucer.cli.deployment_details import DEPLOYMENT
from saucer.cli.deployments import get
from saucer.cli.errors import CliError
from saucer.cli.output import Output, message_dict
from saucer.lib.scores import at_score_precision
from saucer.publishing.v1 import publishing_pb2

# Larger files are not sent.
MAX_IMAGE_BYTES = 20 * 1024 * 1024
# What a folder is searched for, in lower case.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


@click.command(cls=Verb)
@DEPLOYMENT
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--threshold", type=click.FloatRange(0, 1), help="Of the score; default: the deployment's, by class.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder for images with boxes drawn; not that of the images.",
)
@pass_app
def predict(
    app: App, deployment_id: str, images: tuple[Path, ...], threshold: float | None, output: Path | None
) -> None:
    """Find things on images, and on all that lie in folders; --json has every box above the service's low floor."""
    files = image_files(images)
    drawings = drawing_files(output, files) if output is not None else []
    online = get(app, deployment_id)
    refused = 0
    bar = app.output.bar("Predicting", len(files)) if len(files) > 1 else nullcontext(lambda completed: None)
    call = app.connection.publishing.PredictStream(_requests(deployment_id, files))
    with bar as done, streaming(call) as answers:
        for answer in answers:
            file = files[answer.request_number - 1]
            if answer.HasField("error"):
                refused += 1
                _print_refusal(app.output, file, answer.error)
            else:
                _print_found(app.output, file, answer.prediction, threshold)
                if drawings:
                    if side_of(online, answer.prediction) is None:
                        online = get(app, deployment_id)  # it was updated while the images were sent
                    drawing = drawings[answer.request_number - 1]
                    drawn = draw_boxes(drawing, file.read_bytes(), online, answer.prediction, threshold)
                    app.output.remark(f"Drawn: {drawn}")
            done(answer.request_number)
    if refused:
        raise CliError(f"{refused} of {len(files)} images have no answer.")


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Files as they are named, and the images of folders in order. Raises CliError: none there, or too large."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not found:
                raise CliError(f"No image lies in {path}: {', '.join(sorted(SUFFIXES))} are looked for.")
            files += found
        else:
            files.append(path)
    for file in files:
        if file.stat().st_size > MAX_IMAGE_BYTES:
            raise CliError(f"{file} is larger than {MAX_IMAGE_BYTES} bytes.")
    return files


def drawing_files(folder: Path, images: Sequence[Path]) -> list[Path]:
    """Where each image is drawn: under its own name, with a number where another image has that already.

    Raises CliError if one of the images lies in the folder: it might be drawn over.
    """
    if any(image.parent.resolve() == folder.resolve() for image in images):
        raise CliError(f"Images lie in {folder}; name another folder for --output, so that none is drawn over.")
    drawings: dict[Path, Path] = {}
    for image in images:
        drawing, number = folder / f"{image.stem}.png", 1
        while drawing in drawings:
            number += 1
            drawing = folder / f"{image.stem}-{number}.png"
        drawings[drawing] = image
    return list(drawings)


def _requests(deployment_id: str, files: Sequence[Path]) -> Iterator[publishing_pb2.PredictStreamRequest]:
    """Read as they are sent. An empty file is refused by the service, by name; so is one that is gone meanwhile."""
    for file in files:
        image = file.read_bytes() if file.exists() else b""
        yield publishing_pb2.PredictStreamRequest(deployment_id=deployment_id, image=image)


def _print_found(output: Output, file: Path, found: publishing_pb2.PredictResponse, threshold: float | None) -> None:
    if output.as_json:
        output.line({"image": str(file), **message_dict(found)})
    else:
        print_boxes(output, file, found, threshold)


def _print_refusal(output: Output, file: Path, error: status_pb2.Status) -> None:
    info = error_details_pb2.ErrorInfo()
    for detail in error.details:
        detail.Unpack(info)
    if output.as_json:
        output.line({"image": str(file), "error": {"reason": info.reason, "message": error.message}})
    else:
        output.say(f"{file}: {error.message} ({info.reason})")


def above(found: publishing_pb2.PredictResponse, threshold: float | None) -> list[publishing_pb2.Detection]:
    """At or above the threshold; None: at or above what the deployment has for the class."""
    if threshold is None:
        return [item for item in found.detections if item.above_threshold]
    return [item for item in found.detections if item.score >= at_score_precision(threshold)]


def side_of(
    online: publishing_pb2.Deployment, found: publishing_pb2.PredictResponse
) -> publishing_pb2.Deployment | publishing_pb2.Version | None:
    """Whichever has the classes and thresholds of the version that answered; None: it was neither of the two."""
    if found.version_number == online.version_number:
        return online
    candidate = online.candidate.version
    return candidate if found.version_number == candidate.number else None


def draw_boxes(
    file: Path,
    image: bytes,
    online: publishing_pb2.Deployment,
    found: publishing_pb2.PredictResponse,
    threshold: float | None,
) -> Path:
    """Draws what is above the threshold; None: what the answer marks. Raises CliError if the file cannot be written."""
    from saucer.drawing import images  # noqa: PLC0415 - brings matplotlib, which the other commands need not wait for

    shown = above(found, threshold)
    side = side_of(online, found) or online
    if threshold is None:
        # One figure below the picture for thresholds by class: what all that is drawn has reached, or what none has.
        own = [item.threshold for item in side.thresholds] or [0.0]
        # The answer's marks decide, also where its version is not known any more.
        threshold = min([*own, *(item.score for item in shown)]) if shown else max(own)
    boxes = [
        images.LabelledBox(item.x1, item.y1, item.x2, item.y2, item.class_name, item.score)
        for item in (shown or found.detections)
    ]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(images.boxes_on_image(image, boxes, list(side.classes), threshold))
    except (OSError, ValueError) as error:
        raise CliError(f"The picture {file} cannot be drawn: {error}.") from error
    return file


def print_boxes(output: Output, file: Path, found: publishing_pb2.PredictResponse, threshold: float | None) -> None:
    """As a table what is above the threshold, or that nothing is."""
    shown = above(found, threshold)
    if not shown:
        best = f"the highest score below it is {found.highest_score:.2f}" if found.highest_score else "nothing at all"
        output.say(f"{file}: nothing above the threshold; {best}.")
        return
    output.table(
        f"{file}, {found.width} × {found.height} px",
        ("class", "score", "x1", "y1", "x2", "y2"),
        [
            (item.class_name, f"{item.score:.3f}", *(f"{value:.1f}" for value in (item.x1, item.y1, item.x2, item.y2)))
            for item in shown
        ],
    )
