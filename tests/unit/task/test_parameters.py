"""What a form offers for the parameters of a training, and what it refuses."""

import re
from dataclasses import fields

import pytest
from google.protobuf.descriptor import FieldDescriptor

from buf.validate import validate_pb2
from saucer.task import scenes
from saucer.task.defaults import Machine, derive
from saucer.task.domain import Form, Refused
from saucer.task.parameters import PARAMETERS, Parameter
from saucer.task.v1 import task_pb2
from saucer.worker import job
from tests.unit.task.examples import DATA, form

WORKERS = {
    "epochs": job.EPOCHS_RANGE,
    "lr": job.LR_RANGE,
    "batch_size": job.BATCH_SIZE_RANGE,
    "warmup": job.WARMUP_RANGE,
    "input_size": job.INPUT_SIZE_RANGE,
}
BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_every_value_that_is_offered_can_be_taken(parameter: Parameter) -> None:
    for value in (*parameter.values, parameter.minimum, parameter.maximum):
        parameter.check(value)
    assert list(parameter.values) == sorted(set(parameter.values))


def test_the_ranges_are_the_workers() -> None:
    assert {each.name: (each.minimum, each.maximum) for each in PARAMETERS} == WORKERS
    assert BY_NAME["input_size"].step == job.INPUT_SIZE_STEP


def test_the_ranges_are_those_of_the_message() -> None:
    def range_of(name: str) -> tuple[float, float]:
        rules = task_pb2.TaskForm.DESCRIPTOR.fields_by_name[name].GetOptions().Extensions[validate_pb2.field]
        kind = rules.WhichOneof("type")
        assert kind is not None, name
        of_type = getattr(rules, kind)
        assert {field.name for field, _ in of_type.ListFields()} == {"gte", "lte"}, name
        return of_type.gte, of_type.lte

    assert {name: range_of(name) for name in BY_NAME} == WORKERS


def test_parameters_are_fields_of_the_form_and_of_its_message() -> None:
    of_message = task_pb2.TaskForm.DESCRIPTOR.fields_by_name
    whole = {FieldDescriptor.CPPTYPE_INT32: True, FieldDescriptor.CPPTYPE_DOUBLE: False}
    assert set(BY_NAME) <= {each.name for each in fields(Form)}
    assert {name: whole[of_message[name].cpp_type] for name in BY_NAME} == {
        name: parameter.whole for name, parameter in BY_NAME.items()
    }


@pytest.mark.parametrize(
    ("field", "value"), [("batch_size", 513), ("lr", 1e-7), ("input_size", 100), ("input_size", 2048), ("epochs", 0)]
)
def test_a_value_out_of_its_range_is_refused_before_anything_is_frozen(field: str, value: float) -> None:
    with pytest.raises(Refused, match=re.escape(f"{field}: {value:g} is not in")) as refusal:
        derive(form(**{field: value}), scenes.load()["object-detection"], DATA, Machine(0, 2))
    assert refusal.value.reason == "PARAMETER_OUT_OF_RANGE"
