"""Two evaluations side by side."""

from dataclasses import replace

import grpc
import numpy as np
import pytest

from saucer.evaluation.matching import match
from saucer.evaluation.metrics import ErrorsByImage
from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.ids import new_id
from saucer.serving.detections import Detections
from saucer.training.v1 import training_pb2
from tests.integration.evaluation.world import World, at, scored


async def test_a_model_is_compared_with_another_of_the_same_test_split(world: World) -> None:
    first, base = await scored(world)
    second = training_pb2.Model()
    second.CopyFrom(first.message)
    second.model_id, second.run_id, second.task_id = new_id(), new_id(), new_id()
    # All that the second finds is below 0.6.
    found = first.test.detections
    weaker = Detections(found.images, found.image_id, found.box, np.minimum(found.score, np.float32(0.6)), found.label)
    second.files[0].key += ".weaker"
    second.files[0].sha256 = await world.objects.put(second.files[0].key, weaker.to_bytes())
    await world.tell(second)
    told = await world.ended(second)
    request = evaluation_pb2.CompareEvaluationsRequest(
        evaluation_id=told.evaluation_id, base_evaluation_id=base.evaluation_id, threshold=0.7
    )
    compared = await world.stub.CompareEvaluations(request, metadata=world.viewer)
    assert compared.evaluation == await at(world, told.evaluation_id, 0.7)
    assert compared.base == await at(world, base.evaluation_id, 0.7)
    assert [entry.class_name for entry in compared.classes] == list(first.test.truth.classes)
    before = ErrorsByImage(first.test.scored).at(0.7)
    after = ErrorsByImage(match(first.test.truth, weaker)).at(0.7)
    changed = {int(first.test.truth.images[place]) for place in np.flatnonzero(before != after)}
    assert {image.image_id for image in compared.images} == changed
    assert compared.total_size == len(changed) == compared.better_images + compared.worse_images
    assert compared.same_images == len(before) - len(changed)
    request.change = evaluation_pb2.CHANGE_WORSE
    worse = await world.stub.CompareEvaluations(request, metadata=world.viewer)
    assert worse.total_size == compared.worse_images
    assert all(image.errors > image.base_errors for image in worse.images)


async def test_evaluations_of_different_test_sets_are_not_compared(world: World) -> None:
    _, one = await scored(world)
    _, other = await scored(world, seed=3)
    request = evaluation_pb2.CompareEvaluationsRequest(
        evaluation_id=one.evaluation_id, base_evaluation_id=other.evaluation_id
    )
    with pytest.raises(grpc.aio.AioRpcError, match="with different class names") as refusal:
        await world.stub.CompareEvaluations(request, metadata=world.viewer)
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_another_accounts_evaluation_is_no_base(world: World) -> None:
    _, theirs = await scored(world)
    stranger = replace(world, account_id=new_id())
    _, mine = await scored(stranger)
    request = evaluation_pb2.CompareEvaluationsRequest(
        evaluation_id=mine.evaluation_id, base_evaluation_id=theirs.evaluation_id
    )
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await world.stub.CompareEvaluations(request, metadata=stranger.viewer)
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
