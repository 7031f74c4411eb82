"""Double entry: money moves from one book to another, so the sum over all entries is zero, always.

A transfer's two entries follow from its kind and amount, so they are not stored: PostgreSQL shows them in a view.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Book(StrEnum):
    """Where money can be. The first two are an account's own; the others are the platform's side of it."""

    AVAILABLE = "AVAILABLE"
    FROZEN = "FROZEN"
    # What came from outside: negative by as much as was ever topped up.
    CASH = "CASH"
    REVENUE = "REVENUE"
    # What the platform lost: negative by as much as was charged and never paid.
    LOSS = "LOSS"
    # What administrators gave and took to put something right: negative by the sum.
    ADJUSTMENT = "ADJUSTMENT"


class TransferKind(StrEnum):
    """Every way in which money moves."""

    TOP_UP = "TOP_UP"
    HOLD = "HOLD"
    SETTLEMENT = "SETTLEMENT"
    POSTING = "POSTING"
    RELEASE = "RELEASE"
    EXPIRY = "EXPIRY"
    LOSS = "LOSS"
    # Of an adjustment, by its sign.
    CREDIT = "CREDIT"
    DEBIT = "DEBIT"
    REFUND = "REFUND"


# From which book to which each kind moves its amount, as in schema/005_entries_from_transfers.sql.
MOVES: Mapping[TransferKind, tuple[Book, Book]] = {
    TransferKind.TOP_UP: (Book.CASH, Book.AVAILABLE),
    TransferKind.HOLD: (Book.AVAILABLE, Book.FROZEN),
    TransferKind.SETTLEMENT: (Book.AVAILABLE, Book.REVENUE),
    TransferKind.POSTING: (Book.FROZEN, Book.REVENUE),
    TransferKind.RELEASE: (Book.FROZEN, Book.AVAILABLE),
    TransferKind.EXPIRY: (Book.FROZEN, Book.AVAILABLE),
    TransferKind.LOSS: (Book.LOSS, Book.REVENUE),
    TransferKind.CREDIT: (Book.ADJUSTMENT, Book.AVAILABLE),
    TransferKind.DEBIT: (Book.AVAILABLE, Book.ADJUSTMENT),
    TransferKind.REFUND: (Book.REVENUE, Book.AVAILABLE),
}


@dataclass(frozen=True)
class Movement:
    """An amount on its way; more than nothing."""

    kind: TransferKind
    amount_micros: int

    def __post_init__(self) -> None:
        if self.amount_micros <= 0:
            raise ValueError(f"A transfer moves more than nothing, not {self.amount_micros}.")

    def change_of(self, book: Book) -> int:
        """What it adds to a book."""
        source, target = MOVES[self.kind]
        return self.amount_micros * ((book is target) - (book is source))

    @property
    def charged_micros(self) -> int:
        """What it adds to what an account was charged: settled and posted, less refunds."""
        if self.kind is TransferKind.REFUND:
            return -self.amount_micros
        return self.amount_micros if self.kind in (TransferKind.SETTLEMENT, TransferKind.POSTING) else 0
