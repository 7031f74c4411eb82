"""Page tokens (https://google.aip.dev/158): where the next page begins, bound to the filters they were made with."""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TypeVar

from google.protobuf.message import Message

from saucer.lib.errors import InvalidArgumentError

DEFAULT_PAGE_SIZE = 50
_PAGE_FIELDS = ("page_size", "page_token")

R = TypeVar("R")
T = TypeVar("T")
SortKey = str | int | date | datetime


@dataclass(frozen=True)
class Page:
    """One page to read: rows after a position."""

    size: int
    # Sort key of the last row that was seen; None: from the first.
    after: Sequence[str | int] | None
    filters: str

    # The same by what a list is sorted by. Each raises InvalidArgumentError for a token of a list by something else.

    @property
    def after_moment(self) -> tuple[datetime, str] | None:
        """Of a list by time and id."""
        return self.read_after(lambda moment, identifier: (datetime.fromisoformat(moment), identifier))

    @property
    def after_line(self) -> tuple[tuple[datetime, str] | None, int | None]:
        """Of a list by time and id whose rows have numbered lines: the row, and its last line if more of it follow."""
        found = self.read_after(
            lambda moment, identifier, number=None: (
                (datetime.fromisoformat(moment), identifier),
                None if number is None else int(number),
            )
        )
        return found or (None, None)

    @property
    def after_day(self) -> date | None:
        """Of a list by day."""
        return self.read_after(date.fromisoformat)

    @property
    def after_id(self) -> str | None:
        """Of a list by id."""
        return self.read_after(str)

    @property
    def after_number(self) -> int | None:
        """Of a list by number."""
        return self.read_after(int)

    def read_after(self, read: Callable[..., T]) -> T | None:
        """The parts of the position, as `read` makes something of them; None: from the first."""
        if self.after is None:
            return None
        try:
            return read(*self.after)
        except (TypeError, ValueError) as error:
            raise _not_of_this_list() from error

    @property
    def limit(self) -> int:
        """Rows to read: one more than are shown tells whether a page follows."""
        return self.size + 1

    def cut(self, rows: Sequence[R], key: Callable[[R], Sequence[SortKey]]) -> tuple[Sequence[R], str]:
        """Of up to `limit` rows those that are shown, and the token of the page that follows; empty: none does."""
        shown = rows[: self.size]
        return shown, self.token(key(shown[-1]) if len(rows) > self.size else None)

    def token(self, last: Sequence[SortKey] | None) -> str:
        """Of the page that follows the row with this sort key; empty for None."""
        if last is None:
            return ""
        plain = [part.isoformat() if isinstance(part, date) else part for part in last]
        return base64.urlsafe_b64encode(json.dumps([self.filters, plain]).encode()).decode()


def read_page(request: Message, *, default_size: int = DEFAULT_PAGE_SIZE) -> Page:
    """The page that a List request asks for.

    Raises:
        InvalidArgumentError: the token is not one of ours, or was made with other filters.
    """
    plain = type(request)()
    plain.CopyFrom(request)
    for field in _PAGE_FIELDS:
        plain.ClearField(field)
    # With the list's name: two lists may have the same filters.
    asked = plain.DESCRIPTOR.full_name.encode() + plain.SerializeToString(deterministic=True)
    filters = hashlib.sha256(asked).hexdigest()[:16]
    size = getattr(request, "page_size") or default_size  # noqa: B009 - every List request has it
    token = getattr(request, "page_token")  # noqa: B009 - likewise
    if not token:
        return Page(size, None, filters)
    try:
        made_with, after = json.loads(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError, TypeError) as error:
        raise _not_of_this_list() from error
    if not isinstance(after, list) or not after:
        raise _not_of_this_list()
    if made_with != filters:
        raise InvalidArgumentError("PAGE_TOKEN_INVALID", "page_token: made with other filters.")
    return Page(size, after, filters)


def _not_of_this_list() -> InvalidArgumentError:
    return InvalidArgumentError("PAGE_TOKEN_INVALID", "page_token: not a token of this list.")
