"""One trace from CreateTask to the bill, through every service that has a part in it.

`pytest -s tests/e2e/test_trace.py` prints it, as the README shows it.
"""

from tests.support.collector import Span, tree
from tests.support.saucer_client import Saucer, reached
from tests.support.stack import Trained

PARTS = {
    ("task", "saucer.task.v1.TaskService/CreateTask"),
    ("dataset", "saucer.dataset.v1.DatasetService/GetDatasetVersion"),
    ("billing", "saucer.billing.v1.BillingService/CreateHold"),
    ("training", "saucer.task.v1.TaskQueued"),
    ("training", "waits for a worker"),
    ("training", "run"),
    ("task", "saucer.training.v1.RunStarted"),
    ("billing", "saucer.training.v1.RunEnded"),
    ("evaluation", "score"),
    ("task", "saucer.evaluation.v1.EvaluationEnded"),
}


async def test_a_task_is_one_trace_from_the_form_to_the_bill(saucer: Saucer, trained: Trained) -> None:
    seen: list[list[Span]] = []

    async def whole() -> bool:
        seen.append(saucer.collector.trace_of(trained.task.task_id))
        return {(span.service, span.name) for span in seen[-1]} >= PARTS

    try:
        await reached(whole, timeout_s=30)
    except AssertionError:
        missing = PARTS - {(span.service, span.name) for span in seen[-1]}
        raise AssertionError(f"The trace has no {missing}.") from None
    print("\n" + "\n".join(tree(seen[-1])))
    spans = {span.span_id: span for span in seen[-1]}
    roots = [span for span in spans.values() if span.parent_id not in spans]
    assert [(span.service, span.name) for span in roots] == [("task", "saucer.task.v1.TaskService/CreateTask")]
    (run,) = (span for span in spans.values() if span.name == "run")
    bill = [span for span in spans.values() if (span.service, span.name) == ("billing", "saucer.training.v1.RunEnded")]
    assert [span.parent_id for span in bill] == [run.span_id]
