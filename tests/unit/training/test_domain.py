"""How runs move: by table, and the rules of loss, stop and end."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from saucer.lib.errors import FailedPreconditionError, InvalidArgumentError
from saucer.training import domain
from saucer.training.domain import (
    FINISH_LIMIT,
    FINISH_QUEUE_LIMIT,
    MAX_ATTEMPTS,
    QUEUE_LIMIT,
    STALL_LOST,
    TRANSITIONS,
    Beat,
    Checkpoint,
    EndReason,
    Progress,
    Run,
    RunRequest,
    RunStage,
    RunState,
)
from saucer.training.lease import Lease
from saucer.training.messages import run_message

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REQUEST = RunRequest("r", "a", "t", "name", 1, "h", "local", "cpu", 1, "d", "{}", 600_000, "accounts/a/outputs")
LEASE = Lease("worker", "token", "request", b"salt", None)
SECOND = timedelta(seconds=1)


def queued() -> Run:
    return domain.queue(REQUEST, None, NOW)


def leased(run: Run | None = None) -> Run:
    return domain.lease(run or queued(), LEASE, NOW)


def running(run: Run | None = None, *, iteration: int = 10, checkpoint: int | None = None) -> Run:
    return domain.beat(leased(run), heard(1, iteration=iteration, checkpoint=checkpoint), NOW)


def heard(
    sequence: int,
    stage: RunStage = RunStage.TRAINING,
    *,
    iteration: int = 10,
    checkpoint: int | None = None,
    elapsed_ms: int = 0,
    validated: float = 0.0,
) -> Beat:
    kept = Checkpoint("key", "sha", checkpoint, 1_000) if checkpoint is not None else None
    progress = Progress(stage, iteration=iteration, iterations=100, elapsed_ms=elapsed_ms, validated=validated)
    return Beat(sequence, progress, kept)


def in_state(state: RunState) -> Run:
    made = {
        RunState.QUEUED: queued(),
        RunState.LEASED: leased(),
        RunState.RUNNING: running(),
        RunState.ENDED: domain.end(queued(), EndReason.FAILED, NOW),
    }
    return made[state]


@pytest.mark.parametrize("target", RunState)
@pytest.mark.parametrize("source", RunState)
def test_only_what_the_table_allows_happens(source: RunState, target: RunState) -> None:
    run = in_state(source)
    if target in TRANSITIONS[source]:
        assert domain.move(run, target).state is target
    else:
        with pytest.raises(FailedPreconditionError, match=source):
            domain.move(run, target)


def test_a_stop_ends_a_run_that_nobody_has_at_once_and_uncharged() -> None:
    run = domain.order_stop(queued(), EndReason.STOPPED_BY_USER, 0, NOW)
    assert (run.state, run.end_reason, run.meter.charged_ms) == (RunState.ENDED, EndReason.STOPPED_BY_USER, 0)


@pytest.mark.parametrize("make", [leased, running])
def test_a_stop_of_a_run_at_work_waits_for_its_worker(make: object) -> None:
    run = domain.order_stop(make(), EndReason.ARREARS, 0, NOW)  # type: ignore[operator]
    assert run.must_stop
    assert run.state is not RunState.ENDED


def test_a_stop_at_a_later_counter_holds_once_it_is_reached() -> None:
    run = domain.order_stop(running(), EndReason.ARREARS, 1_500, NOW)
    assert not run.must_stop
    run = domain.beat(run, heard(2, iteration=11), NOW + SECOND)
    assert not run.must_stop
    assert domain.beat(run, heard(3, iteration=12), NOW + 2 * SECOND).must_stop


def test_the_first_order_to_stop_stays() -> None:
    run = domain.order_stop(running(), EndReason.ARREARS, 0, NOW)
    assert domain.order_stop(run, EndReason.STOPPED_BY_USER, 0, NOW).stop_reason is EndReason.ARREARS


def test_a_stopped_run_between_two_workers_is_finished_from_its_checkpoint() -> None:
    lost = domain.lose(running(checkpoint=5), NOW, "gone")
    run = domain.order_stop(lost, EndReason.STOPPED_BY_USER, 0, NOW)
    assert (run.state, run.finish_only) == (RunState.QUEUED, True)


def test_a_stopped_run_whose_worker_is_lost_without_a_checkpoint_ends_without_a_model() -> None:
    run = domain.order_stop(running(), EndReason.ARREARS, 0, NOW)
    lost = domain.lose(run, NOW, "gone")
    assert (lost.state, lost.end_reason, lost.model_id) == (RunState.ENDED, EndReason.ARREARS, None)


def test_a_lost_run_shows_what_its_checkpoint_keeps() -> None:
    lost = domain.lose(running(iteration=40, checkpoint=30), NOW, "gone")
    assert (lost.progress.iteration, lost.progress.elapsed_ms, lost.progress.iterations) == (30, 1_000, 100)
    assert domain.lose(running(iteration=40), NOW, "gone").progress.iteration == 0


def test_of_the_time_left_what_passed_since_the_heartbeat_is_taken() -> None:
    run = running()
    told = replace(run, progress=replace(run.progress, time_left_ms=2_500))
    later = [domain.as_of(told, NOW + number * SECOND).progress.time_left_ms for number in range(4)]
    assert later == [2_500, 1_500, 500, 0]
    assert domain.as_of(run, NOW + SECOND) == run, "nothing is told before the first estimate"


def test_a_lease_that_no_heartbeat_followed_does_not_count_as_lost() -> None:
    run = domain.lose(leased(), NOW + SECOND, "gone")
    assert (run.state, run.lost_attempts, run.queued_at) == (RunState.QUEUED, 0, NOW)


def test_a_released_attempt_does_not_count_as_lost() -> None:
    run = domain.lose(running(), NOW, "stopping", released=True)
    assert (run.state, run.lost_attempts, run.error_message) == (RunState.QUEUED, 0, "")


@pytest.mark.parametrize("checkpoint", [None, 5])
def test_attempts_are_limited_and_what_was_learnt_is_finished_by_one_more(checkpoint: int | None) -> None:
    run = queued()
    for number in range(MAX_ATTEMPTS):
        assert not run.finish_only
        run = domain.lose(running(run, checkpoint=checkpoint), NOW, f"loss {number}")
    if checkpoint is None:
        told = "loss 2. Restart the task; it begins anew."
        assert (run.state, run.end_reason, run.error_message) == (RunState.ENDED, EndReason.FAILED, told)
        return
    assert (run.state, run.finish_only) == (RunState.QUEUED, True)
    finishing = running(run)
    assert domain.reason_of(finishing, EndReason.FAILED) is EndReason.FAILED
    lost = domain.lose(finishing, NOW, "loss 3")
    told = "loss 2. Restart the task; it goes on from iteration 5."
    assert (lost.state, lost.end_reason, lost.error_message) == (RunState.ENDED, EndReason.FAILED, told)


def test_a_users_error_uses_the_attempts_up_and_what_was_learnt_is_finished_at_once() -> None:
    run = domain.lose(running(checkpoint=5), NOW, "nan", user_error=True)
    assert (run.state, run.finish_only, run.ready_at, run.error_message) == (RunState.QUEUED, True, None, "nan")
    assert domain.lose(running(), NOW, "nan", user_error=True).state is RunState.ENDED


@pytest.mark.parametrize(
    ("run", "user_error", "finished", "goes_on"),
    [
        (running(), False, False, True),
        (running(), True, False, False),
        (running(checkpoint=5), True, False, True),
        (domain.lose(running(checkpoint=5), NOW, "nan", user_error=True), True, False, False),
        (domain.lose(running(checkpoint=5), NOW, "nan", user_error=True), False, True, False),
        (domain.lose(running(checkpoint=5), NOW, "nan", user_error=True), False, False, True),
    ],
)
def test_a_failed_attempt_is_followed_by_another_if_that_may_do_better(
    run: Run, user_error: bool, finished: bool, goes_on: bool
) -> None:
    assert domain.goes_on(run, EndReason.FAILED, user_error=user_error, finished=finished) is goes_on
    assert not domain.goes_on(run, EndReason.COMPLETED, user_error=user_error, finished=finished)


def test_the_extra_attempt_is_not_charged() -> None:
    run = replace(queued(), lost_attempts=MAX_ATTEMPTS, checkpoint=Checkpoint("k", "s", 5, 0), started_at=NOW)
    run = running(run)
    for second in range(1, 10):
        run = domain.beat(run, heard(1 + second, RunStage.EXPORTING), NOW + second * SECOND)
    assert (run.meter.charged_ms, run_message(run).uncharged) == (0, True)
    assert not run_message(running()).uncharged


def test_a_restart_goes_on_from_the_former_runs_checkpoint_and_elapsed_time() -> None:
    former = running(iteration=40, checkpoint=30)
    run = domain.queue(replace(REQUEST, run_id="r2", start_number=2), former, NOW)
    assert run.checkpoint == former.checkpoint
    assert (run.progress.iteration, run.progress.elapsed_ms) == (30, 1_000)
    run = domain.beat(domain.lease(run, LEASE, NOW), heard(1, iteration=35), NOW)
    run = domain.beat(run, heard(2, iteration=40), NOW + SECOND)
    assert run.meter.charged_ms == 0
    run = domain.beat(run, heard(3, iteration=41), NOW + 2 * SECOND)
    assert domain.beat(run, heard(4, iteration=42), NOW + 3 * SECOND).meter.charged_ms == 1_000


def test_a_worker_may_give_only_its_own_reasons_or_the_ordered_one() -> None:
    run = running()
    assert domain.reason_of(run, EndReason.ACCURACY_REACHED) is EndReason.ACCURACY_REACHED
    with pytest.raises(InvalidArgumentError):
        domain.reason_of(run, EndReason.ARREARS)
    ordered = domain.order_stop(run, EndReason.ARREARS, 0, NOW)
    assert domain.reason_of(ordered, EndReason.ARREARS) is EndReason.ARREARS
    with pytest.raises(InvalidArgumentError):
        domain.reason_of(ordered, EndReason.STOPPED_BY_USER)


def test_the_max_duration_is_ordered_of_a_worker_that_does_not_see_to_it() -> None:
    run = domain.beat(running(), heard(2, elapsed_ms=REQUEST.max_duration_ms + 50_000), NOW)
    assert not run.must_stop
    run = domain.beat(run, heard(3, elapsed_ms=REQUEST.max_duration_ms + 61_000), NOW)
    assert run.stop_reason is EndReason.DURATION_REACHED


def test_finishing_and_stalls_have_limits() -> None:
    run = domain.beat(running(), heard(2, RunStage.EXPORTING), NOW)
    assert "Finishing" in (domain.overdue(run, NOW + FINISH_LIMIT + SECOND) or "")
    assert domain.overdue(running(), NOW + STALL_LOST) is None
    assert "progress" in (domain.overdue(running(), NOW + STALL_LOST + SECOND) or "")


def test_a_validation_that_gets_further_is_no_stall_and_is_charged_once() -> None:
    minutes = 2 * STALL_LOST // timedelta(minutes=1)
    now, run = NOW, running(iteration=10, checkpoint=10)
    for minute in range(1, minutes + 1):
        for second in range(0, 60, 6):
            now = NOW + timedelta(minutes=minute, seconds=second)
            assert domain.overdue(run, now) is None
            run = domain.beat(run, heard(2, iteration=10, validated=minute / (minutes + 1)), now)
    charged_ms = run.meter.charged_ms
    assert charged_ms > 60_000 * (minutes - 1)

    again = running(domain.lose(run, now, "gone"), iteration=10)
    for second, validated in enumerate((0.5, minutes / (minutes + 1), 0.99), start=1):
        again = domain.beat(again, heard(1 + second, iteration=10, validated=validated), NOW + second * SECOND)
    assert again.meter.charged_ms == charged_ms, "it was validated so far before"
    again = domain.beat(again, heard(5, iteration=11), NOW + 4 * SECOND)
    assert again.meter.charged_ms == charged_ms + 1_000


@pytest.mark.parametrize(
    ("run", "limit", "reason"),
    [
        (queued(), QUEUE_LIMIT, EndReason.WAITED_TOO_LONG),
        (domain.lose(running(checkpoint=5), NOW, "gone"), QUEUE_LIMIT, EndReason.WAITED_TOO_LONG),
        (
            domain.order_stop(domain.lose(running(checkpoint=5), NOW, "gone"), EndReason.STOPPED_BY_USER, 0, NOW),
            FINISH_QUEUE_LIMIT,
            EndReason.STOPPED_BY_USER,
        ),
    ],
)
def test_waiting_has_a_limit_and_a_typed_end(run: Run, limit: timedelta, reason: EndReason) -> None:
    assert not domain.waited_too_long(run, NOW + limit)
    assert domain.waited_too_long(run, NOW + limit + SECOND)
    assert domain.give_up_waiting(run, NOW).end_reason is reason


RESUMES = "Restart the task; it goes on from iteration 5."
NOBODY_FINISHED = "No worker was free within 60 minutes to make a model of what was learnt."


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (queued(), "No worker was free within 24 hours. Restart the task; it begins anew."),
        (domain.lose(running(checkpoint=5), NOW, "gone"), f"No worker was free within 24 hours. {RESUMES}"),
        (
            domain.order_stop(domain.lose(running(checkpoint=5), NOW, "gone"), EndReason.STOPPED_BY_USER, 0, NOW),
            f"{NOBODY_FINISHED} {RESUMES}",
        ),
        (
            domain.lose(running(checkpoint=5), NOW, "Use a lower learning rate.", user_error=True),
            f"Use a lower learning rate. {NOBODY_FINISHED}",
        ),
    ],
)
def test_the_end_of_waiting_says_what_to_do(run: Run, told: str) -> None:
    assert domain.give_up_waiting(run, NOW).error_message == told


def test_a_stopped_run_that_lost_what_it_had_learnt_says_so_and_one_that_only_waited_says_nothing() -> None:
    stopped = domain.order_stop(running(), EndReason.STOPPED_BY_USER, 0, NOW)
    assert domain.lose(stopped, NOW, "Gone.").error_message == "Gone. Restart the task; it begins anew."
    assert domain.lose(stopped, NOW, "The worker was stopped.", released=True).error_message == ""
    between = domain.lose(running(), NOW, "Gone.")
    assert domain.order_stop(between, EndReason.STOPPED_BY_USER, 0, NOW).error_message == ""


@pytest.mark.parametrize(
    ("reason", "model_id", "told"),
    [
        (EndReason.DURATION_REACHED, None, "Allow more."),
        (EndReason.DURATION_REACHED, "m", ""),
        (EndReason.FAILED, "m", "Allow more."),
    ],
)
def test_an_end_without_a_model_keeps_its_message(reason: EndReason, model_id: str | None, told: str) -> None:
    run = replace(running(), error_message="Allow more.")
    assert domain.end(run, reason, NOW, model_id=model_id).error_message == told


def test_a_checkpoint_outside_the_attempts_prefix_is_refused() -> None:
    run = running()
    domain.check_checkpoint(run, Checkpoint(f"{run.artifact_prefix}/c.pth", "s", 1, 1))
    for key in ("accounts/a/c.pth", run.artifact_prefix, run.artifact_prefix + "0/c.pth"):
        with pytest.raises(InvalidArgumentError):
            domain.check_checkpoint(run, Checkpoint(key, "s", 1, 1))


def test_progress_counts_iterations_or_time_whichever_is_further() -> None:
    assert domain.beat(running(), heard(2, iteration=50), NOW).done == pytest.approx(0.02 + 0.92 * 0.5)
    late = domain.beat(running(), heard(2, iteration=1, elapsed_ms=540_000), NOW)
    assert late.done == pytest.approx(0.02 + 0.92 * 0.9)
    assert domain.end(late, EndReason.COMPLETED, NOW).done == 1.0


def test_progress_is_told_each_minute_each_epoch_and_each_stage() -> None:
    before = domain.told(running(), NOW)
    same = domain.beat(before, heard(2, iteration=11), NOW + SECOND)
    assert not domain.tells(before, same, NOW + SECOND)
    assert domain.tells(before, same, NOW + timedelta(seconds=60))
    epoch = replace(same, progress=replace(same.progress, epoch=1.0))
    assert domain.tells(before, epoch, NOW + SECOND)
    stage = domain.beat(before, heard(2, RunStage.EXPORTING), NOW + SECOND)
    assert domain.tells(before, stage, NOW + SECOND)
