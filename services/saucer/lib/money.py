"""Amounts of money: what time costs, and how an amount is said to people."""

# Of a hold this much is kept for its end: for what is still counted until an order to stop has reached the work, and
# then for finishing (checkpoint, prediction and export).
FINISH_RESERVE_MS = 600_000
# Until then: billing hears of a counter each minute, and its order takes some seconds.
NOTICE_MS = 75_000
# Of finishing, a start is charged this much at most.
MAX_FINISHING_MS = FINISH_RESERVE_MS - NOTICE_MS


def charge_micros(price_per_hour_micros: int, count: int, charged_ms: int) -> int:
    """floor(price × count × whole seconds ÷ 3600), in micros: what a counter of a start comes to."""
    return price_per_hour_micros * count * (charged_ms // 1000) // 3600


def in_words(micros: int, currency: str) -> str:
    """For a sentence: 7.20 EUR, exact."""
    units, rest = divmod(micros, 1_000_000)
    decimals = f"{rest:06d}"
    return f"{units}.{decimals[:2]}{decimals[2:].rstrip('0')} {currency}"
