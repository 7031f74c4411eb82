"""Task: AutoML jobs, from form to result.

Owns: tasks (database `task`).
Serves: saucer.task.v1.TaskService, saucer.lib.v1.DeadEventService, saucer.lib.v1.CallService.
Calls: dataset (GetDatasetVersion), billing (GetQuote, CreateHold).
Publishes: TaskCreated, TaskQueued, TaskChanged, TaskStopRequested, TaskEnded, TaskDeleted.
Consumes: HoldGranted, StopOrdered, AccountQuotasChanged; RunStarted, RunProgressed, RunInterrupted, RunEnded,
    ModelDeleted; EvaluationEnded.
"""
