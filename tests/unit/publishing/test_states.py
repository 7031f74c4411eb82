"""The life of a deployment as a table: every allowed move, and every other pair refused; and what it is charged."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.publishing import domain, lifecycle
from saucer.publishing.domain import (
    ChargeStatus,
    DeploymentState,
    EndReason,
    Evaluation,
)
from saucer.publishing.lifecycle import IDLE_GRACE, PROBE_GAP_LIMIT, PROGRESS_EVERY
from tests.unit.publishing.examples import EVALUATION, FORM, NOW, PARITY, active, at, count, deploying, pending, queued

ALLOWED = {
    ("PENDING", "WAITING"),
    ("PENDING", "QUEUED"),
    ("PENDING", "REFUSED"),
    ("PENDING", "STOPPED"),
    ("PENDING", "FAILED"),
    ("WAITING", "QUEUED"),
    ("WAITING", "STOPPED"),
    ("WAITING", "FAILED"),
    ("QUEUED", "DEPLOYING"),
    ("QUEUED", "STOPPED"),
    ("QUEUED", "FAILED"),
    ("DEPLOYING", "ACTIVE"),
    ("DEPLOYING", "STOPPING"),
    ("DEPLOYING", "FAILED"),
    ("ACTIVE", "DEGRADED"),
    ("ACTIVE", "STOPPING"),
    ("DEGRADED", "ACTIVE"),
    ("DEGRADED", "STOPPING"),
    ("DEGRADED", "FAILED"),
    ("STOPPING", "STOPPED"),
    ("STOPPED", "PENDING"),
    ("FAILED", "PENDING"),
    ("REFUSED", "PENDING"),
}


@pytest.mark.parametrize("target", DeploymentState)
@pytest.mark.parametrize("source", DeploymentState)
def test_only_the_moves_of_the_table_are_allowed(source: DeploymentState, target: DeploymentState) -> None:
    start = replace(pending(), state=source)
    if (source.value, target.value) in ALLOWED:
        moved = domain.transition(start, target, NOW)
        assert moved.state is target
        assert (moved.ended_at is not None) == moved.at_rest
        assert (moved.charge_status is ChargeStatus.BILLING) == (target is DeploymentState.ACTIVE)
    else:
        with pytest.raises(ValueError, match=f"from {source} to {target}"):
            domain.transition(start, target, NOW)


@pytest.mark.parametrize("reason", EndReason)
@pytest.mark.parametrize("state", DeploymentState)
def test_a_stop_ends_at_once_what_triton_has_nothing_of_and_asks_it_of_the_rest(
    state: DeploymentState, reason: EndReason
) -> None:
    stopped = lifecycle.stop(replace(pending(), state=state), reason, NOW)
    if state in domain.UNPLACED:
        assert (stopped.state, stopped.end_reason) == (DeploymentState.STOPPED, reason)
    elif state in domain.AT_REST or state is DeploymentState.STOPPING:
        assert stopped.state is state
        assert stopped.end_reason is None
    else:
        assert (stopped.state, stopped.end_reason, stopped.stop_requested) == (DeploymentState.STOPPING, reason, True)
        assert lifecycle.stop(stopped, EndReason.ARREARS, NOW) == stopped, "the first reason stays"
        assert lifecycle.stopped(stopped, NOW).end_reason is reason


@pytest.mark.parametrize("state", DeploymentState)
def test_only_what_is_at_rest_can_be_deleted_and_nothing_else_of_it_changes(state: DeploymentState) -> None:
    deployment = replace(pending(), state=state)
    if state in domain.AT_REST:
        assert lifecycle.delete(deployment, NOW) == replace(deployment, deleted_at=NOW)
    else:
        with pytest.raises(ValueError, match=f"{state} is not deleted"):
            lifecycle.delete(deployment, NOW)


def test_arrears_show_in_the_charge_status_until_a_new_start_is_granted() -> None:
    stopped = lifecycle.stopped(lifecycle.stop(active(), EndReason.ARREARS, NOW), NOW)
    assert stopped.charge_status is ChargeStatus.STOPPED_FOR_ARREARS
    again = lifecycle.queue(lifecycle.start_again(stopped, "again", NOW), 2, 1, "EUR", NOW)
    assert again.charge_status is ChargeStatus.NOT_BILLING


def test_a_refused_first_start_is_refused_and_a_refused_new_start_is_where_it_was() -> None:
    assert lifecycle.refuse(pending(), "short", 1, NOW).state is DeploymentState.REFUSED
    stopped = lifecycle.stopped(lifecycle.stop(active(), EndReason.STOPPED_BY_USER, NOW), NOW)
    back = lifecycle.refuse(lifecycle.start_again(stopped, "again", NOW), "short", 1, NOW)
    assert (back.state, back.end_reason) == (DeploymentState.STOPPED, EndReason.STOPPED_BY_USER)
    assert back.version.parity == PARITY
    assert back.start_number == 2, "a refused hold's id is used up"
    assert (stopped.refused, back.refused) == (False, True)
    granted = lifecycle.queue(lifecycle.start_again(back, "once more", NOW), 2, 1, "EUR", NOW)
    assert not lifecycle.stop(granted, EndReason.STOPPED_BY_USER, NOW).refused
    withdrawn = lifecycle.stop(lifecycle.start_again(back, "once more", NOW), EndReason.STOPPED_BY_USER, NOW)
    assert not withdrawn.refused, "the user did not wait for the answer"


def test_a_new_start_that_is_granted_starts_with_nothing_of_the_former() -> None:
    counted = count(active(), NOW + timedelta(seconds=5))
    degraded = lifecycle.lose(counted, at(counted), "dead", NOW)
    assert (degraded.state, degraded.error_message) == (DeploymentState.DEGRADED, "dead")
    failed = lifecycle.fail(degraded, EndReason.FAILED, "dead", NOW, None)
    assert failed.instances == ()
    again = lifecycle.start_again(failed, "again", NOW)
    assert again.charged_ms == 0, "the counter goes with the hold"
    assert lifecycle.queue(again, 7_200_000, 3_600_000, "EUR", NOW) == replace(
        queued(), start_number=2, start_request_id="again", revision=again.revision
    )


def test_thresholds_are_the_given_then_the_recommended_then_one_half() -> None:
    classes = ("cup", "plate")
    assert domain.choose_thresholds(classes, {"plate": 0.9}, EVALUATION) == (("cup", 0.3), ("plate", 0.9))
    assert domain.choose_thresholds(classes, {}, EVALUATION) == (("cup", 0.3), ("plate", 0.4))
    nothing = Evaluation("e", "m", {}, None)
    assert domain.choose_thresholds(classes, {"cup": 0.0}, nothing) == (("cup", 0.0), ("plate", 0.5))


def test_a_gap_between_probes_counts_up_to_its_limit_and_a_gap_in_serving_not_at_all() -> None:
    late = count(active(), NOW + 10 * PROBE_GAP_LIMIT)
    assert late.charged_ms == PROBE_GAP_LIMIT // timedelta(milliseconds=1)
    hour = NOW + timedelta(hours=1)
    degraded = lifecycle.lose(late, at(late), "dead", NOW + 11 * PROBE_GAP_LIMIT)
    back = lifecycle.recover(degraded, at(degraded), hour)
    assert back.charged_ms == late.charged_ms
    assert count(back, hour + timedelta(seconds=2)).charged_ms == late.charged_ms + 2000
    assert back.active_at == NOW


def test_what_the_process_that_probes_did_not_attend_is_not_counted() -> None:
    deployment, now = active(), NOW + timedelta(seconds=10)
    begun = lifecycle.count(deployment, at(deployment), now, timedelta(0))
    assert (begun.charged_ms, begun.probed_at) == (0, now)
    later = now + timedelta(seconds=2)
    assert lifecycle.count(begun, at(begun), later, timedelta(seconds=2.1)).charged_ms == 2000
    half = lifecycle.count(deployment, at(deployment), now, timedelta(seconds=5))
    assert (half.charged_ms, half.probed_at) == (5000, now)


@pytest.mark.parametrize(
    ("idle_stop", "grace"), [(timedelta(hours=8), IDLE_GRACE), (timedelta(seconds=6), timedelta(seconds=6))]
)
def test_an_idle_stop_that_came_in_an_absence_waits_for_callers_to_come_back(
    idle_stop: timedelta, grace: timedelta
) -> None:
    deployment = active()
    deployment = replace(deployment, form=replace(FORM, idle_stop_ms=idle_stop // timedelta(milliseconds=1)))
    for attended, state in (
        (timedelta(0), DeploymentState.ACTIVE),
        (grace - timedelta(milliseconds=1), DeploymentState.ACTIVE),
        (grace, DeploymentState.STOPPING),
    ):
        probed = lifecycle.count(deployment, at(deployment), NOW + idle_stop, attended)
        assert probed.state is state
    assert probed.end_reason is EndReason.IDLE
    before = lifecycle.count(deployment, at(deployment), NOW + idle_stop - timedelta(milliseconds=1), timedelta.max)
    assert before.state is DeploymentState.ACTIVE
    used = replace(deployment, used_at=NOW + idle_stop)
    assert lifecycle.count(used, at(used), NOW + idle_stop, grace).state is DeploymentState.ACTIVE


def test_a_clock_that_goes_back_takes_nothing_off() -> None:
    back = count(active(), NOW - timedelta(hours=1))
    assert back.charged_ms == 0
    assert count(back, NOW + timedelta(seconds=2)).charged_ms == 2000


@given(st.lists(st.integers(0, 60_000), max_size=40), st.integers(10_000, 120_000))
def test_whatever_the_probes_it_is_charged_no_more_than_it_served_and_than_its_max_duration(
    gaps: list[int], max_duration_ms: int
) -> None:
    deployment, now = active(max_duration_ms=max_duration_ms), NOW
    for gap in gaps:
        now += timedelta(milliseconds=gap)
        former = deployment
        deployment = count(deployment, now)
        assert former.charged_ms <= deployment.charged_ms <= max_duration_ms
        if deployment.state is DeploymentState.STOPPING:
            assert (deployment.end_reason, deployment.charged_ms) == (EndReason.DURATION_REACHED, max_duration_ms)
            break
        assert deployment.stop_at == now + timedelta(milliseconds=max_duration_ms - deployment.charged_ms)
    assert deployment.charged_ms <= (now - NOW) / timedelta(milliseconds=1)


def test_the_counter_is_told_once_a_minute() -> None:
    deployment = active()
    told = set()
    for seconds in range(0, 150, 2):
        deployment = count(deployment, NOW + timedelta(seconds=seconds))
        told.add(deployment.progressed_at)
    assert told == {NOW, NOW + PROGRESS_EVERY, NOW + 2 * PROGRESS_EVERY}


def test_the_pause_between_attempts_grows_to_its_greatest_and_is_another_for_each_instance() -> None:
    first, greatest = set(), set()
    for number in range(20):
        deployment = replace(deploying("local"), deployment_id=f"d{number}")
        pauses = []
        for _ in range(100):
            deployment = lifecycle.put_off(deployment, at(deployment), "no", NOW)
            retry_at = at(deployment).retry_at
            assert retry_at is not None
            pauses.append(retry_at - NOW)
        assert pauses == sorted(pauses)
        first.add(pauses[0])
        greatest.add(pauses[-1])
    for pause, found in ((lifecycle.RETRY_FIRST, first), (lifecycle.RETRY_GREATEST, greatest)):
        assert len(found) == 20
        assert (1 - lifecycle.RETRY_SPREAD) * pause <= min(found) <= max(found) <= pause


def test_the_cost_is_the_floor_of_whole_seconds() -> None:
    deployment = replace(active(), charged_ms=90_999, price_per_hour_micros=3_600_000)
    assert deployment.cost_micros == 90_000


def test_what_keeps_an_instance_from_serving_is_told_and_is_no_attempt() -> None:
    told = lifecycle.note(deploying("a", "b"), at(deploying("a", "b"), "a"), "the disk is full")
    assert (told.error_message, at(told, "a").message, at(told, "b").message) == (("the disk is full",) * 2 + ("",))
    assert (at(told, "a").attempts, at(told, "a").retry_at) == (0, None)
    serving = lifecycle.activate(told, at(told, "b"), PARITY, "p", NOW)
    again = lifecycle.note(serving, at(serving, "a"), "the disk is still full")
    assert (again.error_message, at(again, "a").message) == ("", "the disk is still full"), "the other one serves"
    assert lifecycle.note(again, at(again, "b"), "too late") == again
