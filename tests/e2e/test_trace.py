"""One trace from CreateTask to the bill, and one from CreateDeployment, through every service that has a part in it.

`pytest -s tests/e2e/test_trace.py` prints them, as the README shows the first.
"""

from tests.support.collector import Span, tree
from tests.support.saucer_client import Saucer, reached
from tests.support.stack import Trained

TASK_PARTS = {
    ("task", "saucer.task.v1.TaskService/CreateTask"),
    ("dataset", "saucer.dataset.v1.DatasetService/GetDatasetVersion"),
    ("billing", "saucer.billing.v1.BillingService/CreateHold"),
    ("training", "saucer.task.v1.TaskQueued"),
    ("training", "waits for a worker"),
    ("training", "run"),
    *(("worker", stage) for stage in ("attempt", "fetch data", "training", "exporting", "predicting", "upload")),
    ("task", "saucer.training.v1.RunStarted"),
    ("billing", "saucer.training.v1.RunEnded"),
    ("publishing", "saucer.training.v1.RunEnded"),
    ("evaluation", "score"),
    ("task", "saucer.evaluation.v1.EvaluationEnded"),
    ("publishing", "saucer.evaluation.v1.EvaluationEnded"),
    ("billing", "saucer.task.v1.TaskEnded"),
}
DEPLOYMENT_PARTS = {
    ("publishing", "saucer.publishing.v1.PublishingService/CreateDeployment"),
    ("billing", "saucer.billing.v1.BillingService/CreateHold"),
    ("publishing", "waits for Triton"),
    ("publishing", "deploy"),
    ("publishing", "serve"),
    ("publishing", "unload"),
    ("billing", "saucer.publishing.v1.DeploymentActivated"),
    ("billing", "saucer.publishing.v1.DeploymentEnded"),
}


async def whole_trace(saucer: Saucer, work_id: str, parts: set[tuple[str, str]]) -> dict[str, Span]:
    """Of a task or deployment, by span id, once it has the parts. Prints it."""
    seen: list[list[Span]] = []

    async def whole() -> bool:
        seen.append(saucer.collector.trace_of(work_id))
        return {(span.service, span.name) for span in seen[-1]} >= parts

    try:
        await reached(whole, timeout_s=30)
    except AssertionError:
        missing = parts - {(span.service, span.name) for span in seen[-1]}
        raise AssertionError(f"The trace has no {missing}.") from None
    print("\n" + "\n".join(tree(seen[-1])))
    return {span.span_id: span for span in seen[-1]}


def the_bill_follows(spans: dict[str, Span], root: tuple[str, str], work: str, end: str) -> None:
    """All of it comes from the one call, and billing's part in the end from the work."""
    roots = [span for span in spans.values() if span.parent_id not in spans]
    assert [(span.service, span.name) for span in roots] == [root]
    (worked,) = (span for span in spans.values() if span.name == work)
    bill = [span for span in spans.values() if (span.service, span.name) == ("billing", end)]
    assert [span.parent_id for span in bill] == [worked.span_id]


async def test_a_task_is_one_trace_from_the_form_to_the_bill(saucer: Saucer, trained: Trained) -> None:
    spans = await whole_trace(saucer, trained.task.task_id, TASK_PARTS)
    the_bill_follows(spans, ("task", "saucer.task.v1.TaskService/CreateTask"), "run", "saucer.training.v1.RunEnded")


async def test_a_deployment_is_one_trace_from_the_form_to_the_bill(saucer: Saucer, trained: Trained) -> None:
    deployment = await saucer.deploy(trained.data.account, trained.task.model_id)
    await saucer.stop_deployment(trained.data.account, deployment.deployment_id)
    spans = await whole_trace(saucer, deployment.deployment_id, DEPLOYMENT_PARTS)
    call = ("publishing", "saucer.publishing.v1.PublishingService/CreateDeployment")
    the_bill_follows(spans, call, "unload", "saucer.publishing.v1.DeploymentEnded")
