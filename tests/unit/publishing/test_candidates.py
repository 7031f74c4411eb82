"""Which version a decision is about."""

from dataclasses import replace

import pytest

from saucer.lib.errors import FailedPreconditionError
from saucer.publishing import lifecycle
from saucer.publishing.service.versions import meant_candidate
from tests.unit.publishing.examples import NOW, active


def test_a_decision_about_a_candidate_that_was_replaced_is_refused() -> None:
    deployment = active()
    with pytest.raises(FailedPreconditionError, match="There is no version"):
        meant_candidate(deployment, 2)
    other = lifecycle.propose(deployment, replace(deployment.version, number=3), 1, NOW)
    with pytest.raises(FailedPreconditionError, match="version 3, and not 2") as refused:
        meant_candidate(other, 2)
    assert refused.value.reason == "OTHER_CANDIDATE"
    assert meant_candidate(other, 3) == meant_candidate(other, 0) == other.candidate
