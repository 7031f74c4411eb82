"""With which runtime a model is served: the fastest where it serves, as long as the replay agrees; kept, and shown."""

import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from saucer import serving
from saucer.publishing import placement
from saucer.publishing.placement import model_name
from saucer.publishing.triton import ModelFailed, TritonClient
from saucer.publishing.v1 import publishing_pb2
from saucer.serving.choosing import choose
from saucer.serving.runtime import RUNTIMES, TOLERANCES, Tolerance
from tests.integration.publishing.online import HOLD_MICROS, Online, lacks, signal_serving_process
from tests.support.events import until
from tests.support.graphs import write_cells_model
from tests.support.pictures import pictures

IMAGES = list(pictures(12, seed=7))


@pytest.fixture
def world(world: Online) -> Online:
    world.settings["triton_choose_runtime"] = True
    return world


async def model(world: Online, account_id: str) -> str:
    return await world.model(account_id, made=write_cells_model(world.folder / "cells"), images=IMAGES)


async def deployed(world: Online, account_id: str, model_id: str, name: str = "cups") -> publishing_pb2.Deployment:
    created = await world.create(account_id, model_id, display_name=name)
    active = await world.until_state(created, "ACTIVE", "FAILED")
    assert active.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE, active
    return active


async def served_with(triton_client: TritonClient, deployment: publishing_pb2.Deployment) -> str:
    """As its process says, once it answers."""

    async def look() -> str | None:
        try:
            report = await triton_client.report(model_name(deployment.deployment_id, 1), "1")
        except ModelFailed:
            return None
        return report.choice.runtime

    return await until(look)


async def test_the_fastest_is_found_once_for_a_model_and_spec_serves_and_is_shown(
    world: Online, triton_client: TritonClient
) -> None:
    async with world.serving():
        account_id = await world.account(2 * HOLD_MICROS)
        model_id = await model(world, account_id)
        first = await deployed(world, account_id, model_id)
        gate = await world.gate_of(first)
        times = {item.runtime: item.image_ms for item in gate.times}
        assert "onnxruntime" in times
        assert all(runtime in times or lacks(gate, runtime) for runtime in RUNTIMES)
        assert list(times.values()) == sorted(times.values())
        assert min(times.values()) > 0
        assert gate.runtime == choose(times) or f"With {choose(times)} only" in gate.runtime_reason
        assert gate.tolerance_px == TOLERANCES[gate.runtime].box_px
        assert gate.parity == first.parity
        assert gate.HasField("replay_time")
        assert await served_with(triton_client, first) == gate.runtime

        again = await world.gate_of(await deployed(world, account_id, model_id, "plates"))
        assert (again.runtime, again.times, again.runtime_reason) == (gate.runtime, gate.times, gate.runtime_reason)


@pytest.mark.parametrize("runtime", ["openvino", "openvino_bf16"])
async def test_what_is_brought_back_has_the_runtime_that_was_kept_and_one_that_is_lacking_that_of_evaluations(
    world: Online, triton_client: TritonClient, runtime: str
) -> None:
    async with world.serving():
        account_id = await world.account()
        model_id = await model(world, account_id)
        await world.keep_choice(model_id, runtime)
        active = await deployed(world, account_id, model_id)
        gate = await world.gate_of(active)
        lacking = lacks(gate, runtime)
        assert gate.runtime == ("onnxruntime" if lacking else runtime)
        assert lacking or gate.runtime_reason == "It was the fastest."
        assert all(item.unpaired == 0 for item in gate.images)
        signal_serving_process(active.deployment_id, signal.SIGKILL)
        await world.until_state(active, "DEGRADED")
        await world.until_state(active, "ACTIVE")
        assert await served_with(triton_client, active) == gate.runtime


@pytest.fixture
def failing(tmp_path: Path) -> SimpleNamespace:
    """In place of placement.serving: in it OpenVINO does not load, with either precision."""
    source = shutil.copytree(Path(serving.__path__[0]), tmp_path / "serving")
    with (source / "runtime.py").open("a") as file:
        file.write('\n\ndef _fail(path, threads):\n    raise MemoryError("for now")\n\n\n')
        file.write('_LOADERS = {**_LOADERS, "openvino": _fail, "openvino_bf16": _fail}\n')
    return SimpleNamespace(__path__=[str(source)])


async def test_a_kept_runtime_that_does_not_load_once_is_used_the_next_time(
    world: Online, monkeypatch: pytest.MonkeyPatch, failing: SimpleNamespace
) -> None:
    async with world.serving():
        account_id = await world.account(2 * HOLD_MICROS)
        model_id = await model(world, account_id)
        await world.keep_choice(model_id, "openvino")
        with monkeypatch.context() as patched:
            patched.setattr(placement, "serving", failing)
            gate = await world.gate_of(await deployed(world, account_id, model_id))
        assert (gate.runtime, gate.runtime_reason) == ("onnxruntime", "openvino is not used: MemoryError: for now.")
        again = await world.gate_of(await deployed(world, account_id, model_id, "plates"))
        assert lacks(again, "openvino") or (again.runtime, again.runtime_reason) == ("openvino", "It was the fastest.")


async def test_what_failed_while_it_was_measured_is_measured_again_after_a_while(
    world: Online, monkeypatch: pytest.MonkeyPatch, failing: SimpleNamespace
) -> None:
    async with world.serving():
        account_id = await world.account(4 * HOLD_MICROS)
        model_id = await model(world, account_id)
        with monkeypatch.context() as patched:
            patched.setattr(placement, "serving", failing)
            gate = await world.gate_of(await deployed(world, account_id, model_id))
        assert (gate.runtime, list(gate.times)) == ("onnxruntime", [])
        assert "openvino is not used: MemoryError: for now." in gate.runtime_reason
        soon = await world.gate_of(await deployed(world, account_id, model_id, "knives"))
        assert (soon.runtime, list(soon.times), soon.runtime_reason) == ("onnxruntime", [], gate.runtime_reason)
        await world.age_choice(model_id)
        again = await world.gate_of(await deployed(world, account_id, model_id, "plates"))
        times = {item.runtime for item in again.times}
        assert all(runtime in times or lacks(again, runtime) for runtime in RUNTIMES)
        third = await world.gate_of(await deployed(world, account_id, model_id, "bowls"))
        assert (third.runtime, third.times) == (again.runtime, again.times)


async def test_a_better_choice_outlasts_a_measurement_in_which_more_failed_and_serves_where_nothing_is_measured(
    world: Online, monkeypatch: pytest.MonkeyPatch, failing: SimpleNamespace
) -> None:
    account_id = await world.account(3 * HOLD_MICROS)
    async with world.serving():
        model_id = await model(world, account_id)
        await world.keep_choice(model_id, "openvino", complete=False)
        await world.age_choice(model_id)
        with monkeypatch.context() as patched:
            patched.setattr(placement, "serving", failing)
            gate = await world.gate_of(await deployed(world, account_id, model_id))
        assert (gate.runtime, list(gate.times)) == ("onnxruntime", [])
        again = await world.gate_of(await deployed(world, account_id, model_id, "plates"))
        assert lacks(again, "openvino") or (again.runtime, again.runtime_reason) == ("openvino", "It was the fastest.")
    async with world.serving(triton_choose_runtime=False):
        third = await world.gate_of(await deployed(world, account_id, model_id, "bowls"))
        assert (third.runtime, third.runtime_reason) == (again.runtime, again.runtime_reason)


async def test_where_the_boxes_of_the_faster_one_differ_too_much_that_of_evaluations_serves(
    world: Online, triton_client: TritonClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "openvino", Tolerance(box_px=-1.0, score=-1.0, permille=995))
    async with world.serving():
        account_id = await world.account(2 * HOLD_MICROS)
        model_id = await model(world, account_id)
        await world.keep_choice(model_id, "openvino")
        active = await deployed(world, account_id, model_id)
        gate = await world.gate_of(active)
        assert gate.runtime == await served_with(triton_client, active) == "onnxruntime"
        assert f"With openvino only 0 of {gate.parity.boxes} boxes agreed" in gate.runtime_reason
        again = await world.gate_of(await deployed(world, account_id, model_id, "plates"))
        assert (again.runtime, again.runtime_reason) == ("onnxruntime", gate.runtime_reason)


async def test_what_is_served_while_nothing_is_measured_is_measured_later(world: Online) -> None:
    account_id = await world.account(2 * HOLD_MICROS)
    async with world.serving(triton_choose_runtime=False):
        model_id = await model(world, account_id)
        gate = await world.gate_of(await deployed(world, account_id, model_id))
        assert (gate.runtime, list(gate.times)) == ("onnxruntime", [])
        assert gate.runtime_reason == "It was not measured against others."
    async with world.serving():
        assert (await world.gate_of(await deployed(world, account_id, model_id, "plates"))).times
