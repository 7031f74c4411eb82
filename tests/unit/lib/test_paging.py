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


def test_a_token_of_a_list_by_something_else_is_refused() -> None:
    token = read_page(request()).token(["not a time", "id"])
    with pytest.raises(InvalidArgumentError):
        _ = read_page(request(token)).after_moment


def test_a_token_of_a_list_by_time_leads_on_after_it() -> None:
    token = read_page(request()).token(["2026-01-01T00:00:00+00:00", "id"])
    assert read_page(request(token)).after_moment == (datetime(2026, 1, 1, tzinfo=UTC), "id")
    assert read_page(request()).after_moment is None
