"""Task as it runs, with the real billing, and a dataset service that knows one version."""

from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from nats.js import JetStreamContext

from saucer.billing.main import wire as wire_billing
from saucer.billing.v1 import billing_pb2
from saucer.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from saucer.evaluation.v1 import evaluation_pb2
from saucer.evaluation.v1 import events_pb2 as evaluation_events
from saucer.lib.auth import Verifier
from saucer.lib.cloudevent import from_json
from saucer.lib.config import ServiceSettings
from saucer.lib.grpc_client import from_rpc
from saucer.lib.grpc_server import Server, Servicer
from saucer.lib.ids import new_id
from saucer.task.main import TaskSettings
from saucer.task.main import wire as wire_task
from saucer.task.v1 import events_pb2 as task_events
from saucer.task.v1 import task_pb2
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.integration.task.world import HOLD_MICROS, OneVersion, World, run_of, tell
from tests.support.events import read_events, until
from tests.support.services import Metadata, ServiceRunner, Tokens


async def test_an_attempt_that_training_does_not_charge_is_shown_so(world: World, jetstream: JetStreamContext) -> None:
    account_id, editor = await world.account(HOLD_MICROS)
    task = await world.create(world.form(account_id), editor)
    await tell(jetstream, training_events.RunProgressed(run=run_of(task, 2, attempt=4, uncharged=True)), task)
    finishing = await world.reaches(task.task_id, task_pb2.TASK_STATE_TRAINING)
    assert finishing.charge_status == billing_pb2.CHARGE_STATUS_NOT_BILLING


def evaluation_of(model: training_pb2.Model, run_id: str) -> evaluation_pb2.Evaluation:
    return evaluation_pb2.Evaluation(
        evaluation_id=new_id(),
        account_id=model.account_id,
        task_id=model.task_id,
        run_id=run_id,
        model_id=model.model_id,
        state=evaluation_pb2.EVALUATION_STATE_SUCCEEDED,
        map_50=0.85,
    )


async def test_a_task_goes_from_form_to_result(world: World, jetstream: JetStreamContext) -> None:
    account_id, editor = await world.account(HOLD_MICROS)
    task = await world.create(world.form(account_id), editor)
    assert task.state == task_pb2.TASK_STATE_QUEUED
    assert task.hold_micros == HOLD_MICROS
    assert task.config.input_size == 192
    assert await world.frozen(account_id) == HOLD_MICROS
    (queued,) = await read_events(jetstream, f"saucer.task.v1.TaskQueued.{account_id}.>", count=1)
    told = from_json(queued.data, task_events.TaskQueued()).task
    assert told.config.manifest_key == "system/m.json"

    await tell(jetstream, training_events.RunStarted(run=run_of(task, 2, attempt=1)), task)
    running = await world.reaches(task.task_id, task_pb2.TASK_STATE_TRAINING)
    assert running.charge_status == billing_pb2.CHARGE_STATUS_BILLING
    ended = run_of(task, 9, end_reason=training_pb2.END_REASON_ACCURACY_REACHED, charged_ms=90_500)
    model = training_pb2.Model(model_id=new_id(), account_id=account_id, task_id=task.task_id)
    await tell(jetstream, training_events.RunEnded(run=ended, model=model), task)
    await world.reaches(task.task_id, task_pb2.TASK_STATE_EVALUATING)
    evaluation = evaluation_of(model, ended.run_id)
    await tell(jetstream, evaluation_events.EvaluationEnded(evaluation=evaluation), task)
    done = await world.reaches(task.task_id, task_pb2.TASK_STATE_SUCCEEDED)
    assert (done.test_map_50, done.model_id, done.cost_micros) == (0.85, model.model_id, 90_000)
    assert done.end_reason == training_pb2.END_REASON_ACCURACY_REACHED


async def test_an_evaluation_that_is_heard_before_the_end_of_its_run_counts(
    world: World, jetstream: JetStreamContext
) -> None:
    account_id, editor = await world.account(HOLD_MICROS)
    task = await world.create(world.form(account_id), editor)
    run = run_of(task, 2, attempt=1)
    await tell(jetstream, training_events.RunStarted(run=run), task)
    await world.reaches(task.task_id, task_pb2.TASK_STATE_TRAINING)
    model = training_pb2.Model(model_id=new_id(), account_id=account_id, task_id=task.task_id)
    evaluation = evaluation_of(model, run.run_id)
    await tell(jetstream, evaluation_events.EvaluationEnded(evaluation=evaluation), task)
    run.revision, run.end_reason = 9, training_pb2.END_REASON_COMPLETED
    await tell(jetstream, training_events.RunEnded(run=run, model=model), task)
    done = await world.reaches(task.task_id, task_pb2.TASK_STATE_SUCCEEDED)
    assert (done.test_map_50, done.evaluation_id) == (0.85, evaluation.evaluation_id)
    assert (done.model_id, done.charge_status) == (model.model_id, billing_pb2.CHARGE_STATUS_NOT_BILLING)


async def test_data_without_labels_is_refused_by_quote_and_create_and_freezes_nothing(world: World) -> None:
    account_id, editor = await world.account(HOLD_MICROS)
    world.data.boxes_per_split = 0
    form = world.form(account_id)
    form.scene = "object-detection"
    for asked in (
        world.tasks.QuoteTask(task_pb2.QuoteTaskRequest(account_id=account_id, form=form), metadata=editor),
        world.create(form, editor),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await asked
        assert from_rpc(refusal.value).reason == "NO_LABELS"
    assert await world.frozen(account_id) == 0


async def test_a_retry_gets_the_same_task_and_another_form_a_conflict(world: World) -> None:
    account_id, editor = await world.account(2 * HOLD_MICROS)
    form, request_id = world.form(account_id), new_id()
    first = await world.create(form, editor, request_id)
    assert (await world.create(form, editor, request_id)).task_id == first.task_id
    assert await world.frozen(account_id) == HOLD_MICROS
    form.remark = "another"
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await world.create(form, editor, request_id)
    assert refusal.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_a_task_beyond_the_accounts_quota_of_waiting_ones_is_refused_until_one_has_gone(world: World) -> None:
    account_id, editor = await world.account(3 * HOLD_MICROS)
    quotas = billing_pb2.SetAccountQuotasRequest(
        request_id=new_id(), account_id=account_id, queued=1, reason="small account"
    )
    for _ in range(2):
        put = await world.billing.SetAccountQuotas(quotas, metadata=world.administrator)
        assert (put.weight, put.queued, put.HasField("running"), put.revision) == (1, 1, False, 1)
    form, request_id = world.form(account_id), new_id()
    first = await world.create(form, editor, request_id)

    async def refused() -> bool:
        """Once the event has come; until then it is created, and stopped again."""
        try:
            created = await world.create(world.form(account_id, f"n{new_id()}"), editor)
        except grpc.aio.AioRpcError as error:
            return from_rpc(error).reason == "QUOTA_QUEUED"
        await world.tasks.StopTask(
            task_pb2.StopTaskRequest(request_id=new_id(), task_id=created.task_id), metadata=editor
        )
        return False

    await until(refused)
    assert (await world.create(form, editor, request_id)).task_id == first.task_id, "a retry is no further task"


async def test_a_balance_one_micro_short_is_refused_says_so_again_and_can_be_restarted(world: World) -> None:
    account_id, editor = await world.account(HOLD_MICROS - 1)
    form, request_id = world.form(account_id), new_id()
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await world.create(form, editor, request_id)
        error = from_rpc(refusal.value)
        assert (error.reason, error.metadata["missing_micros"]) == ("INSUFFICIENT_BALANCE", "1")
    task_id = error.metadata["task_id"]
    assert (await world.get(task_id)).state == task_pb2.TASK_STATE_REFUSED
    assert await world.frozen(account_id) == 0

    await world.top_up(account_id, 1)
    request = task_pb2.RestartTaskRequest(request_id=new_id(), task_id=task_id)
    restarted = await world.tasks.RestartTask(request, metadata=editor)
    assert (restarted.state, restarted.start_number) == (task_pb2.TASK_STATE_QUEUED, 2)
    assert (await world.tasks.RestartTask(request, metadata=editor)).start_number == 2


async def test_a_name_is_unique_in_its_account_and_free_again_after_deletion(world: World) -> None:
    account_id, editor = await world.account(HOLD_MICROS - 1)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await world.create(world.form(account_id, "Tassen-1"), editor)
    task_id = from_rpc(refusal.value).metadata["task_id"]
    with pytest.raises(grpc.aio.AioRpcError) as taken:
        await world.create(world.form(account_id, "Tassen-1"), editor)
    assert from_rpc(taken.value).reason == "NAME_TAKEN"
    check = task_pb2.CheckTaskNameRequest(display_name="Tassen-1")
    assert (await world.tasks.CheckTaskName(check, metadata=editor)).exists
    await world.tasks.DeleteTask(task_pb2.DeleteTaskRequest(task_id=task_id), metadata=editor)
    assert not (await world.tasks.CheckTaskName(check, metadata=editor)).exists


async def test_a_task_that_is_deleted_again_is_answered_as_the_first_time_and_told_once(
    world: World, jetstream: JetStreamContext
) -> None:
    account_id, editor = await world.account(HOLD_MICROS)
    _, stranger = await world.account(0)
    dear = world.form(account_id, "dear")
    dear.budget_micros = 1
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await world.create(dear, editor)
    request = task_pb2.DeleteTaskRequest(task_id=from_rpc(refusal.value).metadata["task_id"])
    deleted = await world.tasks.DeleteTask(request, metadata=editor)
    assert await world.tasks.DeleteTask(request, metadata=editor) == deleted
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await world.tasks.DeleteTask(request, metadata=stranger)
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    await world.create(world.form(account_id), editor)
    told = await read_events(jetstream, f"saucer.task.v1.*.{account_id}.>", count=5)
    assert [event.type.rpartition(".")[2] for event in told] == [
        "TaskCreated",
        "TaskEnded",
        "TaskDeleted",
        "TaskCreated",
        "TaskQueued",
    ]


async def test_tasks_are_paged_newest_first_each_once_whatever_states_are_asked_for(world: World) -> None:
    account_id, editor = await world.account(5 * HOLD_MICROS)
    made = [(await world.create(world.form(account_id, f"t{number}"), editor)).task_id for number in range(5)]

    async def pages(*states: task_pb2.TaskState.ValueType) -> list[list[str]]:
        found: list[list[str]] = []
        token = ""
        while not found or token:
            request = task_pb2.ListTasksRequest(states=states, page_size=2, page_token=token)
            response = await world.tasks.ListTasks(request, metadata=editor)
            found.append([task.task_id for task in response.tasks])
            token = response.next_page_token
        return found

    newest = made[::-1]
    assert await pages() == [newest[:2], newest[2:4], newest[4:]]
    both = (task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_STOPPED)
    assert await pages(*both) == [newest[:2], newest[2:4], newest[4:]]
    assert await pages(task_pb2.TASK_STATE_FAILED) == [[]]
    other = task_pb2.ListTasksRequest(states=[task_pb2.TASK_STATE_QUEUED], page_size=2, page_token="nonsense")
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await world.tasks.ListTasks(other, metadata=editor)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_wrong_state_is_named(world: World) -> None:
    account_id, editor = await world.account(HOLD_MICROS)
    task = await world.create(world.form(account_id), editor)
    for call in (
        world.tasks.DeleteTask(task_pb2.DeleteTaskRequest(task_id=task.task_id), metadata=editor),
        world.tasks.RestartTask(
            task_pb2.RestartTaskRequest(request_id=new_id(), task_id=task.task_id), metadata=editor
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="QUEUED") as refusal:
            await call
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_stop_is_asked_for_once_and_shown(world: World, jetstream: JetStreamContext) -> None:
    account_id, editor = await world.account(HOLD_MICROS)
    task = await world.create(world.form(account_id), editor)
    for _ in range(2):
        stop = task_pb2.StopTaskRequest(request_id=new_id(), task_id=task.task_id)
        assert (await world.tasks.StopTask(stop, metadata=editor)).stop_requested
    await read_events(jetstream, f"saucer.task.v1.TaskStopRequested.{account_id}.>", count=1)
    ended = run_of(task, 3, end_reason=training_pb2.END_REASON_STOPPED_BY_USER)
    await tell(jetstream, training_events.RunEnded(run=ended), task)
    await world.reaches(task.task_id, task_pb2.TASK_STATE_STOPPED)
    await until(lambda: nothing_frozen(world, account_id))


async def nothing_frozen(world: World, account_id: str) -> bool:
    return await world.frozen(account_id) == 0


async def test_data_of_another_account_does_not_exist(world: World) -> None:
    account_id, editor = await world.account(HOLD_MICROS)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await world.create(world.form(new_id()), editor)
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
    assert await world.frozen(account_id) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("display_name", "-cups"),
        ("display_name", "c" * 61),
        ("remark", "r" * 1025),
        ("lr", 1.5),
        ("count", 0),
        ("output_path", "../elsewhere"),
        ("output_path", "/etc"),
        ("dataset_version_id", "x"),
    ],
)
async def test_a_field_out_of_range_is_named(world: World, field: str, value: object) -> None:
    account_id, editor = await world.account(0)
    form = world.form(account_id)
    setattr(form, field, value)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await world.create(form, editor)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"form.{field}" in (refusal.value.details() or "")


async def test_a_quote_says_what_it_costs_and_what_is_derived_and_why(world: World) -> None:
    account_id, editor = await world.account(5)
    quote = await world.tasks.QuoteTask(task_pb2.QuoteTaskRequest(form=world.form(account_id)), metadata=editor)
    assert (quote.hold_micros, quote.missing_micros) == (HOLD_MICROS, HOLD_MICROS - 5)
    assert "7.199995 EUR are missing; top up before you create the task." in quote.warnings
    assert {note.field for note in quote.derived_values} >= {"epochs", "lr", "batch_size", "warmup"}
    assert await world.frozen(account_id) == 0


async def test_while_billing_is_away_a_task_waits_pending_and_then_goes_on(
    run_service: ServiceRunner, tokens: Tokens, servers_dir: Path
) -> None:
    data = OneVersion()  # type: ignore[abstract] # the calls it lacks answer UNIMPLEMENTED
    servicer = Servicer(
        data,
        dataset_pb2_grpc.add_DatasetServiceServicer_to_server,
        dataset_pb2.DESCRIPTOR.services_by_name["DatasetService"],
    )
    dataset = Server("127.0.0.1:0", Verifier(tokens.public_keys_file), [servicer])
    await dataset.start()
    database_url = await run_service.new_database()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(dataset.stop)
        first = await stack.enter_async_context(AsyncExitStack())
        billing = await first.enter_async_context(
            run_service("billing", ServiceSettings, wire_billing, database_url=database_url)
        )
        task = await stack.enter_async_context(
            run_service(
                "task", TaskSettings, wire_task, dataset_address=dataset.address, billing_address=billing.address
            )
        )
        world = World(task.channel, billing.channel, data, tokens)
        await world.offer()
        account_id, editor = await world.account(HOLD_MICROS)
        form, request_id = world.form(account_id), new_id()
        await first.aclose()
        with pytest.raises(grpc.aio.AioRpcError) as silence:
            await world.create(form, editor, request_id)
        assert silence.value.code() is grpc.StatusCode.UNAVAILABLE
        again = await stack.enter_async_context(
            run_service("billing", ServiceSettings, wire_billing, database_url=database_url, listen=billing.address)
        )
        world = World(task.channel, again.channel, data, tokens)
        created = await until(lambda: created_or_none(world, form, editor, request_id))
        await world.reaches(created.task_id, task_pb2.TASK_STATE_QUEUED)
        assert await world.frozen(account_id) == HOLD_MICROS


async def created_or_none(
    world: World, form: task_pb2.TaskForm, editor: Metadata, request_id: str
) -> task_pb2.Task | None:
    try:
        return await world.create(form, editor, request_id)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return None
        raise
