"""The life of a task as a table: every allowed move, and every other pair refused."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.task import domain
from saucer.task.domain import ChargeStatus, EndReason, Evaluated, Progress, Task, TaskState
from tests.unit.task.examples import NOW, config, form, task

ALLOWED = {
    ("PENDING", "WAITING"),
    ("PENDING", "QUEUED"),
    ("PENDING", "REFUSED"),
    ("PENDING", "STOPPED"),
    ("PENDING", "FAILED"),
    ("WAITING", "QUEUED"),
    ("WAITING", "STOPPED"),
    ("WAITING", "FAILED"),
    ("QUEUED", "TRAINING"),
    ("QUEUED", "EVALUATING"),
    ("QUEUED", "STOPPED"),
    ("QUEUED", "FAILED"),
    ("TRAINING", "EVALUATING"),
    ("TRAINING", "STOPPED"),
    ("TRAINING", "FAILED"),
    ("EVALUATING", "SUCCEEDED"),
    ("EVALUATING", "STOPPED"),
    ("EVALUATING", "FAILED"),
    ("STOPPED", "PENDING"),
    ("FAILED", "PENDING"),
    ("REFUSED", "PENDING"),
}


@pytest.mark.parametrize("target", TaskState)
@pytest.mark.parametrize("source", TaskState)
def test_only_the_moves_of_the_table_are_allowed(source: TaskState, target: TaskState) -> None:
    start = replace(task(), state=source)
    if (source.value, target.value) in ALLOWED:
        moved = domain.transition(start, target, NOW)
        assert moved.state is target
        assert (moved.ended_at is not None) == moved.at_rest
    else:
        with pytest.raises(ValueError, match=f"from {source} to {target}"):
            domain.transition(start, target, NOW)


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("COMPLETED", "SUCCEEDED"),
        ("ACCURACY_REACHED", "SUCCEEDED"),
        ("DURATION_REACHED", "SUCCEEDED"),
        ("STOPPED_BY_USER", "STOPPED"),
        ("ARREARS", "STOPPED"),
        ("BUDGET_REACHED", "STOPPED"),
        ("GROUP_ENDED", "STOPPED"),
        ("ACCOUNT_SUSPENDED", "STOPPED"),
        ("WAITED_TOO_LONG", "FAILED"),
        ("FAILED", "FAILED"),
    ],
)
def test_a_model_is_evaluated_and_the_task_rests_where_its_reason_says(reason: str, state: str) -> None:
    evaluating = domain.end_run(
        training(), Progress(run_revision=9), EndReason(reason), "model", "", begun=True, now=NOW
    )
    assert evaluating.state is TaskState.EVALUATING
    ended = domain.end_evaluation(evaluating, "evaluation", 0.9, "", NOW)
    assert (ended.state, ended.test_accuracy, ended.evaluation_id) == (TaskState(state), 0.9, "evaluation")


EVALUATED = Evaluated("run", "evaluation", 0.9, "")


@pytest.mark.parametrize("heard", ["QUEUED", "TRAINING"])
def test_an_evaluation_that_overtakes_the_end_of_its_run_counts_once_that_is_heard(heard: str) -> None:
    early = domain.hear_evaluation(queued() if heard == "QUEUED" else training(), EVALUATED, NOW)
    assert (early.state, early.test_accuracy, early.evaluated) == (TaskState(heard), None, EVALUATED)
    progress = Progress(run_id="run", run_revision=9)
    ended = domain.end_run(early, progress, EndReason.COMPLETED, "model", "", begun=True, now=NOW)
    assert (ended.state, ended.model_id, ended.ended_at) == (TaskState.SUCCEEDED, "model", NOW)
    assert (ended.test_accuracy, ended.evaluation_id, ended.evaluated) == (0.9, "evaluation", None)


@pytest.mark.parametrize("heard", ["QUEUED", "TRAINING", "EVALUATING"])
def test_the_evaluation_of_a_former_start_ends_no_later_one(heard: str) -> None:
    former = replace(EVALUATED, run_id="former")
    progress = Progress(run_id="run", run_revision=9)
    task = queued() if heard == "QUEUED" else training()
    if heard == "EVALUATING":
        task = domain.end_run(task, progress, EndReason.COMPLETED, "model", "", begun=True, now=NOW)
    task = domain.hear_evaluation(task, former, NOW)
    if heard != "EVALUATING":
        task = domain.end_run(task, progress, EndReason.COMPLETED, "model", "", begun=True, now=NOW)
    assert (task.state, task.evaluation_id, task.evaluated) == (TaskState.EVALUATING, "", None)
    assert domain.hear_evaluation(task, EVALUATED, NOW).state is TaskState.SUCCEEDED


@pytest.mark.parametrize("state", sorted(domain.UNQUEUED | domain.AT_REST))
def test_an_evaluation_changes_nothing_where_no_run_goes_on(state: TaskState) -> None:
    still = replace(task(), state=state, progress=Progress(run_id="run"))
    assert domain.hear_evaluation(still, EVALUATED, NOW) == still


def test_nothing_of_an_early_evaluation_goes_into_the_next_start() -> None:
    early = domain.hear_evaluation(queued(), EVALUATED, NOW)
    stopped = replace(early, state=TaskState.STOPPED, ended_at=NOW)
    pending = domain.restart(stopped, "again", from_scratch=False, max_duration_ms=None, now=NOW)
    assert domain.queue(pending, 2, 1, "EUR", NOW).evaluated is None


@pytest.mark.parametrize("reason", EndReason)
def test_a_run_without_a_model_has_not_succeeded(reason: EndReason) -> None:
    ended = domain.end_run(training(), Progress(), reason, "", "nothing was learnt", begun=True, now=NOW)
    assert ended.state in {TaskState.STOPPED, TaskState.FAILED}


def test_arrears_show_in_the_charge_status() -> None:
    ended = domain.end_run(training(), Progress(), EndReason.ARREARS, "model", "", begun=True, now=NOW)
    assert ended.charge_status is ChargeStatus.STOPPED_FOR_ARREARS


def test_a_refused_first_start_is_refused_and_a_refused_restart_is_where_it_was() -> None:
    assert domain.refuse(task(), "short", 1, NOW).state is TaskState.REFUSED
    stopped = replace(
        task(),
        state=TaskState.STOPPED,
        ended_at=NOW,
        end_reason=EndReason.STOPPED_BY_USER,
        model_id="model",
        progress=Progress(run_id="run"),
    )
    pending = domain.restart(stopped, "again", from_scratch=False, max_duration_ms=None, now=NOW)
    back = domain.refuse(pending, "short", 1, NOW)
    assert (back.state, back.model_id, back.end_reason) == (TaskState.STOPPED, "model", EndReason.STOPPED_BY_USER)
    assert back.start_number == 2, "a refused hold's id is used up"


@given(
    state=st.sampled_from(sorted(domain.RESTARTABLE)),
    progress=st.builds(Progress, run_id=st.sampled_from(["", "run"]), charged_ms=st.integers(0, 10**8)),
    resumed=st.booleans(),
    stop_requested=st.booleans(),
    restarts=st.lists(
        st.tuples(st.booleans(), st.none() | st.integers(60_000, 10**8), st.none() | st.sampled_from(["", "group"])),
        min_size=1,
        max_size=3,
    ),
)
def test_restarts_that_are_refused_change_nothing_of_the_former_start(
    state: TaskState,
    progress: Progress,
    resumed: bool,
    stop_requested: bool,
    restarts: list[tuple[bool, int | None, str | None]],
) -> None:
    before = replace(
        task(),
        state=state,
        ended_at=NOW,
        progress=progress,
        config=replace(config(), resume=resumed),
        price_per_hour_micros=3_600_000,
        stop_requested=stop_requested,
    )
    back, later = before, NOW
    for number, (from_scratch, max_duration_ms, group_id) in enumerate(restarts):
        later += timedelta(minutes=1)
        pending = domain.restart(
            back,
            f"restart-{number}",
            from_scratch=from_scratch,
            max_duration_ms=max_duration_ms,
            form=None if group_id is None else form(billing_mode="PREPAID", resource_group_id=group_id),
            now=later,
        )
        back = domain.refuse(pending, "short", 1, later)
    assert back.refused
    assert back == replace(
        before,
        start_number=1 + len(restarts),
        restart_request_id=f"restart-{len(restarts) - 1}",
        former_state=state,
        error_message="short",
        missing_micros=1,
        updated_at=later,
    )
    assert back.cost_micros == before.cost_micros


def test_a_restart_that_was_stored_before_the_former_start_was_kept_is_refused_to_its_state_alone() -> None:
    stopped = replace(task(), state=TaskState.STOPPED, ended_at=NOW, progress=Progress(run_id="run"))
    pending = domain.restart(stopped, "again", from_scratch=False, max_duration_ms=60_000, now=NOW)
    back = domain.refuse(replace(pending, former=None), "short", 1, NOW)
    assert (back.state, back.ended_at, back.config.max_duration_ms) == (TaskState.STOPPED, NOW, 60_000)


@pytest.mark.parametrize("ends", ["granted", "stopped"])
def test_nothing_is_kept_for_a_refusal_once_a_restart_is_granted_or_over(ends: str) -> None:
    stopped = replace(task(), state=TaskState.STOPPED, ended_at=NOW)
    pending = domain.restart(stopped, "again", from_scratch=False, max_duration_ms=None, now=NOW)
    if ends == "granted":
        moved = domain.queue(domain.wait(pending, NOW), 2, 1, "EUR", NOW)
    else:
        moved = domain.end_unqueued(pending, TaskState.STOPPED, EndReason.STOPPED_BY_USER, "", NOW)
    assert (moved.former_state, moved.former) == (None, None)


def test_a_restart_resumes_by_default_and_from_scratch_by_choice() -> None:
    stopped = replace(task(), state=TaskState.STOPPED, ended_at=NOW, progress=Progress(run_id="run"))
    assert domain.restart(stopped, "r", from_scratch=False, max_duration_ms=None, now=NOW).config.resume
    assert not domain.restart(stopped, "r", from_scratch=True, max_duration_ms=None, now=NOW).config.resume


def test_a_restart_carries_no_counter_of_the_former_start_under_its_new_hold() -> None:
    stopped = replace(task(), state=TaskState.STOPPED, ended_at=NOW, progress=Progress(run_id="run", charged_ms=90_000))
    pending = domain.restart(stopped, "again", from_scratch=False, max_duration_ms=None, now=NOW)
    assert (pending.hold_id, pending.progress.charged_ms, pending.cost_micros) == ("t-2", 0, 0)


def test_a_restart_is_not_asked_to_stop_because_the_former_start_was() -> None:
    stopped = replace(task(), state=TaskState.STOPPED, ended_at=NOW, stop_requested=True)
    assert not domain.restart(stopped, "again", from_scratch=False, max_duration_ms=None, now=NOW).stop_requested


def test_a_restart_that_is_granted_starts_with_nothing_of_the_former_start() -> None:
    failed = replace(
        task(), state=TaskState.FAILED, ended_at=NOW, end_reason=EndReason.FAILED, model_id="m", error_message="e"
    )
    pending = domain.restart(failed, "again", from_scratch=False, max_duration_ms=60_000, now=NOW)
    queued = domain.queue(pending, 2, 1, "EUR", NOW)
    assert (queued.model_id, queued.error_message, queued.end_reason, queued.former_state) == ("", "", None, None)
    assert queued.config.max_duration_ms == 60_000


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 10**6)), max_size=30))
def test_snapshots_in_any_order_leave_the_newest(snapshots: list[tuple[int, int]]) -> None:
    followed = queued()
    for revision, charged_ms in snapshots:
        progress = Progress(run_id="run", run_revision=revision, charged_ms=charged_ms)
        followed = domain.follow(
            followed, progress, running=True, charged=True, begun=True, now=NOW + timedelta(seconds=revision)
        )
    positive = [revision for revision, _ in snapshots if revision > 0]
    assert followed.progress.run_revision == max(positive, default=0)
    assert followed.state is (TaskState.TRAINING if positive else TaskState.QUEUED)


def test_the_attempt_that_only_finishes_what_lost_ones_learnt_is_shown_as_not_charged() -> None:
    assert training().charge_status is ChargeStatus.BILLING
    finishing = Progress(run_id="run", run_revision=2)
    free = domain.follow(training(), finishing, running=True, charged=False, begun=True, now=NOW)
    assert (free.state, free.charge_status) == (TaskState.TRAINING, ChargeStatus.NOT_BILLING)


def test_nothing_that_comes_late_moves_a_task_at_rest() -> None:
    ended = domain.end_run(training(), Progress(run_revision=5), EndReason.FAILED, "", "broken", begun=True, now=NOW)
    later = datetime(2030, 1, 1, tzinfo=UTC)
    assert domain.follow(ended, Progress(run_revision=6), running=True, charged=True, begun=True, now=later) == ended
    assert domain.end_run(ended, Progress(run_revision=7), EndReason.COMPLETED, "m", "", begun=True, now=later) == ended
    assert domain.end_evaluation(ended, "e", 0.5, "", later) == ended


def queued() -> Task:
    return domain.queue(task(), 2, 1, "EUR", NOW)


def training() -> Task:
    return domain.follow(
        queued(), Progress(run_id="run", run_revision=1), running=True, charged=True, begun=True, now=NOW
    )
