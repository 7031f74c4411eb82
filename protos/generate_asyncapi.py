"""Writes asyncapi.yaml: every event as a CloudEvent, generated from the events.proto files and their comments.

    python protos/generate_asyncapi.py DESCRIPTOR_SET > protos/asyncapi.yaml

The descriptor set comes from `protoc --include_imports --include_source_info`. Bodies are protobuf's JSON mapping
(https://protobuf.dev/programming-guides/json/), so the schemas are of that form.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

# Path elements of SourceCodeInfo (descriptor.proto).
MESSAGE, ENUM, FIELD = 4, 5, 2
# What is not here is a string: 64-bit integers have a pattern besides, bytes are base64.
SCALARS: dict[int, dict[str, str]] = {
    FieldDescriptorProto.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptorProto.TYPE_DOUBLE: {"type": "number"},
    FieldDescriptorProto.TYPE_INT32: {"type": "integer"},
    FieldDescriptorProto.TYPE_INT64: {"type": "string", "pattern": "^-?[0-9]+$"},
}
WELL_KNOWN = {
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$"},
}
SUBJECT = (
    "NATS subject: type, account, task or deployment (`-` if it belongs to none), resource. "
    "Filter with wildcards, for instance `saucer.*.v1.*.<account>.>`."
)


class Contract:
    """The descriptors, by full name, with their comments."""

    def __init__(self, files: list[FileDescriptorProto]) -> None:
        self.files = files
        self.messages: dict[str, DescriptorProto] = {}
        self.enums: dict[str, EnumDescriptorProto] = {}
        self.comments: dict[str, str] = {}
        for file in files:
            self._read(file)

    def _read(self, file: FileDescriptorProto) -> None:
        at = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
        for index, enum in enumerate(file.enum_type):
            self.enums[f".{file.package}.{enum.name}"] = enum
            self.comments[f".{file.package}.{enum.name}"] = at.get((ENUM, index), "")
        for index, message in enumerate(file.message_type):
            self._read_message(f".{file.package}.{message.name}", message, (MESSAGE, index), at)

    def _read_message(
        self, name: str, message: DescriptorProto, path: tuple[int, ...], at: dict[tuple[int, ...], str]
    ) -> None:
        self.messages[name] = message
        self.comments[name] = at.get(path, "")
        for index, field in enumerate(message.field):
            self.comments[f"{name}.{field.name}"] = at.get((*path, FIELD, index), "")
        for nested in message.nested_type:
            self.messages[f"{name}.{nested.name}"] = nested

    def events(self) -> Iterator[tuple[str, str]]:
        """Package and full name of every message of an events.proto."""
        for file in self.files:
            if file.name.endswith("/events.proto"):
                for message in file.message_type:
                    yield file.package, f".{file.package}.{message.name}"

    def schema(self, name: str, found: dict[str, Any]) -> dict[str, Any]:
        """A reference to a message's schema, which is put into `found` with all that it needs."""
        key = name.lstrip(".")
        if key not in found:
            found[key] = {}
            message = self.messages[name]
            found[key] = {
                "type": "object",
                "description": self.comments[name],
                "properties": {field.json_name: self._field(name, field, found) for field in message.field},
            }
        return {"$ref": f"#/components/schemas/{key}"}

    def _field(self, message: str, field: FieldDescriptorProto, found: dict[str, Any]) -> dict[str, Any]:
        entry = self.messages.get(field.type_name)
        if entry is not None and entry.options.map_entry:
            schema: dict[str, Any] = {
                "type": "object",
                "additionalProperties": self._single(entry.field[1], found),
            }
        elif field.label == FieldDescriptorProto.LABEL_REPEATED:
            schema = {"type": "array", "items": self._single(field, found)}
        else:
            schema = self._single(field, found)
        comment = self.comments.get(f"{message}.{field.name}", "")
        return {**schema, "description": comment} if comment and "$ref" not in schema else schema

    def _single(self, field: FieldDescriptorProto, found: dict[str, Any]) -> dict[str, Any]:
        if field.type_name in WELL_KNOWN:
            return dict(WELL_KNOWN[field.type_name])
        if field.type == FieldDescriptorProto.TYPE_MESSAGE:
            return self.schema(field.type_name, found)
        if field.type == FieldDescriptorProto.TYPE_ENUM:
            return {"type": "string", "enum": [value.name for value in self.enums[field.type_name].value]}
        return dict(SCALARS.get(field.type, {"type": "string"}))


def document(contract: Contract) -> dict[str, Any]:
    """AsyncAPI 3.0 (https://www.asyncapi.com/docs/reference/specification/v3.0.0)."""
    schemas: dict[str, Any] = {}
    channels: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for package, name in contract.events():
        key = name.lstrip(".")
        service = package.split(".")[1]
        channels[key] = {
            "address": f"{key}.{{accountId}}.{{workId}}.{{resourceId}}",
            "description": SUBJECT,
            "messages": {key: {"$ref": f"#/components/messages/{key}"}},
            "parameters": {
                "accountId": {"description": "Whose it is."},
                "workId": {"description": "The task or deployment that it belongs to, or `-`."},
                "resourceId": {"description": "What it is about."},
            },
        }
        messages[key] = {
            "name": key,
            "title": key.rsplit(".", 1)[1],
            "summary": contract.comments[name],
            "contentType": "application/json",
            "headers": {"$ref": "#/components/schemas/CloudEventHeaders"},
            "payload": contract.schema(name, schemas),
        }
        operations[f"send.{key}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{key}"},
            "tags": [{"name": service}],
        }
    schemas["CloudEventHeaders"] = {
        "type": "object",
        "description": "CloudEvents 1.0 in NATS binary mode.",
        "required": ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-subject", "ce-time", "ce-accountid"],
        "properties": {
            "ce-specversion": {"type": "string", "const": "1.0"},
            "ce-id": {"type": "string", "format": "uuid"},
            "ce-source": {"type": "string", "pattern": "^/saucer/[a-z]+$"},
            "ce-type": {"type": "string"},
            "ce-subject": {"type": "string"},
            "ce-time": {"type": "string", "format": "date-time"},
            "ce-accountid": {"type": "string"},
            "ce-traceparent": {"type": "string"},
            "content-type": {"type": "string", "const": "application/json"},
        },
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Saucer's events",
            "version": "1.0.0",
            "description": "Everything that happens, as CloudEvents on the NATS JetStream stream SAUCER. An event is a "
            "past-tense fact with a whole snapshot and its revision: take what has a greater revision than yours. "
            "Causes come before effects, and each resource's revisions ascend; nothing more is promised. "
            "Replayable for the stream's retention. Fields without a value are left out. "
            "Generated from the events.proto files.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": dict(sorted(schemas.items()))},
    }


def main() -> None:
    """Reads the descriptor set named on the command line, writes YAML to standard output."""
    files = FileDescriptorSet.FromString(Path(sys.argv[1]).read_bytes()).file
    ours = sorted((file for file in files if file.package.startswith("saucer.")), key=lambda file: file.name)
    sys.stdout.write("# Generated by protos/generate_asyncapi.py; `make protos` writes it anew.\n")
    yaml.safe_dump(document(Contract(ours)), sys.stdout, sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    main()
