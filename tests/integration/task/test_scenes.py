"""What a form is drawn from: scenes, of which a new one is one new file, and parameters."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from saucer.task import scenes
from saucer.task.v1 import task_pb2
from tests.integration.task.world import HOLD_MICROS, World

SHELF = """
from saucer.task.scenes import Scene

SCENE = Scene(
    name="shelf",
    title="Shelf",
    description="Bottles on a shelf.",
    classes=("cup",),
    expected_accuracy=0.75,
    input_size=256,
)
"""


@pytest.fixture
def a_fourth_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "shelf.py").write_text(SHELF)
    monkeypatch.setattr(scenes, "__path__", [*scenes.__path__, str(tmp_path)])
    yield
    sys.modules.pop(f"{scenes.__name__}.shelf", None)


@pytest.mark.usefixtures("a_fourth_scene")
async def test_a_fourth_scene_is_one_file(world: World) -> None:
    account_id, editor = await world.account(HOLD_MICROS)
    offered = await world.tasks.ListScenes(task_pb2.ListScenesRequest(), metadata=editor)
    assert [scene.name for scene in offered.scenes] == [
        "cup-and-plate",
        "image-classification",
        "object-detection",
        "shelf",
    ]
    form = world.form(account_id)
    form.scene = "shelf"
    task = await world.create(form, editor)
    assert (task.state, task.config.scene) == (task_pb2.TASK_STATE_QUEUED, "shelf")
    assert (task.config.input_size, task.config.expected_accuracy) == (256, 0.75)


async def test_a_form_can_be_drawn_from_what_the_api_says_of_its_parameters(world: World) -> None:
    _, editor = await world.account(0)
    answer = await world.tasks.ListParameters(task_pb2.ListParametersRequest(), metadata=editor)
    batch = next(each for each in answer.parameters if each.name == "batch_size")
    assert (list(batch.values), batch.minimum, batch.maximum) == ([4, 8, 16, 32, 64], 1, 512)
    assert {each.name for each in answer.parameters} >= {"epochs", "lr", "batch_size", "warmup"}
