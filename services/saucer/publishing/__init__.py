"""Publishing: evaluated models, online. The deployments, and the Triton server that serves them.

Owns: deployments and what it knows of models (database `publishing`), Triton and its model repository.
Serves: saucer.publishing.v1.PublishingService, inference.GRPCInferenceService, saucer.lib.v1.DeadEventService,
    saucer.lib.v1.CallService.
Calls: billing (CreateHold), Triton, the object store.
Publishes: DeploymentCreated, DeploymentQueued, DeploymentChanged, DeploymentActivated, DeploymentProgressed,
    DeploymentDegraded, DeploymentStopRequested, DeploymentEnded, DeploymentDeleted.
Consumes: RunEnded, ModelDeleted; EvaluationEnded; HoldGranted, StopOrdered.
"""
