"""A deployment to start from."""

from dataclasses import replace
from datetime import UTC, datetime

from saucer.publishing import domain
from saucer.publishing.domain import Deployment, Evaluation, Form, Parity

NOW = datetime(2026, 11, 23, tzinfo=UTC)
FORM = Form("cups", "m", "local", "cpu-2", 1, "POSTPAID", None, ())
EVALUATION = Evaluation("e", "m", {"cup": 0.3}, 0.4)
PARITY = Parity(True, 64, 100, 100, ())


def pending(**changes: object) -> Deployment:
    made = domain.create("d", "a", "r", FORM, EVALUATION, ("cup", "plate"), (("cup", 0.3), ("plate", 0.4)), NOW)
    return replace(made, **changes)  # type: ignore[arg-type] # one dict for all types


def queued(**changes: object) -> Deployment:
    return domain.queue(pending(**changes), 7_200_000, 3_600_000, "EUR", NOW)


def active(max_duration_ms: int | None = None) -> Deployment:
    deploying = domain.deploy(queued(form=replace(FORM, max_duration_ms=max_duration_ms)), "local", NOW)
    return domain.activate(deploying, PARITY, "system/a/images/0", NOW)
