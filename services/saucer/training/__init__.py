"""Training: runs, the leases that workers hold on them, their metrics and logs, and the models they leave.

Owns: runs, stop orders, metric points, log lines, models and which deployments serve them, workers, accounts' shares
    of them (database `training`); files of attempts and models.
Serves: saucer.training.v1.TrainingService, saucer.training.v1.WorkerService, saucer.lib.v1.DeadEventService,
    saucer.lib.v1.CallService.
Calls: the object store.
Publishes: RunQueued, RunStarted, RunProgressed, RunInterrupted, RunEnded, ModelDeleted.
Consumes: TaskQueued, TaskStopRequested, TaskDeleted; StopOrdered, AccountQuotasChanged; DeploymentCreated,
    DeploymentChanged, DeploymentProgressed, DeploymentEnded.
"""
