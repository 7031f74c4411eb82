"""What callers and events are told."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from saucer.dataset.domain import DatasetVersion, ImportRequest, LabelKind, claimed, queued, succeeded
from saucer.dataset.messages import import_event_message, import_message, version_message
from saucer.dataset.report import MAX_REPORTED, MAX_TEXT_CHARS, ItemKind, ItemReason, Report
from saucer.dataset.v1 import events_pb2
from saucer.lib.cloudevent import to_json

NOW = datetime(2030, 1, 1, tzinfo=UTC)
# Of a message, with its headers (nats-server's max_payload).
NATS_MAX_BYTES = 1024**2
# Four bytes in UTF-8, which the limits count as one character.
WIDE = "\N{CUP WITH STRAW}"


def test_a_full_report_is_told_whole_on_request_and_fits_an_event_with_examples_of_each_reason() -> None:
    report = Report()
    for reason in ItemReason:
        for _ in range(2 * MAX_REPORTED):
            report.refuse(ItemKind.IMAGE, reason, WIDE * MAX_TEXT_CHARS, WIDE * MAX_TEXT_CHARS)
    new = queued("import", ImportRequest("account", "Name", "upload", None, 0), NOW)
    work = succeeded(claimed(new, "token", NOW, NOW), "version", report.as_json(), 9, NOW)
    whole = import_message(work).report
    assert len(whole.items) == MAX_REPORTED * len(ItemReason)
    assert len(whole.items) <= 1000
    assert {row.reason: row.count for row in whole.counts}["BOX_NO_AREA"] == 2 * MAX_REPORTED
    event = import_event_message(work)
    assert {item.reason for item in event.report.items} == {reason.value.upper() for reason in ItemReason}
    assert event.report.counts == whole.counts
    assert len(to_json(events_pb2.ImportEnded(**{"import": event}))) < 0.9 * NATS_MAX_BYTES


def test_a_version_with_as_many_and_as_long_names_as_may_be_fits_an_event() -> None:
    names = tuple(f"{number:04d}" + WIDE * 96 for number in range(1000))
    counts = {"images": 2**40, "boxes": 2**40, "unlabelled_images": 2**40}
    classes = [{"name": name, "boxes": 2**40, "images": 2**40, "share": 0.1 + 0.2} for name in names]
    spread = {"min": 1.0, "median": 640.5, "max": 2.0}
    statistics: dict[str, Any] = {
        "total": counts | {"classes": classes},
        "splits": dict.fromkeys(("train", "validation", "test"), counts),
        "width_px": spread,
        "height_px": spread,
        "box_area_share": spread,
    }
    key = "k" * 1024
    version = DatasetVersion(
        "v" * 36, "a" * 36, "Name", "c" * 64, key, "m" * 64, key, LabelKind.BOXES, names, statistics, NOW, 1
    )
    message = version_message(version)
    assert message.statistics.median_width == 640
    assert len(to_json(events_pb2.DatasetVersionCreated(dataset_version=message))) < NATS_MAX_BYTES
    assert version_message(replace(version, classes=())).classes == []
