"""protobuf's JSON mapping: what protobuf-py writes and reads is what google.protobuf's own json_format does."""

import importlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from saucer.lib.json_mapping import merge_from_json, to_json
from saucer.task.v1 import task_pb2

PACKAGES = ("billing", "dataset", "evaluation", "publishing", "task", "training")
EVENTS: list[Descriptor] = [
    descriptor
    for package in PACKAGES
    for descriptor in importlib.import_module(
        f"saucer.{package}.v1.events_pb2"
    ).DESCRIPTOR.message_types_by_name.values()
]
DOUBLES = (0.1, 1 / 3, -1e300, 5e-324, math.inf, -math.inf, 1e16, 123456789.125)
TEXTS = ("plain", 'a "quoted" \\ line\n\t\x00', "Tasse ☕ Straße", "")
# Messages within messages are filled down to here.
DEPTH = 4


def value(field: FieldDescriptor, random: random.Random, depth: int) -> Any:
    if field.message_type:
        return filled(field.message_type, random, depth + 1)
    if field.enum_type:
        return random.choice(field.enum_type.values).number
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return random.randbytes(7) if field.type == FieldDescriptor.TYPE_BYTES else random.choice(TEXTS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return random.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return random.choice(DOUBLES)
        case FieldDescriptor.CPPTYPE_FLOAT:
            return random.choice((0.1, -2.5, math.inf))
        case FieldDescriptor.CPPTYPE_INT64:
            return random.choice((0, 1, -(2**63), 2**63 - 1))
        case FieldDescriptor.CPPTYPE_UINT64:
            return random.choice((0, 2**64 - 1))
        case FieldDescriptor.CPPTYPE_INT32:
            return random.choice((0, -(2**31), 2**31 - 1))
        case FieldDescriptor.CPPTYPE_UINT32:
            return random.choice((0, 2**32 - 1))
    raise AssertionError(f"{field.full_name} is of a type that no event had before; give it values here.")


def filled(descriptor: Descriptor, random: random.Random, depth: int = 0) -> Message:
    """A message of which about three fields in four are set."""
    message = message_factory.GetMessageClass(descriptor)()
    if isinstance(message, Timestamp):
        message.FromMicroseconds(random.randrange(-(2**40), 2**51))
        return message
    if isinstance(message, Duration):
        message.FromMilliseconds(random.randrange(-(2**40), 2**40))
        return message
    for field in descriptor.fields:
        if random.random() < 0.25 or (field.message_type and depth == DEPTH):
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            kinds = field.message_type.fields_by_name
            for _ in range(2):
                key, entry = (value(kinds[name], random, depth) for name in ("key", "value"))
                getattr(message, field.name)[key] = entry
        elif field.is_repeated:
            getattr(message, field.name).extend(value(field, random, depth) for _ in range(random.randrange(3)))
        elif field.message_type:
            getattr(message, field.name).CopyFrom(value(field, random, depth))
        else:
            setattr(message, field.name, value(field, random, depth))
    return message


@pytest.mark.parametrize("descriptor", EVENTS, ids=lambda descriptor: descriptor.full_name)
def test_every_event_is_written_and_read_as_json_format_does_it(descriptor: Descriptor) -> None:
    for seed in range(20):
        message = filled(descriptor, random.Random(seed))
        written = to_json(message)
        assert json.loads(written) == json.loads(json_format.MessageToJson(message)), seed
        for text in (written, json_format.MessageToJson(message)):
            again = type(message)()
            merge_from_json(text.encode(), again)
            assert again == message, seed


def test_what_a_later_version_added_is_ignored() -> None:
    task = task_pb2.Task()
    merge_from_json(b'{"taskId": "t", "aNewField": {"deep": [1]}, "state": "STATE_OF_LATER"}', task)
    assert task == task_pb2.Task(task_id="t")


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{", '{"taskId": 1}', '{"revision": "x"}', '{"createTime": "yesterday"}', '{"task":' * 5000],
)
def test_what_is_not_of_the_type_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whose sentence is the library's
        merge_from_json(text.encode(), task_pb2.Task())


def test_the_generated_packages_are_all_here() -> None:
    services = Path(importlib.import_module("saucer").__path__[0])
    assert {file.parent.parent.name for file in services.glob("*/v1/events_pb2.py")} == set(PACKAGES)
