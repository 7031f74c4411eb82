"""`saucer dataset`."""

import hashlib
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

import click
import grpc

from saucer.cli.app import IDENTIFIER, App, Topic, limit_option, listed, pass_app, shorten
from saucer.cli.errors import CliError, domain_error
from saucer.cli.exports import write_pieces
from saucer.cli.output import Output, message_dict, moment, percent
from saucer.dataset.v1 import dataset_pb2
from saucer.evaluation.v1 import evaluation_pb2

# Of one call; the service takes up to twice as much.
CHUNK_BYTES = 1024 * 1024
POLL_S = 0.5
# A new account waits so long for its place in the object store.
STORE_WAIT_S = 15.0
# Refused items shown in the table; --json has all that the report has.
SHOWN_ITEMS = 20
# Boxes of an image that are shown in a table.
SHOWN_BOXES = 4
FORMATS = {
    "coco": dataset_pb2.SOURCE_FORMAT_COCO,
    "voc": dataset_pb2.SOURCE_FORMAT_PASCAL_VOC,
    "yolo": dataset_pb2.SOURCE_FORMAT_YOLO,
    "class-folders": dataset_pb2.SOURCE_FORMAT_CLASS_FOLDERS,
    "images": dataset_pb2.SOURCE_FORMAT_IMAGES,
}
M = TypeVar("M")
_AT_REST = {dataset_pb2.IMPORT_STATE_SUCCEEDED, dataset_pb2.IMPORT_STATE_FAILED}


@click.group(cls=Topic)
def dataset() -> None:
    """Immutable sets of images and labels."""


@dataset.command("import")
@click.argument("source", type=click.Path(exists=True, path_type=Path), required=False, metavar="[FOLDER_OR_ARCHIVE]")
@click.option("--store-path", help="Of a folder or an archive that lies in the account's store, instead of an upload.")
@click.option("--name", help="For people; default: the source's name.")
@click.option("--upload-id", type=IDENTIFIER, help="Go on with an upload that was interrupted.")
@click.option("--root", "mapped_root", default="", help="Of --store-path: a mapped root, from `dataset roots`.")
@click.option("--split-seed", type=int, default=0, show_default=True, help="Where the source has no split of its own.")
@click.option(
    "--format",
    "source_format",
    type=click.Choice([*FORMATS], case_sensitive=False),
    help="Of the source; default: recognised by what lies in it.",
)
@pass_app
def import_(
    app: App,
    source: Path | None,
    store_path: str | None,
    mapped_root: str,
    name: str | None,
    upload_id: str | None,
    split_seed: int,
    source_format: str | None,
) -> None:
    """Make a version of a folder, or a zip or tar of one, that is uploaded or lies in the account's store."""
    if (source is None) is (store_path is None):
        raise click.UsageError("Name a folder or archive here, or --store-path.")
    request = dataset_pb2.ImportDatasetRequest(
        request_id=app.request_id("import"),
        account_id=app.connection.account_id,
        display_name=name or (source.resolve() if source else PurePosixPath(store_path or "")).name,
        split_seed=split_seed,
        source_format=FORMATS[source_format] if source_format else dataset_pb2.SOURCE_FORMAT_UNSPECIFIED,
    )
    if source is None:
        request.store_path, request.mapped_root = store_path or "", mapped_root
    else:
        with _packed(app.output, source) as archive:
            request.upload_id = _upload(app, archive, upload_id).upload_id
    make_version(app, request)


@dataset.command()
@limit_option()
@pass_app
def reads(app: App, limit: int) -> None:
    """Images read from the account's store by day, which its owner pays for: for lists and exports, for evaluations."""
    account_id = app.connection.account_id
    imported = dataset_pb2.ListImageReadsRequest(account_id=account_id)
    viewed = evaluation_pb2.ListEvaluationImageReadsRequest(account_id=account_id)
    found = [
        *(
            ("dataset", day)
            for day in listed(app, app.connection.dataset.ListImageReads, imported, "image_reads", limit)
        ),
        *(
            ("evaluation", day)
            for day in listed(app, app.connection.evaluation.ListEvaluationImageReads, viewed, "image_reads", limit)
        ),
    ]
    found.sort(key=lambda entry: entry[1].day, reverse=True)
    if app.output.as_json:
        app.output.json([{**message_dict(day), "for": service} for service, day in found])
    else:
        rows = [(day.day, service, day.reads, day.bytes) for service, day in found]
        app.output.table("", ("day (UTC)", "for", "images", "bytes"), rows)


@dataset.command()
@pass_app
def roots(app: App) -> None:
    """Further places to import from that an administrator has mapped."""
    request = dataset_pb2.ListMappedRootsRequest(account_id=app.connection.account_id)
    found = app.connection.dataset.ListMappedRoots(request).roots
    app.output.listing("", ("name", "url", "mapped"), found, _root_row)


@dataset.command("map-root")
@click.argument("account_id", type=IDENTIFIER, metavar="ACCOUNT")
@click.argument("name")
@click.argument("url")
@pass_app
def map_root(app: App, account_id: str, name: str, url: str) -> None:
    """Let an account import from file:///folder or s3://bucket/prefix (administrator)."""
    request = dataset_pb2.MapRootRequest(account_id=account_id, name=name, url=url)
    _print_root(app, app.connection.dataset.MapRoot(request))


@dataset.command("unmap-root")
@click.argument("account_id", type=IDENTIFIER, metavar="ACCOUNT")
@click.argument("name")
@pass_app
def unmap_root(app: App, account_id: str, name: str) -> None:
    """Take it back (administrator)."""
    request = dataset_pb2.UnmapRootRequest(account_id=account_id, name=name)
    _print_root(app, app.connection.dataset.UnmapRoot(request))


def _root_row(root: dataset_pb2.MappedRoot) -> tuple[object, ...]:
    return root.name, root.url, moment(root, "map_time")


def _print_root(app: App, root: dataset_pb2.MappedRoot) -> None:
    app.output.record("", root, list(zip(("name", "url", "mapped"), _root_row(root), strict=True)))


def make_version(app: App, request: dataset_pb2.ImportDatasetRequest) -> None:
    """Imports, waits, and prints what came of it. Raises CliError if that is no version."""
    ended = _wait(app, _once_proven(lambda: app.connection.dataset.ImportDataset(request)))
    version = None
    if ended.dataset_version_id:
        version = app.connection.dataset.GetDatasetVersion(
            dataset_pb2.GetDatasetVersionRequest(dataset_version_id=ended.dataset_version_id)
        )
    if app.output.as_json:
        app.output.json({"import": message_dict(ended), "datasetVersion": message_dict(version) if version else None})
    else:
        _print_report(app.output, ended.report)
        if version is not None:
            print_version(app.output, version)
    if ended.state != dataset_pb2.IMPORT_STATE_SUCCEEDED:
        raise CliError(f"Nothing was imported. {ended.error_message} ({ended.error_reason})")


@dataset.command()
@click.argument("dataset_version_id", type=IDENTIFIER, metavar="VERSION")
@pass_app
def show(app: App, dataset_version_id: str) -> None:
    """Images, boxes and classes of a version."""
    request = dataset_pb2.GetDatasetVersionRequest(dataset_version_id=dataset_version_id)
    print_version(app.output, app.connection.dataset.GetDatasetVersion(request))


@dataset.command("list")
@limit_option()
@pass_app
def list_(app: App, limit: int) -> None:
    """Versions, newest first."""
    request = dataset_pb2.ListDatasetVersionsRequest(account_id=app.connection.account_id)
    found = listed(app, app.connection.dataset.ListDatasetVersions, request, "dataset_versions", limit)
    app.output.listing(
        "",
        ("version id", "name", "images", "boxes", "classes", "created"),
        found,
        lambda version: (
            version.dataset_version_id,
            version.display_name,
            version.statistics.images,
            version.statistics.boxes,
            len(version.classes),
            moment(version, "create_time"),
        ),
    )


@dataset.command()
@click.argument("image_set_id", type=IDENTIFIER, metavar="VERSION_OR_DRAFT")
@click.option("--unlabelled", is_flag=True, help="Only those without labels.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help="Only of it.")
@click.option("--class", "class_name", default="", help="Only with a label of it.")
@limit_option()
@pass_app
def images(app: App, image_set_id: str, unlabelled: bool, split: str | None, class_name: str, limit: int) -> None:
    """Images with their labels, in the order of the manifest; none is read."""
    request = dataset_pb2.ListImagesRequest(image_set_id=image_set_id, split=split or "", class_name=class_name)
    if unlabelled:
        request.labelled = False
    app.output.listing(
        "",
        ("image id", "file", "size", "split", "labels"),
        listed(app, app.connection.dataset.ListImages, request, "images", limit),
        lambda image: (
            image.image_id,
            image.file_name,
            f"{image.width} × {image.height}",
            image.split,
            image.class_name or shorten([describe_box(box) for box in image.boxes], SHOWN_BOXES),
        ),
    )


def describe_box(box: dataset_pb2.LabelledBox) -> str:
    """As `saucer draft label` takes it."""
    return f"{box.class_name}:{box.x1:g},{box.y1:g},{box.x2:g},{box.y2:g}"


@dataset.command()
@click.argument("dataset_version_id", type=IDENTIFIER, metavar="VERSION")
@click.option(
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file; .json or .zip.",
)
@click.option("--images", "include_images", is_flag=True, help="A zip with the images; each read is counted.")
@pass_app
def export(app: App, dataset_version_id: str, target: Path, include_images: bool) -> None:
    """Write a version as COCO: its labels as JSON, or a zip with its images that an import takes again."""
    request = dataset_pb2.ExportDatasetVersionRequest(
        dataset_version_id=dataset_version_id, include_images=include_images
    )
    write_pieces(app, target, lambda: app.connection.dataset.ExportDatasetVersion(request))


def print_version(output: Output, version: dataset_pb2.DatasetVersion) -> None:
    """What is in it."""
    statistics = version.statistics
    splits = ", ".join(f"{split.split} {split.images}" for split in statistics.splits)
    output.record(
        "",
        version,
        [
            ("version id", version.dataset_version_id),
            ("name", version.display_name),
            ("images", f"{statistics.images} ({splits})"),
            ("without labels", statistics.unlabelled_images),
            ("labels", "boxes" if version.label_kind == dataset_pb2.LABEL_KIND_BOXES else "a class for each image"),
            ("boxes", statistics.boxes),
            ("median image", f"{statistics.median_width} × {statistics.median_height} px"),
            ("median box", f"{100 * statistics.median_box_share:.1f} % of its image"),
            ("content", version.content_hash),
            ("created", moment(version, "create_time")),
        ],
    )
    if not output.as_json:
        output.table(
            "",
            ("class", "boxes", "share", "images"),
            [(item.class_name, item.boxes, percent(item.share), item.images) for item in statistics.classes],
        )


def _print_report(output: Output, report: dataset_pb2.ImportReport) -> None:
    if report.clipped_boxes:
        output.say(f"{report.clipped_boxes} boxes reached beyond their image and were cut to it.")
    if not report.counts:
        return
    output.table("Refused", ("reason", "items"), [(item.reason, item.count) for item in report.counts])
    shown = report.items[:SHOWN_ITEMS]
    output.table("", ("reason", "item", "why"), [(item.reason, item.item, item.message) for item in shown])
    more = sum(item.count for item in report.counts) - len(shown)
    if more > 0:
        output.say(f"and {more} more; --json lists the first 1,000.")


@contextmanager
def _packed(output: Output, source: Path) -> Iterator[IO[bytes]]:
    """The archive: the file itself, or a tar of the folder.

    The same folder gives the same bytes, so that an interrupted upload can go on. Files whose names, or whose folders'
    names, begin with a dot stay out.
    """
    if source.is_file():
        with source.open("rb") as archive:
            yield archive
        return
    files = sorted(
        file
        for file in source.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(source).parts)
    )
    if not files:
        raise CliError(f"The folder {source} holds no files.")
    with tempfile.TemporaryFile() as archive, output.bar("packing", len(files)) as done:
        with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
            for number, file in enumerate(files):
                tar.add(file, file.relative_to(source).as_posix(), recursive=False, filter=_plain)
                done(number + 1)
        archive.seek(0)
        yield archive


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    info.mode = 0o644
    return info


def _upload(app: App, archive: IO[bytes], upload_id: str | None) -> dataset_pb2.Upload:
    size = archive.seek(0, 2)
    stub = app.connection.dataset
    if upload_id:
        upload = stub.GetUpload(dataset_pb2.GetUploadRequest(upload_id=upload_id))
        if upload.size_bytes != size:
            raise CliError(f"That upload is of {upload.size_bytes} bytes, and this archive has {size}: another one?")
        _compare(app, archive, upload)
    else:
        request = dataset_pb2.CreateUploadRequest(
            request_id=app.request_id("upload"), account_id=app.connection.account_id, size_bytes=size
        )
        upload = _once_proven(lambda: stub.CreateUpload(request))
    try:
        with app.output.bar("uploading", size) as done:
            while upload.committed_bytes < size:
                done(upload.committed_bytes)
                upload = _write(app, upload, archive)
            done(size)
    except (grpc.RpcError, KeyboardInterrupt):
        app.output.remark(f"The upload can go on with --upload-id {upload.upload_id}.")
        raise
    return upload


def _compare(app: App, archive: IO[bytes], upload: dataset_pb2.Upload) -> None:
    """Raises CliError if the upload has other bytes than the archive: a file that was changed meanwhile is as long."""
    compared = 0
    with app.output.bar("comparing", upload.committed_bytes) as done:
        while compared < upload.committed_bytes:
            request = dataset_pb2.GetUploadRequest(upload_id=upload.upload_id, chunks_from_bytes=compared)
            chunks = app.connection.dataset.GetUpload(request).chunks
            if not chunks:
                raise CliError("The service does not tell what the upload has; begin a new one, without --upload-id.")
            for chunk in chunks:
                archive.seek(chunk.offset_bytes)
                if hashlib.sha256(archive.read(chunk.size_bytes)).hexdigest() != chunk.sha256:
                    raise CliError(
                        "A file has changed since that upload was begun; begin a new one, without --upload-id."
                    )
                compared = chunk.offset_bytes + chunk.size_bytes
                done(compared)


def _once_proven(call: Callable[[], M]) -> M:
    """A new account's place in the object store is proven by an event that follows its creation: waits for that."""
    end_s = time.monotonic() + STORE_WAIT_S
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if domain_error(error).reason != "STORE_NOT_PROVEN" or time.monotonic() > end_s:
                raise
        time.sleep(POLL_S)


def _write(app: App, upload: dataset_pb2.Upload, archive: IO[bytes]) -> dataset_pb2.Upload:
    archive.seek(upload.committed_bytes)
    request = dataset_pb2.WriteUploadRequest(
        upload_id=upload.upload_id, offset_bytes=upload.committed_bytes, data=archive.read(CHUNK_BYTES)
    )
    try:
        return app.connection.dataset.WriteUpload(request)
    except grpc.RpcError as error:
        committed = domain_error(error).metadata.get("committed_bytes", "")
        if not committed.isdigit() or int(committed) == upload.committed_bytes:
            raise
        upload.committed_bytes = int(committed)
        return upload


def _wait(app: App, current: dataset_pb2.Import) -> dataset_pb2.Import:
    """Until the import is at rest."""
    app.output.remark(f"Import {current.import_id}")
    while current.state not in _AT_REST and not current.images_total:
        time.sleep(POLL_S)
        current = _get(app, current.import_id)
    with app.output.bar("importing", current.images_total) as done:
        while current.state not in _AT_REST:
            done(current.images_done)
            time.sleep(POLL_S)
            current = _get(app, current.import_id)
        done(current.images_done)
    return current


def _get(app: App, import_id: str) -> dataset_pb2.Import:
    return app.connection.dataset.GetImport(dataset_pb2.GetImportRequest(import_id=import_id))
