"""Page tokens (https://google.aip.dev/158): where the next page begins, bound to the filters they were made with."""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from google.protobuf.message import Message

from saucer.lib.errors import InvalidArgumentError

DEFAULT_PAGE_SIZE = 50
_PAGE_FIELDS = ("page_size", "page_token")


@dataclass(frozen=True)
class Page:
    """One page to read: rows after a position."""

    size: int
    # Sort key of the last row that was seen; None: from the first.
    after: Sequence[str | int] | None
    filters: str

    @property
    def after_moment(self) -> tuple[datetime, str] | None:
        """The same, of a list by time and id. Raises InvalidArgumentError for a token of a list by something else."""
        if self.after is None:
            return None
        try:
            moment, identifier = self.after
            return datetime.fromisoformat(str(moment)), str(identifier)
        except ValueError as error:
            raise InvalidArgumentError("PAGE_TOKEN_INVALID", "page_token: not a token of this list.") from error

    @property
    def after_day(self) -> date | None:
        """The same, of a list by day. Raises InvalidArgumentError for a token of a list by something else."""
        if self.after is None:
            return None
        try:
            (day,) = self.after
            return date.fromisoformat(str(day))
        except ValueError as error:
            raise InvalidArgumentError("PAGE_TOKEN_INVALID", "page_token: not a token of this list.") from error

    def token(self, last: Sequence[str | int] | None) -> str:
        """Of the page that follows the row with this sort key; empty for None."""
        if last is None:
            return ""
        return base64.urlsafe_b64encode(json.dumps([self.filters, list(last)]).encode()).decode()


def read_page(request: Message, *, default_size: int = DEFAULT_PAGE_SIZE) -> Page:
    """The page that a List request asks for.

    Raises:
        InvalidArgumentError: the token is not one of ours, or was made with other filters.
    """
    plain = type(request)()
    plain.CopyFrom(request)
    for field in _PAGE_FIELDS:
        plain.ClearField(field)
    filters = hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()[:16]
    size = getattr(request, "page_size") or default_size  # noqa: B009 - every List request has it
    token = getattr(request, "page_token")  # noqa: B009 - likewise
    if not token:
        return Page(size, None, filters)
    try:
        made_with, after = json.loads(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidArgumentError("PAGE_TOKEN_INVALID", "page_token: not a token of this list.") from error
    if made_with != filters:
        raise InvalidArgumentError("PAGE_TOKEN_INVALID", "page_token: made with other filters.")
    return Page(size, after, filters)
