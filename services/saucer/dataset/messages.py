"""Domain to message, for replies and events alike. Reasons are UPPER_SNAKE_CASE, as all reasons of the API are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from saucer.dataset.domain import Chunk, DatasetVersion, Import, Json, LabelKind, MappedRoot, SourceFormat, Upload
from saucer.dataset.drafts import Draft, ImageSet, LabelledBox, ListedImage, shown_box
from saucer.dataset.v1 import dataset_pb2
from saucer.lib.clock import to_timestamp

# NATS takes messages of 1 MB, so events carry this many examples for each reason; the reply to GetImport has them all.
MAX_EVENT_ITEMS_PER_REASON = 5
_FORMAT_PREFIX = "SOURCE_FORMAT_"
_KIND_PREFIX = "LABEL_KIND_"


def upload_message(upload: Upload, chunks: Sequence[Chunk] = ()) -> dataset_pb2.Upload:
    """How far it has come, with some of its chunks."""
    return dataset_pb2.Upload(
        upload_id=upload.upload_id,
        account_id=upload.account_id,
        size_bytes=upload.size_bytes,
        committed_bytes=upload.committed_bytes,
        create_time=to_timestamp(upload.created_at),
        chunks=[dataset_pb2.UploadChunk(**asdict(chunk)) for chunk in chunks],
    )


def import_message(work: Import) -> dataset_pb2.Import:
    """With its whole report."""
    return _import_message(work, work.report["examples"] if work.report else ())


def import_event_message(work: Import) -> dataset_pb2.Import:
    """With some examples for each reason."""
    kept: list[Json] = []
    seen: Counter[str] = Counter()
    for item in work.report["examples"] if work.report else ():
        seen[item["reason"]] += 1
        if seen[item["reason"]] <= MAX_EVENT_ITEMS_PER_REASON:
            kept.append(item)
    return _import_message(work, kept)


def _import_message(work: Import, items: Sequence[Json]) -> dataset_pb2.Import:
    return dataset_pb2.Import(
        import_id=work.import_id,
        account_id=work.account_id,
        display_name=work.display_name,
        state=dataset_pb2.ImportState.Value(f"IMPORT_STATE_{work.state}"),
        images_done=work.images_done,
        images_total=work.images_total,
        error_reason=work.error_reason,
        error_message=work.error_message,
        report=_report_message(work.report, items) if work.report else None,
        dataset_version_id=work.dataset_version_id or "",
        create_time=to_timestamp(work.created_at),
        end_time=to_timestamp(work.ended_at),
        revision=work.revision,
    )


def draft_message(draft: Draft) -> dataset_pb2.Draft:
    """Without its images."""
    return dataset_pb2.Draft(
        draft_id=draft.draft_id,
        account_id=draft.account_id,
        dataset_version_id=draft.dataset_version_id,
        display_name=draft.display_name,
        label_kind=_label_kind_value(draft.label_kind),
        classes=draft.classes,
        images=draft.images,
        unlabelled_images=draft.unlabelled_images,
        create_time=to_timestamp(draft.created_at),
        revision=draft.revision,
    )


def image_message(image_set: ImageSet, image: ListedImage, data: bytes) -> dataset_pb2.ListedImage:
    """With its labels as the set's classes name them."""
    classes, boxes = image_set.classes, image_set.label_kind is LabelKind.BOXES
    return dataset_pb2.ListedImage(
        image_id=image.place,
        file_name=image.source_name,
        sha256=image.sha256,
        width=image.width,
        height=image.height,
        split=image.split,
        boxes=[_box_message(shown_box(classes, label)) for label in image.labels] if boxes else [],
        class_name=classes[int(image.labels[0][0])] if image.labels and not boxes else "",
        revision=image.revision,
        labelled=image.labelled,
        image=data,
    )


def _box_message(box: LabelledBox) -> dataset_pb2.LabelledBox:
    return dataset_pb2.LabelledBox(**asdict(box))


def read_box(box: dataset_pb2.LabelledBox) -> LabelledBox:
    """As the domain has it."""
    return LabelledBox(box.class_name, box.x1, box.y1, box.x2, box.y2, box.crowd)


def label_kind_of(value: dataset_pb2.LabelKind.ValueType) -> LabelKind | None:
    """None: unspecified."""
    name = dataset_pb2.LabelKind.Name(value).removeprefix(_KIND_PREFIX)
    return None if name == "UNSPECIFIED" else LabelKind(name)


def _label_kind_value(kind: LabelKind) -> dataset_pb2.LabelKind.ValueType:
    return dataset_pb2.LabelKind.Value(f"{_KIND_PREFIX}{kind}")


def source_format_of(value: dataset_pb2.SourceFormat.ValueType) -> SourceFormat:
    """Unspecified: AUTO."""
    name = dataset_pb2.SourceFormat.Name(value).removeprefix(_FORMAT_PREFIX)
    return SourceFormat.AUTO if name == "UNSPECIFIED" else SourceFormat(name)


def _source_format_value(source_format: str) -> dataset_pb2.SourceFormat.ValueType:
    name = "UNSPECIFIED" if source_format == SourceFormat.AUTO else source_format
    return dataset_pb2.SourceFormat.Value(f"{_FORMAT_PREFIX}{name}")


def _report_message(report: Json, items: Sequence[Json]) -> dataset_pb2.ImportReport:
    return dataset_pb2.ImportReport(
        counts=[
            dataset_pb2.RefusedCount(reason=reason.upper(), count=count) for reason, count in report["refused"].items()
        ],
        items=[
            dataset_pb2.RefusedItem(reason=item["reason"].upper(), item=item["item"], message=item["sentence"])
            for item in items
        ],
        clipped_boxes=report["clipped_boxes"],
        source_format=_source_format_value(report.get("source_format", SourceFormat.AUTO)),
    )


def version_message(version: DatasetVersion) -> dataset_pb2.DatasetVersion:
    """With its statistics."""
    return dataset_pb2.DatasetVersion(
        dataset_version_id=version.dataset_version_id,
        account_id=version.account_id,
        display_name=version.display_name,
        content_hash=version.content_hash,
        manifest_key=version.manifest_key,
        manifest_sha256=version.manifest_sha256,
        image_prefix=version.image_prefix,
        classes=version.classes,
        label_kind=_label_kind_value(version.label_kind),
        statistics=_statistics_message(version.statistics),
        create_time=to_timestamp(version.created_at),
        revision=version.revision,
    )


def _statistics_message(statistics: Json) -> dataset_pb2.DatasetStatistics:
    total = statistics["total"]
    return dataset_pb2.DatasetStatistics(
        images=total["images"],
        boxes=total["boxes"],
        unlabelled_images=total["unlabelled_images"],
        classes=[
            dataset_pb2.ClassStatistics(
                class_name=row["name"], boxes=row["boxes"], images=row["images"], share=row["share"]
            )
            for row in total["classes"]
        ],
        splits=[
            dataset_pb2.SplitStatistics(
                split=split,
                images=counts["images"],
                boxes=counts["boxes"],
                unlabelled_images=counts["unlabelled_images"],
            )
            for split, counts in statistics["splits"].items()
        ],
        median_width=round(statistics["width_px"]["median"]),
        median_height=round(statistics["height_px"]["median"]),
        median_box_share=statistics["box_area_share"]["median"],
    )


def root_message(root: MappedRoot) -> dataset_pb2.MappedRoot:
    """A further place to import from."""
    return dataset_pb2.MappedRoot(
        account_id=root.account_id, name=root.name, url=root.url, map_time=to_timestamp(root.mapped_at)
    )
