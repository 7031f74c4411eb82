"""Amounts of money, for people."""


def in_words(micros: int, currency: str) -> str:
    """For a sentence: 7.20 EUR, exact."""
    units, rest = divmod(micros, 1_000_000)
    decimals = f"{rest:06d}"
    return f"{units}.{decimals[:2]}{decimals[2:].rstrip('0')} {currency}"
