"""Each service is what its docstring says: Owns, Serves, Calls, Publishes, Consumes."""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import Default

from saucer.lib.consumer import Handles
from saucer.lib.grpc_server import Servicer, access_of
from saucer.lib.v1 import access_pb2

SERVICES = ("billing", "dataset", "task", "training", "evaluation", "publishing")
# Modules and folders; a module that has grown is a package of the same name.
PARTS = ("__init__", "consumers", "domain", "main", "messages", "rpc", "schema", "service", "store", "v1")
PACKAGE = Path(__file__).parents[2] / "services" / "saucer"


def words(docstring: str, heading: str) -> set[str]:
    """What stands behind `Heading:` until the next heading, split at commas and semicolons."""
    found = re.search(rf"^{heading}: (.*?)(?=^\w+:|\Z)", docstring, re.MULTILINE | re.DOTALL)
    assert found, f"no {heading}:"
    return {word.strip().rstrip(".") for word in re.split(r"[,;]", found[1]) if word.strip()}


def service(name: str) -> ModuleType:
    return importlib.import_module(f"saucer.{name}")


def events(name: str) -> FileDescriptor:
    descriptor: FileDescriptor = importlib.import_module(f"saucer.{name}.v1.events_pb2").DESCRIPTOR
    return descriptor


def handled(name: str) -> list[Handles]:
    consumers = importlib.import_module(f"saucer.{name}.consumers")
    return list(consumers.handlers(None))  # it only binds the service, and calls nothing


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_the_same_files(name: str) -> None:
    present = {file.name.removesuffix(".py") for file in (PACKAGE / name).iterdir()}
    assert present >= set(PARTS), set(PARTS) - present


@pytest.mark.parametrize("name", SERVICES)
def test_what_it_says_it_publishes_is_its_events_proto_and_each_is_really_sent(name: str) -> None:
    declared = set(events(name).message_types_by_name)
    assert words(inspect.getdoc(service(name)) or "", "Publishes") == declared
    code = "\n".join(file.read_text() for file in (PACKAGE / name).rglob("*.py") if file.parent.name != "v1")
    assert {event for event in declared if f".{event}" not in code} == set()


@pytest.mark.parametrize("name", SERVICES)
def test_what_it_says_it_consumes_is_what_it_handles(name: str) -> None:
    said = words(inspect.getdoc(service(name)) or "", "Consumes")
    assert said == {handles.message.DESCRIPTOR.name for handles in handled(name)}


@pytest.mark.parametrize("name", SERVICES)
def test_what_it_says_it_serves_is_in_its_protos(name: str) -> None:
    said = words(inspect.getdoc(service(name)) or "", "Serves")
    ours = {
        service_name.full_name
        for file in (PACKAGE / name / "v1").glob("*_pb2.py")
        for service_name in importlib.import_module(
            f"saucer.{name}.v1.{file.stem}"
        ).DESCRIPTOR.services_by_name.values()
    }
    assert said >= ours | {"saucer.lib.v1.DeadEventService", "saucer.lib.v1.CallService"}
    for other in said - ours:
        Default().FindServiceByName(other)


@pytest.mark.parametrize("name", SERVICES)
def test_nobody_consumes_what_nobody_publishes(name: str) -> None:
    for handles in handled(name):
        publisher = handles.event_type.split(".")[1]
        assert handles.message.DESCRIPTOR.name in events(publisher).message_types_by_name
        assert publisher != name


def test_a_method_that_states_no_access_stops_the_start() -> None:
    health = importlib.import_module("grpc_health.v1.health_pb2").DESCRIPTOR.services_by_name["Health"]
    with pytest.raises(ValueError, match="states no access"):
        access_of([Servicer(object(), lambda *_: None, health)])
    assert access_of([Servicer(object(), lambda *_: None, health, access=access_pb2.ACCESS_PUBLIC)])
