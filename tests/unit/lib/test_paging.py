"""Page tokens lead on only in the list that they were made for."""

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.lib.errors import InvalidArgumentError
from saucer.lib.paging import DEFAULT_PAGE_SIZE, read_page
from saucer.training.v1 import training_pb2

TASK = "0192d3a5-0000-7000-8000-000000000000"


def request(page_token: str = "", page_size: int = 0, task_id: str = TASK) -> training_pb2.ListRunsRequest:
    return training_pb2.ListRunsRequest(task_id=task_id, page_size=page_size, page_token=page_token)


@given(last=st.lists(st.integers() | st.text(), min_size=1), size=st.integers(min_value=1, max_value=1000))
def test_a_token_leads_on_after_the_last_row_whatever_the_page_size(last: list[int | str], size: int) -> None:
    token = read_page(request()).token(last)
    page = read_page(request(token, page_size=size))
    assert (page.size, page.after) == (size, last)


def test_a_first_page_has_the_usual_size_and_no_position() -> None:
    page = read_page(request())
    assert (page.size, page.after) == (DEFAULT_PAGE_SIZE, None)
    assert page.token(None) == ""


def test_a_token_of_other_filters_is_refused() -> None:
    token = read_page(request()).token(["x"])
    with pytest.raises(InvalidArgumentError, match="other filters"):
        read_page(request(token, task_id=""))


@pytest.mark.parametrize(
    "token", ["x", "é", base64.urlsafe_b64encode(b"{").decode(), base64.urlsafe_b64encode(b"1").decode()]
)
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        read_page(request(token))
    assert refusal.value.reason == "PAGE_TOKEN_INVALID"


def test_a_token_of_another_list_with_the_same_filters_is_refused() -> None:
    token = read_page(request()).token(["x"])
    with pytest.raises(InvalidArgumentError, match="other filters"):
        read_page(training_pb2.ListModelsRequest(task_id=TASK, page_token=token))


@pytest.mark.parametrize("after", ["after_moment", "after_day", "after_number"])
@pytest.mark.parametrize("last", [["not a time", "id"], ["x"], [], ["2026-01-01", 1, 2]])
def test_a_token_of_a_list_by_something_else_is_refused(after: str, last: list[int | str]) -> None:
    token = read_page(request()).token(last)
    with pytest.raises(InvalidArgumentError) as refusal:
        getattr(read_page(request(token)), after)
    assert refusal.value.reason == "PAGE_TOKEN_INVALID"


@pytest.mark.parametrize(
    ("rows", "shown", "leads_on"), [([], [], False), ([1, 2], [1, 2], False), ([1, 2, 3], [1, 2], True)]
)
def test_a_page_shows_its_size_and_leads_on_after_the_last_row_where_one_more_was_read(
    rows: list[int], shown: list[int], leads_on: bool
) -> None:
    page = read_page(request(page_size=2))
    assert page.limit == 3
    found, following = page.cut(rows, lambda row: (row,))
    assert found == shown
    assert bool(following) is leads_on
    if leads_on:
        assert read_page(request(following)).after_number == 2


def test_a_token_of_a_list_by_time_leads_on_after_it() -> None:
    token = read_page(request()).token(["2026-01-01T00:00:00+00:00", "id"])
    assert read_page(request(token)).after_moment == (datetime(2026, 1, 1, tzinfo=UTC), "id")
    assert read_page(request()).after_moment is None


def test_a_token_of_a_list_by_time_may_lead_on_within_a_row() -> None:
    row = ["2026-01-01T00:00:00+00:00", "id"]
    page = read_page(request())
    after = datetime(2026, 1, 1, tzinfo=UTC), "id"
    assert page.after_line == (None, None)
    assert read_page(request(page.token(row))).after_line == (after, None)
    assert read_page(request(page.token([*row, 7]))).after_line == (after, 7)
    with pytest.raises(InvalidArgumentError):
        _ = read_page(request(page.token([*row, "seventh"]))).after_line
