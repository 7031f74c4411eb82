"""Messages to use cases and back; nothing else."""

from collections.abc import AsyncIterator

from saucer.lib.auth import current
from saucer.lib.clock import from_duration, to_duration
from saucer.lib.grpc_server import Context, Servicer
from saucer.lib.ids import derived_id
from saucer.lib.paging import read_page
from saucer.task.domain import TaskState
from saucer.task.messages import (
    config_message,
    derived_message,
    parameter_message,
    read_billing_mode,
    read_form,
    scene_message,
    starting_point_message,
    task_message,
)
from saucer.task.parameters import PARAMETERS
from saucer.task.quoting import highest_cost_micros, warnings
from saucer.task.service import Tasks
from saucer.task.starting_points import STARTING_POINTS
from saucer.task.v1 import task_pb2, task_pb2_grpc


def servicer(tasks: Tasks) -> Servicer:
    """What main.py serves."""
    return Servicer(
        _TaskRpc(tasks),
        task_pb2_grpc.add_TaskServiceServicer_to_server,
        task_pb2.DESCRIPTOR.services_by_name["TaskService"],
    )


class _TaskRpc(task_pb2_grpc.TaskServiceServicer):
    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def CreateTask(self, request: task_pb2.CreateTaskRequest, context: Context) -> task_pb2.Task:
        account_id = current().account(request.account_id)
        task = await self._tasks.starts.create(
            request.request_id, account_id, derived_id("task", account_id, request.request_id), read_form(request.form)
        )
        return task_message(task)

    async def QuoteTask(self, request: task_pb2.QuoteTaskRequest, context: Context) -> task_pb2.TaskQuote:
        account_id = current().account(request.account_id)
        form = read_form(request.form)
        plan, estimated_ms = await self._tasks.planning.quote(account_id, form)
        config, quote = plan.config, plan.quote
        return task_pb2.TaskQuote(
            price_per_hour_micros=quote.price_per_hour_micros,
            hold_micros=quote.hold_micros,
            available_micros=quote.available_micros,
            missing_micros=quote.missing_micros,
            highest_cost_micros=highest_cost_micros(form, config, quote),
            estimated_duration=to_duration(estimated_ms),
            currency=quote.currency,
            warnings=warnings(form, config, quote, estimated_ms),
            config=config_message(config, account_id),
            derived_values=[derived_message(note) for note in plan.derived],
        )

    async def GetTask(self, request: task_pb2.GetTaskRequest, context: Context) -> task_pb2.Task:
        return task_message(await self._tasks.get(request.task_id))

    async def ListTasks(self, request: task_pb2.ListTasksRequest, context: Context) -> task_pb2.ListTasksResponse:
        account_id = current().account(request.account_id)
        page = read_page(request)
        tasks = await self._tasks.list_tasks(
            account_id,
            states=[
                TaskState(task_pb2.TaskState.Name(state).removeprefix("TASK_STATE_"))
                for state in request.states
                if state
            ],
            after=page.after_moment,
            limit=page.limit,
        )
        shown, following = page.cut(tasks, lambda row: (row.created_at, row.task_id))
        return task_pb2.ListTasksResponse(
            tasks=[task_message(task) for task in shown],
            next_page_token=following,
        )

    async def WatchTask(self, request: task_pb2.WatchTaskRequest, context: Context) -> AsyncIterator[task_pb2.Task]:
        async for task in self._tasks.watch(request.task_id):
            yield task_message(task)

    async def CheckTaskName(
        self, request: task_pb2.CheckTaskNameRequest, context: Context
    ) -> task_pb2.CheckTaskNameResponse:
        account_id = current().account(request.account_id)
        exists = await self._tasks.name_exists(account_id, request.display_name)
        return task_pb2.CheckTaskNameResponse(exists=exists)

    async def StopTask(self, request: task_pb2.StopTaskRequest, context: Context) -> task_pb2.Task:
        return task_message(await self._tasks.stop(request.request_id, request.task_id))

    async def RestartTask(self, request: task_pb2.RestartTaskRequest, context: Context) -> task_pb2.Task:
        task = await self._tasks.starts.restart(
            request.request_id,
            request.task_id,
            from_scratch=request.from_scratch,
            max_duration_ms=from_duration(request.max_duration) if request.HasField("max_duration") else None,
            billing_mode=read_billing_mode(request.billing_mode) if request.billing_mode else None,
            resource_group_id=request.resource_group_id,
        )
        return task_message(task)

    async def DeleteTask(self, request: task_pb2.DeleteTaskRequest, context: Context) -> task_pb2.Task:
        return task_message(await self._tasks.delete(request.task_id))

    async def ListScenes(self, request: task_pb2.ListScenesRequest, context: Context) -> task_pb2.ListScenesResponse:
        return task_pb2.ListScenesResponse(scenes=[scene_message(scene) for scene in self._tasks.scenes.values()])

    async def ListStartingPoints(
        self, request: task_pb2.ListStartingPointsRequest, context: Context
    ) -> task_pb2.ListStartingPointsResponse:
        points = [starting_point_message(point) for point in STARTING_POINTS.values()]
        return task_pb2.ListStartingPointsResponse(starting_points=points)

    async def ListParameters(
        self, request: task_pb2.ListParametersRequest, context: Context
    ) -> task_pb2.ListParametersResponse:
        return task_pb2.ListParametersResponse(parameters=[parameter_message(each) for each in PARAMETERS])
