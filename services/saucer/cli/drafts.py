"""`saucer draft`: labelling."""

from typing import Any

import click

from saucer.cli.app import IDENTIFIER, App, Topic, enum_choice, enum_number, limit_option, listed, pass_app
from saucer.cli.datasets import describe_box, make_version
from saucer.cli.output import moment
from saucer.dataset.v1 import dataset_pb2

DRAFT = click.argument("draft_id", type=IDENTIFIER, metavar="DRAFT")
_KINDS = dataset_pb2.DESCRIPTOR.enum_types_by_name["LabelKind"]


class _Box(click.ParamType[dataset_pb2.LabelledBox]):
    name = "box"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dataset_pb2.LabelledBox:
        class_name, _, corners = str(value).rpartition(":")
        try:
            x1, y1, x2, y2 = map(float, corners.split(","))
        except ValueError:
            self.fail(f"{value!r} is no box; write CLASS:X1,Y1,X2,Y2 in pixels.", param, ctx)
        return dataset_pb2.LabelledBox(class_name=class_name, x1=x1, y1=y1, x2=x2, y2=y2)


@click.group(cls=Topic)
def draft() -> None:
    """Versions that are being labelled. `saucer dataset images DRAFT --unlabelled` lists what is left to do."""


@draft.command()
@click.argument("dataset_version_id", type=IDENTIFIER, metavar="VERSION")
@click.option("--name", required=True, help="For people.")
@click.option("--class", "classes", multiple=True, help="Besides those of the version; repeatable.")
@click.option("--labels", type=enum_choice(_KINDS), help="Of a version without labels; default: boxes.")
@pass_app
def create(app: App, dataset_version_id: str, name: str, classes: tuple[str, ...], labels: str | None) -> None:
    """Begin with the images and labels of a version."""
    request = dataset_pb2.CreateDraftRequest(
        request_id=app.request_id(),
        account_id=app.connection.account_id,
        dataset_version_id=dataset_version_id,
        display_name=name,
        classes=classes,
        label_kind=enum_number(_KINDS, labels) if labels else dataset_pb2.LABEL_KIND_UNSPECIFIED,
    )
    _print(app, app.connection.dataset.CreateDraft(request))


@draft.command()
@DRAFT
@pass_app
def show(app: App, draft_id: str) -> None:
    """How far it has come."""
    _print(app, app.connection.dataset.GetDraft(dataset_pb2.GetDraftRequest(draft_id=draft_id)))


@draft.command("list")
@limit_option()
@pass_app
def list_(app: App, limit: int) -> None:
    """Those that are open, newest first."""
    request = dataset_pb2.ListDraftsRequest(account_id=app.connection.account_id)
    app.output.listing(
        "",
        ("draft id", "name", "images", "unlabelled", "created"),
        listed(app, app.connection.dataset.ListDrafts, request, "drafts", limit),
        lambda one: (one.draft_id, one.display_name, one.images, one.unlabelled_images, moment(one, "create_time")),
    )


@draft.command("add-class")
@DRAFT
@click.argument("classes", nargs=-1, required=True, metavar="NAME...")
@pass_app
def add_class(app: App, draft_id: str, classes: tuple[str, ...]) -> None:
    """More classes to label with."""
    request = dataset_pb2.AddDraftClassesRequest(draft_id=draft_id, classes=classes)
    _print(app, app.connection.dataset.AddDraftClasses(request))


@draft.command()
@DRAFT
@click.argument("image_id", type=click.IntRange(1), metavar="IMAGE")
@click.option("--box", "boxes", type=_Box(), multiple=True, metavar="CLASS:X1,Y1,X2,Y2", help="Repeatable.")
@click.option("--class", "class_name", default="", help="What the whole image shows.")
@click.option("--revision", type=click.IntRange(1), required=True, help="Of the image as it was listed (--json).")
@pass_app
def label(
    app: App,
    draft_id: str,
    image_id: int,
    boxes: tuple[dataset_pb2.LabelledBox, ...],
    class_name: str,
    revision: int,
) -> None:
    """Replace the labels of one image; without any, there is nothing on it."""
    request = dataset_pb2.SaveLabelsRequest(
        draft_id=draft_id, image_id=image_id, revision=revision, boxes=boxes, class_name=class_name
    )
    saved = app.connection.dataset.SaveLabels(request)
    labels = [saved.class_name] if saved.class_name else [describe_box(box) for box in saved.boxes]
    app.output.record(
        "", saved, [("image id", saved.image_id), ("labels", " ".join(labels)), ("revision", saved.revision)]
    )


@draft.command()
@DRAFT
@click.option("--name", required=True, help="Of the version, for people.")
@click.option("--split-again", is_flag=True, help="A new split, instead of that of the version it began with.")
@click.option("--split-seed", type=int, default=0, show_default=True, help="Of a new split.")
@pass_app
def version(app: App, draft_id: str, name: str, split_again: bool, split_seed: int) -> None:
    """Make a version of the draft as it stands; the draft stays."""
    make_version(
        app,
        dataset_pb2.ImportDatasetRequest(
            request_id=app.request_id(),
            account_id=app.connection.account_id,
            display_name=name,
            draft_id=draft_id,
            split_again=split_again,
            split_seed=split_seed,
        ),
    )


@draft.command()
@DRAFT
@pass_app
def delete(app: App, draft_id: str) -> None:
    """Versions that were made of it stay."""
    _print(app, app.connection.dataset.DeleteDraft(dataset_pb2.DeleteDraftRequest(draft_id=draft_id)))


def _print(app: App, one: dataset_pb2.Draft) -> None:
    app.output.record(
        "",
        one,
        [
            ("draft id", one.draft_id),
            ("name", one.display_name),
            ("of version", one.dataset_version_id),
            ("classes", ", ".join(one.classes)),
            ("images", one.images),
            ("unlabelled", one.unlabelled_images),
            ("created", moment(one, "create_time")),
        ],
    )
