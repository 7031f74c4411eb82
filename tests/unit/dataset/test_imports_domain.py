"""The states of an import: every pair of the table, and what limits end it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from saucer.dataset.domain import (
    MAX_ATTEMPTS,
    MAX_CRASHES,
    MAX_WAIT,
    Import,
    ImportFailedError,
    ImportRequest,
    ImportState,
    claimed,
    crashed,
    failed,
    given_back,
    may_move,
    queued,
    succeeded,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)
REQUEST = ImportRequest("account", "Shapes", "upload", None, 7)
NEW = queued("import", REQUEST, NOW)
CLAIMED = claimed(NEW, "token", NOW, LATER)
DONE = succeeded(CLAIMED, "version", {}, 3, NOW)
FAILED = failed(CLAIMED, ImportFailedError("NOT_JSON", "It is not JSON."), NOW)

ALLOWED = {
    (None, ImportState.QUEUED),
    (ImportState.QUEUED, ImportState.IMPORTING),
    (ImportState.QUEUED, ImportState.FAILED),
    (ImportState.IMPORTING, ImportState.IMPORTING),
    (ImportState.IMPORTING, ImportState.QUEUED),
    (ImportState.IMPORTING, ImportState.SUCCEEDED),
    (ImportState.IMPORTING, ImportState.FAILED),
}
MOVES: dict[ImportState, Callable[[Import], Import]] = {
    ImportState.IMPORTING: lambda work: claimed(work, "token-2", NOW, LATER),
    ImportState.QUEUED: lambda work: given_back(work, NOW),
    ImportState.SUCCEEDED: lambda work: succeeded(work, "version", {}, 3, NOW),
    ImportState.FAILED: lambda work: failed(work, ImportFailedError("NOT_JSON", "It is not JSON."), NOW),
}


@pytest.mark.parametrize("source", [None, *ImportState])
@pytest.mark.parametrize("target", list(ImportState))
def test_the_table_allows_these_moves_and_no_other(source: ImportState | None, target: ImportState) -> None:
    assert may_move(source, target) == ((source, target) in ALLOWED)


@pytest.mark.parametrize("work", [NEW, CLAIMED, DONE, FAILED], ids=lambda work: str(work.state))
@pytest.mark.parametrize("target", list(ImportState))
def test_no_move_goes_past_the_table(work: Import, target: ImportState) -> None:
    if may_move(work.state, target):
        assert MOVES[target](work).state is target
    else:
        with pytest.raises(ValueError, match=f"from {work.state} to {target}"):
            MOVES[target](work)


def test_only_an_import_in_progress_is_held() -> None:
    assert (CLAIMED.claim_token, CLAIMED.claim_expires_at) == ("token", LATER)
    for work in (NEW, DONE, FAILED, given_back(CLAIMED, NOW)):
        assert (work.claim_token, work.claim_expires_at) == (None, None)


def test_a_claim_that_is_given_back_does_not_count() -> None:
    work = NEW
    for _ in range(3 * MAX_ATTEMPTS):
        work = given_back(claimed(work, "token", NOW, LATER), NOW)
    assert (work.state, work.attempts) == (ImportState.QUEUED, 0)


def test_claims_that_are_lost_with_their_service_end_the_import_at_a_limit() -> None:
    work = NEW
    for _ in range(MAX_ATTEMPTS):
        work = claimed(work, "token", NOW, LATER)
    assert work.state is ImportState.IMPORTING
    ended = claimed(work, "token", NOW, LATER)
    assert (ended.state, ended.error_reason, ended.ended_at) == (ImportState.FAILED, "IMPORT_CRASHED", NOW)


def test_children_that_die_end_the_import_at_a_limit() -> None:
    work = NEW
    for _ in range(MAX_CRASHES - 1):
        work = crashed(claimed(work, "token", NOW, LATER), NOW)
        assert work.state is ImportState.QUEUED
    ended = crashed(claimed(work, "token", NOW, LATER), NOW)
    assert (ended.state, ended.error_reason) == (ImportState.FAILED, "IMPORT_CRASHED")


def test_an_import_that_waited_too_long_fails_when_it_is_looked_at() -> None:
    assert claimed(NEW, "token", NOW + MAX_WAIT, LATER).state is ImportState.IMPORTING
    ended = claimed(NEW, "token", NOW + MAX_WAIT + timedelta(seconds=1), LATER)
    assert (ended.state, ended.error_reason) == (ImportState.FAILED, "WAITED_TOO_LONG")


def test_the_same_request_is_answered_and_any_other_is_not() -> None:
    assert DONE.answers(REQUEST)
    for other in (
        replace(REQUEST, display_name="Other"),
        replace(REQUEST, upload_id=None, store_path="a"),
        replace(REQUEST, split_seed=8),
    ):
        assert not DONE.answers(other)
