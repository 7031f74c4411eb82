"""Each line of a statement in figures: a formula that, worked by hand, gives the line's amount in micros.

What somebody decided — a top-up, an adjustment, a refund — has no formula, but its reference, or its reason and author.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from saucer.billing.domain import Hold, HoldState, Transfer
from saucer.billing.ledger import TransferKind
from saucer.billing.metering import HOLD_HOURS
from saucer.lib.money import charge_micros

# What is left to take is the charge less these: what was lost once is not taken later.
_BORNE = (TransferKind.SETTLEMENT, TransferKind.POSTING, TransferKind.LOSS)


def explanations(
    transfers: Sequence[Transfer], holds: Mapping[str, Hold], borne_micros: Mapping[str, int]
) -> list[str]:
    """One for each transfer.

    Args:
        transfers: of one account or one start, in order, none of their holds' left out in between.
        holds: those that the transfers are of, by id.
        borne_micros: what was settled, posted and lost of each before the first transfer, by id.
    """
    borne, found = Counter(borne_micros), []
    for transfer in transfers:
        if transfer.hold_id is None or transfer.kind is TransferKind.REFUND:
            found.append(_decided(transfer))
            continue
        found.append(_formula(transfer, holds[transfer.hold_id], borne[transfer.hold_id]))
        if transfer.kind in _BORNE:
            borne[transfer.hold_id] += transfer.amount_micros
    return found


def _decided(transfer: Transfer) -> str:
    if transfer.reason is not None:
        return f"{transfer.reason} ({transfer.author})"
    return f"reference {transfer.reference}"


def _formula(transfer: Transfer, hold: Hold, borne_micros: int) -> str:
    price, count = hold.price_per_hour_micros, hold.count
    match transfer.kind:
        case TransferKind.HOLD:
            return f"{HOLD_HOURS} h × {price} × {count}"
        case TransferKind.RELEASE:
            return f"{hold.amount_micros} held − {hold.posted_micros} posted"
        case TransferKind.EXPIRY:
            return f"{hold.amount_micros} held, not used in time"
    unpaid = f"floor({price} × {count} × {transfer.charged_ms // 1000} s ÷ 3600) − {borne_micros} taken or lost before"
    unpaid_micros = charge_micros(price, count, transfer.charged_ms) - borne_micros
    return unpaid + _bound(transfer, hold, unpaid_micros)


def _bound(transfer: Transfer, hold: Hold, unpaid_micros: int) -> str:
    """Why a line is not all that was unpaid, or who bears it."""
    if hold.state is HoldState.EXPIRED:
        return ", of a hold that was not used in time"
    if transfer.kind is TransferKind.LOSS:
        return ", which neither hold nor balance covered"
    if transfer.amount_micros == unpaid_micros:
        return ""
    if transfer.kind is TransferKind.POSTING:
        return f", at most the {hold.amount_micros} held"
    # All that was available was taken.
    return f", as far as the balance of {transfer.amount_micros} reaches"
